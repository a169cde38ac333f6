import duckdb
import numpy as np
import pytest

import storage
from storage.manifest import fold
from storage.root import StorageError, open_root
from storage.runs import RunRecord, write_run
from storage.schemas import schema
from storage.sql import connect
from storage.writer import ShardWriter
from tests.stored import DIM, METHOD, ROWS, commit_features, feature_rows, publish_run, store_run


@pytest.fixture
def stored(place):
    store_run(place)
    return place


def test_every_complete_dataset_is_a_view(stored):
    connection = connect(stored)
    names = {row[0] for row in connection.execute("select view_name from duckdb_views() where not internal").fetchall()}
    assert names == {"images", "features"}


def test_images_are_counted(stored):
    found = connect(stored).execute("select image_id, count(*) n from features group by 1 order by 1").fetchall()
    assert found == list(ROWS.items())


def test_datasets_are_joined(stored):
    sql = "select uri, count(*) from features join images using (image_id) where image_id = 'f' group by 1"
    assert connect(stored).execute(sql).fetchall() == [("/pictures/f.jpg", 6)]


def test_vectors_come_as_floats(stored):
    connection = connect(stored)
    assert connection.execute("select distinct typeof(feature) from features").fetchall() == [("FLOAT[]",)]
    sql = "select feature from features where image_id = 'c' order by proposal_id"
    found = [row[0] for row in connection.execute(sql).fetchall()]
    assert np.array_equal(np.array(found), storage.vectors_of(feature_rows("c", 4)["feature"]).astype(float))
    sql = "select list_dot_product(feature, feature) from features where image_id = 'c' order by proposal_id"
    norms = (np.array(found) ** 2).sum(1)
    assert np.allclose([row[0] for row in connection.execute(sql).fetchall()], norms)


def test_boxes_and_windows_have_named_corners(stored):
    sql = "select box.x1, \"window\".cy2 from features where image_id = 'a' order by proposal_id"
    rows = feature_rows("a", 5).to_pylist()
    assert connect(stored).execute(sql).fetchall() == [(row["box"]["x1"], row["window"]["cy2"]) for row in rows]


def test_only_winners_are_seen(place):
    commit_features(place, "aa", {"a": 1}, revision=0)
    commit_features(place, "aa", {"a": 4}, revision=1)
    publish_run(place, datasets=["features"])
    assert connect(place).execute("select count(*) from features").fetchone() == (4,)


def test_an_empty_dataset_is_an_empty_view(place):
    commit_features(place, "aa", {"a": 0})
    fold(place, "objects", METHOD, [])
    publish_run(place, datasets=["features", "objects"])
    connection = connect(place)
    assert connection.execute("select count(feature) from features").fetchone() == (0,)
    assert connection.execute("select count(class_name) from objects").fetchone() == (0,)


def test_a_store_of_maps_has_every_column_of_features_but_the_vectors(place):
    rows = feature_rows("a", 3).drop_columns(["feature"])
    with ShardWriter(place, "windows", METHOD, "aa", schema("windows")) as writer:
        writer.write_image("a", rows)
        writer.commit()
    publish_run(place, datasets=["windows"])
    connection = connect(place)
    assert connection.execute('select count(*) from features where "window".cx1 >= 0').fetchone() == (3,)
    with pytest.raises(duckdb.BinderException, match="feature"):
        connection.execute("select feature from features")


def test_each_run_has_its_own_views(place):
    commit_features(place, "aa", {"a": 1})
    publish_run(place, "one", ["features"])
    commit_features(place, "bb", {"b": 2})
    publish_run(place, "two", ["features"])
    assert connect(place, "one").execute("select count(*) from features").fetchone() == (1,)
    assert connect(place, "two").execute("select count(*) from features").fetchone() == (3,)


def test_a_run_without_datasets_says_so(place):
    write_run(place, RunRecord(name="new"))
    with pytest.raises(StorageError, match="run 'new' has no complete dataset yet"):
        connect(place)


@pytest.mark.parametrize("name", ["it's", "a [1]", "a*"])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_folder_of_any_name_can_be_queried(kind, name, tmp_path):
    root = open_root(f"{tmp_path}/{name}" if kind == "folder" else f"memory://{tmp_path.name}/{name}")
    store_run(root)
    assert connect(root).execute(f"select count(*) from features where len(feature) = {DIM}").fetchone() == (28,)
