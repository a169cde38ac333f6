"""The driver of ``spp run``: it walks the list of stages, and has made what is missing of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from jobs.config.run_config import RunConfig
from jobs.dataset.driver import make_index
from jobs.dataset.index import Index
from jobs.dataset.stored import recorded_index
from jobs.errors import RunFailed, UsageError
from jobs.execution.session import RaySession, local_places
from jobs.record.invocation import Invocation
from jobs.record.recording import recorded_run
from jobs.record.stage import Assignment, Context, Stage
from jobs.run.stages import STAGES, foreseen, method_today, recorded_datasets
from jobs.run.timing import RunClock, RunTiming
from jobs.shards.survey import ShardedDataset, Survey, settled, survey_after
from storage.runs import RunRecord, hold, unsettled, write_run

_log = logging.getLogger("spp")


def run(invocation: Invocation, stages: Sequence[str], retry: bool = False) -> tuple[RunRecord, RunTiming]:
    """Do ``stages`` (names of some of ``STAGES``, in order): the run's record with its exit code, and where time went.

    ``retry``: shards in which an image failed are made again, as a new revision that takes over all other rows.

    Raises UsageError if a stage before them is not complete, RunFailed if it had to stop. What was committed stays.
    """
    config, root = invocation.config, invocation.root
    asked = [stage for stage in STAGES if stage.name in stages]
    images = config.dataset.path if any(stage.reads_images(config) for stage in asked) else None
    with recorded_run(invocation) as record, RaySession(config.execution, local_places(root, images)) as session:
        clock = RunClock(session)
        if asked[0] is STAGES[0]:
            index = make_index(invocation, record)
        else:
            index = recorded_index(root, record)
            _check_classes(config.dataset.classes, index, record.name)
        assignment = Assignment(invocation, Context(config, root, index, record), session, retry)
        for note in foreseen(stages, assignment.context):
            _log.warning("note: %s", note)
        for group in _groups(asked, assignment):
            do_stages(assignment, group, asked, clock)
        record.holds = [] if asked[-1] is STAGES[-1] else unsettled(record)
        timing = clock.read()  # before Ray ends
    return record, timing


def _check_classes(classes: Sequence[str] | None, index: Index, run: str) -> None:
    """UsageError if an index holds objects of other classes than the config names today, or none of one of these."""
    known = index.class_names()
    if classes is None or set(classes) == set(known):
        return
    more = sorted(set(known).difference(classes)) or sorted(set(classes).difference(known))
    raise UsageError(
        f"dataset.classes are not those of the index of run {run!r}, which differ in {', '.join(more)}; "
        f"run `spp index` first, or `spp run`"
    )


def _groups(asked: Sequence[Stage], assignment: Assignment) -> Iterator[list[Stage]]:
    """The stages that one loop makes, in order; with those that feed one, asked for or not.

    Before the first of those that read complete datasets, those must be of today's data set and config.
    """
    group: list[Stage] = []
    checked = False
    for number, stage in enumerate(STAGES):
        following = STAGES[number + 1] if number + 1 < len(STAGES) else None
        if stage is STAGES[0] or (stage not in asked and not (stage.feeds_next and following in asked)):
            continue
        if stage.recorded is None and not checked:
            checked = True
            _check_before(stage, asked, assignment)
        group.append(stage)
        if not (stage.feeds_next and following in asked):
            yield group
            group = []


def _check_before(first: Stage, asked: Sequence[Stage], assignment: Assignment) -> None:
    """UsageError, naming the verb, unless what ``first`` reads is of the data set and the config as they are now."""
    context, record = assignment.context, assignment.record
    if not any(stage in asked and stage.recorded is not None and not stage.feeds_next for stage in STAGES):
        _check_features(assignment)
    for stage in _needed(context.config, first):
        name = stage.datasets[-1]
        entry = record.datasets.get(name)
        if stage in asked or entry is None:
            continue
        if method_today(stage, context, name) != entry.method:
            raise UsageError(
                f"{name} of run {record.name!r} are behind what they were made from, or the config has changed "
                f"since; run `spp {stage.name}` first, or `spp run`"
            )


def _check_features(assignment: Assignment) -> None:
    """UsageError unless the recorded features are those of the images and labels that this config names."""
    context, record = assignment.context, assignment.record
    surveys: dict[str, Survey] = {}
    for dataset in recorded_datasets(context):
        found = surveys[dataset.name] = survey_after(context.root, dataset, surveys)
        entry = record.datasets[dataset.name]
        if not found.complete or entry.shards != len(dataset.shards):
            raise UsageError(
                f"{dataset.name} of run {record.name!r} are not those of the data set and splits as they are now; "
                f"run `spp {dataset.stage}` first, or `spp run`"
            )
        if entry.partial and context.config.detect.source == "stored":
            raise UsageError(
                f"run {record.name!r} has no stored features of its test images (it was made with detect.source: "
                f"stream); run `spp extract` first, or `spp run`"
            )


def _needed(config: RunConfig, first: Stage) -> list[Stage]:
    """The stages after extraction whose results ``first`` reads, or what it reads was made from."""
    wanted = set(first.reads(config))
    needed = []
    for stage in reversed(STAGES):
        if stage.name in wanted:
            wanted.update(stage.reads(config))
            needed.append(stage)
    return needed[::-1]


def do_stages(assignment: Assignment, group: Sequence[Stage], asked: Sequence[Stage], clock: RunClock) -> None:
    """Have made what is missing of the datasets of some stages, in one loop; write into the record what is there."""
    record, root = assignment.record, assignment.context.root
    before = dict(record.datasets)
    for stage in group:
        if stage in asked:
            stage.check(assignment)
    sharded = group[0].makers is not None
    planned = _make_shards(assignment, group, asked, clock) if sharded else _make_small(assignment, group[0], clock)
    for stage in group:
        if stage not in asked:
            continue
        result = stage.datasets[-1]
        _drop_older(record, stage, planned)
        if stage.measure is not None and record.complete(result):
            stage.measure(assignment, before.get(result))
    if before != record.datasets:
        write_run(root, record)


def _make_small(assignment: Assignment, stage: Stage, clock: RunClock) -> list[ShardedDataset]:
    """Have a stage make those of its datasets that are missing, one after the other; their entries join the record.

    What is asked for is held from now on, so that no collection takes it away.
    """
    context, record = assignment.context, assignment.record
    assert stage.make is not None
    planned = []
    for dataset in stage.planned(context):
        hold(context.root, record, [f"{name}/{dataset.method}" for name in dataset.names])
        there = survey_after(context.root, dataset, {}, assignment.retry)
        _tell(there)
        if not there.complete:
            with clock.making(stage.name):
                stage.make(assignment, dataset)
        made = settled(context.root, dataset)
        if not made:
            raise RunFailed(f"{stage.name}: {dataset.name} {dataset.method} is gone again; run the same command again")
        record.datasets.update(made)
        context.sharded[dataset.name] = dataset
        planned.append(dataset)
    return planned


def _make_shards(
    assignment: Assignment, group: Sequence[Stage], asked: Sequence[Stage], clock: RunClock
) -> list[ShardedDataset]:
    """Make what is missing of all datasets of ``group``; the shards of those not asked for must be there."""
    context, record, root = assignment.context, assignment.record, assignment.context.root
    surveys: dict[str, Survey] = {}
    of_stage: dict[str, list[Survey]] = {stage.name: [] for stage in group}
    planned: list[tuple[Stage, ShardedDataset]] = []
    for stage in group:
        for dataset in stage.planned(context):
            context.sharded[dataset.name] = dataset
            planned.append((stage, dataset))
    hold(root, record, [f"{name}/{dataset.method}" for _, dataset in planned for name in dataset.names])
    for stage, dataset in planned:
        found = surveys[dataset.name] = survey_after(root, dataset, surveys, assignment.retry)
        _tell(found)
        if stage in asked:
            of_stage[stage.name].append(found)
        elif not found.complete:
            raise UsageError(
                f"{dataset.name} has {len(found.done)} of {len(dataset.shards)} shards; "
                f"run `spp {stage.name}` first, or `spp run --until {asked[-1].name}`"
            )
    chosen = [found for stage in group for found in of_stage[stage.name]]
    todo = not all(found.complete for found in chosen)
    for stage in group:
        if stage in asked and stage.recorded is not None:
            _begin(record, stage, [found.dataset for found in of_stage[stage.name]], todo)
    if todo:
        write_run(root, record)
    interrupted = False
    try:
        if todo:
            from jobs.shards.make import make_shards  # Ray, of which a run with nothing to do has no use

            makers = []
            with clock.making(group[-1].name) as phases:
                for stage in group:
                    mine = of_stage[stage.name]
                    if stage.makers is not None and not all(found.complete for found in mine):
                        makers += stage.makers(assignment, mine)
                phases.update(make_shards(assignment.invocation, makers, surveys))
    except KeyboardInterrupt:
        interrupted = True  # the record is written at once: there may be seconds before SIGKILL
        raise
    finally:
        for found in () if interrupted else chosen:
            record.datasets.update(settled(root, found.dataset))
        if todo:
            write_run(root, record)
    return [found.dataset for found in chosen]


def _tell(found: Survey) -> None:
    dataset = found.dataset
    told = dataset.stage, dataset.name, dataset.method, len(found.done), len(dataset.shards)
    _log.debug("%s: %s %s: %d of %d shards are there", *told)


def _begin(record: RunRecord, stage: Stage, planned: Sequence[ShardedDataset], todo: bool) -> None:
    """Say what is being made, if something is. What an earlier command made by another method is not this run's."""
    methods = {dataset.method for dataset in planned}
    for name in stage.datasets:
        if name in record.datasets and record.datasets[name].method not in methods:
            del record.datasets[name]
    for dataset in planned if todo else ():
        for name in dataset.names:
            record.datasets[name] = dataset.entry()


def _drop_older(record: RunRecord, stage: Stage, planned: Sequence[ShardedDataset]) -> None:
    """What the stage makes in another way now stays the run's own only while it is of the same method and images."""
    made = {name for dataset in planned for name in dataset.names}
    kept = {(entry.method, entry.manifest) for name, entry in record.datasets.items() if name in made}
    for name in stage.datasets:
        entry = record.datasets.get(name)
        if entry is None or name in made:
            continue
        if entry.manifest is not None and (entry.method, entry.manifest) not in kept:
            del record.datasets[name]
