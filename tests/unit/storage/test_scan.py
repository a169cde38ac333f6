import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import storage
from storage.manifest import fold
from storage.root import StorageError
from storage.scan import file_metadata, manifest_of, scan_file, scan_manifest
from storage.schemas import SCHEMA_VERSION, VERSION_KEY, schema
from tests.stored import (
    DIM,
    FEATURES,
    METHOD,
    ROWS,
    commit_features,
    feature_rows,
    fold_winners,
    image_rows,
    publish_run,
    store_run,
)

EXPECTED = pa.concat_tables([feature_rows(image_id, count) for image_id, count in ROWS.items()])


@pytest.fixture
def stored(place):
    store_run(place)
    return place


class Reads:
    """What pyarrow opened and read while a test ran."""

    def __init__(self, monkeypatch) -> None:
        self.files = 0
        self.groups: list[tuple[int, list[str] | None]] = []
        opened, read = pq.ParquetFile.__init__, pq.ParquetFile.read_row_group

        def spy_open(parquet, *args, **kwargs):
            self.files += 1
            assert kwargs["pre_buffer"] is False
            opened(parquet, *args, **kwargs)

        def spy_read(parquet, i, columns=None, **kwargs):
            self.groups.append((i, columns))
            return read(parquet, i, columns=columns, **kwargs)

        monkeypatch.setattr(pq.ParquetFile, "__init__", spy_open)
        monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy_read)


# --- scan ---


def test_a_scan_gives_an_image_at_a_time_in_order(stored):
    tables = list(storage.scan(stored, "features"))
    assert [table["image_id"][0].as_py() for table in tables] == list(ROWS)
    assert [len(table) for table in tables] == list(ROWS.values())
    assert pa.concat_tables(tables).equals(EXPECTED)


def test_a_scan_reads_one_group_for_each_table(stored, monkeypatch):
    manifest = manifest_of(stored, "features")
    reads = Reads(monkeypatch)
    for count, _ in enumerate(scan_manifest(stored, manifest), start=1):
        assert len(reads.groups) == count
    assert reads.files == 3


def test_a_scan_of_some_columns(stored, monkeypatch):
    manifest = manifest_of(stored, "features")
    reads = Reads(monkeypatch)
    names = ["window", "image_id"]
    assert pa.concat_tables(scan_manifest(stored, manifest, names)).equals(EXPECTED.select(names))
    assert {tuple(columns) for _, columns in reads.groups} == {tuple(names)}


@pytest.mark.parametrize("chosen", [["c"], ["a", "h"], list("hgfedcba"), ["e"], ["b", "zz", "", "bb"], []])
def test_a_scan_of_some_images_gives_their_rows(stored, chosen):
    tables = list(storage.scan(stored, "features", image_ids=chosen))
    expected = EXPECTED.filter(pc.field("image_id").isin(pa.array(chosen, pa.string())))
    assert pa.concat_tables([FEATURES.empty_table(), *tables]).equals(expected)
    assert set(chosen) & set(ROWS) == {table["image_id"][0].as_py() for table in tables}


def test_only_the_files_and_groups_of_the_images_are_read(stored, monkeypatch):
    manifest = manifest_of(stored, "features")
    reads = Reads(monkeypatch)
    assert [len(table) for table in scan_manifest(stored, manifest, image_ids={"c", "h"})] == [4, 7]
    assert reads.files == 2
    assert [group for group, _ in reads.groups] == [2, 1]
    assert list(scan_manifest(stored, manifest, image_ids=["zz", "0"])) == []
    assert reads.files == 2


def test_a_group_of_many_images_is_filtered(stored):
    every = pa.concat_tables(storage.scan(stored, "images"))
    assert every.equals(image_rows("abcdefgh"))
    some = pa.concat_tables(storage.scan(stored, "images", image_ids=["h", "b", "x"]))
    assert some.equals(image_rows("bh"))


@pytest.mark.parametrize("names", [["uri"], ["uri", "image_id"], ["image_id"], ["width", "splits"]])
def test_a_group_of_many_images_is_filtered_whatever_its_columns(stored, names):
    some = pa.concat_tables(storage.scan(stored, "images", columns=names, image_ids=["h", "b"]))
    assert some.equals(image_rows("bh").select(names))


def test_parts_of_a_large_image_are_all_read(place, monkeypatch):
    monkeypatch.setattr("storage.writer.ROW_GROUP_BYTES", 300)
    commit_features(place, "aa", {"a": 40, "b": 40})
    tables = list(scan_manifest(place, fold_winners(place, "features"), image_ids=["b"]))
    assert len(tables) > 1
    assert pa.concat_tables(tables).equals(feature_rows("b", 40))


def test_only_winners_are_read(place):
    commit_features(place, "aa", {"a": 1, "b": 2}, attempt="b")
    commit_features(place, "aa", {"a": 1, "b": 2}, attempt="a")
    commit_features(place, "bb", {"c": 1}, revision=0)
    commit_features(place, "bb", {"c": 4}, revision=2, attempt="z")
    place.write(f"features/{METHOD}/data/cc.r0.x.parquet", b"a file without a commit")
    publish_run(place, datasets=["features"])
    assert [len(table) for table in storage.scan(place, "features")] == [1, 2, 4]
    names = [path.split("/")[-1] for path in storage.files(place, "features")]
    assert names == ["aa.r0.a.parquet", "bb.r2.z.parquet"]
    assert storage.open(place, "features").count_rows() == 7


def test_vectors_of_a_scan_are_not_copied(stored):
    for table in storage.scan(stored, "features"):
        column = table["feature"]
        behind = np.frombuffer(column.chunk(0).values.buffers()[1], np.float16)
        vectors = storage.vectors_of(column)
        assert np.shares_memory(vectors, behind)
        expected = storage.vectors_of(feature_rows(table["image_id"][0].as_py(), len(table))["feature"])
        assert np.array_equal(vectors.view(np.uint16), expected.view(np.uint16))


def test_a_dataset_of_nothing_is_empty(place):
    commit_features(place, "aa", {"a": 0})
    fold(place, "objects", METHOD, [])
    publish_run(place, datasets=["features", "objects"])
    assert list(storage.scan(place, "features")) == []
    assert storage.open(place, "features").to_table().equals(FEATURES.empty_table())
    assert list(storage.scan(place, "objects")) == []
    assert storage.files(place, "objects") == []
    assert storage.open(place, "objects").to_table().equals(schema("objects").empty_table())


def test_a_file_says_what_it_is(place):
    layout = schema("features", DIM, {"method": METHOD, "shard": "aa", "levels": "6,3,2,1"})
    commit = commit_features(place, "aa", {"a": 1}, layout=layout)
    said = file_metadata(place, f"features/{METHOD}/{commit.data}")
    assert said == {"schema_version": "1", "dataset": "features", "method": METHOD, "shard": "aa", "levels": "6,3,2,1"}


def test_a_newer_file_is_refused_by_name(place):
    layout = FEATURES.with_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1)})
    commit = commit_features(place, "aa", {"a": 1}, layout=layout)
    with pytest.raises(StorageError, match=rf"{commit.data} has schema version {SCHEMA_VERSION + 1}"):
        list(scan_file(place, f"features/{METHOD}/{commit.data}"))


def test_what_is_not_there_is_named(stored):
    with pytest.raises(StorageError, match="no run 'other'"):
        next(storage.scan(stored, "features", run="other"))
    with pytest.raises(StorageError, match="no complete dataset 'proposals' yet"):
        next(storage.scan(stored, "proposals"))
    with pytest.raises(StorageError, match="did you mean 'features'"):
        storage.files(stored, "feature")


# --- the other ways to read ---


def test_a_url_is_as_good_as_a_root(stored):
    assert storage.files(stored.url, "features") == storage.files(stored, "features")
    assert storage.open(stored.url, "features").count_rows() == 28
    assert sum(map(len, storage.scan(stored.url, "features", "trial"))) == 28


def test_an_arrow_dataset_projects_and_filters(stored):
    dataset = storage.open(stored, "features")
    assert isinstance(dataset, ds.Dataset)
    assert dataset.schema.equals(FEATURES)
    assert dataset.to_table().equals(EXPECTED)
    found = dataset.to_table(columns=["proposal_id"], filter=pc.field("image_id") == "f")
    assert found.equals(feature_rows("f", 6).select(["proposal_id"]))


@pytest.fixture
def paths(tmp_path) -> list[str]:
    store_run(storage.open_root(str(tmp_path)))
    return storage.files(str(tmp_path), "features")


def bits_of(vectors) -> np.ndarray:
    return np.asarray(vectors, np.float16).reshape(-1, DIM).view(np.uint16)


EXPECTED_BITS = bits_of(storage.vectors_of(EXPECTED["feature"]))


def test_plain_pyarrow_reads_the_paths(paths):
    table = ds.dataset(paths).to_table()
    assert table.equals(EXPECTED)
    assert pa.concat_tables([pq.read_table(path) for path in paths]).equals(EXPECTED)


def test_plain_duckdb_reads_the_paths(paths):
    import duckdb

    rows = duckdb.sql(f"select * from read_parquet({paths}) order by image_id, proposal_id").fetchall()
    assert [row[:2] for row in rows] == [(i, n) for i, count in ROWS.items() for n in range(count)]
    assert np.array_equal(bits_of([row[5] for row in rows]), EXPECTED_BITS)
    assert rows[0][2] == EXPECTED["box"][0].as_py()


def test_plain_polars_reads_the_paths(paths):
    frame = pl.read_parquet(paths)
    assert frame["image_id"].to_list() == EXPECTED["image_id"].to_pylist()
    assert frame["feature"].dtype == pl.Array(pl.Float16, DIM)
    assert np.array_equal(bits_of(frame["feature"].to_numpy()), EXPECTED_BITS)
    lazily = pl.scan_parquet(paths).filter(pl.col("image_id") == "c").select("proposal_id").collect()
    assert lazily["proposal_id"].to_list() == [0, 1, 2, 3]
