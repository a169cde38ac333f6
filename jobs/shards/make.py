"""The one way to make datasets shard by shard: committed shards are kept, the others made, by one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.errors import RunFailed
from jobs.record.invocation import Invocation
from jobs.shards.attempt import ShardAttempt, Trial
from jobs.shards.crews import ActorCrew, Crew
from jobs.shards.loop import ShardLoop, Work
from jobs.shards.progress import ProgressReport
from jobs.shards.prometheus import RunMetrics
from jobs.shards.segments import Bookkeeper
from jobs.shards.survey import ShardedDataset, Survey, settled, survey
from storage.commits import CommitName
from storage.root import Root
from storage.runs import DatasetRecord
from storage.shards import Shard


@dataclass(frozen=True)
class ShardMaker:
    """How the missing shards of a dataset are made.

    ``crews``: who works, by the name that ``works`` use, the first served first; one is called for if it has work.
    """

    survey: Survey
    works: Callable[[Survey], Iterable[Work]]
    crews: Mapping[str, Callable[[], Crew]]


def make_shards(
    invocation: Invocation, makers: Sequence[ShardMaker], upstream: Mapping[str, Survey] | None = None
) -> Mapping[str, float]:
    """Make what is missing; returns the workers' seconds by phase.

    ``upstream``: surveys of datasets that are read, and made by nobody here.

    Raises RunFailed if it has to stop; what is committed stays.
    """
    surveys = {**(upstream or {}), **{maker.survey.dataset.name: maker.survey for maker in makers}}
    works = [work for maker in makers if maker.survey.todo for work in maker.works(maker.survey)]
    if not works:
        return {}
    done = {(name, key): commit for name, found in surveys.items() for key, commit in found.done.items()}
    totals = {maker.survey.dataset.name: maker.survey.dataset.images for maker in makers}
    before = {name: totals[name] - sum(work.images for work in works if work.dataset == name) for name in totals}
    execution = invocation.config.execution
    wanted = {name: start for maker in makers for name, start in maker.crews.items()}
    with ProgressReport(totals, before, execution.progress_seconds) as progress:
        crews = {
            name: start()
            for name, start in wanted.items()
            if any(name in (work.stage, work.otherwise) for work in works)
        }
        actors = [crew for crew in crews.values() if isinstance(crew, ActorCrew)]
        if actors:
            progress.devices = lambda: sum(crew.images_at_once * crew.actors() for crew in actors)
        listeners = (progress, RunMetrics(invocation.name), Bookkeeper(invocation.root))
        ShardLoop(crews, execution, listeners, done).run(works)
    return progress.seconds


def works_on(root: Root, crew: str, make: Callable[[Shard, ShardAttempt], Any], found: Survey) -> Iterator[Work]:
    """Work on each missing shard of a dataset that reads no other shard by shard.

    ``make``: from a shard, and what every worker is told of it, to what ``crew`` is given.
    """
    name = found.dataset.name
    attempt = partial(ShardAttempt, root=root, method=found.dataset.method)
    for shard, revision in found.todo:
        trial = Trial(earlier={name: found.earlier[shard.key]} if shard.key in found.earlier else {})
        yield Work(
            stage=crew,
            dataset=name,
            shard=shard.key,
            image_ids=shard.image_ids,
            make=partial(_given, make, shard, partial(attempt, shard=shard.key, revision=revision)),
            trial=trial,
        )


def make_dataset(
    invocation: Invocation,
    dataset: ShardedDataset,
    crew: str,
    start: Callable[[], Crew],
    make: Callable[[Shard, ShardAttempt], Any],
    *,
    retry: bool = False,
) -> DatasetRecord:
    """Make what is missing of one dataset; ``retry``: shards in which an image failed as well."""
    root: Root = invocation.root
    found = survey(root, dataset, retry=retry)
    make_shards(invocation, [ShardMaker(found, partial(works_on, root, crew, make), {crew: start})])
    made = settled(root, dataset)
    if dataset.name not in made:
        raise RunFailed(f"{dataset.stage}: shards of {dataset.name} are gone again; run the same command again")
    return made[dataset.name]


def _given(
    make: Callable[[Shard, ShardAttempt], Any],
    shard: Shard,
    attempt: Callable[..., ShardAttempt],
    _: CommitName | None,
    trial: Trial,
) -> Any:
    return make(shard, attempt(trial=trial))
