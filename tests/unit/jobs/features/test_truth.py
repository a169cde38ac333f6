"""Vectors of annotated boxes: the same, bit for bit, from a pass of their own, from parts and from stored maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.features.shard import TruthPart
from jobs.features.truth import gather_truth
from jobs.shards.attempt import NotForThis, Trial
from storage.commits import winners
from storage.parts import parts_of
from tests.extraction import BOXES, FEATURES, IDS, META, TRUTH, Scene


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("dataset", ["features", "windows"])
def test_truth_is_made_beside_features_with_no_pass_of_its_own(scene, dataset):
    """Truth shard aa spans both shards of features, bb lies within one."""
    plain = scene.actor.extract(scene.work(dataset, "0e", IDS[:2], method="8" * 12))
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
    some = scene.actor.extract(scene.work("truth_features", "cc", "abcde", pooled=maps))
    assert scene.rows(some) == scene.rows(scene.alone("abcde"))
    assert some.passes == 2, "of b and d, at the scale that is not stored"
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


def test_an_image_without_proposals_is_not_read_for_its_features_and_passes_for_its_objects(tmp_path):
    scene = Scene(tmp_path, without="ab")
    made = scene.features("features", "01", IDS, {"aa": IDS})
    assert {i for i, rows in made.images.items() if not rows} == {"a", "b"}
    work = scene.work("truth_features", "aa", IDS)
    with pytest.raises(NotForThis, match="image 'a'"):
        gather_truth(work, scene.root, "test")
    truth = scene.actor.extract(work)
    assert scene.rows(truth) == scene.rows(scene.alone(IDS))
    assert truth.passes == scene.alone("ab").passes


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
