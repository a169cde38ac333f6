"""Vectors of annotated boxes that take no pass of their own: made beside features, or pooled from stored conv maps.

The actor that holds the maps of an image pools its annotated boxes too, and publishes a part (``storage.parts``) of the
shard of ``truth_features`` that the image belongs to. That shard is cut otherwise; it is gathered when the features of
all its images are there. What has neither a part nor stored maps passes the body for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.features.shard import ExtractShard
from jobs.features.stored import map_rows, pool_maps
from jobs.shards.attempt import NotForThis
from jobs.shards.last_revision import Earlier
from pipeline.phases import PhaseClock
from storage.columns import box_column, boxes_of, vector_column, window_column
from storage.commits import Commit
from storage.parts import drop_parts, part_rows, parts_of
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN, schema
from storage.writer import ShardWriter


class StoredTruth:
    """What of a shard of ``truth_features`` can be had without an image: ``images``, and the ``rows`` of each.

    ``objects``: image id to its objects. ``known``: images that are not asked for. Of a shard of another dataset:
    nothing.
    """

    def __init__(
        self,
        root: Root,
        work: ExtractShard,
        objects: Mapping[str, pa.Table],
        known: Collection[str],
        clock: PhaseClock,
    ) -> None:
        self._root, self._work, self._objects, self._clock = root, work, objects, clock
        self._parts: list[str] = []
        self._rows: dict[str, pa.Table] = {}
        self.images: frozenset[str] = frozenset()
        if work.dataset != "truth_features":
            return
        wanted = [image_id for image_id, rows in objects.items() if len(rows) and image_id not in known]
        with clock.phase("read"):
            self._parts = parts_of(root, "truth_features", work.method).get(work.shard, [])
            self._rows = self._gathered(wanted)
            pooled = self._poolable([image_id for image_id in wanted if image_id not in self._rows])
        self.images = frozenset(self._rows).union(pooled)

    def rows(self, image_id: str) -> pa.Table:
        """Its rows, which are not kept any longer."""
        found = self._rows.pop(image_id, None)
        return self._pooled(image_id) if found is None else found

    def maps(self, image_id: str) -> dict[int, NDArray[np.float16]]:
        """The stored maps of an image that must pass the body, since they have not every scale."""
        stored = self._work.pooled.get(image_id)
        with self._clock.phase("read"):
            tables = list(scan_file(self._root, stored.key, None, [image_id])) if stored is not None else []
        return dict(map_rows(pa.concat_tables(tables))) if tables else {}

    def drop(self) -> None:
        """The shard is committed: its parts have had their use."""
        drop_parts(self._root, self._parts)

    def _gathered(self, wanted: Sequence[str]) -> dict[str, pa.Table]:
        """Rows of the images whose parts are there, whole; several attempts may have left the same.

        They are held, all vectors of the shard's boxes that were made so: another driver that commits the shard may
        delete its parts at any moment.
        """
        found: dict[str, pa.Table] = {}
        for key in self._parts:
            left = [image_id for image_id in wanted if image_id not in found]
            pieces: dict[str, list[pa.Table]] = {}
            for table in part_rows(self._root, [key], left) if left else ():
                pieces.setdefault(table["image_id"][0].as_py(), []).append(table)
            for image_id, tables in pieces.items():
                rows = pa.concat_tables(tables)
                if len(rows) == len(self._objects[image_id]):
                    found[image_id] = rows
        return found

    def _poolable(self, wanted: Sequence[str]) -> list[str]:
        """Those of the images whose stored maps have every scale."""
        files: dict[str, list[str]] = {}
        for image_id in wanted:
            if image_id in self._work.pooled:
                files.setdefault(self._work.pooled[image_id].key, []).append(image_id)
        there: dict[str, set[int]] = {}
        for key, image_ids in files.items():
            for table in scan_file(self._root, key, ["image_id", "scale"], sorted(image_ids)):
                there.setdefault(table["image_id"][0].as_py(), set()).update(table["scale"].to_pylist())
        return [i for i, scales in there.items() if scales.issuperset(self._work.pooled[i].scales.tolist())]

    def _pooled(self, image_id: str) -> pa.Table:
        stored, work = self._work.pooled[image_id], self._work
        with self._clock.phase("read"):
            maps = pa.concat_tables(scan_file(self._root, stored.key, None, [image_id]))
        made = {"scale": pa.array(stored.scales, pa.int32()), "window": window_column(stored.windows)}
        with self._clock.phase("pool"):
            levels = [int(level) for level in work.metadata["levels"].split(",")]
            made[VECTOR_COLUMN] = vector_column(pool_maps(pa.table(made), maps, levels))
        return window_rows(schema("truth_features", work.dim, work.metadata), self._objects[image_id], made)


def gather_truth(work: ExtractShard, root: Root, producer: str) -> Commit | None:
    """A shard of ``truth_features`` from parts and stored maps (in a trial of one image alone: made, and dropped).

    Raises NotForThis, with nothing done, if an image must pass the body for it.
    """
    assert work.objects is not None
    clock = PhaseClock()
    earlier = Earlier(root, work.method, work.trial)
    ids = [file.image_id for file in work.trial.images(work.images)]
    objects = by_image(work.objects, ids)
    stored = StoredTruth(root, work, objects, earlier.images, clock)
    missing = [i for i in ids if len(objects[i]) and i not in earlier.images and i not in stored.images]
    if missing:
        raise NotForThis(f"image {missing[0]!r} has neither stored maps nor a part at every scale")
    layout = schema("truth_features", work.dim, work.metadata)
    with ShardWriter(root, "truth_features", work.method, work.shard, layout, revision=work.revision) as writer:
        for image_id in ids:
            if image_id in earlier.images:
                rows = earlier.rows("truth_features", image_id)
            else:
                rows = stored.rows(image_id) if image_id in stored.images else None
            with clock.phase("encode"):
                writer.write_image(image_id, rows)
        if work.trial.alone is not None:
            return None
        commit = writer.commit(
            ledger=work.trial.ledger("extract"),
            upstream=work.upstream(),
            seconds=clock.seconds,
            producer=producer,
        )
    stored.drop()
    return commit


def by_image(table: pa.Table, image_ids: Sequence[str]) -> dict[str, pa.Table]:
    """The rows of each image; the table is sorted by image."""
    ids = table["image_id"].to_numpy(zero_copy_only=False)
    first = np.searchsorted(ids, image_ids, side="left") if len(ids) else [0] * len(image_ids)
    last = np.searchsorted(ids, image_ids, side="right") if len(ids) else [0] * len(image_ids)
    return {i: table.slice(int(a), int(b - a)) for i, a, b in zip(image_ids, first, last, strict=True)}


def window_rows(layout: pa.Schema, given: pa.Table, made: Mapping[str, pa.Array]) -> pa.Table:
    """Rows of windows or features: the columns of the boxes, and what was made of them."""
    columns = [
        made[name] if name in made else box_column(boxes_of(given[name])) if name == "box" else given[name]
        for name in layout.names
    ]
    return pa.table(columns, schema=layout)
