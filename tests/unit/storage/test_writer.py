import gc
import hashlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.writer
from storage.columns import map_column, vector_column, vectors_of
from storage.commits import CommitName, LedgerRow, Upstream, commit_key, data_key, read_commits, winners
from storage.schemas import SCHEMA_VERSION, schema
from storage.writer import ROW_GROUP_BYTES, ShardWriter
from tests.stored import DIM, FEATURES, METHOD, commit_features, feature_rows, image_rows


def file_of(root, commit) -> bytes:
    return root.read(f"{commit.dataset}/{commit.method}/{commit.data}")


def parquet_of(root, commit) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(file_of(root, commit)))


def groups_of(parquet: pq.ParquetFile) -> list[list[str]]:
    """The image id of every row, by row group."""
    groups = range(parquet.num_row_groups)
    return [parquet.read_row_group(group, columns=["image_id"])["image_id"].to_pylist() for group in groups]


def everything_under(root) -> list[str]:
    return root.fs.find(root.path("").rstrip("/"))


# --- what a shard is ---


def test_the_file_and_its_commit_lie_where_the_contract_says(place):
    commit = commit_features(place, "aa", {"a": 2}, revision=3, attempt="x")
    assert place.names(f"features/{METHOD}/data") == ["aa.r3.x.parquet"]
    assert place.names(f"features/{METHOD}/commit") == ["aa.r3.x.json"]
    assert commit.data == "data/aa.r3.x.parquet"
    assert winners(place, "features", METHOD) == {"aa": commit.name}
    assert len(everything_under(place)) == 2


def test_the_commit_says_what_is_in_the_file(place):
    ledger = [LedgerRow(image_id="f", stage="extract", type="ImageError", message="no image")]
    origin = Upstream(dataset="proposals", method="m", shard="bb", revision=2)
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        for image_id, count in (("a", 5), ("b", 0), ("c", 1)):
            writer.write_image(image_id, feature_rows(image_id, count))
        commit = writer.commit(
            ledger=ledger, skipped=["s"], upstream=[origin], seconds={"conv": 1.23456}, producer="spp 1"
        )
    data = file_of(place, commit)
    assert commit.sha256 == hashlib.sha256(data).hexdigest()
    assert commit.bytes == len(data)
    assert commit.rows == 6 == pq.read_metadata(pa.BufferReader(data)).num_rows
    assert commit.images == {"a": 5, "b": 0, "c": 1}
    assert [(row.image_id, row.attempt) for row in commit.ledger] == [("f", commit.attempt)]
    assert commit.skipped == ("s",)
    assert commit.upstream == (origin,)
    assert commit.seconds["conv"] == 1.2346
    assert commit.seconds["write"] >= 0
    assert commit.producer == "spp 1"
    assert read_commits(place, "features", METHOD, [commit.name]) == [commit]


def test_rows_come_back_in_their_order(place):
    commit = commit_features(place, "aa", {"a": 4, "b": 3})
    expected = pa.concat_tables([feature_rows("a", 4), feature_rows("b", 3)])
    assert parquet_of(place, commit).read().equals(expected)


def test_a_shard_without_rows_is_a_file_without_rows(place):
    commit = commit_features(place, "aa", {"a": 0, "b": 0})
    assert commit.rows == 0
    assert commit.images == {"a": 0, "b": 0}
    table = parquet_of(place, commit).read()
    assert table.num_rows == 0
    assert table.schema.equals(FEATURES)


def test_the_same_rows_make_the_same_bytes(place):
    one = commit_features(place, "aa", {"a": 4, "b": 3})
    two = commit_features(place, "aa", {"a": 4, "b": 3})
    assert one.attempt != two.attempt
    assert one.sha256 == two.sha256


# --- row groups ---


def test_an_image_is_a_row_group(place):
    commit = commit_features(place, "aa", {"a": 3, "b": 0, "c": 1, "d": 2})
    assert groups_of(parquet_of(place, commit)) == [["a"] * 3, ["c"], ["d"] * 2]


def test_a_large_image_is_split_and_shares_no_group(place, monkeypatch):
    monkeypatch.setattr(storage.writer, "ROW_GROUP_BYTES", 1000)
    rows = {"a": 1, "b": 50, "c": 10, "d": 0, "e": 200}
    commit = commit_features(place, "aa", rows)
    groups = groups_of(parquet_of(place, commit))
    assert all(len(set(group)) == 1 for group in groups)
    assert [image_id for group in groups for image_id in group] == [i for i, n in rows.items() for _ in range(n)]
    row_bytes = feature_rows("e", 200).nbytes / 200
    assert all(len(group) * row_bytes <= 1000 for group in groups)
    assert len(groups) == sum(-(-n // int(1000 // row_bytes)) for n in rows.values())
    expected = pa.concat_tables([feature_rows(i, n) for i, n in rows.items()])
    assert parquet_of(place, commit).read().equals(expected)


def test_a_row_larger_than_a_group_is_a_group(place, monkeypatch):
    monkeypatch.setattr(storage.writer, "ROW_GROUP_BYTES", 1)
    commit = commit_features(place, "aa", {"a": 3})
    assert groups_of(parquet_of(place, commit)) == [["a"], ["a"], ["a"]]


def test_2000_vectors_of_12800_are_seven_groups(tmp_path):
    root = storage.open_root(str(tmp_path))
    rows = feature_rows("a", 2000).set_column(5, "feature", vector_column(np.zeros((2000, 12800), np.float16)))
    with ShardWriter(root, "features", METHOD, "aa", schema("features", 12800)) as writer:
        writer.write_image("a", rows)
        commit = writer.commit()
    groups = groups_of(parquet_of(root, commit))
    assert [len(group) for group in groups] == [327] * 6 + [38]
    assert 327 * 12800 * 2 < ROW_GROUP_BYTES == 8 * 2**20


def test_a_shard_of_small_rows_is_one_group(place):
    with ShardWriter(place, "images", METHOD, "aa", schema("images")) as writer:
        writer.write_shard(image_rows(["a", "b", "c"]), {"a": 1, "b": 1, "c": 1})
        commit = writer.commit()
    assert groups_of(parquet_of(place, commit)) == [["a", "b", "c"]]
    assert commit.images == {"a": 1, "b": 1, "c": 1}


def test_a_shard_of_images_without_objects_has_no_group(place):
    with ShardWriter(place, "objects", METHOD, "aa", schema("objects")) as writer:
        writer.write_shard(schema("objects").empty_table(), {"a": 0, "b": 0})
        commit = writer.commit()
    assert groups_of(parquet_of(place, commit)) == []
    assert commit.images == {"a": 0, "b": 0}


# --- the types in the file ---


@pytest.fixture
def vector_file(place) -> pq.ParquetFile:
    layout = schema("features", DIM, {"method": METHOD, "body": "alexnet", "order": "bins, channels last"})
    return parquet_of(place, commit_features(place, "aa", {"a": 30, "b": 5}, layout=layout))


def test_plain_arrow_reads_the_types_of_the_contract(vector_file):
    found = vector_file.schema_arrow
    assert found.equals(schema("features", DIM))
    assert str(found.field("feature").type) == f"fixed_size_list<element: halffloat not null>[{DIM}]"
    assert not any(field.nullable for field in found)
    assert not found.field("feature").type.value_field.nullable


def test_parquet_has_no_level_for_nulls(vector_file):
    columns = {column.path: column for column in vector_file.schema}
    vector = columns.pop("feature.list.element")
    assert (vector.max_definition_level, vector.max_repetition_level) == (1, 1)
    assert (vector.physical_type, vector.length) == ("FIXED_LEN_BYTE_ARRAY", 2)
    assert vector.logical_type.type == "FLOAT16"
    assert {column.max_definition_level for column in columns.values()} == {0}


def test_vectors_are_zstd_without_dictionary_statistics_or_byte_split(vector_file):
    for group in range(2):
        columns = {}
        for number in range(vector_file.metadata.num_columns):
            column = vector_file.metadata.row_group(group).column(number)
            columns[column.path_in_schema] = column
            assert column.compression == "ZSTD"
        vector = columns.pop("feature.list.element")
        assert not vector.has_dictionary_page
        assert not vector.is_stats_set
        assert "PLAIN" in vector.encodings
        assert not {"PLAIN_DICTIONARY", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"} & set(vector.encodings)
        assert all(column.is_stats_set for column in columns.values())
        assert columns["image_id"].has_dictionary_page


def test_maps_are_stored_as_vectors_are(place):
    maps = map_column([np.arange(12, dtype=np.float16).reshape(2, 3, 2), np.zeros((1, 1, 2), np.float16)])
    columns = {"image_id": ["a", "a"], "scale": [480, 688], "height": [2, 1], "width": [3, 1], "channels": [2, 2]}
    with ShardWriter(place, "maps", METHOD, "aa", schema("maps")) as writer:
        writer.write_image("a", pa.table({**columns, "map": maps}))
        parquet = parquet_of(place, writer.commit())
    (column,) = [
        column
        for column in map(parquet.metadata.row_group(0).column, range(parquet.metadata.num_columns))
        if column.path_in_schema.startswith("map.")
    ]
    assert column.compression == "ZSTD"
    assert not column.has_dictionary_page
    assert not column.is_stats_set
    table = parquet.read()
    assert table.schema.equals(schema("maps"))
    assert table["map"].combine_chunks().equals(maps)


def test_a_groups_statistics_name_its_image(vector_file):
    for group, image_id in enumerate("ab"):
        statistics = vector_file.metadata.row_group(group).column(0).statistics
        assert (statistics.min, statistics.max) == (image_id, image_id)


def test_the_file_says_what_it_is(vector_file):
    assert vector_file.metadata.metadata[b"spp.schema_version"] == str(SCHEMA_VERSION).encode()
    said = {key: value for key, value in vector_file.metadata.metadata.items() if key.startswith(b"spp.")}
    assert said == {
        b"spp.schema_version": b"1",
        b"spp.dataset": b"features",
        b"spp.method": METHOD.encode(),
        b"spp.shard": b"aa",
        b"spp.body": b"alexnet",
        b"spp.order": b"bins, channels last",
    }


def test_every_half_float_comes_back_bit_for_bit(place):
    finite = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = finite[np.isfinite(finite)]
    vectors = np.resize(finite, (-(-len(finite) // DIM), DIM))
    rows = feature_rows("a", len(vectors)).set_column(5, FEATURES.field("feature"), vector_column(vectors))
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        writer.write_image("a", rows)
        commit = writer.commit()
    column = parquet_of(place, commit).read_row_group(0)["feature"]
    back = vectors_of(column)
    assert np.array_equal(back.view(np.uint16), vectors.view(np.uint16))
    assert {65504.0, -65504.0, 2.0**-24} <= set(back.ravel().tolist())


def test_vectors_of_a_read_group_are_its_own_memory(place):
    commit = commit_features(place, "aa", {"a": 30})
    column = parquet_of(place, commit).read_row_group(0)["feature"]
    assert column.num_chunks == 1
    behind = np.frombuffer(column.chunk(0).values.buffers()[1], np.float16)
    assert np.shares_memory(vectors_of(column), behind)


# --- what is refused ---


@pytest.mark.parametrize("second", ["a", "b"])
def test_an_unsorted_or_repeated_image_is_refused(place, second):
    writer = ShardWriter(place, "features", METHOD, "aa", FEATURES)
    with writer:
        writer.write_image("b", None)
        with pytest.raises(ValueError, match=f"'{second}'.* sorted"):
            writer.write_image(second, feature_rows(second, 1))
    assert everything_under(place) == []


def test_rows_of_another_shape_are_refused(place):
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        with pytest.raises(pa.ArrowException, match="25"):
            writer.write_image("a", feature_rows("a", 2, schema("features", DIM + 1)))
        with pytest.raises(ValueError, match="names"):
            writer.write_image("b", image_rows(["b"]))


def test_nulls_are_refused(place):
    rows = feature_rows("a", 2).set_column(3, "scale", pa.array([688, None], pa.int32()))
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer, pytest.raises(ValueError, match="null"):
        writer.write_image("a", rows)


def test_columns_of_wider_types_are_taken(place):
    rows = feature_rows("a", 2).set_column(3, "scale", pa.array([688, 480], pa.int64()))
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        writer.write_image("a", rows)
        commit = writer.commit()
    assert parquet_of(place, commit).schema_arrow.equals(FEATURES)


def test_a_count_that_is_not_the_rows_is_not_committed(place):
    with ShardWriter(place, "images", METHOD, "aa", schema("images")) as writer:
        writer.write_shard(image_rows(["a", "b"]), {"a": 1, "b": 1, "c": 1})
        with pytest.raises(OSError, match="2 rows"):
            writer.commit()
    assert everything_under(place) == []


# --- crashes ---


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_block_without_commit_leaves_nothing(place, scratch):
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        writer.write_image("a", feature_rows("a", 3))
    assert everything_under(place) == []
    assert list(scratch.iterdir()) == []


def test_an_error_leaves_nothing(place, scratch):
    def crash():
        with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
            writer.write_image("a", feature_rows("a", 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert everything_under(place) == []
    assert list(scratch.iterdir()) == []


def test_an_abandoned_writer_says_nothing_later(place, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with ShardWriter(place, "features", METHOD, "aa", FEATURES) as writer:
        writer.write_image("a", feature_rows("a", 3))
    del writer
    gc.collect()
    assert complaints == []


def test_an_error_before_the_commit_record_leaves_data_that_nobody_sees(place, monkeypatch):
    def outage(root, record):
        raise ConnectionError("no route")

    with monkeypatch.context() as broken:
        broken.setattr(storage.writer, "write_commit", outage)
        with pytest.raises(ConnectionError):
            commit_features(place, "aa", {"a": 3})
    assert len(place.names(f"features/{METHOD}/data")) == 1
    assert winners(place, "features", METHOD) == {}
    again = commit_features(place, "aa", {"a": 3})
    assert winners(place, "features", METHOD) == {"aa": again.name}


def test_two_writers_of_a_shard_do_each_other_no_harm(place):
    one = ShardWriter(place, "features", METHOD, "aa", FEATURES, attempt="b")
    two = ShardWriter(place, "features", METHOD, "aa", FEATURES, attempt="a")
    with one, two:
        for image_id in "xy":
            for writer in (one, two):
                writer.write_image(image_id, feature_rows(image_id, 3))
        late, early = one.commit(), two.commit()
    assert winners(place, "features", METHOD) == {"aa": CommitName("aa", 0, "a")}
    assert late.sha256 == early.sha256
    for commit in (late, early):
        assert hashlib.sha256(file_of(place, commit)).hexdigest() == commit.sha256


KILLED = """
import sys
from storage.root import open_root
from storage.writer import ShardWriter
from tests.stored import FEATURES, METHOD, feature_rows

with ShardWriter(open_root(sys.argv[1]), "features", METHOD, "aa", FEATURES, attempt="x") as writer:
    writer.write_image("a", feature_rows("a", 500))
    print("writing", flush=True)
    sys.stdin.read()
    writer.commit()
"""


def test_a_killed_writer_leaves_no_shard(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert process.returncode == -9
    root = storage.open_root(str(tmp_path))
    name = CommitName("aa", 0, "x")
    assert not root.exists(data_key("features", METHOD, name))
    assert not root.exists(commit_key("features", METHOD, name))
    assert winners(root, "features", METHOD) == {}
    assert root.names(f"features/{METHOD}/data") == []
    again = commit_features(root, "aa", {"a": 500})
    assert winners(root, "features", METHOD) == {"aa": again.name}
