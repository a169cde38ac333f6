"""What is pooled of an image beside its features, since its maps are at hand: annotated boxes, and drawn windows.

Both are of shards that are cut otherwise, so they are kept in parts of those (``storage.parts``) until they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import pyarrow as pa

from jobs.features.drawing import choose
from jobs.features.shard import ExtractShard
from jobs.features.truth import by_image, window_rows
from pipeline.boxes import Boxes
from pipeline.errors import ImageError
from pipeline.features.regions import RegionExtractor, RegionFeatures, Wanted
from storage.columns import box_column, boxes_of, vector_column, window_column
from storage.root import Root
from storage.schemas import VECTOR_COLUMN, schema
from storage.writer import ShardWriter


@dataclass(frozen=True)
class BesideSet:
    """Boxes of an image that are pooled with its features: ``rows`` of what comes of them go to ``writer``."""

    writer: ShardWriter
    wanted: Wanted
    rows: Callable[[RegionFeatures], pa.Table]


class Beside:
    """The parts that a shard of features or windows is to make: a context manager."""

    def __init__(self, root: Root, work: ExtractShard, dim: int) -> None:
        self._root, self._work, self._dim = root, work, dim
        self._stack = ExitStack()
        self._writers: dict[tuple[str, str], ShardWriter] = {}
        self._objects: dict[str, pa.Table] = {}
        self._truth: dict[str, ShardWriter] = {}

    def __enter__(self) -> Beside:
        ids = [file.image_id for file in self._work.images]
        for part in self._work.truth:
            writer = self._writer("truth_features", part.method, part.shard, part.metadata)
            for image_id, rows in by_image(part.objects, ids).items():
                if len(rows):
                    self._objects[image_id], self._truth[image_id] = rows, writer
        return self

    def of(
        self, image_id: str, proposed: Boxes, height_width: tuple[int, int], extractor: RegionExtractor
    ) -> list[BesideSet]:
        """What is wanted of an image whose proposals are ``proposed``."""
        found = []
        objects = self._objects.get(image_id)
        if objects is not None:
            wanted = Wanted(boxes_of(objects["box"]))
            found.append(BesideSet(self._truth[image_id], wanted, partial(self._truth_rows, objects)))
        drawn = self._work.drawn
        if drawn is not None and image_id in drawn.shards:
            with suppress(ImageError):  # too long and thin: its features say so
                found += self._drawn(image_id, proposed, height_width, extractor)
        return found

    def _drawn(
        self, image_id: str, proposed: Boxes, height_width: tuple[int, int], extractor: RegionExtractor
    ) -> list[BesideSet]:
        """The windows of the image as it is that cannot be had of what is stored of its features."""
        drawn = self._work.drawn
        assert drawn is not None
        scales = extractor.scales_of(*height_width)
        chosen = choose(drawn.config, image_id, drawn.objects.get(image_id), proposed, scales)
        asked, _ = extractor.windows(chosen.boxes, *height_width)
        if self._work.dataset == "windows":
            stored = np.isin(chosen.drawn.scales, extractor.windows(proposed, *height_width)[0])
        else:
            stored = asked == chosen.drawn.scales
        rows = np.flatnonzero(~chosen.drawn.flipped & ~stored)
        if not len(rows):
            return []
        metadata = {**self._work.metadata, "method": drawn.method}
        writer = self._writer("training_windows", drawn.method, drawn.shards[image_id], metadata)
        boxes = chosen.boxes[rows]

        def table(made: RegionFeatures) -> pa.Table:
            layout = schema("training_windows", self._dim)
            columns = {
                "image_id": pa.array([image_id] * len(rows), pa.string()),
                "window_id": pa.array(rows.astype(np.int32)),
                "class_name": pa.nulls(len(rows), pa.string()),
                "flipped": pa.array(np.zeros(len(rows), np.bool_)),
                "box": box_column(boxes),
                **feature_columns(made),
            }
            return pa.table([columns[name] for name in layout.names], schema=layout)

        return [BesideSet(writer, Wanted(boxes, chosen.drawn.scales[rows]), table)]

    def publish(self) -> None:
        """Publish the parts that have rows."""
        for writer in self._writers.values():
            if writer.images:
                writer.publish()

    def _truth_rows(self, objects: pa.Table, made: RegionFeatures) -> pa.Table:
        return window_rows(schema("truth_features", self._dim), objects, feature_columns(made))

    def _writer(self, dataset: str, method: str, shard: str, metadata: dict[str, str]) -> ShardWriter:
        """The file of a part, which is begun when it is first asked for."""
        if (dataset, shard) not in self._writers:
            layout = schema(dataset, self._dim, metadata)
            writer = ShardWriter(self._root, dataset, method, shard, layout, source=self._work.shard)
            self._writers[dataset, shard] = self._stack.enter_context(writer)
        return self._writers[dataset, shard]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def feature_columns(features: RegionFeatures) -> dict[str, pa.Array]:
    """The columns that are made of an image's boxes."""
    return {
        "scale": pa.array(features.scales, pa.int32()),
        "window": window_column(features.windows),
        VECTOR_COLUMN: vector_column(features.vectors),
    }
