"""Repair: dropping what is damaged, so that the next run makes it anew.

A shard whose data or commit is damaged goes as a whole, and with it the manifests that name it: what says that a
dataset is complete must not outlive a part of it. Everything else stays, as do the method ids; so the same command
finds the rest made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from storage.check import Problem, check_dataset, check_shards
from storage.commits import commit_key, winners
from storage.damage import DamagedFileError
from storage.manifest import manifest_key, read_manifest
from storage.root import Root, StorageError
from storage.runs import RunRecord, read_run, record_key, run_names, write_run
from storage.schemas import DATASETS


@dataclass
class Repair:
    """What a repair of a root would do.

    ``problems``: all that is wrong. ``drops``: the files to delete, commits first: without them nobody looks for the
    data. ``incomplete``: run to those of its datasets that are not complete then.
    """

    problems: list[Problem] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    incomplete: dict[str, list[str]] = field(default_factory=dict)


def plan_repair(root: Root, run: str | None = None) -> Repair:
    """Re-read every committed file of a run, or of all runs, and say what is damaged. Nothing is written.

    If a run's record is damaged, nobody knows what it had: then all that is committed is read.
    """
    found = Repair()
    records = []
    lost = False
    for name in run_names(root) if run is None else [run]:
        try:
            records.append(read_run(root, name))
        except DamagedFileError as error:
            lost = True
            found.problems.append(Problem(str(error), (record_key(name),)))
        except StorageError as error:  # of a newer version
            found.problems.append(Problem(str(error)))
    found.problems += _problems(root, records, lost)
    dropped = dict.fromkeys(key for problem in found.problems for key in problem.drops)
    dropped.update(dict.fromkeys(_of_the_same_shards(root, list(dropped))))
    for record in records if run is None else _readable(root):
        for dataset, entry in record.datasets.items():
            if entry.manifest is None:
                continue
            key = manifest_key(dataset, entry.method, entry.manifest)
            if key not in dropped and _names_one_of(root, dataset, entry.method, entry.manifest, dropped.keys()):
                dropped[key] = None
            if key in dropped:
                found.incomplete.setdefault(record.name, []).append(dataset)
    found.drops = sorted(dropped, key=lambda key: "/commit/" not in key)
    return found


def repair(root: Root, plan: Repair) -> None:
    """Delete the files of a plan, and write into the runs' records what is not complete any more.

    StorageError, with nothing done, if one of these runs says that it is running: it would write its record back.
    """
    records = {name: read_run(root, name) for name in plan.incomplete}
    for name, record in records.items():
        if record.status == "running":
            raise StorageError(
                f"run {name!r} says that it is running since {record.started}; if it was killed, give its command "
                f"again, which then says how it ended, or `spp forget {name}`"
            )
    for name, datasets in plan.incomplete.items():
        record = records[name]
        for dataset in datasets:
            entry = record.datasets[dataset]
            record.datasets[dataset] = entry.model_copy(update={"manifest": None, "manifest_sha256": ""})
        write_run(root, record)
    for key in plan.drops:
        root.delete_if_there(key)


def _problems(root: Root, records: Sequence[RunRecord], lost: bool) -> Iterator[Problem]:
    """Every problem once, though runs share datasets."""
    told: set[str] = set()
    seen: set[tuple[str, str, str | None, str]] = set()
    held = {tuple(hold.split("/")) for record in records for hold in record.holds}
    for record in records:
        for dataset, entry in record.datasets.items():
            known = dataset, entry.method, entry.manifest, entry.manifest_sha256
            if known in seen:
                continue
            seen.add(known)
            for problem in check_dataset(root, record, dataset):
                if problem.drops and problem.text not in told:
                    told.add(problem.text)
                    yield problem
    whole = {(dataset, method) for dataset, method, manifest, _ in seen if manifest is None}
    if lost:
        held = {(dataset, method) for dataset in DATASETS for method in root.names(dataset)}
    for dataset, method in sorted(held | whole):  # what a run has adopted, or would: shards, and manifests of them
        names = [] if (dataset, method) in whole else sorted(winners(root, dataset, method).values())
        for problem in (*check_shards(root, dataset, method, names), *_damaged_manifests(root, dataset, method)):
            if problem.drops and problem.text not in told:
                told.add(problem.text)
                yield problem


def _damaged_manifests(root: Root, dataset: str, method: str) -> Iterator[Problem]:
    for name in root.names(f"{dataset}/{method}/manifest"):
        ident = name.removesuffix(".parquet")
        try:
            read_manifest(root, dataset, method, ident)
        except DamagedFileError as error:
            yield Problem(str(error), (manifest_key(dataset, method, ident),))
        except StorageError:
            continue  # of a newer version


def _of_the_same_shards(root: Root, dropped: Sequence[str]) -> Iterator[str]:
    """Every revision and attempt of the shards whose commits are dropped: an older one must not count again."""
    shards: dict[str, set[str]] = {}
    for key in dropped:
        folder, _, name = key.rpartition("/")
        if folder.endswith("/commit"):
            shards.setdefault(folder.removesuffix("/commit"), set()).add(name.partition(".")[0])
    for method, lost in shards.items():
        for kind in ("commit", "data"):
            names = root.names(f"{method}/{kind}")
            yield from (f"{method}/{kind}/{name}" for name in names if name.partition(".")[0] in lost)


def _readable(root: Root) -> Iterator[RunRecord]:
    for name in run_names(root):
        try:
            yield read_run(root, name)
        except StorageError:
            continue  # damaged and not asked for, or of a newer version


def _names_one_of(root: Root, dataset: str, method: str, manifest: str, dropped: Collection[str]) -> bool:
    try:
        names = read_manifest(root, dataset, method, manifest).names
    except StorageError:
        return False
    return any(commit_key(dataset, method, name) in dropped for name in names)
