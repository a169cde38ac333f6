"""What the stages after extraction share that work shard by shard: committed shards are kept, the others made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.record.invocation import Invocation
from jobs.record.publish import entry_of
from jobs.shards.attempt import Trial
from jobs.shards.crews import ActorCrew, Crew
from jobs.shards.loop import ShardLoop, Work
from jobs.shards.progress import ProgressReport
from jobs.shards.prometheus import RunMetrics
from jobs.shards.segments import Bookkeeper
from storage.commits import CommitName, read_commits, winners
from storage.manifest import fold
from storage.root import Root
from storage.runs import DatasetRecord
from storage.shards import Shard

MakeWork = Callable[[Shard, int, Trial], Any]
"""From a shard, the revision to write and what is different about the attempt to what a crew is given."""


@dataclass(frozen=True)
class ShardedDataset:
    """A dataset to make: its shards, and how the work on one is described to the crew."""

    name: str
    method: str
    shards: Sequence[Shard]
    make: MakeWork


def make_shards(
    invocation: Invocation,
    stage: str,
    datasets: Sequence[ShardedDataset],
    crew: Callable[[], Crew],
    retry: bool = False,
) -> dict[str, DatasetRecord]:
    """Make what is missing of ``datasets``, by one crew, which is only called for if something is.

    ``retry``: shards in which an image failed are made again, as a new revision.
    """
    root = invocation.root
    done: dict[tuple[str, str], CommitName] = {}
    works = []
    for dataset in datasets:
        there = winners(root, dataset.name, dataset.method)
        revisions = _again(root, dataset, there) if retry else {}
        for shard in dataset.shards:
            if shard.key in there and shard.key not in revisions:
                done[dataset.name, shard.key] = there[shard.key]
                continue
            make = partial(_attempt, dataset.make, shard, revisions.get(shard.key, 0))
            works.append(Work(stage, dataset.name, shard.key, shard.image_ids, make))
    if works:
        totals = {d.name: sum(w.images for w in works if w.dataset == d.name) for d in datasets}
        totals = {name: images for name, images in totals.items() if images}
        execution = invocation.config.execution
        with ProgressReport(totals, dict.fromkeys(totals, 0), execution.progress_seconds) as progress:
            made = crew()
            if isinstance(made, ActorCrew):
                progress.devices = made.actors
            metrics = RunMetrics(invocation.name)
            ShardLoop({stage: made}, execution, (progress, metrics, Bookkeeper(root)), done).run(works)
    return {d.name: _entry(root, stage, d, done) for d in datasets}


def _attempt(make: MakeWork, shard: Shard, revision: int, _: CommitName | None, trial: Trial) -> Any:
    return make(shard, revision, trial)


def _again(root: Root, dataset: ShardedDataset, there: Mapping[str, CommitName]) -> dict[str, int]:
    """Shards in which an image failed, and the revision to make them as."""
    keys = {shard.key for shard in dataset.shards}
    names = [name for key, name in there.items() if key in keys]
    commits = read_commits(root, dataset.name, dataset.method, names)
    return {commit.shard: commit.revision + 1 for commit in commits if commit.failed}


def _entry(
    root: Root, stage: str, dataset: ShardedDataset, done: Mapping[tuple[str, str], CommitName]
) -> DatasetRecord:
    names = [done[dataset.name, shard.key] for shard in dataset.shards]
    return entry_of(stage, fold(root, dataset.name, dataset.method, names))
