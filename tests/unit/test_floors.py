"""The floors of docs/architecture.md are kept by ``make lint``: an import that runs back up breaks a contract."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

PACKAGES = ("jobs", "pipeline", "storage")


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("jobs/features/pooling.py", "from jobs.detect.method import VERSION"),
        ("pipeline/spp/windows.py", "from pipeline.network.head import Head"),
        ("storage/root.py", "from jobs.errors import UsageError"),
    ],
)
def test_an_import_that_runs_up_is_found(copy, file, line):
    with (copy / file).open("a") as code:
        code.write(f"\n{line}\n")
    done = linted(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    source, target = file.removesuffix(".py").replace("/", "."), line.split()[1]
    assert f"{source} -> {target}" in done.stdout, done.stdout


def test_as_it_is_none_does(copy):
    done = linted(copy)
    assert done.returncode == 0, done.stdout
