"""Queries and hostile records on an object store."""

import json
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from storage.root import Root, StorageError, open_root
from storage.runs import read_run
from storage.schemas import SCHEMA_VERSION
from storage.sql import QueryError, ask
from tests.hostile_queries import QUERIES, SECRET
from tests.stored import ROWS, commit_images, publish_run, store_run
from tests.unit.storage.test_runs import HOSTILE_RECORDS

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def bucket(aws_files) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    config, credentials = aws_files / "config", aws_files / "credentials"
    config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = http://{host}:{port}\n")
    credentials.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    S3FileSystem.clear_instance_cache()  # another test may have made one that knows of no credentials
    try:
        open_root("s3://queries").fs.mkdir("queries")
        yield "s3://queries"
    finally:
        server.stop()
        S3FileSystem.clear_instance_cache()
        config.unlink()
        credentials.unlink()


def test_a_root_of_any_name_is_queried(bucket):
    root = open_root(f"{bucket}/it's [1] a*/class_name=dog")
    record = store_run(root)
    counts = "select image_id, count(*) from features group by 1 order by 1"
    assert ask(root, record, counts).rows == list(ROWS.items())
    assert ask(root, record, "from features").columns[-1] == "feature"


def everything(root: Root) -> dict[str, bytes]:
    found = root.fs.find("queries")
    return dict(zip(found, root.fs.cat_ranges(found, None, None), strict=True))


@pytest.mark.slow
def test_a_query_sees_its_run_and_nothing_else(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = open_root(f"{bucket}/small")
    commit = commit_images(root, "aa", "ab")
    record = publish_run(root, datasets=["images"])
    root.fs.pipe_file("queries/secret.csv", f"x\n{SECRET}\n".encode())
    before = everything(root)
    key = f"images/{commit.method}/{commit.data}"
    words = {"secret": "s3://queries/secret.csv", "new": "s3://queries/new", "folder": "s3://queries"}
    told = {sql.replace("{data}", data) for sql in QUERIES if "{" in sql for data in (f"spp://{key}", root.url_of(key))}
    for sql in sorted(told):
        for word, value in words.items():
            sql = sql.replace(f"{{{word}}}", value)
        with pytest.raises(QueryError, match=r"^query: [^\n]+$") as error:
            ask(root, record, sql, 10)
        assert SECRET not in str(error.value)
    assert len(told) >= 40
    assert everything(root) == before
    assert not list(tmp_path.iterdir())


def test_names_in_a_record_lead_nowhere_else(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = open_root(f"{bucket}/shared")
    for fields in HOSTILE_RECORDS.values():
        root.write("runs/a.json", json.dumps({"schema_version": SCHEMA_VERSION, "name": "a", **fields}).encode())
        with pytest.raises(StorageError, match=r"^runs/a\.json is damaged"):
            read_run(root, "a")
    assert root.names("") == ["runs"]
    assert not list(tmp_path.iterdir())
