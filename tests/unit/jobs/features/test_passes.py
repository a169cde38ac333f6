"""Where the missing shards of truth_features come from: features made now, stored maps, parts, or a pass."""

from __future__ import annotations

import pytest

from jobs.config.features import FeaturesConfig
from jobs.features.passes import Passes
from jobs.shards.survey import ShardedDataset, survey
from storage.schemas import schema
from storage.shards import Shard
from storage.writer import ShardWriter

POOLED, TRUTH = "1" * 12, "2" * 12
SHARDS = [Shard("0a", ("a", "b")), Shard("0b", ("c",)), Shard("0c", ("d", "e"))]
TRUTHS = [Shard("aa", ("a", "c")), Shard("bb", ("d", "e"))]


def commit(root, dataset: str, method: str, shard: str, ids: tuple[str, ...]) -> None:
    with ShardWriter(root, dataset, method, shard, schema(dataset)) as writer:
        for image_id in ids:
            writer.write_image(image_id, None)
        writer.commit()


def planned(root, dataset: str = "features", source: str = "windows") -> Passes:
    pooled = ShardedDataset(stage="extract", name=dataset, method=POOLED, cut=lambda: SHARDS)
    truths = ShardedDataset(stage="extract", name="truth_features", method=TRUTH, cut=lambda: TRUTHS)
    config = FeaturesConfig(source=source)
    return Passes.of(root, config, survey(root, pooled), survey(root, truths))


def alone(passes: Passes) -> list[str]:
    return [i for shard in TRUTHS for i in passes.alone(shard, {"a", "c", "d"})]


def test_at_first_all_is_made_with_the_features(place):
    passes = planned(place)
    assert passes.made == {"a": "0a", "c": "0b", "d": "0c", "e": "0c"}
    assert [passes.beside(shard) for shard in SHARDS] == [{"aa": ["a"]}, {"aa": ["c"]}, {"bb": ["d", "e"]}]
    assert alone(passes) == []


def test_features_that_are_there_without_maps_are_of_no_help(place):
    commit(place, "features", POOLED, "0b", ("c",))
    passes = planned(place)
    assert passes.beside(SHARDS[1]) == {"aa": ["c"]}, "if they were made, which they are not"
    assert "c" not in passes.made
    assert alone(passes) == ["c"], "e has no objects"


@pytest.mark.parametrize("dataset", ["features", "windows"])
def test_stored_maps_are_a_help_whatever_is_stored_now(place, dataset):
    for name in ("maps", "windows"):
        commit(place, name, POOLED, "0b", ("c",))
    passes = planned(place, dataset)
    assert set(passes.stored) == {"c"}
    assert "c" not in passes.made
    assert alone(passes) == []


def test_where_there_are_parts_a_shard_is_taken_to_have_them_all(place):
    for shard in SHARDS:
        commit(place, "features", POOLED, shard.key, shard.image_ids)
    assert alone(planned(place)) == ["a", "c", "d"]
    with ShardWriter(place, "truth_features", TRUTH, "aa", schema("truth_features"), source="0a") as writer:
        writer.publish()
    assert alone(planned(place)) == ["d"]


def test_what_is_complete_needs_nothing(place):
    for shard in TRUTHS:
        commit(place, "truth_features", TRUTH, shard.key, shard.image_ids)
    passes = planned(place)
    assert [passes.beside(shard) for shard in SHARDS] == [{}, {}, {}]


def test_warped_windows_share_no_maps(place):
    passes = planned(place, source="warp")
    assert (passes.made, passes.truth) == ({}, {})
    assert alone(passes) == ["a", "c", "d"]
