"""plan: what ``spp run`` would do, and what that should cost. Writes nothing, starts no Ray.

spp plan --config configs/raccoon_kangaroo.yaml --root /data/spp
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.console.grid import Grid, Rows, Tables
from jobs.console.tables import in_bytes, in_seconds, in_time
from jobs.dataset.index import committed_index, index_method, index_of, read_index, tile_shards
from jobs.features.body import engine_note, identify_body
from jobs.features.gain import gain, processor_flags
from jobs.record.invocation import Invocation
from jobs.record.stage import Context, Stage
from jobs.run.forecast import Forecast, forecast
from jobs.run.stages import STAGES, foreseen, stages_until
from jobs.shards.survey import ShardedDataset, Survey, survey_after
from storage.commits import Commit, CommitName, read_commits, winners
from storage.manifest import manifest_digest
from storage.root import Root, StorageError
from storage.runs import DatasetRecord, RunRecord

_log = logging.getLogger("spp")

_SAMPLE = 16
"""Commits that are read to learn what an image costs."""

_COMPRESSED = 0.5
"""Share that zstd leaves of feature vectors, where nothing has been measured yet (research: 0.30 to 0.53)."""


_OF_A_PASS = ("decode", "conv", "transfer")
"""Phases that an image takes only if it passes the body."""


@dataclass(frozen=True, kw_only=True)
class PlannedDataset:
    """What is there and to do of one dataset.

    ``bytes`` and ``seconds`` are expected for what is to do: from the commits of this method, else of another method
    of the dataset, else (bytes only) from the sizes; ``seconds`` are of one worker, ``phases`` their parts. ``passes``:
    how often an image is expected to pass the body for it, as often per image as for those that are there.
    """

    stage: str
    dataset: str
    method: str
    shards: int
    shards_done: int
    images_to_do: int
    bytes: int | None = None
    seconds: float | None = None
    phases: dict[str, float] | None = None
    passes: int | None = 0


def plan(invocation: Invocation, stages: Sequence[str]) -> list[PlannedDataset]:
    """One entry per dataset of ``stages``, in order."""
    config, root = invocation.config, invocation.root
    method = index_method(config.dataset)
    rows = list(read_index(config.dataset, config.execution.index_threads))
    there = committed_index(root, method)
    planned = []
    for table in ("images", "objects"):
        keys = dict.fromkeys(tile_shards(tile)[table] for tile in rows)
        left = [tile for tile in rows if tile_shards(tile)[table] not in there[table]]
        images = sum(len(tile.images) for tile in left)
        planned.append(
            PlannedDataset(
                stage="index",
                dataset=table,
                method=method,
                shards=len(keys),
                shards_done=len(keys) - len(left),
                images_to_do=images,
            )
        )
    context = Context(config, root, index_of(rows), RunRecord(name=invocation.name))
    for note in foreseen(stages, context):
        _log.warning("note: %s", note)
    context.record.datasets["images"] = DatasetRecord(stage="index", method=method)
    surveys: dict[str, Survey] = {}
    for stage in STAGES:
        if stage.name in stages or (stage.feeds_next and not set(stages) <= {"index"}):
            planned += _of_stage(stage, context, surveys)
    return planned


def _of_stage(stage: Stage, context: Context, surveys: dict[str, Survey]) -> list[PlannedDataset]:
    """A stage's datasets. Their method ids are not known before what is upstream of them is there."""
    incomplete = False
    own: dict[str, Survey] = {}
    try:
        for dataset in stage.planned(context):
            context.sharded[dataset.name] = dataset
            found = surveys[dataset.name] = own[dataset.name] = survey_after(context.root, dataset, surveys)
            if found.complete:
                entry = dataset.entry()
                entry.manifest = manifest_digest(found.done.values())
                context.record.datasets.update(dict.fromkeys(dataset.names, entry))
    except StorageError:
        incomplete = True
    planned = list(_expected(stage, context, own))
    if incomplete:
        there = {entry.dataset for entry in planned}.union(stage.left_out(context.config))
        images = len(stage.images(context))
        planned += [
            PlannedDataset(
                stage=stage.name,
                dataset=name,
                method="?",
                shards=1,
                shards_done=0,
                images_to_do=images,
                passes=stage.passing(context, {}).get(name, 0),
            )
            for name in stage.datasets
            if name not in there
        ]
    return planned


def _expected(stage: Stage, context: Context, surveys: Mapping[str, Survey]) -> Iterator[PlannedDataset]:
    """What is there and to do of some of a stage's datasets, and what that should cost."""
    if not surveys:
        return
    passing = stage.passing(context, surveys)
    samples = {
        name: _sample(context.root, name, found.dataset.method)
        for name, found in surveys.items()
        if found.dataset.bytes_per_image and any(one.todo for one in surveys.values())
    }
    others = [commit for sample in samples.values() for commit in sample]
    for name, found in surveys.items():
        dataset = found.dataset
        images = sum(len(shard.image_ids) for shard, _ in found.todo)
        size: int | None = None
        phases: dict[str, float] | None = None
        passes: int | None = 0
        if dataset.bytes_per_image:
            size, phases = _cost(dataset, samples.get(name, []), images)
            if (count := passing.get(name)) is not None:
                phases, passes = _with_passes(phases, count, samples.get(name, []), others)
                features = context.config.features
                if passes is None and features.source == "windows" and len(features.scales) == 1:
                    passes = count
        if images and passing.get(name, 0) is None:
            passes = None
        yield PlannedDataset(
            stage=stage.name,
            dataset=name,
            method=dataset.method,
            shards=len(dataset.shards),
            shards_done=len(found.done),
            images_to_do=images,
            bytes=size,
            seconds=None if phases is None else round(sum(phases.values()), 1),
            phases=phases,
            passes=passes,
        )


def report(invocation: Invocation, until: str | None, gpus: int, cpus: int | None) -> Tables:
    """The plan of a run up to the stage ``until``, and how long the map stages' part of it takes.

    ``cpus``: cores; None: 8 per GPU, or this machine's. UsageError if there is no such stage.
    """
    planned = plan(invocation, stages_until(invocation.config, until))
    measurable = [entry for entry in planned if entry.stage in ("propose", "extract")]
    left = ((e.dataset, e.images_to_do, e.bytes, e.phases) for e in measurable)
    expected = forecast(left, gpus, cpus or (8 * gpus or os.cpu_count() or 1))
    titles = ("shards done", "images to do", "bytes", "passes", "worker seconds")
    rows: Rows = {
        (entry.stage, entry.dataset, entry.method): {
            "shards done": f"{entry.shards_done} of {entry.shards}",
            "images to do": f"{entry.images_to_do}",
            "bytes": "?" if entry.bytes is None and entry.images_to_do else in_bytes(entry.bytes or 0),
            "passes": "?" if entry.passes is None else f"{entry.passes:,}" if entry.passes else "",
            "worker seconds": "?" if entry.seconds is None and entry.images_to_do else in_seconds(entry.seconds or 0),
        }
        for entry in planned
    }
    return Tables(
        grids=[Grid(corner=("stage", "dataset", "method"), columns={title: title for title in titles}, rows=rows)],
        notes=[*_in_words(expected), *_gains(invocation, planned, gpus)],
        values={
            "run": invocation.name,
            "root": invocation.root.url,
            "datasets": [asdict(entry) for entry in planned],
            "forecast": asdict(expected),
        },
    )


def _in_words(expected: Forecast) -> Iterator[str]:
    """What is left of the map stages, in a line or two."""
    where = f"{expected.gpus} GPUs and {expected.cores} cores" if expected.gpus else f"{expected.cores} cores"
    if expected.seconds is not None:
        shares = ", ".join(f"{phase} {100 * share:.0f}%" for phase, share in expected.shares.items())
        yield (
            f"with {where}: {in_bytes(expected.bytes)}, {in_time(expected.seconds)} at the pace of the shards so far; "
            f"the {expected.limit} are the bottleneck ({shares})"
        )
    if expected.unmeasured:
        yield (
            f"no time is known yet for {', '.join(expected.unmeasured)}: it is learnt from the first committed shards "
            f"(give the command, interrupt it after a minute, plan again)"
        )


def _gains(invocation: Invocation, planned: Sequence[PlannedDataset], gpus: int) -> Iterator[str]:
    """Of maps that are to be made: who makes them, if not who was asked to, and what would make them faster on CPUs."""
    if not any(entry.stage == "extract" and entry.images_to_do for entry in planned):
        return
    config = invocation.config
    on_gpus = gpus > 0 or config.execution.device == "cuda"
    said = None if on_gpus else gain(config.features, processor_flags())
    for note in (engine_note(config.features, identify_body(config.features)), said):
        if note is not None:
            yield note


def _cost(dataset: ShardedDataset, sample: Sequence[Commit], images: int) -> tuple[int | None, dict[str, float] | None]:
    """Bytes and seconds by phase expected for ``images`` images, from a ``sample`` of commits."""
    if not images:
        return 0, {}
    measured = [commit for commit in sample if commit.images]
    count = sum(len(commit.images) for commit in measured)
    if not count:
        bound = dataset.bytes_per_image * images
        return (int(bound * _COMPRESSED) if dataset.name == "features" else None), None
    seconds: dict[str, float] = defaultdict(float)
    for commit in measured:
        for phase, value in commit.seconds.items():
            if phase != "wait":
                seconds[phase] += value
    phases = {phase: round(value * images / count, 2) for phase, value in seconds.items()}
    return sum(c.bytes for c in measured) * images // count, phases


def _with_passes(
    phases: dict[str, float] | None, passing: int, sample: Sequence[Commit], others: Sequence[Commit]
) -> tuple[dict[str, float] | None, int | None]:
    """The seconds with those of ``passing`` images that pass the body, whatever the ``sample`` did; and the passes.

    From the commits of the sample that passed it, else from ``others``; None where there is neither.
    """
    if not passing:
        return {phase: value for phase, value in (phases or {}).items() if phase not in _OF_A_PASS}, 0
    passed = [commit for commit in sample if "conv" in commit.seconds and commit.images]
    passed = passed or [commit for commit in others if "conv" in commit.seconds and commit.images]
    images = sum(len(commit.images) for commit in passed)
    if not images:
        return phases, None
    body = {phase: sum(commit.seconds.get(phase, 0.0) for commit in passed) for phase in _OF_A_PASS}
    known = {phase: round(value * passing / images, 2) for phase, value in body.items() if value}
    counted = sum(commit.passes for commit in passed)
    return {**(phases or {}), **known}, round(counted * passing / images) or None


def _sample(root: Root, dataset: str, method: str) -> list[Commit]:
    """Some commits of a method; of another method of the dataset if this one has none."""
    others = [name for name in root.names(dataset) if name != method]
    for candidate in (method, *others):
        names: list[CommitName] = sorted(winners(root, dataset, candidate).values())[:_SAMPLE]
        if names:
            try:
                return read_commits(root, dataset, candidate, names)
            except StorageError:  # a forecast does without; whoever needs the commits says what is wrong with them
                continue
    return []
