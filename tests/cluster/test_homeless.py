"""A run of a user without a home folder, whose token cannot be read either: what a container's arbitrary user is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY
from tests.project import config_with
from tests.voc_folder import small_data_set

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_a_run_needs_no_home(tmp_path: Path):
    small_data_set(tmp_path / "data", train=2, test=1)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(config_with(dataset={"path": str(tmp_path / "data")})))
    without = {"HOME": "/proc/nothing", "XDG_CACHE_HOME": "/proc/nothing", "RAY_AUTH_TOKEN_PATH": "/proc/nothing"}
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs",
            "run",
            "--until=extract",
            "--config",
            str(config),
            f"--root={tmp_path / 'root'}",
        ],
        cwd=REPOSITORY,
        env={**os.environ, **without},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert "features" in ended.stdout
