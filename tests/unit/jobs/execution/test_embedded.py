"""What an embedded Ray needs of the machine is there, or one line says what is not. No Ray is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import UsageError
from jobs.execution.embedded import bring_token, ray_folder


def test_ray_tmpdir_comes_before_tmpdir(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("TMPDIR", "/proc/nothing")
    assert ray_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", "/tmp/.")
    assert ray_folder() == "/tmp/ray"
    monkeypatch.delenv("TMPDIR")
    assert ray_folder() == "/tmp/ray"


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("place", ["/proc/nothing", "/sys", "/dev/null", "/dev/null/folder", "\udce9/../proc/nothing"])
def test_a_folder_that_cannot_be_written_to(place, name, monkeypatch):
    monkeypatch.chdir("/proc")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, place)
    with pytest.raises(UsageError, match=rf"\({name}\), where nothing can be written: .*; set RAY_TMPDIR to a folder"):
        ray_folder()


def test_a_folder_too_long_for_sockets(monkeypatch):
    fits = 107 - len(f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for length, says in ((fits, "where nothing can be written"), (fits + 1, f"too long .* room for {fits} bytes")):
        monkeypatch.setenv("TMPDIR", "/proc/" + "x" * (length - len("/proc/")))
        with pytest.raises(UsageError, match=rf"{says}.*; set RAY_TMPDIR to a folder with a short name"):
            ray_folder()
    monkeypatch.setenv("TMPDIR", "/proc/" + "é" * (fits // 2))  # as many bytes, not letters
    with pytest.raises(UsageError, match="too long"):
        ray_folder()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_that_is_there_is_used(home, monkeypatch):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""
    monkeypatch.setenv("HOME", "/proc/nothing")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / ".ray" / "auth_token"))
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "b" * 64


@pytest.mark.parametrize("damage", ["no file", "no folder", "a folder", "empty", "path"])
def test_without_a_token_at_home_the_environment_gets_one(damage, home, monkeypatch):
    file = home / ".ray" / "auth_token"
    if damage == "no folder":
        monkeypatch.setenv("HOME", "/proc/nothing")
    elif damage == "a folder":
        file.mkdir(parents=True)
    elif damage == "empty":
        file.parent.mkdir()
        file.write_text("\n")
    elif damage == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/nothing")
    bring_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert damage in ("a folder", "empty") or not (home / ".ray").exists()
