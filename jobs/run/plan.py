"""plan: what ``spp run`` would do, and what that should cost. Writes nothing, starts no Ray.

spp plan --config configs/raccoon_kangaroo.yaml --root /data/spp
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index, committed_index, index_method, index_of, object_digests, read_index, tile_shards
from jobs.detect.method import detection_shards
from jobs.features.body import identify_body
from jobs.features.known_bodies import BodyIdentity
from jobs.features.method import vector_length
from jobs.head.method import window_shards, windows_method
from jobs.record.invocation import Invocation
from jobs.record.stage import DATASETS_OF, REDUCE_STAGES
from jobs.run.forecast import Forecast, forecast
from jobs.run.stages import planned_datasets, reduce_images, reduce_method_of
from jobs.shards.survey import MapDataset, Survey, survey_after
from storage.commits import Commit, CommitName, read_commits, winners
from storage.manifest import manifest_digest
from storage.root import Root, StorageError
from storage.runs import DatasetRecord, RunRecord

_SAMPLE = 16
"""Commits that are read to learn what an image costs."""

_COMPRESSED = 0.5
"""Share that zstd leaves of feature vectors, where nothing has been measured yet (research: 0.30 to 0.53)."""


@dataclass(frozen=True)
class PlannedDataset:
    """What is there and to do of one dataset.

    ``bytes`` and ``seconds`` are expected for what is to do: from the commits of this method, else of another method
    of the dataset, else (bytes only) from the sizes; ``seconds`` are of one worker, ``phases`` their parts.
    """

    stage: str
    dataset: str
    method: str
    shards: int
    shards_done: int
    images_to_do: int
    bytes: int | None
    seconds: float | None
    phases: dict[str, float] | None = None


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
        planned.append(PlannedDataset("index", table, method, len(keys), len(keys) - len(left), images, None, None))
    if set(stages) <= {"index"}:
        return planned
    body = identify_body(config.features) if "extract" in stages else None
    index = index_of(rows)
    surveys: dict[str, Survey] = {}
    for dataset in planned_datasets(config, index, method, body):
        found = surveys[dataset.name] = survey_after(root, dataset, surveys)
        images = sum(len(shard.image_ids) for shard, _ in found.todo)
        size, phases = _cost(root, dataset, images)
        planned.append(
            PlannedDataset(
                dataset.stage,
                dataset.name,
                dataset.method,
                len(dataset.shards),
                len(found.done),
                images,
                size,
                None if phases is None else round(sum(phases.values()), 1),
                phases,
            )
        )
    return planned + _reduced(invocation, index, surveys, stages, body)


def _reduced(
    invocation: Invocation,
    index: Index,
    surveys: Mapping[str, Survey],
    stages: Sequence[str],
    body: BodyIdentity | None,
) -> list[PlannedDataset]:
    """The stages after extraction. Their method ids are not known before what is upstream of them is there."""
    config, root = invocation.config, invocation.root
    record = RunRecord(name=invocation.name)
    for found in surveys.values():
        if found.complete:
            for name in found.dataset.names:
                manifest = manifest_digest(found.done.values())
                stage, method = found.dataset.stage, found.dataset.method
                record.datasets[name] = DatasetRecord(stage=stage, method=method, manifest=manifest)
    if body is not None and "truth_features" in record.datasets:
        record.datasets["truth_features"].classifier = body.classifier
    planned = []
    for stage in REDUCE_STAGES:
        if stage not in stages:
            continue
        for dataset in DATASETS_OF[stage]:
            if dataset == "training_windows" and not config.finetunes:
                continue
            keys = _keys(dataset, config, index, surveys, body)
            try:
                if dataset == "training_windows":
                    method = windows_method(config.finetune, record)
                else:
                    method = reduce_method_of(stage, config, record, index)
            except StorageError:
                images = len(reduce_images(stage, config, index))
                planned.append(PlannedDataset(stage, dataset, "?", 1, 0, images, None, None))
                continue
            there = winners(root, dataset, method)
            if keys is None:
                keys = {method: len(reduce_images(stage, config, index))}
            left = {key: images for key, images in keys.items() if key not in there}
            if not left:
                manifest = manifest_digest([there[key] for key in keys])
                record.datasets[dataset] = DatasetRecord(stage=stage, method=method, manifest=manifest)
            done = len(keys) - len(left)
            planned.append(PlannedDataset(stage, dataset, method, len(keys), done, sum(left.values()), None, None))
    return planned


def _keys(
    dataset: str, config: RunConfig, index: Index, surveys: Mapping[str, Survey], body: BodyIdentity | None
) -> dict[str, int] | None:
    """The shards that a dataset after extraction should have, and their images; None if it is one, named by its
    method."""
    if dataset == "detections":
        planned = detection_shards(index, index.images_in(config.dataset.test_splits))
    elif dataset == "training_windows" and body is not None:
        annotated = object_digests(index, config.dataset.train_splits)
        planned = window_shards(config.finetune, vector_length(config.features, body), annotated)
    elif dataset in ("embeddings", "truth_embeddings"):
        source = "truth_features" if dataset == "truth_embeddings" else "features"
        source = source if source in surveys else "windows"
        wanted = set(index.images_in(config.dataset.train_splits))
        held = {s.key: len(wanted.intersection(s.image_ids)) for s in surveys[source].dataset.shards}
        return {key: images for key, images in held.items() if images}
    else:
        return None
    return {shard.key: len(shard.image_ids) for shard in planned}


def forecast_of(planned: Sequence[PlannedDataset], gpus: int, cores: int) -> Forecast:
    """How long the map stages' part of the plan takes on so many GPUs and cores, and what limits it."""
    measurable = [entry for entry in planned if entry.stage in ("propose", "extract")]
    return forecast(((e.dataset, e.images_to_do, e.bytes, e.phases) for e in measurable), gpus, cores)


def as_json(planned: Iterable[PlannedDataset]) -> list[dict[str, object]]:
    """The plan as JSON values."""
    return [asdict(entry) for entry in planned]


def _cost(root: Root, dataset: MapDataset, images: int) -> tuple[int | None, dict[str, float] | None]:
    """Bytes and seconds by phase expected for ``images`` images."""
    if not images:
        return 0, {}
    commits = _sample(root, dataset.name, dataset.method)
    measured = [commit for commit in commits if commit.images]
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


def _sample(root: Root, dataset: str, method: str) -> list[Commit]:
    """Some commits of a method; of another method of the dataset if this one has none."""
    others = [name for name in root.names(dataset) if name != method]
    for candidate in (method, *others):
        names: list[CommitName] = sorted(winners(root, dataset, candidate).values())[:_SAMPLE]
        if names:
            return read_commits(root, dataset, candidate, names)
    return []
