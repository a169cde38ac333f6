"""gc, forget and repair: what a root holds that no run needs, or that is damaged.

spp gc --root /data/spp            # shows
spp gc --root /data/spp --yes      # deletes
spp repair --root /data/spp        # shows
spp repair --root /data/spp --yes  # deletes
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.console.tables import in_bytes, print_json, print_table
from jobs.record.combination import combined_runs
from storage.garbage import Holding, collect, plan_collection
from storage.repair import plan_repair
from storage.repair import repair as drop
from storage.root import Root, StorageError
from storage.runs import check_known, forget_run, read_run, run_names


@dataclass(frozen=True)
class _Size:
    files: int
    bytes: int


def gc(root: Root, grace_hours: float, yes: bool, as_json: bool) -> int:
    """Show, and with ``yes`` delete, what no run of ``root`` refers to."""
    found = plan_collection(root, 3600 * grace_hours)
    shown = [holding for holding in found.holdings if holding.garbage]
    rows = []
    for holding in shown:
        kept, gone = _sizes(holding)
        needed = ", ".join(dict.fromkeys(holding.runs)) or "no run"
        rows.append(
            (holding.dataset, holding.method, needed, in_bytes(kept.bytes), str(gone.files), in_bytes(gone.bytes))
        )
    if rows:
        print_table(("dataset", "method", "needed by", "kept", "files to delete", "bytes to delete"), rows, 3)
    for note in found.notes:
        print(f"note: {note}")
    total = _Size(len(found.garbage), sum(file.bytes for file in found.garbage))
    if not total.files:
        print("nothing to delete")
    elif yes:
        for holding, (files, size) in zip(found.holdings, collect(root, found), strict=True):
            if files:
                print(f"deleted {files} files of {holding.dataset} {holding.method}, {in_bytes(size)}", flush=True)
    else:
        print(f"{total.files} files, {in_bytes(total.bytes)}: --yes deletes them")
    datasets = [
        {
            "dataset": holding.dataset,
            "method": holding.method,
            "runs": list(dict.fromkeys(holding.runs)),
            "kept": vars(_sizes(holding)[0]),
            "garbage": vars(_sizes(holding)[1]),
        }
        for holding in found.holdings
    ]
    print_json(as_json, {"root": root.url, "deleted": yes, "datasets": datasets, "notes": found.notes})
    return 0


def forget(root: Root, name: str, as_json: bool) -> int:
    """Drop a run's record. What only it needs is garbage from then on."""
    check_known(root, name)
    try:
        running = read_run(root, name).status == "running"
    except StorageError as error:
        running = False
        print(f"note: its record could not be read: {error}")
    combinations = []
    for other in run_names(root):
        try:
            if other != name and name in (combined_runs(read_run(root, other)) or ()):
                combinations.append(other)
        except StorageError as error:
            print(f"note: whether run {other!r} combines it is not known: {error}")
    forget_run(root, name)
    print(f"run {name} is forgotten; `spp gc` shows what no run needs any more")
    if running:
        print("note: it said that it was running; if it is, what it makes is no longer safe from `spp gc`")
    for other in combinations:
        print(f"note: run {other!r} combines it; its results stay, but it cannot be made again")
    print_json(as_json, {"root": root.url, "forgotten": name, "combinations": combinations})
    return 0


def repair(root: Root, run: str | None, yes: bool, as_json: bool) -> int:
    """Show, and with ``yes`` drop, what is damaged of a run, or of all."""
    if run is not None:
        check_known(root, run)
    found = plan_repair(root, run)
    for problem in found.problems:
        print(problem.text)
    for name, datasets in found.incomplete.items():
        print(f"run {name}: {', '.join(datasets)} will not be complete, until its command is given again")
    if not found.drops:
        print("nothing is damaged")
    elif yes:
        drop(root, found)
        if any(key.startswith("runs/") for key in found.drops):
            print(
                "note: give the commands of runs whose records went again before `spp gc`, which keeps what runs need"
            )
        print(f"dropped {len(found.drops)} files; the next `spp run` of each run makes anew what is missing")
    else:
        print(f"{len(found.drops)} files to drop: --yes drops them, and the next `spp run` makes them anew")
    problems = [{"text": problem.text, "drops": list(problem.drops)} for problem in found.problems]
    values = {"problems": problems, "drops": found.drops, "incomplete": found.incomplete}
    print_json(as_json, {"root": root.url, "dropped": yes, **values})
    return 0


def _sizes(holding: Holding) -> tuple[_Size, _Size]:
    kept, gone = holding.kept, holding.garbage
    return _Size(len(kept), sum(f.bytes for f in kept)), _Size(len(gone), sum(f.bytes for f in gone))
