import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.check import check_dataset
from storage.commits import CommitName, LedgerRow, commit_key, read_commits, winners, write_commit
from storage.identity import sha256
from storage.manifest import manifest_key
from storage.runs import DatasetRecord
from storage.schemas import schema
from tests.stored import METHOD, commit_features, commit_images, feature_rows, publish_run, store_run


@pytest.fixture
def stored(place):
    store_run(place)
    return place


def problems(root, dataset: str = "features", record=None) -> list[str]:
    record = record or publish_run(root)
    return [problem.text for problem in check_dataset(root, record, dataset)]


def data_of(root, shard: str) -> str:
    (name,) = [name for name in root.names(f"features/{METHOD}/data") if name.startswith(f"{shard}.")]
    return f"features/{METHOD}/data/{name}"


def commit_of(root, shard: str):
    (commit,) = read_commits(root, "features", METHOD, [winners(root, "features", METHOD)[shard]])
    return commit


def replace(root, shard: str, table: pa.Table, groups: list[int]) -> None:
    """Another file in a shard's place, with row groups of so many rows, and a commit of its bytes."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        for count in groups:
            writer.write_table(table.slice(0, count))
            table = table.slice(count)
    data = sink.getvalue().to_pybytes()
    commit = commit_of(root, shard)
    root.write(f"features/{METHOD}/{commit.data}", data)
    write_commit(root, commit.model_copy(update={"bytes": len(data), "sha256": sha256(data)}))
    root.delete_folder(f"features/{METHOD}/manifest")


def test_a_good_dataset_has_no_problems(stored):
    assert problems(stored) == []
    assert problems(stored, "images") == []


@pytest.mark.parametrize("at", [0, 5, 300, -300, -5, -1])
def test_a_flipped_bit_is_found(stored, at):
    key = data_of(stored, "bb")
    data = bytearray(stored.read(key))
    data[at] ^= 0x10
    stored.write(key, bytes(data))
    assert problems(stored) == [f"{key}: its SHA-256 is not the one in its commit"]


@pytest.mark.parametrize("shard", ["aa", "cc"])
def test_a_short_file_is_found(stored, shard):
    key = data_of(stored, shard)
    size = stored.size(key)
    stored.write(key, stored.read(key)[:-1])
    assert problems(stored) == [f"{key}: {size - 1} bytes, its commit says {size}"]


def test_a_missing_file_is_found(stored):
    key = data_of(stored, "bb")
    stored.delete(key)
    assert problems(stored) == [f"{key}: the file is missing"]


def test_several_problems_are_all_found(stored):
    stored.delete(data_of(stored, "aa"))
    stored.write(data_of(stored, "cc"), b"")
    assert len(problems(stored)) == 2


def test_a_duplicated_image_is_found(stored):
    commit_features(stored, "dd", {"c": 1, "i": 1})
    commit_images(stored, "1b", "i")
    assert problems(stored) == ["features: image 'c' stands in 2 shards"]


def test_an_image_that_failed_in_one_shard_and_not_in_another_is_found(stored):
    failed = LedgerRow(image_id="a", stage="extract", type="ImageError", message="no image")
    commit_features(stored, "dd", {}, ledger=[failed], skipped=["b"])
    assert problems(stored) == [f"features: image {i!r} stands in 2 shards" for i in "ab"]


def test_a_missing_image_is_found(stored):
    commit_images(stored, "1b", ["a+", "i"])
    assert problems(stored) == ["features: image 'a+' is missing", "features: image 'i' is missing"]


def test_an_image_that_failed_is_not_missing(stored):
    commit_images(stored, "1b", ["i", "j", "k"])
    failed = LedgerRow(image_id="i", stage="extract", type="ImageError", message="no image")
    commit_features(stored, "dd", {"k": 1}, ledger=[failed], skipped=["j"])
    assert problems(stored) == []


def test_an_image_with_a_note_is_there_once(stored):
    commit_images(stored, "1b", ["i"])
    note = LedgerRow(image_id="i", stage="extract", type="Scale", message="taken at 480", level="note")
    commit_features(stored, "dd", {"i": 1}, ledger=[note])
    assert problems(stored) == []


def test_an_image_that_no_index_has_is_found(stored):
    commit_features(stored, "dd", {"x": 1})
    assert problems(stored) == ["features: image 'x' is not in images"]


def test_truth_features_are_of_some_images_only(stored):
    from storage.writer import ShardWriter

    with ShardWriter(stored, "truth_features", METHOD, "aa", schema("truth_features")) as writer:
        writer.write_image("a", None)
        writer.commit()
    record = publish_run(stored, datasets=["images", "truth_features"])
    assert problems(stored, "truth_features", record) == []


def test_two_images_in_a_row_group_are_found(stored):
    rows = [feature_rows(image_id, count) for image_id, count in (("d", 2), ("f", 6))]
    replace(stored, "bb", pa.concat_tables(rows), [8])
    assert problems(stored) == [f"{data_of(stored, 'bb')}: row group 0 holds 2 images"]


@pytest.mark.parametrize("counts", [{"d": 2, "f": 5}, {"d": 2, "g": 6}, {"f": 6}, {"d": 1, "f": 7}])
def test_rows_that_are_not_those_of_the_commit_are_found(stored, counts):
    rows = [feature_rows(image_id, count) for image_id, count in counts.items()]
    replace(stored, "bb", pa.concat_tables(rows), list(counts.values()))
    assert problems(stored) == [f"{data_of(stored, 'bb')}: the rows of its images are not those of its commit"]


def test_parts_of_a_large_image_are_good(stored):
    rows = [feature_rows(image_id, count) for image_id, count in (("d", 2), ("f", 6))]
    replace(stored, "bb", pa.concat_tables(rows), [1, 1, 4, 2])
    assert problems(stored) == []


def test_a_missing_shard_is_found(stored):
    record = publish_run(stored)
    record.datasets["features"].shards = 4
    assert problems(stored, record=record) == ["features: the manifest has 3 shards, the run 4"]


def test_a_missing_commit_is_found(stored):
    record = publish_run(stored)
    key = commit_key("features", METHOD, winners(stored, "features", METHOD)["cc"])
    stored.delete(key)
    found = problems(stored, record=record)
    assert found[0] == f"{key}: the file is missing"
    assert found[1:] == [f"features: image {i!r} is missing" for i in "gh"]


def test_a_damaged_commit_is_found(stored):
    record = publish_run(stored)
    key = commit_key("features", METHOD, winners(stored, "features", METHOD)["cc"])
    stored.write(key, stored.read(key)[:-20])
    assert problems(stored, record=record)[0].startswith(f"{key} is damaged")


def test_a_missing_or_damaged_manifest_is_found(stored):
    record = publish_run(stored)
    key = manifest_key("features", METHOD, record.datasets["features"].manifest)
    stored.write(key, stored.read(key)[10:])
    (found,) = problems(stored, record=record)
    assert found.startswith(f"{key} is damaged")
    stored.delete(key)
    assert problems(stored, record=record) == [f"{key}: the file is missing"]


def test_a_dataset_that_is_not_complete_is_said_to_be(stored):
    record = publish_run(stored)
    record.datasets["proposals"] = DatasetRecord(stage="propose", method=METHOD)
    assert problems(stored, "proposals", record) == ["proposals: not complete; `spp propose` goes on with it"]


def test_the_winner_alone_is_looked_at(stored):
    commit = commit_features(stored, "aa", {"a": 5, "b": 3, "c": 4}, attempt="zz")
    assert winners(stored, "features", METHOD)["aa"] != CommitName("aa", 0, "zz")
    stored.write(f"features/{METHOD}/{commit.data}", b"")
    assert problems(stored) == []
