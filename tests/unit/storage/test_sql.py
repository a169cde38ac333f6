import tempfile

import duckdb
import numpy as np
import pytest

import storage
from storage.manifest import fold
from storage.root import StorageError, open_root
from storage.runs import RunRecord, read_run, write_run
from storage.schemas import schema
from storage.sql import Limits, QueryError, ask, connect
from storage.writer import ShardWriter
from tests.hostile_queries import QUERIES, SECRET
from tests.stored import DIM, METHOD, ROWS, commit_features, commit_images, feature_rows, publish_run, store_run


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


@pytest.mark.parametrize(
    "name", ["class_name=dog", "method=opencv/rank=7", "seed=1", "{a,b}", "a?b", "ü ~", 'a"b', "%20"]
)
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_folder_of_any_name_changes_no_column(kind, name, tmp_path):
    root = open_root(f"{tmp_path}/{name}" if kind == "folder" else f"memory://{tmp_path.name}/{name}")
    record = store_run(root)
    sql = "select * from features order by image_id, proposal_id"
    answer = ask(root, record, sql)
    assert answer.columns == ["image_id", "proposal_id", "box", "scale", "window", "feature"]
    assert answer.rows == connect(root).execute(sql).fetchall()
    assert ask(root, record, "select distinct scale from features").rows == [(688,)]


# --- what a query may do ---


@pytest.fixture(scope="module", params=["folder", "memory"])
def asked(request, tmp_path_factory):
    """A small root that nothing changes."""
    folder = tmp_path_factory.mktemp("asked")
    root = open_root(str(folder) if request.param == "folder" else f"memory://{folder.name}")
    commit_images(root, "aa", "ab")
    publish_run(root, datasets=["images"])
    return root


@pytest.mark.parametrize("sql", QUERIES)
def test_a_query_sees_its_run_and_nothing_else(sql, asked, tmp_path, monkeypatch):
    record = read_run(asked)
    secret, new = tmp_path / "secret.csv", tmp_path / "new"
    secret.write_text(f"x\n{SECRET}\n")
    monkeypatch.chdir(tmp_path)
    before, files = contents(asked), set(tmp_path.rglob("*"))
    data = storage.files(asked, "images")[0]
    told = sql
    for word, value in {"data": data, "secret": secret, "new": new, "folder": tmp_path}.items():
        told = told.replace(f"{{{word}}}", str(value))
    with pytest.raises(QueryError, match=r"^query: ") as error:
        ask(asked, record, told, 10)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(asked) == before
    assert set(tmp_path.rglob("*")) == files


def contents(root) -> dict[str, bytes]:
    return {file.key: root.read(file.key) for file in root.files("")}


@pytest.mark.parametrize("sql", ["", ";", " ; ;", "-- x", "/* select 1 */", "\n"])
@pytest.mark.parametrize("unsafe", [False, True])
def test_a_query_without_a_statement_is_told_so(sql, unsafe, place):
    with pytest.raises(QueryError, match=r"^query: there is no statement in it"):
        ask(place, store_run(place), sql, unsafe=unsafe)


@pytest.mark.parametrize(
    "sql", ["select '\udcff'", "selekt 1", "select 1 as", "select (", "select * from nothing", "select ?"]
)
def test_what_is_no_sql_is_one_line(sql, place):
    with pytest.raises(QueryError, match=r"^query: [^\n]+$"):
        ask(place, store_run(place), sql)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) from features;", [(28,)]),
        ("-- how many?\nselect count(*) from features -- all", [(28,)]),
        ("from images select count(*)", [(8,)]),
        ("with n as (select count(*) as n from features) select n * 2 from n", [(56,)]),
        ("with recursive r as (select 1 as i union all select i + 1 from r where i < 5) select max(i) from r", [(5,)]),
        ("(select 1) union all (select 2)", [(1,), (2,)]),
        ("values (1), (2)", [(1,), (2,)]),
        ("pivot images on width in (40) using count(*) group by height", [(30, 8)]),
        ("select column_name from (describe images) limit 1", [("image_id",)]),
        ("select approx_unique from (summarize images) where column_name = 'width'", [(1,)]),
        ("select name from (show tables) order by 1", [("features",), ("images",)]),
        ("select 'copy images to x' as \"insert\"", [("copy images to x",)]),
    ],
)
def test_what_reads_is_answered(sql, rows, place):
    assert ask(place, store_run(place), sql).rows == rows


@pytest.mark.parametrize("sql", ["show tables", "describe features", "summarize images", "explain from images"])
def test_what_describes_is_answered(sql, place):
    assert ask(place, store_run(place), sql).rows


def test_so_many_rows_come_and_it_is_said_if_there_are_more(place):
    record = store_run(place)
    assert [len(ask(place, record, "from features", limit).rows) for limit in (0, 1, 27, 28, 99)] == [28, 1, 27, 28, 28]
    assert [ask(place, record, "from features", limit).more for limit in (0, 1, 27, 28, 99)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert ask(place, record, "from range(25000)").rows == [(i,) for i in range(25000)]


def test_an_empty_dataset_can_be_asked_about(place):
    commit_features(place, "aa", {"a": 0})
    fold(place, "objects", METHOD, [])
    record = publish_run(place, datasets=["features", "objects"])
    assert ask(place, record, "select count(class_name) from objects").rows == [(0,)]


@pytest.mark.parametrize(
    "sql",
    ["select sum(a.range * b.range) from range(100000000) a, range(100000000) b", "select * from range(10000000000)"],
)
def test_a_query_ends_when_its_time_is_over(sql, place):
    with pytest.raises(QueryError, match=r"^query: it was stopped after 0\.3 seconds; ask for less, or allow more"):
        ask(place, store_run(place), sql, limits=Limits(seconds=0.3))


def test_a_query_that_needs_too_much_memory_ends(place):
    sql = "select count(distinct i) from (select list(range) as i from range(30000000))"
    with pytest.raises(QueryError, match=r"^query: Out of Memory Error: .*; ask for less, or allow more with --memory"):
        ask(place, store_run(place), sql, limits=Limits(memory=50_000_000))


def test_what_does_not_fit_is_kept_in_a_folder_that_goes(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    text = "select range::varchar || repeat('y', 90) as t from range(600000) order by hash(range) offset 1"
    seen = ask(place, store_run(place), f"select count(t) from ({text})", limits=Limits(memory=40_000_000))
    assert seen.rows == [(599_999,)]
    assert set(tmp_path.iterdir()) - {tmp_path / "root"} == before - {tmp_path / "root"}


def test_unsafe_is_duckdb_as_it_comes(place, tmp_path):
    record = store_run(place)
    ask(place, record, f"copy (select count(*) as n from features) to '{tmp_path}/n.csv'", unsafe=True)
    assert (tmp_path / "n.csv").read_text() == "n\n28\n"
    assert ask(place, record, f"create table t as from '{tmp_path}/n.csv'; select n from t", unsafe=True).rows == [
        (28,)
    ]


def test_threads_that_read_one_file_do_not_disturb_each_other(tmp_path):
    root = open_root(f"memory://{tmp_path.name}")
    layout = schema("features", 2000)
    counts = {f"{number:02}": 40 for number in range(30)}
    commit_features(root, "aa", counts, layout=layout)
    record = publish_run(root, datasets=["features"])
    sums = ask(root, record, "select image_id, sum(list_sum(feature))::int from features group by 1 order by 1").rows
    rows = [feature_rows(image_id, 40, layout) for image_id in counts]
    expected = [round(storage.vectors_of(table["feature"]).astype(float).sum()) for table in rows]
    assert [total for _, total in sums] == expected
