import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pytest

from storage.root import StorageError, check_chain, open_root, resolve_options

SECRET = "s3cr3t-5f0c"


def everything_under(root) -> set[str]:
    """Every file of a root, hidden ones too."""
    return {path.removeprefix(root.path("")) for path in root.fs.find(root.path("").rstrip("/"))}


def crash_halfway(root, key: str, error: type[BaseException]) -> None:
    """Begin to publish a file, and fail."""
    with root.staged(key) as path:
        path.write_bytes(b"half of")
        raise error


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """An empty folder where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# --- files by key ---


def test_what_is_written_can_be_read(place):
    place.write("a/b/c.json", b"one")
    assert place.read("a/b/c.json") == b"one"
    assert place.size("a/b/c.json") == 3
    assert place.exists("a/b/c.json")
    assert not place.exists("a/b/d.json")
    with place.open("a/b/c.json") as stream:
        stream.seek(1)
        assert stream.read() == b"ne"
    with place.arrow_fs().open_input_file(place.path("a/b/c.json")) as stream:
        assert stream.read() == b"one"


def test_other_tools_open_what_url_of_says(place):
    place.write("a/b c.json", b"one")
    with fsspec.open(place.url_of("a/b c.json"), "rb") as stream:
        assert stream.read() == b"one"


def test_a_written_key_can_be_written_again(place):
    place.write("runs/a.json", b"the first and longer one")
    place.write("runs/a.json", b"the second")
    assert place.read("runs/a.json") == b"the second"
    assert everything_under(place) == {"runs/a.json"}


def test_a_deleted_file_is_gone(place):
    place.write("a/b", b"one")
    place.delete("a/b")
    assert not place.exists("a/b")
    with pytest.raises(FileNotFoundError):
        place.read("a/b")


def test_names_lists_what_lies_directly_in_a_folder(place):
    assert place.names("d") == []
    place.write("d/two", b"")
    place.write("d/one", b"")
    place.write("d/.hidden", b"")
    place.write("d/sub/three", b"")
    assert place.names("d") == ["one", "sub", "two"]
    place.write("d/four", b"")
    assert place.names("d") == ["four", "one", "sub", "two"]
    assert place.names("d/one/nothing") == []


def test_read_many_keeps_the_order(place):
    keys = [f"f{i % 3}/x" for i in range(12)]  # the same name in three folders, and each several times
    for key in set(keys):
        place.write(key, key.encode())
    assert place.read_many(keys) == [key.encode() for key in keys]
    assert place.read_many(keys[:1]) == [b"f0/x"]
    assert place.read_many([]) == []
    with pytest.raises(FileNotFoundError):
        place.read_many([keys[0], "f0/missing"])


@pytest.mark.parametrize("name", ["a [1]", "a*b?", "it's", "ü 50%20", "a{b,c}"])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_any_folder_name_will_do(name, kind, tmp_path):
    root = open_root(f"{tmp_path}/{name}" if kind == "folder" else f"memory://{uuid.uuid4().hex}/{name}")
    root.write("d/x", b"1")
    root.write("d/y", b"2")
    assert root.names("d") == ["x", "y"]
    assert root.read("d/x") == b"1"
    assert root.read_many(["d/y", "d/x"]) == [b"2", b"1"]
    with root.arrow_fs().open_input_file(root.path("d/y")) as stream:
        assert stream.read() == b"2"


# --- publishing ---


def test_nothing_shows_before_the_block_ends(place):
    with place.staged("d/x") as path:
        path.write_bytes(b"all of it")
        assert not place.exists("d/x")
        assert place.names("d") == []
    assert place.read("d/x") == b"all of it"
    assert everything_under(place) == {"d/x"}


def test_an_error_in_the_block_leaves_nothing(place, scratch):
    with pytest.raises(ZeroDivisionError):
        crash_halfway(place, "d/x", ZeroDivisionError)
    assert everything_under(place) == set()
    assert list(scratch.iterdir()) == []


def test_an_error_in_the_block_leaves_what_was_there(place, scratch):
    place.write("d/x", b"the old one")
    with pytest.raises(KeyboardInterrupt):
        crash_halfway(place, "d/x", KeyboardInterrupt)
    assert place.read("d/x") == b"the old one"
    assert everything_under(place) == {"d/x"}
    assert list(scratch.iterdir()) == []


def test_publishing_leaves_no_temporary_file(place, scratch):
    place.write("d/x", b"one")
    assert everything_under(place) == {"d/x"}
    assert list(scratch.iterdir()) == []


def test_a_reader_never_sees_part_of_a_file(place):
    """One thread replaces a file of 12 MB by another, over and over; whatever the other one reads is one of them."""
    contents = [bytes([value]) * (12 * 2**20 + value) for value in (1, 2)]
    place.write("d/x", contents[0])
    stop = threading.Event()

    def replace():
        turn = 0
        while not stop.is_set():
            place.write("d/x", contents[turn % 2])
            turn += 1

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    try:
        until = time.monotonic() + 120
        while len(seen) < 2 and time.monotonic() < until:
            for _ in range(40):
                content = place.read("d/x")
                assert content in contents, f"{len(content)} bytes"
                seen.add(content[0])
    finally:
        stop.set()
        writer.join()
    assert seen == {1, 2}


def test_a_local_file_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_replace(source, target):
        calls.append(("replace", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    open_root(str(tmp_path)).write("d/x", b"one")
    (_, synced), (_, source, target), (_, folder) = calls
    assert synced == source
    assert Path(source).parent == Path(target).parent, "a rename across file systems is a copy"
    assert target == f"{tmp_path}/d/x"
    assert folder == f"{tmp_path}/d"


def test_a_killed_writer_leaves_no_key(tmp_path):
    code = (
        "import sys; from storage.root import open_root\n"
        "with open_root(sys.argv[1]).staged('d/x') as path:\n"
        "    path.write_bytes(b'half of'); print('writing', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert process.returncode == -9
    root = open_root(str(tmp_path))
    assert root.names("d") == []
    assert not root.exists("d/x")
    root.write("d/x", b"all of it")
    assert root.names("d") == ["x"]


# --- roots ---


def test_a_local_root_is_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("deep/er", "deep/er/", "./deep/er", f"file://{tmp_path}/deep/er", f"{tmp_path}/deep/er//"):
        root = open_root(url)
        assert root.is_local
        assert root.url == str(tmp_path / "deep/er")
        assert root.path("x") == str(tmp_path / "deep/er/x")


def test_opening_a_root_creates_nothing(tmp_path):
    open_root(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_pickled_root_reads_the_same_files(place):
    place.write("d/x", b"one")
    again = pickle.loads(pickle.dumps(place))  # noqa: S301
    assert again.url == place.url
    assert again.read("d/x") == b"one"


def test_an_unknown_protocol_is_named():
    with pytest.raises(StorageError, match="nosuch"):
        open_root("nosuch://bucket/x")


def test_a_root_that_can_be_written_to_passes(place):
    place.check_writable()
    assert everything_under(place) == set()


def test_a_root_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        open_root(f"{tmp_path}/file/below").check_writable()


# --- secrets ---


@pytest.mark.parametrize(
    "name", ["key", "secret", "token", "password", "aws_secret_access_key", "sas_token", "PassWord"]
)
def test_an_open_secret_is_refused(name):
    with pytest.raises(StorageError, match=rf"storage_options\.{name}\b.*env:NAME") as error:
        open_root("memory://x", {name: SECRET})
    assert SECRET not in str(error.value)


def test_an_open_secret_further_in_is_refused():
    with pytest.raises(StorageError, match=r"storage_options\.client_kwargs\.aws_secret_access_key") as error:
        open_root("memory://x", {"client_kwargs": {"aws_secret_access_key": SECRET}})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("url", ["sftp://me:{}@host/x", "s3://me:{}@bucket/x", "simplecache::ftp://me:{}@host/x"])
def test_a_password_in_the_url_is_refused(url):
    with pytest.raises(StorageError, match="storage_options") as error:
        open_root(url.format(SECRET))
    assert SECRET not in str(error.value)


def test_names_in_a_url_that_are_no_passwords_are_not():
    assert open_root("memory://a@b/c:d@e").path("x") == "/a@b/c:d@e/x"


def test_options_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SPP_TEST_SECRET", SECRET)
    options = {"token": "env:SPP_TEST_SECRET", "region": "here", "client_kwargs": {"secret": "env:SPP_TEST_SECRET"}}
    expected = {"token": SECRET, "region": "here", "client_kwargs": {"secret": SECRET}}
    assert resolve_options(options) == expected
    assert options["token"] == "env:SPP_TEST_SECRET"
    assert open_root(f"memory://{uuid.uuid4().hex}", options).fs.storage_options == expected


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("SPP_TEST_SECRET", raising=False)
    with pytest.raises(StorageError, match=r"storage_options\.token .*'SPP_TEST_SECRET'"):
        open_root("memory://x", {"token": "env:SPP_TEST_SECRET"})


def test_a_pickled_root_carries_no_secret(monkeypatch):
    monkeypatch.setenv("SPP_TEST_SECRET", SECRET)
    options = {"token": "env:SPP_TEST_SECRET", "client_kwargs": {"secret": "env:SPP_TEST_SECRET"}}
    root = open_root(f"memory://{uuid.uuid4().hex}", options)
    pickled = pickle.dumps(root)
    assert SECRET.encode() not in pickled
    assert SECRET not in repr(root)
    monkeypatch.setenv("SPP_TEST_SECRET", "another")
    again = pickle.loads(pickled)  # noqa: S301
    assert again.fs.storage_options["token"] == "another", "each process asks its own environment"


@pytest.mark.parametrize("url", ["/data/a::b", "a::b/root", "memory://a::b/root", "s3://bucket/a::b", "file:///a::b"])
def test_a_name_that_fsspec_would_cut_is_refused(url):
    with pytest.raises(StorageError, match=r"^root: .* a path must not hold '::'"):
        open_root(url)


def test_a_chain_of_urls_stays_one():
    check_chain("zip://a/*.jpg::simplecache::s3://bucket/data.zip", "dataset.path")


def test_a_folder_goes_from_a_root_whose_name_is_a_pattern_and_from_no_other():
    root, other = open_root("memory://patterns/a*"), open_root("memory://patterns/ab")
    for place in (root, other):
        place.write("features/checkpoint/x", b"1")
    root.delete_folder("features/checkpoint")
    assert not root.exists("features/checkpoint/x")
    assert other.exists("features/checkpoint/x")
