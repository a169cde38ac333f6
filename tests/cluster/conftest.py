"""What the tests of faults compare with: the same run without any."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import kill_tree, small_config, start
from tests.voc_folder import small_data_set

Undisturbed = Callable[..., Path]


@pytest.fixture(scope="session")
def forty_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set for all tests that make it and unmake it."""
    folder = tmp_path_factory.mktemp("forty") / "data"
    small_data_set(folder, train=26, test=14)
    return folder


@pytest.fixture
def config(tmp_path: Path, forty_images: Path) -> Path:
    """A config of the test's own."""
    return small_config(tmp_path, forty_images)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The root of a run of a config that nothing disturbed; made once for each config and last stage."""
    made: dict[tuple[str, str], Path] = {}

    def root_of(config: Path, until: str = "extract") -> Path:
        key = config.read_text(), until
        if key not in made:
            root = tmp_path_factory.mktemp("undisturbed") / "root"
            process = start(config, root, until)
            try:
                output, _ = process.communicate(timeout=400)
            except subprocess.TimeoutExpired:
                kill_tree(process)
                raise
            assert process.returncode == 0, output
            made[key] = root
        return made[key]

    return root_of
