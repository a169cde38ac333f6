"""Compiled functions run wherever they are imported, and are cached where that can be."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numba
import pytest

SOURCE = "from pipeline.compiled import compiled\n\n@compiled()\ndef twice(n):\n    return n + n\n"


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A module beside which nothing can be written, nor at home. A file in a folder's place stops root, too."""
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    (file.parent / "__pycache__").write_text("")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", "/proc/nothing")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return file


def cache_of(file: Path) -> str | None:
    """Where the function of a module is cached."""
    spec = importlib.util.spec_from_file_location("module", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.twice(21) == 42
    path: str | None = module.twice.stats.cache_path
    assert path is None or list(Path(path).glob("module.twice*"))
    return path


def test_beside_the_code_if_that_can_be(code):
    (code.parent / "__pycache__").unlink()
    assert cache_of(code) == str(code.parent / "__pycache__")


def test_in_the_folder_that_numba_is_given(code, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "given"))
    assert cache_of(code).startswith(str(tmp_path / "given"))
    assert str(tmp_path / "given") == numba.config.CACHE_DIR


@pytest.mark.parametrize("given", ["", "/proc/nothing", "/dev/null"])
def test_among_the_temporary_files_if_nothing_else_can_be_written(given, code, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", given)
    folder = Path(cache_of(code)).parent
    assert folder.parent == tmp_path
    assert folder.name.startswith("spp-numba-")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert given == numba.config.CACHE_DIR


@pytest.mark.parametrize("why", ["others may write to it", "it is a link", "it is a file", "no temporary files"])
def test_nowhere_if_that_cannot_be(why, code, tmp_path, monkeypatch):
    folder = Path(cache_of(code)).parent
    if why == "others may write to it":
        folder.chmod(0o777)
    elif why == "no temporary files":
        monkeypatch.setattr(tempfile, "tempdir", "/proc/nothing")
    else:
        folder.rename(tmp_path / "else")
        if why == "it is a link":
            folder.symlink_to(tmp_path / "else")
        else:
            folder.write_text("")
    assert cache_of(code) is None


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x04."])
def test_a_damaged_cache_is_made_again(damage, kind, code, tmp_path):
    folder = Path(cache_of(code))
    (file,) = folder.glob(f"*.{kind}")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert cache_of(code) == str(folder)
    assert len(file.read_bytes()) == len(whole)


def test_a_cache_that_takes_nothing_any_more(code, monkeypatch):
    folder = Path(cache_of(code))
    for file in folder.iterdir():
        file.unlink()
        file.mkdir()  # root could write into a folder that is closed
    assert cache_of(code) == str(folder)
