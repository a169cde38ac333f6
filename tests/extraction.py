"""Five small pictures with proposals and objects, and an actor that extracts their features, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.config.features import FeaturesConfig
from jobs.dataset.image_file import ImageFile
from jobs.features.actor import FeatureActor
from jobs.features.driver import stored_maps
from jobs.features.shard import ActorSettings, ExtractShard, StoredMaps, TruthPart
from jobs.features.truth import by_image
from pipeline.bodies import body_spec, load_state
from storage.columns import box_column, boxes_of
from storage.commits import Commit, CommitName, data_key, winners
from storage.parts import parts_of
from storage.root import Root, open_root
from storage.scan import scan_file
from storage.schemas import schema
from storage.writer import ShardWriter

SPEC = body_spec("alexnet")
SIZE = (90, 120)
IDS = ("a", "b", "c", "d", "e")
BOXES = {"a": 2, "b": 1, "c": 0, "d": 3, "e": 1}
"""Objects of each image; those of a and e are as large as proposals, so at their scale, the others are not."""
STATE = {name: values.numpy() for name, values in load_state(SPEC, "random", 0).items()}
PROPOSED, FEATURES, TRUTH = "0" * 12, "1" * 12, "2" * 12
META = {"levels": "6,3,2,1"}


def boxes(count: int, seed: int, least: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.integers(0, (SIZE[1] - least, SIZE[0] - least), (count, 2))
    return np.concatenate([corners, corners + random.integers(least - 10, least, (count, 2))], axis=1).astype(
        np.float32
    )


class Scene:
    """Five pictures, proposals of them in one shard, none of those ``without``, and objects.

    Nothing else is made: features and truth come to be in shards that a test chooses.
    """

    def __init__(self, folder: Path, without: str = "") -> None:
        self.without = without
        self.root: Root = open_root(str(folder / "root"))
        self.files = {}
        for number, image_id in enumerate(IDS):
            path = folder / f"{image_id}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            self.files[image_id] = ImageFile(image_id, str(path), f"listing:{image_id}", SIZE)
        self.use(scales=(96, 160, 400))
        self.objects = pa.concat_tables(
            [
                self._objects(image_id, boxes(count, 10 + n, 80 if image_id in "ae" else 30))
                for n, (image_id, count) in enumerate(BOXES.items())
            ]
        )
        self.proposals = self._propose()

    def use(self, scales: tuple[int, ...]) -> None:
        """Extract at these scales from now on."""
        self.config = FeaturesConfig(body="alexnet", weights="random", scales=scales)
        self.settings = ActorSettings(
            root=self.root,
            config=self.config,
            device="cpu",
            threads=1,
            decode_threads=1,
            decode_ahead=2,
            max_boxes=20,
            storage_options={},
            producer="test",
        )
        self.actor = FeatureActor(self.settings, STATE)

    @staticmethod
    def path(file: ImageFile) -> Path:
        """Where a picture is."""
        return Path(file.uri)

    @staticmethod
    def shifted(column: pa.ChunkedArray) -> pa.StructArray:
        """Boxes of the same size, half as far from the left."""
        boxes = boxes_of(column)
        return box_column(boxes - np.rint(boxes[:, :1] / 2) * np.array([1, 0, 1, 0], np.float32))

    @staticmethod
    def _objects(image_id: str, own: np.ndarray) -> pa.Table:
        count = len(own)
        columns = [
            pa.array([image_id] * count, pa.string()),
            pa.array(range(count), pa.int32()),
            pa.array(["cat"] * count, pa.string()),
            box_column(own),
            *(pa.array([False] * count) for _ in range(2)),
        ]
        return pa.table(columns, schema=schema("objects"))

    def _propose(self) -> CommitName:
        layout = schema("proposals")
        with ShardWriter(self.root, "proposals", PROPOSED, "ab", layout) as writer:
            for number, image_id in enumerate(IDS):
                own = boxes(8, 100 + number, 80) if image_id not in self.without else np.zeros((0, 4), np.float32)
                ids = pa.array(np.arange(len(own), dtype=np.int32))
                columns = {
                    "image_id": pa.array([image_id] * len(own)),
                    "proposal_id": ids,
                    "box": box_column(own),
                    "method": pa.array(["test"] * len(own)),
                    "rank": ids,
                    "strategy": pa.nulls(len(own), pa.string()),
                    "level": pa.nulls(len(own), pa.int32()),
                }
                writer.write_image(image_id, pa.table([columns[name] for name in layout.names], schema=layout))
            return writer.commit().name

    def objects_of(self, ids: Sequence[str]) -> pa.Table:
        return pa.concat_tables(by_image(self.objects, list(ids)).values()).combine_chunks()

    def work(self, dataset: str, shard: str, ids: Sequence[str], **more: Any) -> ExtractShard:
        own = {"objects": self.objects_of(ids)} if dataset == "truth_features" else {}
        method = more.pop("method", TRUTH if own else FEATURES)
        return ExtractShard(
            dataset=dataset,
            method=method,
            shard=shard,
            revision=0,
            images=tuple(self.files[image_id] for image_id in ids),
            metadata={**META, "method": method},
            proposals=None if own else self.proposals,
            proposals_method=PROPOSED,
            dim=50 * 256,
            **{**own, **more},
        )

    def features(
        self, dataset: str, shard: str, ids: Sequence[str], truth: dict[str, Sequence[str]], **more: Any
    ) -> Commit:
        """A shard of features, and parts of shards of truth beside."""
        parts = tuple(
            TruthPart(method=TRUTH, shard=key, metadata={**META, "method": TRUTH}, objects=self.objects_of(own))
            for key, own in truth.items()
        )
        return self.actor.extract(self.work(dataset, shard, ids, truth=parts, **more))

    def rows(self, commit: Commit) -> list[dict]:
        key = data_key(commit.dataset, commit.method, commit.name)
        return [row for table in scan_file(self.root, key) for row in table.to_pylist()]

    def alone(self, ids: Sequence[str]) -> Commit:
        """The shard as it was always made: every image passes the body for it."""
        return self.actor.extract(self.work("truth_features", "ff", ids, method="9" * 12))

    def pooled(self, ids: Sequence[str]) -> dict[str, StoredMaps]:
        keys = {}
        for name in winners(self.root, "maps", FEATURES).values():
            key = data_key("maps", FEATURES, name)
            keys.update({t["image_id"][0].as_py(): key for t in scan_file(self.root, key, ["image_id"])})
        own = by_image(self.objects, list(ids))
        return {i: stored_maps(self.config, SPEC, keys[i], boxes_of(own[i]["box"]), SIZE) for i in ids if i in keys}

    def parts(self) -> set[str]:
        return set(parts_of(self.root, "truth_features", TRUTH))
