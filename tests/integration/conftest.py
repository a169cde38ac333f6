"""A small project for all integration tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from tests.voc_folder import VocFolder, small_data_set


@pytest.fixture(scope="session", autouse=True)
def _on_embedded_ray(embedded_ray: None) -> None:
    """Every command of the session joins it."""


@dataclass
class Project:
    """A data set, a config and a root, as a user has them."""

    data: VocFolder
    config: Path
    root: Path

    def spp(self, verb: str, *arguments: str, root: Path | None = None) -> int:
        """Run a verb with this config and root; returns its exit code."""
        return main([verb, *arguments, "--config", str(self.config), "--root", str(root or self.root)])

    def commits(self, dataset: str) -> set[str]:
        """Names of all commit records of a dataset, of every method."""
        return {f"{path.parent.parent.name}/{path.name}" for path in (self.root / dataset).glob("*/commit/*.json")}


EXTRACT = ("--until", "extract")
"""For tests of what comes before the training: the last stage of a run."""

CONFIG = {
    "proposals": {"max_per_image": 60, "min_side": 10},
    "features": {"body": "alexnet", "weights": "random", "scales": [96, 160]},
    "execution": {"progress_seconds": 1, "backoff": 0.1},
}


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    """Make a project of a small data set."""

    def make(train: int = 9, test: int = 5) -> Project:
        data = small_data_set(tmp_path / "data", train, test)
        config = tmp_path / "small.yaml"
        config.write_text(yaml.safe_dump({"dataset": {"path": str(tmp_path / "data")}, **CONFIG}))
        return Project(data, config, tmp_path / "root")

    return make


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    """A project of 9 + 5 images."""
    return make_project()
