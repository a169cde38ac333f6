"""How the box regressors of a run are trained: the driver and the tasks of train-bbox."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config.bbox import BboxConfig
from jobs.dataset.objects import order_key
from jobs.errors import UsageError
from jobs.execution.session import Resources
from jobs.execution.tasks import as_task, results
from jobs.features.training_data import TrainingData, TrainingShard, positive_rows
from jobs.record.lineage import stored_features
from jobs.record.publish import publish
from jobs.record.stage import Assignment
from pipeline.detection.box_regression import Regressor, choose, encode, fit, fit_bytes
from pipeline.detection.scoring import mean_norm
from pipeline.phases import PhaseClock
from storage.columns import boxes_of, vectors_of
from storage.commits import LedgerRow
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import scan_file, scan_manifest
from storage.schemas import VECTOR_COLUMN, schema

_log = logging.getLogger("spp")


@dataclass(frozen=True)
class Chosen:
    """Windows that train regressors: image ids, proposal ids, classes (N,), boxes and their targets (N, 4)."""

    image_ids: list[str]
    proposals: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    targets: NDArray[np.float32]


@dataclass(frozen=True)
class ClassPairs:
    """What one class trains on: per shard the proposals of each image, and what each should become.

    ``deltas`` are in the order of the shards, of the images in each, and of proposal ids (n, 4).
    """

    shards: Sequence[tuple[TrainingShard, Mapping[str, NDArray[np.int64]]]]
    deltas: NDArray[np.float64]


def train_regressors(assignment: Assignment, method: str) -> None:
    """Train the box regressors of a run, and commit them under ``method``."""
    context, record = assignment.context, assignment.record
    config, root = context.config.bbox, context.root
    resources, clock = assignment.session.ready(), PhaseClock()
    data = TrainingData.of(context)
    with clock.phase("choose"):
        task = as_task(choose_windows)
        chosen: list[Chosen] = results(
            "train-bbox", [task.remote(shard, config.min_overlap, config.difficult_positive) for shard in data.shards]
        )
        norm, dim, truths = _truth_norm(root, record, data.class_names, config.difficult_positive)
    scale = config.target_norm / norm if norm > 0 else 1.0
    examples = {
        name: _examples(config, data, chosen, number, int(truths[number]))
        for number, name in enumerate(data.class_names)
        if truths[number]
    }
    counts = {name: len(own.deltas) + int(truths[data.class_names.index(name)]) for name, own in examples.items()}
    _check_memory(config, resources, dim, counts)
    with clock.phase("fit"):
        refs = [
            as_task(fit_class, memory=_bytes(counts[name], dim)).remote(own, data, name, dim, config, scale)
            for name, own in examples.items()
        ]
        fitted: list[Regressor] = results("train-bbox", refs)
    rows = []
    for name, regressor in zip(examples, fitted, strict=True):
        rows.append(_row(name, regressor, counts[name], scale, config.ridge))
        _log.info(f"train-bbox: {name}: {counts[name]:,} windows")
    notes = [
        LedgerRow(
            image_id=name,
            stage="train-bbox",
            type="NoExamples",
            message=f"class {name!r} has no ground-truth box in the training splits, so its boxes are not regressed",
            level="note",
        )
        for number, name in enumerate(data.class_names)
        if not truths[number]
    ]
    layout = schema("regressors", dim, {"method": method, "features": stored_features(record).method})
    table, counts = pa.Table.from_pylist(rows, schema=layout), dict.fromkeys(examples, 1)
    publish(root, "regressors", method, table, counts, ledger=notes, seconds=clock.seconds)


def choose_windows(shard: TrainingShard, min_overlap: float, difficult_positive: bool) -> Chosen:
    """The proposals of a shard that train a regressor; reads no vectors."""
    ids: list[str] = []
    proposals, classes, boxes, targets = [], [], [], []
    wanted = [image_id for image_id in shard.images if image_id in shard.objects]
    for image_id, table in shard.features.windows(wanted).items():
        objects, here = shard.objects[image_id], boxes_of(table["box"])
        found = choose(
            here,
            objects.boxes,
            objects.classes,
            objects.difficult,
            above=min_overlap,
            difficult_positive=difficult_positive,
        )
        ids += [image_id] * len(found.rows)
        proposals.append(table["proposal_id"].to_numpy()[found.rows].astype(np.int64))
        classes.append(found.classes)
        boxes.append(here[found.rows])
        targets.append(found.targets)
    return Chosen(
        ids,
        np.concatenate([np.zeros(0, np.int64), *proposals]),
        np.concatenate([np.zeros(0, np.int64), *classes]),
        np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        np.concatenate([np.zeros((0, 4), np.float32), *targets]),
    )


def fit_class(
    examples: ClassPairs, data: TrainingData, name: str, dim: int, config: BboxConfig, scale: float
) -> Regressor:
    """Read the vectors of a class's windows, and of its ground-truth boxes, which train towards standing still."""
    number = data.class_names.index(name)
    truth = [
        vectors_of(table[VECTOR_COLUMN])[rows]
        for shard in data.shards
        for key in shard.truth
        for table in scan_file(shard.features.root, key, ["class_name", "difficult", VECTOR_COLUMN], shard.images)
        if (rows := positive_rows(table, data.class_names, config.difficult_positive)[:, number]).any()
    ]
    count = len(examples.deltas)
    vectors = np.empty((count + sum(map(len, truth)), dim), np.float16)
    start = 0
    for shard, wanted in examples.shards:
        for _, _, part in shard.features.pick(wanted):
            vectors[start : start + len(part)] = part
            start += len(part)
    if start != count:
        raise ValueError(f"{count} windows of class {name!r} were chosen, but the features hold {start} of them")
    for part in truth:
        vectors[start : start + len(part)] = part
        start += len(part)
    deltas = np.concatenate([examples.deltas, np.zeros((len(vectors) - count, 4))])
    return fit(vectors, deltas, config.ridge, scale=scale)


def _examples(config: BboxConfig, data: TrainingData, chosen: Sequence[Chosen], number: int, truths: int) -> ClassPairs:
    """The proposals of one class: all, or as many as ``max_windows`` allows beside its ``truths``, drawn by hashes."""
    most = max(0, config.max_windows - truths)
    places = [
        (shard, int(row)) for shard, found in enumerate(chosen) for row in np.flatnonzero(found.classes == number)
    ]
    if len(places) > most:

        def drawn(place: tuple[int, int]) -> bytes:
            found = chosen[place[0]]
            return order_key(config.seed, f"{found.image_ids[place[1]]} {found.proposals[place[1]]}")

        places = sorted(sorted(places, key=drawn)[:most])
    shards, deltas = [], [np.zeros((0, 4))]
    for shard, found in enumerate(chosen):
        rows = np.array([row for one, row in places if one == shard], np.int64)
        if not len(rows):
            continue
        wanted: dict[str, list[int]] = {}
        for row in rows:
            wanted.setdefault(found.image_ids[row], []).append(int(found.proposals[row]))
        shards.append((data.shards[shard], {i: np.array(values, np.int64) for i, values in wanted.items()}))
        deltas.append(encode(found.boxes[rows], found.targets[rows]))
    return ClassPairs(shards, np.concatenate(deltas))


def _truth_norm(
    root: Root, record: RunRecord, class_names: Sequence[str], difficult_positive: bool
) -> tuple[float, int, NDArray[np.int64]]:
    """Mean norm and length of the vectors of ground-truth boxes, and how many there are of each class."""
    manifest = recorded_manifest(root, record, "truth_features")
    counts = np.zeros(len(class_names), np.int64)
    total, number, dim = 0.0, 0, 0
    for table in scan_manifest(root, manifest, ["class_name", "difficult", VECTOR_COLUMN]):
        vectors = vectors_of(table[VECTOR_COLUMN])
        dim = vectors.shape[1]
        total += mean_norm(vectors) * len(vectors)
        number += len(vectors)
        counts += positive_rows(table, class_names, difficult_positive).sum(axis=0)
    if not number:
        raise UsageError("train-bbox: the training splits have no object to learn from")
    return total / number, dim, counts


def _bytes(count: int, dim: int) -> int:
    """Memory of a class's task: its vectors, and the fit."""
    return 2 * count * dim + fit_bytes(count, dim)


def _check_memory(config: BboxConfig, resources: Resources, dim: int, counts: Mapping[str, int]) -> None:
    """Refuse what could never run, before any vector is read."""
    for name, count in counts.items():
        needed = _bytes(count, dim)
        if needed > resources.node_memory:
            raise UsageError(
                f"train-bbox: class {name!r} has {count:,} windows of {dim} numbers, whose regression takes "
                f"{needed // 10**6:,} MB, but Ray has {resources.node_memory // 10**6:,} MB to give; "
                f"lower bbox.max_windows ({config.max_windows:,})"
            )


def _row(name: str, regressor: Regressor, count: int, scale: float, ridge: float) -> dict[str, object]:
    return {
        "class_name": name,
        "windows": count,
        "feature_scale": scale,
        "ridge": ridge,
        "bias": regressor.bias,
        "mean": regressor.mean,
        "whitening": regressor.whitening.reshape(-1),
        "weight": regressor.weights.reshape(-1),
    }
