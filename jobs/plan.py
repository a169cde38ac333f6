"""plan: what ``spp run`` would do, and what that should cost. Writes nothing, starts no Ray.

spp plan --config configs/raccoon_kangaroo.yaml --root /data/spp
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.detect import detection_shards
from jobs.extract import load_body
from jobs.index import Index, committed_index, index_method, index_of, read_index, tile_shards
from jobs.shards import MapDataset, Survey, survey_after
from jobs.stages import DATASETS_OF, REDUCE_STAGES, Invocation, planned_datasets, reduce_images, reduce_method_of
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
    of the dataset, else (bytes only) from the sizes; ``seconds`` are of one worker.
    """

    stage: str
    dataset: str
    method: str
    shards: int
    shards_done: int
    images_to_do: int
    bytes: int | None
    seconds: float | None


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
    body = load_body(config.features) if "extract" in stages else None
    index = index_of(rows)
    surveys: dict[str, Survey] = {}
    for dataset in planned_datasets(config, index, method, body):
        found = surveys[dataset.name] = survey_after(root, dataset, surveys)
        images = sum(len(shard.image_ids) for shard, _ in found.todo)
        size, seconds = _cost(root, dataset, images)
        planned.append(
            PlannedDataset(
                dataset.stage,
                dataset.name,
                dataset.method,
                len(dataset.shards),
                len(found.done),
                images,
                size,
                seconds,
            )
        )
    return planned + _reduced(invocation, index, surveys, stages)


def _reduced(
    invocation: Invocation, index: Index, surveys: Mapping[str, Survey], stages: Sequence[str]
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
    planned = []
    for stage in REDUCE_STAGES:
        if stage not in stages:
            continue
        (dataset,) = DATASETS_OF[stage]
        images = reduce_images(stage, config, index)
        try:
            method = reduce_method_of(stage, config, record, index)
        except StorageError:
            planned.append(PlannedDataset(stage, dataset, "?", 1, 0, len(images), None, None))
            continue
        shards = 1 if stage != "detect" else len(detection_shards(index, images))
        names = winners(root, dataset, method)
        if len(names) >= shards:
            manifest = manifest_digest(names.values())
            record.datasets[dataset] = DatasetRecord(stage=stage, method=method, manifest=manifest)
            images = []
        planned.append(PlannedDataset(stage, dataset, method, shards, min(len(names), shards), len(images), None, None))
    return planned


def as_json(planned: Iterable[PlannedDataset]) -> list[dict[str, object]]:
    """The plan as JSON values."""
    return [asdict(entry) for entry in planned]


def _cost(root: Root, dataset: MapDataset, images: int) -> tuple[int | None, float | None]:
    """Bytes and seconds expected for ``images`` images."""
    if not images:
        return 0, 0.0
    commits = _sample(root, dataset.name, dataset.method)
    measured = [commit for commit in commits if commit.images]
    count = sum(len(commit.images) for commit in measured)
    if not count:
        bound = dataset.bytes_per_image * images
        return (int(bound * _COMPRESSED) if dataset.name == "features" else None), None
    seconds = sum(value for c in measured for phase, value in c.seconds.items() if phase != "wait")
    return sum(c.bytes for c in measured) * images // count, round(seconds * images / count, 1)


def _sample(root: Root, dataset: str, method: str) -> list[Commit]:
    """Some commits of a method; of another method of the dataset if this one has none."""
    others = [name for name in root.names(dataset) if name != method]
    for candidate in (method, *others):
        names: list[CommitName] = sorted(winners(root, dataset, candidate).values())[:_SAMPLE]
        if names:
            return read_commits(root, dataset, candidate, names)
    return []
