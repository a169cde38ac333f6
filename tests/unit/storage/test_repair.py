import json

import pytest

from storage.check import check_dataset
from storage.commits import commit_key, data_key, winners
from storage.identity import canonical_json, sha256
from storage.manifest import manifest_key
from storage.records import dump_record
from storage.repair import plan_repair, repair
from storage.root import StorageError
from storage.runs import read_run, record_key, write_run
from tests.stored import METHOD, commit_features, publish_run, store_run


@pytest.fixture
def stored(place):
    """A root whose run ``trial`` has three shards of features, and the index."""
    store_run(place)
    publish_run(place)
    return place


def shard_files(root, shard: str) -> tuple[str, str]:
    name = winners(root, "features", METHOD)[shard]
    return commit_key("features", METHOD, name), data_key("features", METHOD, name)


def manifest_file(root) -> str:
    return manifest_key("features", METHOD, read_run(root, "trial").datasets["features"].manifest)


def flip(root, key: str) -> None:
    data = bytearray(root.read(key))
    data[len(data) // 2] ^= 0x10
    root.write(key, bytes(data))


def all_files(root) -> set[str]:
    return {file.key for folder in ("features", "images", "runs") for file in root.files(folder)}


def mended(root) -> list[str]:
    """Repair, make the shards that are missing then, publish the run again: what is still wrong."""
    repair(root, plan_repair(root))
    there = winners(root, "features", METHOD)
    if "bb" not in there:
        commit_features(root, "bb", {"d": 2, "e": 0, "f": 6})
    publish_run(root)
    return [problem.text for problem in plan_repair(root).problems]


def test_of_a_good_root_nothing_is_dropped(stored):
    found = plan_repair(stored)
    assert (found.problems, found.drops, found.incomplete) == ([], [], {})


def test_it_shows_before_it_acts(stored):
    flip(stored, shard_files(stored, "bb")[1])
    before = {key: stored.read(key) for key in all_files(stored)}
    plan_repair(stored)
    assert {key: stored.read(key) for key in all_files(stored)} == before


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_shard_goes_as_a_whole_and_with_it_the_manifest(stored, which, missing):
    files = shard_files(stored, "bb")
    manifest = manifest_file(stored)
    if missing:
        stored.delete(files[which])
    else:
        flip(stored, files[which])
    before = all_files(stored)
    found = plan_repair(stored)
    assert len(found.problems) == 1
    assert found.drops[0] == files[0]  # the commit first
    assert set(found.drops) == {*files, manifest}
    assert found.incomplete == {"trial": ["features"]}
    repair(stored, found)
    assert all_files(stored) == before - {*files, manifest}
    assert read_run(stored, "trial").datasets["features"].manifest is None
    assert mended(stored) == []


def test_of_a_damaged_manifest_the_shards_stay(stored):
    key = manifest_file(stored)
    shards = winners(stored, "features", METHOD)
    flip(stored, key)
    assert plan_repair(stored).drops == [key]
    assert mended(stored) == []
    assert winners(stored, "features", METHOD) == shards


def test_of_a_damaged_record_nothing_else_goes(stored):
    flip(stored, record_key("trial"))
    before = all_files(stored)
    found = plan_repair(stored)
    assert found.drops == [record_key("trial")]
    repair(stored, found)
    assert all_files(stored) == before - {record_key("trial")}


def test_what_a_lost_record_may_have_had_is_read_too(stored):
    flip(stored, record_key("trial"))
    files = shard_files(stored, "cc")
    flip(stored, files[1])
    assert set(plan_repair(stored).drops) == {record_key("trial"), *files}


def test_two_runs_that_share_a_shard_are_both_not_complete(stored):
    publish_run(stored, "second")
    flip(stored, shard_files(stored, "aa")[1])
    found = plan_repair(stored, "second")
    assert found.incomplete == {"trial": ["features"], "second": ["features"]}
    assert len(found.problems) == 1


def test_one_run_of_two_is_asked_for(stored):
    write_run(stored, read_run(stored, "trial").model_copy(update={"name": "lost"}))
    flip(stored, record_key("lost"))
    assert plan_repair(stored, "trial").drops == []
    assert plan_repair(stored, "lost").drops == [record_key("lost")]


def test_the_newer_is_not_called_damaged(stored):
    files = shard_files(stored, "aa")
    fields = json.loads(stored.read(files[0]))
    fields.pop("digest")
    stored.write(files[0], json.dumps({**fields, "schema_version": 99}).encode())
    record = read_run(stored, "trial")
    (problem,) = [found for found in check_dataset(stored, record, "features") if "99" in found.text]
    assert problem.drops == ()
    assert plan_repair(stored).drops == []


def test_what_a_stopped_run_holds_is_read_too(stored):
    """What it has adopted stands in no dataset of its record yet; the next run would meet it."""
    record = read_run(stored, "trial")
    del record.datasets["features"]
    write_run(stored, record.model_copy(update={"holds": [f"features/{METHOD}"]}))
    files = shard_files(stored, "bb")
    flip(stored, files[1])
    (manifest,) = stored.names(f"features/{METHOD}/manifest")
    stored.write(f"features/{METHOD}/manifest/{manifest}", b"no table")
    assert set(plan_repair(stored).drops) == {*files, f"features/{METHOD}/manifest/{manifest}"}


def test_an_older_revision_does_not_count_again(stored):
    older = shard_files(stored, "bb")
    commit_features(stored, "bb", {"d": 2, "e": 1, "f": 6}, revision=1)
    publish_run(stored)
    flip(stored, shard_files(stored, "bb")[1])
    assert {*older, *shard_files(stored, "bb")} <= set(plan_repair(stored).drops)
    repair(stored, plan_repair(stored))
    assert "bb" not in winners(stored, "features", METHOD)


def test_a_run_that_is_in_hand_is_let_be(stored):
    write_run(stored, read_run(stored, "trial").model_copy(update={"status": "running", "started": "2026-01-01"}))
    flip(stored, shard_files(stored, "bb")[1])
    before = all_files(stored)
    with pytest.raises(StorageError, match="run 'trial' says that it is running since 2026-01-01"):
        repair(stored, plan_repair(stored))
    assert all_files(stored) == before


def test_what_is_as_it_was_written_is_not_damaged_whatever_it_says(stored):
    """A newer version may know another dataset, or another level of a note: nothing of it may go."""
    record = json.loads(stored.read(record_key("trial")))
    record["datasets"]["masks"] = record["datasets"]["features"]
    files = shard_files(stored, "aa")
    commit = json.loads(stored.read(files[0]))
    commit["ledger"] = [{"image_id": "a", "stage": "s", "type": "t", "message": "m", "level": "hint"}]
    for key, fields in ((record_key("trial"), record), (files[0], commit)):
        del fields["digest"]
        digest = sha256(canonical_json(fields))
        stored.write(key, json.dumps({**fields, "digest": digest}).encode())
    with pytest.raises(StorageError, match=r"is of another version: .*; update spp-pipeline"):
        read_run(stored, "trial")
    assert plan_repair(stored).drops == []


def test_files_that_vouch_for_others_know_when_a_bit_of_them_has_flipped(stored):
    """Of a manifest and a commit, some forty bits; records have a test of their own."""
    record = read_run(stored, "trial")
    for key in (manifest_file(stored), shard_files(stored, "bb")[0]):
        good = stored.read(key)
        for at in range(0, 8 * len(good), len(good) // 5 | 1):
            data = bytearray(good)
            data[at // 8] ^= 1 << at % 8
            stored.write(key, bytes(data))
            assert list(check_dataset(stored, record, "features")), (key, at)
        stored.write(key, good)
    assert list(check_dataset(stored, record, "features")) == []
    assert dump_record(record) == stored.read(record_key("trial"))
