"""What no run refers to: files that may go.

Every run is a root of the search. A complete dataset of a run needs the manifest that its record names and the commits
in it; one that is not complete, or that the run says it works on, may need anything of its method. All else in the
datasets' folders is garbage once it is older than a cutoff: losing attempts, shards of a data set as it once was, what
forgotten runs made, the temporary files of a writer that was killed. Files that this package did not name are never
touched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from storage.manifest import manifest_key, read_manifest
from storage.root import Root, StorageError, StoredFile
from storage.runs import RunRecord, read_run, run_names
from storage.schemas import DATASETS

_FILE = re.compile(
    r"(?P<method>[0-9a-f]{12})/(?:(?:data|commit)/[0-9a-f]+\.r\d+\.[0-9a-z-]+\.(?:parquet|json)"
    r"|part/[0-9a-f]+\.[0-9a-f]+\.[0-9a-z-]+\.parquet"
    r"|manifest/[0-9a-f]{12}\.parquet|(?:segment/[0-9a-f]{32}\.parquet|progress\.json|ray-train/.+))"
)
_TEMPORARY = re.compile(r"(?:(?P<method>[0-9a-f]{12})/(?:data|commit|manifest|segment|part)/)?\..+\.[0-9a-f]{8}\.tmp")
"""What ``Root.staged`` leaves behind when its process is killed."""

_CLOCKS_DIFFER = 3600.0
"""Seconds by which the clock of a driver, who says when a run has begun, may be ahead of the store's."""


@dataclass
class Holding:
    """The files of one dataset and method: those that are kept, and those that may go; ``runs`` need the former."""

    dataset: str
    method: str
    runs: list[str] = field(default_factory=list)
    kept: list[StoredFile] = field(default_factory=list)
    garbage: list[StoredFile] = field(default_factory=list)


@dataclass(frozen=True)
class GarbagePlan:
    """What a collection would delete. ``notes``: why some of it is kept for now."""

    holdings: tuple[Holding, ...]
    notes: tuple[str, ...]

    @property
    def garbage(self) -> list[StoredFile]:
        """All files that may go."""
        return [file for holding in self.holdings for file in holding.garbage]


class _Needs:
    """What the runs of a root need of one dataset and method."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.whole = False
        self.stems: set[str] = set()
        self.manifests: set[str] = set()


def plan_collection(root: Root, grace: float) -> GarbagePlan:
    """What may be deleted: what no run refers to and is older than ``grace`` seconds, by the store's own clock.

    Nothing that is younger than the oldest run which says that it is running counts as garbage: it may be in hand.
    """
    listed = {dataset: list(root.files(dataset)) for dataset in DATASETS}  # before the runs, which may grow meanwhile
    if not any(listed.values()):
        return GarbagePlan((), ())
    records = [read_run(root, name) for name in run_names(root)]
    cutoff, notes = _cutoff(records, root.now() - grace)
    needs = _needs(root, records, notes)
    holdings = []
    for dataset, files in listed.items():
        found: dict[str, Holding] = {}
        for file in files:
            name = file.key.removeprefix(f"{dataset}/")
            ours = _FILE.fullmatch(name)
            matched = ours or _TEMPORARY.fullmatch(name)
            if matched is None:
                continue
            method = matched["method"] or ""
            needed = needs.get((dataset, method))
            holding = found.setdefault(method, Holding(dataset, method, needed.runs if needed else []))
            keep = file.modified >= cutoff or (ours is not None and needed is not None and _is_needed(needed, file.key))
            (holding.kept if keep else holding.garbage).append(file)
        holdings += [found[method] for method in sorted(found)]
    return GarbagePlan(tuple(holdings), tuple(notes))


def collect(root: Root, plan: GarbagePlan) -> Iterator[tuple[int, int]]:
    """Delete the garbage; gives files and bytes, holding by holding.

    Runs are asked once more before each: what one has begun to need meanwhile stays. Commits go first: without them
    nobody looks for the data, however this ends. StorageError if the store keeps what it was told to delete.
    """
    before: dict[str, bytes] | None = None
    needs: dict[tuple[str, str], _Needs] = {}
    for holding in plan.holdings:
        if not holding.garbage:
            yield 0, 0
            continue
        today = {name: root.read(f"runs/{name}.json") for name in run_names(root)}
        if today != before:
            needs, before = _needs(root, [read_run(root, name) for name in today], []), today
        needed = needs.get((holding.dataset, holding.method))
        files = [file for file in holding.garbage if needed is None or not _is_needed(needed, file.key)]
        root.delete_many([file.key for file in files if "/commit/" in file.key])
        root.delete_many([file.key for file in files if "/commit/" not in file.key])
        folder = f"{holding.dataset}/{holding.method}".rstrip("/")
        left = {file.key for file in root.files(folder)}.intersection(file.key for file in files)
        if left:
            raise StorageError(
                f"the store keeps {len(left)} of {len(files)} files of {folder}, among them {min(left)}: may this user "
                f"delete there?"
            )
        if not holding.kept and holding.method:
            root.drop_empty_folders(folder)
        yield len(files), sum(file.bytes for file in files)


def _cutoff(records: Sequence[RunRecord], latest: float) -> tuple[float, list[str]]:
    notes = []
    for record in records:
        if record.status != "running" or not record.started:
            continue
        started = datetime.fromisoformat(record.started).timestamp() - _CLOCKS_DIFFER
        latest = min(latest, started)
        notes.append(
            f"run {record.name!r} says that it is running since {record.started}: nothing younger is deleted. "
            f"If it was killed, give its command again, or `spp forget {record.name}`"
        )
    return latest, notes


def _needs(root: Root, records: Sequence[RunRecord], notes: list[str]) -> dict[tuple[str, str], _Needs]:
    needs: dict[tuple[str, str], _Needs] = defaultdict(_Needs)
    for record in records:
        for hold in record.holds:
            dataset, method = hold.split("/")
            needs[dataset, method].whole = True
            needs[dataset, method].runs.append(record.name)
        for dataset, entry in record.datasets.items():
            needed = needs[dataset, entry.method]
            needed.runs.append(record.name)
            if entry.manifest is None:
                needed.whole = True
                continue
            key = manifest_key(dataset, entry.method, entry.manifest)
            if key in needed.manifests:
                continue
            try:
                manifest = read_manifest(root, dataset, entry.method, entry.manifest)
            except StorageError as error:
                needed.whole = True
                notes.append(f"run {record.name!r}: {error}; all of that method is kept")
                continue
            needed.manifests.add(key)
            needed.stems.update(name.stem for name in manifest.names)
    return needs


def _is_needed(needed: _Needs, key: str) -> bool:
    """Whether a run needs one of our files. What lies beside commits and manifests goes with the method as a whole.

    A part is needed by none that is complete: it was left by an attempt that was killed, or came too late.
    """
    kind, _, name = key.split("/", 2)[2].partition("/")
    if needed.whole or kind not in ("data", "commit", "manifest", "part"):
        return True
    return key in needed.manifests if kind == "manifest" else name.rsplit(".", 1)[0] in needed.stems
