"""Vectors of annotated boxes: the same, bit for bit, from a pass of their own, from parts and from stored maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.config.features import FeaturesConfig
from jobs.dataset.image_file import ImageFile
from jobs.features.actor import FeatureActor
from jobs.features.driver import stored_maps
from jobs.features.shard import ActorSettings, ExtractShard, StoredMaps, TruthPart
from jobs.features.truth import by_image, gather_truth
from jobs.shards.attempt import NotForThis, Trial
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
PROPOSED, FEATURES, TRUTH = "0" * 12, "1" * 12, "2" * 12
META = {"levels": "6,3,2,1"}


def boxes(count: int, seed: int, least: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.integers(0, (SIZE[1] - least, SIZE[0] - least), (count, 2))
    return np.concatenate([corners, corners + random.integers(least - 10, least, (count, 2))], axis=1).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in load_state(SPEC, "random", 0).items()}


class Scene:
    """Five pictures, proposals of them in one shard, and objects; features in two shards, truth in others."""

    def __init__(self, folder: Path, state: dict[str, np.ndarray]) -> None:
        self.root: Root = open_root(str(folder / "root"))
        self.files = {}
        for number, image_id in enumerate(IDS):
            path = folder / f"{image_id}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            self.files[image_id] = ImageFile(image_id, str(path), f"listing:{image_id}", SIZE)
        self.config = FeaturesConfig(body="alexnet", weights="random", scales=(96, 160, 400))
        settings = ActorSettings(
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
        self.actor = FeatureActor(settings, state)
        self.objects = pa.concat_tables(
            [
                self._objects(image_id, boxes(count, 10 + n, 80 if image_id in "ae" else 30))
                for n, (image_id, count) in enumerate(BOXES.items())
            ]
        )
        self.proposals = self._propose()

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
                own = boxes(8, 100 + number, 80)
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

    def work(self, dataset: str, shard: str, ids: Sequence[str], **more) -> ExtractShard:
        own = {"objects": self.objects_of(ids)} if dataset == "truth_features" else {}
        return ExtractShard(
            dataset=dataset,
            method=TRUTH if own else FEATURES,
            shard=shard,
            revision=0,
            images=tuple(self.files[image_id] for image_id in ids),
            metadata=META,
            proposals=None if own else self.proposals,
            proposals_method=PROPOSED,
            dim=50 * 256,
            **{**own, **more},
        )

    def features(self, dataset: str, shard: str, ids: Sequence[str], truth: dict[str, Sequence[str]]) -> Commit:
        """A shard of features, and parts of shards of truth beside."""
        parts = tuple(
            TruthPart(method=TRUTH, shard=key, metadata=META, objects=self.objects_of(own))
            for key, own in truth.items()
        )
        return self.actor.extract(self.work(dataset, shard, ids, truth=parts))

    def rows(self, commit: Commit) -> list[dict]:
        key = data_key(commit.dataset, commit.method, commit.name)
        return [row for table in scan_file(self.root, key) for row in table.to_pylist()]

    def alone(self, ids: Sequence[str]) -> Commit:
        """The shard as it was always made: every image passes the body for it."""
        work = replace(self.work("truth_features", "ff", ids), method="9" * 12)
        return self.actor.extract(work)

    def pooled(self, ids: Sequence[str]) -> dict[str, StoredMaps]:
        keys = {}
        for name in winners(self.root, "maps", FEATURES).values():
            key = data_key("maps", FEATURES, name)
            keys.update({t["image_id"][0].as_py(): key for t in scan_file(self.root, key, ["image_id"])})
        own = by_image(self.objects, list(ids))
        return {i: stored_maps(self.config, SPEC, keys[i], boxes_of(own[i]["box"]), SIZE) for i in ids if i in keys}

    def parts(self) -> set[str]:
        return set(parts_of(self.root, "truth_features", TRUTH))


@pytest.fixture
def scene(tmp_path, state) -> Scene:
    return Scene(tmp_path, state)


@pytest.mark.parametrize("dataset", ["features", "windows"])
def test_truth_is_made_beside_features_with_no_pass_of_its_own(scene, dataset):
    """Truth shard aa spans both shards of features, bb lies within one."""
    plain = scene.actor.extract(replace(scene.work(dataset, "0e", IDS[:2]), method="8" * 12))
    first = scene.features(dataset, "01", IDS[:2], {"aa": ["a"], "bb": ["b"]})
    assert scene.rows(first) == scene.rows(plain)
    assert first.images == plain.images
    second = scene.features(dataset, "02", IDS[2:], {"aa": ["c", "d", "e"]})
    assert scene.parts() == {"aa", "bb"}
    for shard, ids in (("aa", ("a", "c", "d", "e")), ("bb", ("b",))):
        alone = scene.alone(ids)
        gathered = gather_truth(scene.work("truth_features", shard, ids), scene.root, "test")
        assert scene.rows(gathered) == scene.rows(alone)
        assert gathered.images == alone.images == {i: BOXES[i] for i in ids}
        assert (gathered.passes, gathered.ledger) == (0, ())
        assert alone.passes > 0
        assert shard not in scene.parts(), "its parts have had their use"
    assert second.passes > len(IDS[2:]), "several scales"


def test_an_image_passes_once_for_each_scale_that_any_of_its_boxes_has(scene):
    made = scene.features("features", "01", IDS, {"aa": IDS})
    gathered = gather_truth(scene.work("truth_features", "aa", IDS), scene.root, "test")
    rows = scene.rows(made) + scene.rows(gathered)
    used = {(row["image_id"], row["scale"]) for row in rows}
    assert made.passes + gathered.passes == len(used)
    own = {(row["image_id"], row["scale"]) for row in scene.rows(made)}
    assert used - own, "some object is at a scale that no proposal has, or this test shows too little"


def test_a_changed_label_is_pooled_from_stored_maps_without_image_or_body(scene):
    scene.features("windows", "01", IDS, {})
    maps = scene.pooled(IDS)
    expected = scene.rows(scene.alone("ace"))
    for file in scene.files.values():
        Path(file.uri).unlink()
    made = gather_truth(scene.work("truth_features", "aa", "ace", pooled=maps), scene.root, "test")
    assert scene.rows(made) == expected
    assert made.passes == 0
    with pytest.raises(NotForThis, match="image 'b' has neither"):  # its object is at a scale that no proposal has
        gather_truth(scene.work("truth_features", "bb", "bd", pooled=maps), scene.root, "test")


def test_what_is_stored_nowhere_is_for_an_actor_which_passes_that_alone(scene):
    scene.features("features", "01", IDS[:2], {"aa": ["a", "b"]})
    work = scene.work("truth_features", "aa", IDS)
    with pytest.raises(NotForThis, match="image 'd' has neither"):
        gather_truth(work, scene.root, "test")
    assert winners(scene.root, "truth_features", TRUTH) == {}
    assert scene.parts() == {"aa"}
    made = scene.actor.extract(work)
    assert scene.rows(made) == scene.rows(scene.alone(IDS))
    assert made.passes == scene.alone(IDS[2:]).passes
    assert scene.parts() == set()


def test_a_killed_attempt_leaves_parts_that_the_next_one_doubles(scene):
    """Published, and then its worker died before the commit: the same again."""
    truth = {"aa": IDS[:2]}
    scene.features("features", "01", IDS[:2], truth)
    for name in winners(scene.root, "features", FEATURES).values():
        scene.root.delete(f"features/{FEATURES}/commit/{name.stem}.json")
    scene.features("features", "01", IDS[:2], truth)
    assert len(parts_of(scene.root, "truth_features", TRUTH)["aa"]) == 2
    made = gather_truth(scene.work("truth_features", "aa", IDS[:2]), scene.root, "test")
    assert scene.rows(made) == scene.rows(scene.alone(IDS[:2]))
    assert scene.parts() == set()


def test_an_image_that_fails_has_a_row_in_both_ledgers_and_no_part(scene):
    Path(scene.files["b"].uri).write_bytes(b"no picture")
    made = scene.features("features", "01", IDS, {"aa": IDS})
    truth = scene.actor.extract(scene.work("truth_features", "aa", IDS))
    alone = scene.alone(IDS)
    assert [row.image_id for row in made.ledger] == ["b"]
    told = [(row.image_id, row.stage, row.type, row.message) for row in truth.ledger]
    assert told == [(row.image_id, row.stage, row.type, row.message) for row in alone.ledger]
    assert told == [(row.image_id, row.stage, row.type, row.message) for row in made.ledger]
    assert truth.images == alone.images
    assert truth.passes == 0


def test_a_part_that_is_damaged_costs_a_pass_and_nothing_else(scene):
    scene.features("features", "01", IDS, {"aa": IDS})
    (key,) = parts_of(scene.root, "truth_features", TRUTH)["aa"]
    data = bytearray(scene.root.read(key))
    data[len(data) // 2] ^= 1
    scene.root.write(key, bytes(data))
    made = scene.actor.extract(scene.work("truth_features", "aa", IDS))
    assert scene.rows(made) == scene.rows(scene.alone(IDS))
    assert made.passes > 0


def test_a_trial_of_an_image_alone_leaves_nothing(scene):
    part = TruthPart(method=TRUTH, shard="aa", metadata=META, objects=scene.objects_of(IDS))
    assert scene.actor.extract(scene.work("features", "01", IDS, truth=(part,), trial=Trial(alone="a"))) is None
    assert scene.parts() == set()
    assert winners(scene.root, "features", FEATURES) == {}


def test_a_new_revision_takes_over_what_the_last_one_has(scene):
    Path(scene.files["b"].uri).rename(scene.files["b"].uri + ".away")
    scene.features("features", "01", IDS, {"aa": IDS})
    first = scene.actor.extract(scene.work("truth_features", "aa", IDS))
    assert [row.image_id for row in first.failed] == ["b"]
    Path(scene.files["b"].uri + ".away").rename(scene.files["b"].uri)
    part = TruthPart(method=TRUTH, shard="aa", metadata=META, objects=scene.objects_of(IDS))
    (name,) = winners(scene.root, "features", FEATURES).values()
    again = replace(
        scene.work("features", "01", IDS, truth=(part,)), revision=1, trial=Trial(earlier={"features": name})
    )
    assert scene.actor.extract(again).passes <= 3
    earlier = Trial(earlier={"truth_features": first.name})
    second = gather_truth(
        replace(scene.work("truth_features", "aa", IDS), revision=1, trial=earlier), scene.root, "test"
    )
    assert (second.revision, second.passes, second.ledger) == (1, 0, ())
    assert scene.rows(second) == scene.rows(scene.alone(IDS))
