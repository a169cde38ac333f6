"""The negatives of all classes: sampled, mined and audited by tasks on the shards, cached for the fits.

Vectors stay in Ray's object store, a block per task; the driver knows which window lies where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from jobs.dataset.objects import order_key
from jobs.execution.tasks import as_task, results
from jobs.features.training_data import TrainingData, TrainingShard
from jobs.svm import tasks
from jobs.svm.fits import Blocks
from jobs.svm.tasks import Audit, Mined
from pipeline.detection.mining import NegativeCache, NegativeRules
from pipeline.detection.scoring import LinearScorer

_LEAST_BYTES = 4 * 10**6
"""Of vectors, that a task may hand back whatever the object stores have: to read a shard again costs more."""

_START_PER_IMAGE = 32
"""Negatives of one class that the first sample takes of an image, where there are images enough."""

Found = tuple[TrainingShard, tuple[ray.ObjectRef, ray.ObjectRef]]
"""A shard, and the two results of a task on it: what it found, and vectors."""


class Negatives:
    """``room``: class number to how many negatives it may have; classes without room are not trained.

    ``left_out``: class number to negatives that a cap left out, of an image's or of a class's. ``memory``: bytes of
    vectors that the tasks of a round may hand back before it is known which of them join.
    """

    def __init__(self, data: TrainingData, rules: NegativeRules, room: Mapping[int, int], memory: float) -> None:
        self.left_out: Counter[int] = Counter()
        self._data = data
        self._rules = rules
        self._room = dict(room)
        self._memory = memory
        self._cache = NegativeCache(len(data.class_names))
        self._blocks: dict[int, ray.ObjectRef] = {}

    def sample(self, count: int, seed: int) -> dict[int, int]:
        """Some ``count`` random negatives of each class; class number to how many there are."""
        images = sorted(
            (image_id for shard in self._data.shards for image_id in shard.images),
            key=lambda image_id: order_key(seed, image_id),
        )
        enough = max(1, -(-count // _START_PER_IMAGE))
        per_image = -(-count // min(enough, len(images)))
        task = as_task(tasks.start_negatives, returns=2)
        added: Counter[int] = Counter()
        for start in range(0, len(images), enough):  # further images only where a class has no negative on these
            chosen = set(images[start : start + enough])
            found: list[Found] = []
            for shard in self._data.shards:
                part = tuple(image_id for image_id in shard.images if image_id in chosen)
                if part:
                    narrowed = TrainingShard(shard.features, shard.truth, part, shard.objects)
                    refs = task.remote(narrowed, len(self._data.class_names), self._rules, per_image, seed)
                    found.append((narrowed, refs))
            added.update(self._take(found))
            if all(added[number] for number in self._room):
                break
        return added

    def mine(
        self,
        shards: Sequence[TrainingShard],
        scorer: LinearScorer,
        trained: NDArray[np.bool_],
        *,
        join_above: float,
        max_per_image: int | None,
    ) -> dict[int, int]:
        """Hard negatives on some shards join; class number to how many did. ``trained``: which classes, (classes,)."""
        task, scores = as_task(tasks.mine, returns=2), ray.put(scorer)
        return self._take(
            [
                (
                    shard,
                    task.remote(
                        shard,
                        scores,
                        self._rules,
                        trained,
                        self._cache.known(shard.images),
                        threshold=join_above,
                        most=max_per_image,
                        most_bytes=max(self._memory / len(shards), _LEAST_BYTES),
                    ),
                )
                for shard in shards
            ]
        )

    def audit(self, scorer: LinearScorer) -> Audit:
        """Every negative of every class, scored once more."""
        task, scores = as_task(tasks.audit), ray.put(scorer)
        classes = len(self._data.class_names)
        parts: list[Audit] = results(
            "train-svm",
            [
                task.remote(shard, scores, self._rules, classes, self._cache.known(shard.images))
                for shard in self._data.shards
            ],
        )
        return Audit(
            sum((part.negatives for part in parts), np.zeros(classes, np.int64)),
            sum((part.violators for part in parts), np.zeros(classes, np.int64)),
            sum((part.hinge for part in parts), np.zeros(classes)),
        )

    def norms(self) -> list[tuple[float, int]]:
        """Mean norm and number of the cached vectors, block by block."""
        found: list[tuple[float, int]] = results(
            "train-svm", [as_task(tasks.norm_of).remote(ref) for ref in self._blocks.values()]
        )
        return found

    def count(self, number: int) -> int:
        """Cached negatives of a class."""
        return int(self._cache.count()[number])

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """Rows of the cache that are negatives of a class, in an order that the windows alone decide."""
        return self._cache.rows_of(number)

    def rows_of_any(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Rows that are negatives of some of these classes, ascending."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(self._cache.rows_of(n) for n in numbers)]))

    def windows_of(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """Image ids and window ids of rows."""
        return self._cache.windows_of(rows)

    def vectors_of(self, rows: NDArray[np.int64], first: int = 0) -> Blocks:
        """Where the vectors of rows are, the first of which is example ``first``."""
        return [(self._blocks[block], places, first + numbers) for block, places, numbers in self._cache.places(rows)]

    def evict(self, number: int, rows: NDArray[np.int64]) -> None:
        """Some rows leave the cache of a class."""
        self._cache.evict(number, rows)

    def drop_unused(self) -> None:
        """Let go of the blocks that no class has a row of."""
        for block in self._cache.unused(self._blocks):
            del self._blocks[block]

    def restore(
        self, image_ids: Sequence[str], windows: NDArray[np.int64], members: Mapping[int, NDArray[np.int64]]
    ) -> None:
        """Into an empty cache the windows of an earlier driver, and of which classes (class number to which of these)
        they are negatives."""
        rows, found = np.empty(len(image_ids), np.int64), dict(_numbers_of(image_ids))
        for shard in self._data.shards:
            held = [found[image_id] for image_id in shard.images if image_id in found]
            if held:
                numbers = np.concatenate(held)
                rows[numbers] = self._gathered(shard, [image_ids[n] for n in numbers], windows[numbers])
        for number, own in members.items():
            self._cache.join(number, rows[own])

    def _take(self, found: Sequence[Found]) -> dict[int, int]:
        """Put what tasks found into the caches, in the order of the tasks; how many joined, by class."""
        mined: list[Mined] = results("train-svm", [refs[0] for _, refs in found])
        classes = len(self._data.class_names)
        joins = np.concatenate([np.zeros((0, classes), np.bool_), *(part.classes for part in mined)])
        scores = np.concatenate([np.zeros((0, classes), np.float32), *(part.scores for part in mined)])
        added = {}
        for number in range(classes):
            if number not in self._room:
                joins[:, number] = False
                continue
            self.left_out[number] += sum(int(part.left_out[number]) for part in mined)
            offered = np.flatnonzero(joins[:, number])
            room = max(0, self._room[number] - self.count(number))
            if len(offered) > room:
                self.left_out[number] += len(offered) - room
                best = np.argsort(-scores[offered, number], kind="stable")
                joins[offered[best[room:]], number] = False
            if joins[:, number].any():
                added[number] = int(joins[:, number].sum())
        start = 0
        for part, (shard, (_, vectors)) in zip(mined, found, strict=True):
            own = joins[start : start + len(part.windows)]
            start += len(part.windows)
            self._join(shard, part, vectors, own)
        return added

    def _join(self, shard: TrainingShard, mined: Mined, vectors: ray.ObjectRef, joins: NDArray[np.bool_]) -> None:
        """What was found on one shard joins the caches of the classes that ``joins`` (N, K) says."""
        taken = joins.any(axis=1)
        rows = np.full(len(joins), -1, np.int64)
        new = np.flatnonzero(taken & mined.new)
        image_ids, windows = [mined.image_ids[i] for i in new], mined.windows[new]
        if len(new) and mined.held:
            places = (np.cumsum(mined.new) - 1)[new]
            if 2 * len(new) < mined.new.sum():  # a block stays as long as one of its rows: without those a cap kept out
                vectors, places = as_task(tasks.rows_of).remote(vectors, places), np.arange(len(new))
            rows[new] = self._cache.add(self._put(vectors), image_ids, windows.tolist(), places.tolist())
        elif len(new):
            rows[new] = self._gathered(shard, image_ids, windows)
        for i in np.flatnonzero(taken & ~mined.new):
            known = self._cache.row(mined.image_ids[i], int(mined.windows[i]))
            assert known is not None
            rows[i] = known
        for number in np.flatnonzero(joins.any(axis=0)):
            self._cache.join(int(number), rows[joins[:, number]])

    def _gathered(
        self, shard: TrainingShard, image_ids: Sequence[str], windows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The rows of windows that a task reads again, those that the cache has not yet."""
        if not len(image_ids):
            return np.zeros(0, np.int64)
        wanted = {image_id: (windows[numbers], numbers) for image_id, numbers in _numbers_of(image_ids)}
        narrowed = TrainingShard(
            shard.features, shard.truth, tuple(i for i in shard.images if i in wanted), shard.objects
        )
        block = as_task(tasks.gather).remote(narrowed, wanted, len(image_ids))
        return self._cache.add(self._put(block), image_ids, windows.tolist())

    def _put(self, vectors: ray.ObjectRef) -> int:
        block = max(self._blocks, default=-1) + 1
        self._blocks[block] = vectors
        return block


def _numbers_of(image_ids: Sequence[str]) -> Iterable[tuple[str, NDArray[np.int64]]]:
    """Each image id, and where in the list it stands."""
    found: dict[str, list[int]] = {}
    for number, image_id in enumerate(image_ids):
        found.setdefault(image_id, []).append(number)
    return ((image_id, np.array(numbers, np.int64)) for image_id, numbers in found.items())
