"""The negatives of all classes: sampled, mined and audited by tasks on the shards, cached for the fits.

Vectors stay in Ray's object store, a block per task; the driver knows which window lies where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from jobs.dataset.objects import order_key
from jobs.execution.tasks import as_task, results
from jobs.features.training_data import TrainingData, TrainingShard
from jobs.svm import tasks
from jobs.svm.tasks import Audit, Mined
from pipeline.detection.mining import NegativeCache, NegativeRules
from pipeline.detection.scoring import LinearScorer

_START_PER_IMAGE = 32
"""Negatives of one class that the first sample takes of an image, where there are images enough."""


class Negatives:
    """``room``: class number to how many negatives it may have; classes without room are not trained.

    ``left_out``: class number to negatives that a cap left out, of an image's or of a class's.
    """

    def __init__(self, data: TrainingData, rules: NegativeRules, room: Mapping[int, int]) -> None:
        self.left_out: Counter[int] = Counter()
        self._data = data
        self._rules = rules
        self._room = dict(room)
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
            refs = []
            for shard in self._data.shards:
                part = tuple(image_id for image_id in shard.images if image_id in chosen)
                if part:
                    narrowed = TrainingShard(shard.features, shard.truth, part, shard.objects)
                    refs.append(task.remote(narrowed, len(self._data.class_names), self._rules, per_image, seed))
            added.update(self._take(refs))
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
                task.remote(
                    shard,
                    scores,
                    self._rules,
                    trained,
                    self._cache.known(shard.images),
                    threshold=join_above,
                    most=max_per_image,
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
        """Rows of the cache that are negatives of a class."""
        return self._cache.rows_of(number)

    def vectors_of(self, rows: NDArray[np.int64]) -> list[tuple[ray.ObjectRef, NDArray[np.int64]]]:
        """Where the vectors of some rows are: blocks, and places in them."""
        return [(self._blocks[block], places) for block, places in self._cache.places(rows)]

    def evict(self, number: int, rows: NDArray[np.int64]) -> None:
        """Some rows leave the cache of a class."""
        self._cache.evict(number, rows)

    def drop_unused(self) -> None:
        """Let go of the blocks that no class has a row of."""
        for block in self._cache.unused(self._blocks):
            del self._blocks[block]

    def _take(self, refs: Sequence[tuple[ray.ObjectRef, ray.ObjectRef]]) -> dict[int, int]:
        """Put what tasks found into the caches, in the order of the tasks; how many joined, by class."""
        found: list[Mined] = results("train-svm", [ref for ref, _ in refs])
        offers: dict[int, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {n: [] for n in self._room}
        for mined, (_, vectors) in zip(found, refs, strict=True):
            for number in self._room:
                self.left_out[number] += int(mined.left_out[number])
            if not len(mined.windows):
                continue
            rows = np.empty(len(mined.windows), np.int64)
            new = np.flatnonzero(mined.new)
            if len(new):
                block = max(self._blocks, default=-1) + 1
                self._blocks[block] = vectors
                rows[new] = self._cache.add(block, [mined.image_ids[i] for i in new], mined.windows[new].tolist())
            for i in np.flatnonzero(~mined.new):
                known = self._cache.row(mined.image_ids[i], int(mined.windows[i]))
                assert known is not None
                rows[i] = known
            for number, offered in offers.items():
                joins = np.flatnonzero(mined.classes[:, number])
                offered.append((rows[joins], mined.scores[joins, number]))
        added = {}
        for number, offered in offers.items():
            if not offered:
                continue
            rows = np.concatenate([part for part, _ in offered])
            scores = np.concatenate([part for _, part in offered])
            room = max(0, self._room[number] - self.count(number))
            if len(rows) > room:
                self.left_out[number] += len(rows) - room
                rows = rows[np.sort(np.argsort(-scores, kind="stable")[:room])]
            if len(rows):
                self._cache.join(number, rows)
                added[number] = len(rows)
        return added
