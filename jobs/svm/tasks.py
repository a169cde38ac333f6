"""The tasks of train-svm that read: a shard of training windows, of which they score all and hand back what is hard.

A training image's windows are its proposals and its ground-truth boxes (of which those of other classes are negatives).
A proposal is known by its proposal_id, a ground-truth box by ``-1 - object_id``.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.features.training_data import TrainingShard, positive_rows
from pipeline.detection.labels import class_overlaps
from pipeline.detection.mining import Mask, NegativeRules, hard_negatives
from pipeline.detection.scoring import LinearScorer, mean_norm
from storage.columns import boxes_of, vectors_of, windows_of
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN

Known = Mapping[str, tuple[NDArray[np.int64], Mask]]
"""Image id to the ids of its cached windows (M,), and for which classes they are cached (M, K)."""


@dataclass(frozen=True)
class ShardWindows:
    """The windows of a training image: ids (N,), and of which classes each is a negative (N, K)."""

    image_id: str
    ids: NDArray[np.int64]
    negative: Mask


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Windows for the caches: image ids and window ids (N,), the classes they join (N, K), their scores (N, K).

    Those that are ``new`` (N,) have their vectors in the task's second result, one after another; or, if these would
    have been too many bytes, none of them has (``held`` is False). ``left_out`` (K,) counts what a cap kept out.
    """

    image_ids: list[str]
    windows: NDArray[np.int64]
    classes: Mask
    scores: NDArray[np.float32]
    new: NDArray[np.bool_]
    left_out: NDArray[np.int64]
    held: bool = True


@dataclass(frozen=True)
class Audit:
    """Of all negatives of a shard, per class (K,): how many, how many uncached ones above -1, and all hinge losses."""

    negatives: NDArray[np.int64]
    violators: NDArray[np.int64]
    hinge: NDArray[np.float64]


def positives(
    root: Root, key: str, class_names: Sequence[str], difficult: bool
) -> tuple[tuple[NDArray[np.int64], int, float], NDArray[np.float16]]:
    """The positives in a file of ``truth_features``: classes (n,), dim and mean norm; and their vectors (n, dim)."""
    classes: list[NDArray[np.int64]] = []
    held: list[NDArray[np.float16]] = []
    for table in scan_file(root, key, ["class_name", "difficult", VECTOR_COLUMN]):
        rows, own = np.nonzero(positive_rows(table, class_names, difficult))
        classes.append(own)
        held.append(vectors_of(table[VECTOR_COLUMN])[rows])
    vectors = _stacked(held)
    told = (
        np.concatenate([np.zeros(0, np.int64), *classes]),
        vectors.shape[1],
        mean_norm(vectors) if len(vectors) else 0.0,
    )
    return told, vectors


def gather(
    shard: TrainingShard, wanted: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]], count: int
) -> NDArray[np.float16]:
    """``count`` vectors of a shard, (count, dim): ``wanted`` has of image ids window ids and their places in them.

    Windows that the shard does not hold are zeros; if it holds none of them, the result is (0, 0).
    """
    found: NDArray[np.float16] = np.zeros((0, 0), np.float16)
    for image_id, ids, vectors in _picked(shard, {image_id: ids for image_id, (ids, _) in wanted.items()}):
        if not len(found):
            found = np.zeros((count, vectors.shape[1]), np.float16)
        windows, places = wanted[image_id]
        found[places[_places(windows, ids)]] = vectors
    return found


def start_negatives(
    shard: TrainingShard, classes: int, rules: NegativeRules, per_image: int, seed: int
) -> tuple[Mined, NDArray[np.float16]]:
    """Of each image the first ``per_image`` negatives of each class, in an order drawn from the seed and the image id.

    The order is common to all classes, which so share most of their windows.
    """
    chosen: dict[str, tuple[NDArray[np.int64], Mask]] = {}
    for image in _labelled(shard, classes, rules).values():
        order = np.random.default_rng([seed, _number(image.image_id)]).permutation(len(image.ids))
        ranked = image.negative[order]
        taken = ranked & (np.cumsum(ranked, axis=0) <= per_image)
        rows = np.sort(order[taken.any(axis=1)])
        mask = np.zeros_like(image.negative)
        mask[order] = taken
        if len(rows):
            chosen[image.image_id] = (image.ids[rows], mask[rows])
    parts: list[tuple[str, NDArray[np.int64], Mask, NDArray[np.float16]]] = []
    for image_id, ids, vectors in _picked(shard, {image_id: ids for image_id, (ids, _) in chosen.items()}):
        wanted, mask = chosen[image_id]
        parts.append((image_id, ids, mask[_places(wanted, ids)], vectors))
    count = sum(len(ids) for _, ids, _, _ in parts)
    mined = Mined(
        image_ids=[image_id for image_id, ids, _, _ in parts for _ in ids],
        windows=np.concatenate([np.zeros(0, np.int64), *(ids for _, ids, _, _ in parts)]),
        classes=np.concatenate([np.zeros((0, classes), np.bool_), *(mask for _, _, mask, _ in parts)]),
        scores=np.zeros((count, classes), np.float32),
        new=np.ones(count, np.bool_),
        left_out=np.zeros(classes, np.int64),
    )
    return mined, _stacked([vectors for _, _, _, vectors in parts])


def mine(
    shard: TrainingShard,
    scorer: LinearScorer,
    rules: NegativeRules,
    trained: NDArray[np.bool_],
    known: Known,
    *,
    threshold: float,
    most: int | None,
    most_bytes: float = math.inf,
) -> tuple[Mined, NDArray[np.float16]]:
    """The negatives of a shard above ``threshold`` that are not cached yet, each once, for the ``trained`` classes.

    Of an image and class at most ``most``. Of vectors at most ``most_bytes`` are handed back: else none, and those that
    are wanted are to be gathered.
    """
    image_ids: list[str] = []
    windows, joins, scored, new, vectors = [], [], [], [], []
    left_out, taken = np.zeros(len(trained), np.int64), 0
    for image, scores, candidates, held in _scored(shard, scorer, rules, trained, known, (threshold, most)):
        hard, kept_out = hard_negatives(scores, candidates, threshold, most)
        left_out += kept_out
        rows = np.flatnonzero(hard.any(axis=1))
        there = (
            np.isin(image.ids[rows], known[image.image_id][0]) if image.image_id in known else np.zeros(len(rows), bool)
        )
        image_ids += [image.image_id] * len(rows)
        windows.append(image.ids[rows])
        joins.append(hard[rows])
        scored.append(scores[rows])
        new.append(~there)
        taken += sum(held[row].nbytes for row in rows[~there])
        if taken <= most_bytes:
            vectors += [held[row] for row in rows[~there]]
        else:
            vectors.clear()
    mined = Mined(
        image_ids=image_ids,
        windows=np.concatenate([np.zeros(0, np.int64), *windows]),
        classes=np.concatenate([np.zeros((0, len(trained)), np.bool_), *joins]),
        scores=np.concatenate([np.zeros((0, len(trained)), np.float32), *scored]),
        new=np.concatenate([np.zeros(0, np.bool_), *new]),
        left_out=left_out,
        held=taken <= most_bytes,
    )
    return mined, np.stack(vectors) if vectors else np.zeros((0, 0), np.float16)


def audit(shard: TrainingShard, scorer: LinearScorer, rules: NegativeRules, classes: int, known: Known) -> Audit:
    """What the final SVMs say of every negative of a shard, cached or not."""
    total = Audit(np.zeros(classes, np.int64), np.zeros(classes, np.int64), np.zeros(classes))
    for image, scores, uncached, _ in _scored(shard, scorer, rules, np.ones(classes, np.bool_), known, None):
        total.negatives[:] += image.negative.sum(axis=0)
        total.violators[:] += (uncached & (scores > -1)).sum(axis=0)
        total.hinge[:] += (np.maximum(0, 1 + scores.astype(np.float64)) * image.negative).sum(axis=0)
    return total


def rows_of(vectors: NDArray[np.float16], places: NDArray[np.int64]) -> NDArray[np.float16]:
    """Some of the vectors of a block, as a block of their own."""
    return vectors[places]


def norm_of(vectors: NDArray[np.float16]) -> tuple[float, int]:
    """Mean norm of vectors, and how many there are."""
    return mean_norm(vectors), len(vectors)


def _scored(
    shard: TrainingShard,
    scorer: LinearScorer,
    rules: NegativeRules,
    trained: NDArray[np.bool_],
    known: Known,
    hold: tuple[float, int | None] | None,
) -> Iterator[tuple[ShardWindows, NDArray[np.float32], Mask, dict[int, NDArray[np.float16]]]]:
    """Every image: windows, scores (N, K), uncached negatives of ``trained`` classes (N, K), held vectors by row.

    ``hold``: the threshold and the cap of ``hard_negatives``. Held are the vectors of windows without a row in the
    caches that can pass them; who is not among the best of a part is not among those of the image.
    """
    labelled = _labelled(shard, len(trained), rules)
    for image_id, chunks in _vectors(shard):
        image = labelled[image_id]
        candidates = image.negative & ~_member(image, known) & trained
        cached = _known_ids(image_id, known)
        scores = np.empty((len(image.ids), len(trained)), np.float32)
        held: dict[int, NDArray[np.float16]] = {}
        start = 0
        for ids, vectors in chunks:
            part = slice(start, start + len(ids))
            scores[part] = scorer(vectors)
            if hold is not None:
                hard, _ = hard_negatives(scores[part], candidates[part], *hold)
                rows = np.flatnonzero(hard.any(axis=1) & ~np.isin(ids, cached))
                held.update((start + int(row), vectors[row].copy()) for row in rows)
            start += len(ids)
        yield image, scores, candidates, held


def _labelled(shard: TrainingShard, classes: int, rules: NegativeRules) -> dict[str, ShardWindows]:
    """The windows of every image, in the order in which ``_vectors`` gives their vectors; reads no vectors."""
    proposals, truth = shard.features.windows(shard.images), _truth_rows(shard, vectors=False)
    labelled = {}
    for image_id in shard.images:
        ids, boxes, scales, cells = [], [], [], []
        for table, name in ((proposals.get(image_id), "proposal_id"), (truth.get(image_id), "object_id")):
            if table is not None:
                ids.append(_window_ids(table, name))
                boxes.append(boxes_of(table["box"]))
                scales.append(table["scale"].to_numpy())
                cells.append(windows_of(table["window"]))
        if not ids:
            continue
        objects = shard.objects.get(image_id)
        here = np.concatenate(boxes)
        if objects is None:
            overlaps = np.zeros((len(here), classes), np.float32)
        else:
            overlaps = class_overlaps(here, objects.boxes, objects.classes, classes)
        negative = rules.of(here, np.concatenate(scales), np.concatenate(cells), overlaps)
        labelled[image_id] = ShardWindows(image_id, np.concatenate(ids), negative)
    return labelled


def _vectors(
    shard: TrainingShard,
) -> Iterator[tuple[str, Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]]]:
    """Every image that has windows, and its window ids and vectors part by part: proposals, then ground truth."""
    truth = _truth_rows(shard, vectors=True)
    for image_id, tables in itertools.groupby(
        shard.features.scan(shard.images), key=lambda table: table["image_id"][0].as_py()
    ):
        own = truth.pop(image_id, None)
        yield image_id, itertools.chain(_parts(tables, "proposal_id"), _parts([own] if own else [], "object_id"))
    for image_id, table in truth.items():
        yield image_id, _parts([table], "object_id")


def _picked(
    shard: TrainingShard, wanted: Mapping[str, NDArray[np.int64]]
) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float16]]]:
    """Of these images the windows that are wanted: image id, window ids and vectors, part by part, by image id.

    Others are not pooled.
    """
    proposals = {image_id: ids[ids >= 0] for image_id, ids in wanted.items() if (ids >= 0).any()}
    boxes = [image_id for image_id, ids in wanted.items() if (ids < 0).any()]
    truth = _truth_rows(shard, vectors=True, images=sorted(boxes)) if boxes else {}
    of_truth = ((image_id, *part) for image_id in sorted(truth) for part in _parts([truth[image_id]], "object_id"))
    # proposals before ground truth of the same image, as where all windows are read
    for image_id, ids, vectors in heapq.merge(shard.features.pick(proposals), of_truth, key=lambda part: part[0]):
        inside = np.flatnonzero(np.isin(ids, wanted[image_id]))
        if len(inside):
            yield image_id, ids[inside], vectors[inside]


def _parts(
    tables: Iterator[pa.Table] | Sequence[pa.Table], name: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    for table in tables:
        yield _window_ids(table, name), vectors_of(table[VECTOR_COLUMN])


def _window_ids(table: pa.Table, name: str) -> NDArray[np.int64]:
    ids = table[name].to_numpy().astype(np.int64)
    return ids if name == "proposal_id" else -1 - ids


def _truth_rows(shard: TrainingShard, vectors: bool, images: Sequence[str] | None = None) -> dict[str, pa.Table]:
    """Image id to its rows of ``truth_features``, of all images of the shard or of some (sorted)."""
    columns = ["image_id", "object_id", "box", "scale", "window", *([VECTOR_COLUMN] if vectors else [])]
    found: dict[str, list[pa.Table]] = {}
    for key in shard.truth:
        for table in scan_file(shard.features.root, key, columns, shard.images if images is None else images):
            found.setdefault(table["image_id"][0].as_py(), []).append(table)
    return {image_id: pa.concat_tables(tables).combine_chunks() for image_id, tables in found.items()}


def _member(image: ShardWindows, known: Known) -> Mask:
    """For which classes each window of the image is cached, (N, K)."""
    member = np.zeros_like(image.negative)
    if image.image_id in known:
        ids, mask = known[image.image_id]
        member[_places(image.ids, ids)] = mask
    return member


def _known_ids(image_id: str, known: Known) -> NDArray[np.int64]:
    return known[image_id][0] if image_id in known else np.zeros(0, np.int64)


def _places(among: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where each of ``ids`` stands in ``among``, which holds all of them."""
    order = np.argsort(among)
    return order[np.searchsorted(among, ids, sorter=order)]


def _number(image_id: str) -> int:
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little")


def _stacked(parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float16)
