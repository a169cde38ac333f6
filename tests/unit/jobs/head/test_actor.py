"""Training windows: the same, bit for bit, from a pass of their own and from whatever of them is stored already."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.config.head import FinetuneConfig
from jobs.dataset.objects import ImageObjects
from jobs.features.drawing import DrawnParts
from jobs.features.stored import FeatureShard
from jobs.features.truth import by_image, gather_truth
from jobs.head.actor import WindowActor, WindowShard
from storage.columns import boxes_of
from storage.commits import Commit, data_key, winners
from storage.parts import parts_of
from tests.extraction import IDS, META, PROPOSED, STATE, Scene

DRAWN, WINDOWS = "5" * 12, "6" * 12
CONFIG = FinetuneConfig(windows_per_image=12, foreground=0.25, background_overlap=(0.0, 0.5))


def objects_of(scene: Scene) -> dict[str, ImageObjects]:
    found = by_image(scene.objects, list(IDS))
    return {
        i: ImageObjects(boxes_of(rows["box"]), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_))
        for i, rows in found.items()
        if len(rows)
    }


def draw(scene: Scene, config: FinetuneConfig = CONFIG, shard: str = "01", **stored) -> Commit:
    """The windows of all images: by default every one passes the body."""
    work = WindowShard(
        root=scene.root,
        method=WINDOWS,
        shard=shard,
        revision=0,
        images=tuple(scene.files.values()),
        proposals=(data_key("proposals", PROPOSED, scene.proposals),),
        objects=objects_of(scene),
        failed=frozenset(),
        class_names=("cat",),
        config=config,
        metadata=META,
        **{"features": (), "truth": (), "parts": (), **stored},
    )
    return WindowActor(scene.settings, STATE).draw(work)


def extract(scene: Scene, dataset: str, config: FinetuneConfig | None) -> dict[str, tuple]:
    """Features and truth of all images; with ``config`` also parts of their windows. Where they are stored."""
    drawn = None
    if config is not None:
        drawn = DrawnParts(config, DRAWN, dict.fromkeys(IDS, "01"), objects_of(scene))
    made = scene.features(dataset, "0f", IDS, {"aa": IDS}, drawn=drawn)
    truth = gather_truth(scene.work("truth_features", "aa", IDS), scene.root, "test")
    keys = {
        name: data_key(name, made.method, found)
        for name in (dataset, "maps")
        for found in winners(scene.root, name, made.method).values()
    }
    return {
        "features": (FeatureShard(scene.root, "0f", keys[dataset], keys.get("maps"), "a", "e"),),
        "truth": (data_key(truth.dataset, truth.method, truth.name),),
        "parts": tuple(parts_of(scene.root, "training_windows", DRAWN).get("01", ())),
        "commits": (made, truth),
    }


def used(rows: list[dict]) -> set[tuple]:
    """The passes that rows take, each once: image, side, scale."""
    return {(row["image_id"], row.get("flipped", False), row["scale"]) for row in rows}


@pytest.mark.parametrize("dataset", ["features", "windows"])
@pytest.mark.parametrize("in_time", [True, False])
def test_windows_of_the_image_as_it_is_are_read_where_they_are_stored(tmp_path, dataset, in_time):
    """In time: the actor that held the maps pooled what the features would not have."""
    scene = Scene(tmp_path)
    stored = extract(scene, dataset, CONFIG if in_time else None)
    features, truth = stored.pop("commits")
    alone = draw(scene, shard="02")
    made = draw(scene, **stored)
    rows = scene.rows(made)
    assert rows == scene.rows(alone)
    assert alone.passes == len(used(rows))
    assert {row["flipped"] for row in rows} == {True, False}
    mirrored = {one for one in used(rows) if one[1]}
    if in_time:
        assert made.passes == len(mirrored)
        everything = used(rows) | used(scene.rows(features)) | used(scene.rows(truth))
        assert features.passes + truth.passes + made.passes == len(everything)
        assert parts_of(scene.root, "training_windows", DRAWN) == {}, "they have had their use"
    else:
        assert len(mirrored) < made.passes < alone.passes


def test_at_one_scale_all_windows_of_an_image_that_is_not_mirrored_are_stored(tmp_path):
    scene = Scene(tmp_path)
    scene.use(scales=(160,))
    config = FinetuneConfig(**{**CONFIG.model_dump(), "flips": False})
    stored = extract(scene, "features", None)
    stored.pop("commits")
    expected = scene.rows(draw(scene, config, "02"))
    for file in scene.files.values():
        scene.path(file).unlink()  # no image is opened
    made = draw(scene, config, **stored)
    assert (made.passes, made.ledger) == (0, ())
    assert scene.rows(made) == expected


def test_vectors_of_other_boxes_are_not_taken(tmp_path):
    """Objects that the features were not told of, as after a changed label: those windows pass."""
    scene = Scene(tmp_path)
    stored = extract(scene, "features", CONFIG)
    stored.pop("commits")
    scene.objects = scene.objects.set_column(
        scene.objects.schema.get_field_index("box"),
        scene.objects.schema.field("box"),
        scene.shifted(scene.objects["box"]),
    )
    made = draw(scene, **stored)
    assert scene.rows(made) == scene.rows(draw(scene, shard="02"))
