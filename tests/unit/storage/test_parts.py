"""Parts: rows of a shard that is yet to be made, which nobody but its maker sees."""

import pytest

from storage.commits import winners
from storage.garbage import collect, plan_collection
from storage.parts import drop_parts, part_rows, parts_of
from storage.runs import DatasetRecord, RunRecord, write_run
from storage.writer import ShardWriter
from tests.stored import FEATURES, METHOD, commit_features, feature_rows, fold_winners, publish_run


def publish_part(root, shard: str, source: str, counts: dict[str, int]) -> None:
    with ShardWriter(root, "features", METHOD, shard, FEATURES, source=source) as writer:
        for image_id, count in counts.items():
            writer.write_image(image_id, feature_rows(image_id, count))
        writer.publish()


def read(root, shard: str, image_ids: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in part_rows(root, parts_of(root, "features", METHOD).get(shard, []), image_ids):
        image_id = table["image_id"][0].as_py()
        assert table.equals(feature_rows(image_id, len(table)))
        found[image_id] = found.get(image_id, 0) + len(table)
    return found


@pytest.fixture
def parts(place):
    """Two parts of one shard, and one of another."""
    publish_part(place, "aa", "01", {"i": 3, "j": 1})
    publish_part(place, "aa", "02", {"k": 2})
    publish_part(place, "bb", "02", {"l": 2})
    return place


def test_the_parts_of_a_shard_are_found_and_read(parts):
    assert {shard: len(keys) for shard, keys in parts_of(parts, "features", METHOD).items()} == {"aa": 2, "bb": 1}
    assert read(parts, "aa", ["i", "j", "k", "l"]) == {"i": 3, "j": 1, "k": 2}
    assert read(parts, "aa", ["j"]) == {"j": 1}
    assert read(parts, "cc", ["i"]) == {}


def test_a_part_is_no_shard(parts):
    assert winners(parts, "features", METHOD) == {}
    assert parts_of(parts, "truth_features", METHOD) == {}


def test_what_was_not_published_is_not_there(place):
    with ShardWriter(place, "features", METHOD, "aa", FEATURES, source="01") as writer:
        writer.write_image("i", feature_rows("i", 2))
    assert parts_of(place, "features", METHOD) == {}
    assert not [file for file in place.files("features") if not file.key.endswith("/")]


def test_a_part_that_is_damaged_or_lost_or_anothers_has_no_rows(parts):
    first, second = sorted(parts_of(parts, "features", METHOD)["aa"])
    (other,) = parts_of(parts, "features", METHOD)["bb"]
    parts.write(first, parts.read(first)[:-9])
    parts.write(second, parts.read(other))
    assert read(parts, "aa", ["i", "j", "k", "l"]) == {}
    assert list(part_rows(parts, [first.replace("01", "03")], ["i"])) == []


def test_who_commits_the_shard_drops_its_parts(parts):
    keys = parts_of(parts, "features", METHOD)["aa"]
    drop_parts(parts, [*keys, keys[0]])
    assert set(parts_of(parts, "features", METHOD)) == {"bb"}


@pytest.mark.parametrize("complete", [False, True])
def test_a_collection_takes_the_parts_of_what_is_complete_and_leaves_those_of_what_is_in_hand(parts, complete):
    commit_features(parts, "aa", {"i": 3})
    if complete:
        publish_run(parts, datasets=["features"])
    else:
        entry = DatasetRecord(stage="extract", method=METHOD)
        write_run(parts, RunRecord(name="trial", status="done", datasets={"features": entry}))
    fold_winners(parts, "features")
    list(collect(parts, plan_collection(parts, -5)))
    assert set(parts_of(parts, "features", METHOD)) == (set() if complete else {"aa", "bb"})
    assert set(winners(parts, "features", METHOD)) == {"aa"}
