"""Every command on every kind of damaged file of a root: one line that names the file, and a repair that mends it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli.main import main
from storage.manifest import recorded_manifest
from storage.root import open_root
from storage.runs import read_run
from tests.project import Project, last_json, link_tree

pytestmark = pytest.mark.slow


def flipped(place: float) -> Callable[[bytes, Path], bytes]:
    def flip(data: bytes, file: Path) -> bytes:
        changed = bytearray(data)
        changed[int(place * (len(data) - 1))] ^= 0x08
        return bytes(changed)

    return flip


def of_others(data: bytes, file: Path) -> bytes:
    """A valid file that belongs elsewhere: of another shard if there is one, else of another data set."""
    beside = [other for other in sorted(file.parent.iterdir()) if other != file]
    elsewhere = sorted(file.parents[3].glob(f"*/*/{file.parent.name}/*{file.suffix}"))
    return next(other for other in [*beside, *elsewhere] if other.parent != file.parent or other != file).read_bytes()


def foreign(data: bytes, file: Path) -> bytes:
    if file.suffix == ".json":
        return b'{"schema_version": 1, "name": "small", "datasets": [1, 2]}'
    pq.write_table(pa.table({"image_id": [1, 2]}), sink := io.BytesIO())
    return sink.getvalue()


DAMAGE: dict[str, Callable[[bytes, Path], bytes | None]] = {
    "a bit at the start": flipped(0),
    "a bit in the middle": flipped(0.4),
    "a bit at the end": flipped(0.97),
    "half": lambda data, file: data[: len(data) // 2],
    "empty": lambda data, file: b"",
    "garbage": lambda data, file: b"\0\xff garbage\n" * 50,
    "foreign": foreign,
    "of others": of_others,
    "missing": lambda data, file: None,
}

FILES = (
    "runs",
    "features/*/manifest",
    "images/*/data",
    "objects/*/commit",
    "images/*/manifest",
    "proposals/*/manifest",
    "features/*/data",
    "features/*/commit",
    "svms/*/data",
    "metrics/*/manifest",
)


def files_of(root: Path, pattern: str) -> Iterator[Path]:
    """Those that its run refers to: there may be others, of a data set that has moved."""
    if pattern == "runs":
        return iter([root / "runs" / "small.json"])
    dataset, _, kind = pattern.split("/")
    place = open_root(str(root))
    manifest = recorded_manifest(place, read_run(place, "small"), dataset)
    folder = root / dataset / manifest.method / kind
    stems = [manifest.digest] if kind == "manifest" else [name.stem for name in manifest.names]
    return (next(folder.glob(f"{stem}.*")) for stem in stems)


def commands(root: Path, config: Path) -> dict[str, list[str]]:
    at = ["--root", str(root), "--run", "small"]
    return {
        "status": ["status", *at],
        "plan": ["plan", *at, "--config", str(config)],
        "verify": ["verify", *at],
        "query": ["query", *at, "select count(*), sum(hash(f)) from features f"],
        "files": ["files", *at, "features"],
        "gc": ["gc", "--root", str(root)],
        "repair": ["repair", "--root", str(root)],
    }


@pytest.mark.parametrize("pattern", FILES)
def test_every_command_says_in_a_line_which_file_is_damaged(finished: Project, tmp_path, capsys, pattern):
    for name, damage in DAMAGE.items():
        root = tmp_path / name.replace(" ", "-")
        link_tree(finished.folder, root)
        file = next(files_of(root, pattern))
        content = damage(file.read_bytes(), file) if name != "of others" or pattern != "runs" else b"{}"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        for verb, command in commands(root, finished.config).items():
            code = main(command)
            said = capsys.readouterr()
            where = f"{verb}, {name} of {pattern}: {code}, {said.err}{said.out}"
            assert code in (0, 1, 2), where
            assert "Traceback" not in said.err, where
            lines = [line for line in said.err.splitlines() if line.startswith("spp: error:")]
            assert len(lines) == ((code != 0 and verb != "verify") or bool(lines)), where
            if verb != "query" and lines and content is not None:
                assert file.name in lines[0], where
            if verb == "verify":
                assert code != 0, where  # nothing of this is called good
        assert main(["repair", "--root", str(root), "--yes"]) == 0
        capsys.readouterr()
        assert main(["repair", "--root", str(root), "--json"]) == 0
        assert last_json(capsys)["problems"] == [], f"{name} of {pattern}"
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"features": {"scales": "x"}}},
        {"config": []},
        {"datasets": {"objects": {"stage": "index"}}},
        {"started": 7},
        {"status": "asleep"},
        {"schema_version": 99},
    ],
)
def test_a_record_that_does_not_validate_is_told_in_a_line(finished: Project, tmp_path, capsys, change):
    link_tree(finished.folder, tmp_path / "root")
    file = tmp_path / "root" / "runs" / "small.json"
    fields = json.loads(file.read_text())
    del fields["digest"]
    file.unlink()
    file.write_text(json.dumps({**fields, **change}))
    for verb in ("status", "verify", "query"):
        code = main(commands(tmp_path / "root", finished.config)[verb])
        said = capsys.readouterr()
        if code:
            (line,) = said.err.splitlines()
            assert "runs/small.json" in line, line
        else:
            assert "config" in change
            assert verb != "status"


def test_what_was_repaired_is_made_again_as_it_was(finished: Project, tmp_path):
    cloned = finished.clone(tmp_path)
    datasets = ("objects", "proposals", "features", "truth_features", "svms", "detections", "metrics")
    before = {dataset: cloned.table(dataset) for dataset in datasets}
    for pattern in ("objects/*/data", "proposals/*/commit", "features/*/data", "svms/*/manifest", "metrics/*/data"):
        file = next(files_of(cloned.folder, pattern))
        content = flipped(0.4)(file.read_bytes(), file)
        file.unlink()
        file.write_bytes(content)
    assert main(["repair", "--root", str(cloned.root), "--yes"]) == 0
    assert cloned.spp("run") == 0
    assert main(["verify", "--root", str(cloned.root)]) == 0
    for dataset, table in before.items():
        assert cloned.table(dataset).equals(table), dataset
