"""Small projects for all integration tests: one on which nothing was run, and finished ones, each made once.

A finished project is shared by all tests and all their processes: who changes it in any way works on a ``clone``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import project as small
from tests.project import EXTRACT, Project, config_with

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session", autouse=True)
def _on_embedded_ray(embedded_ray: None) -> None:
    """Every command of the session joins it."""


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    """Make a project of a small data set: so many images to train, and to test on."""

    def make(train: int = 9, test: int = 5) -> Project:
        return small.make_project(tmp_path, train, test)

    return make


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    """A project of 9 + 5 images on which nothing was run."""
    return make_project()


@pytest.fixture(scope="session")
def extracted(made_once: MadeOnce) -> Project:
    """The same, run until extract. To read."""

    def fill(folder: Path) -> None:
        assert small.make_project(folder).spp("run", *EXTRACT) == 0

    return small.project_in(made_once("extracted", fill))


@pytest.fixture(scope="session")
def finished(made_once: MadeOnce, extracted: Project) -> Project:
    """The same, run to its end. To read."""

    def fill(folder: Path) -> None:
        assert extracted.clone(folder).spp("run") == 0

    return small.project_in(made_once("finished", fill))


@pytest.fixture(scope="session")
def tuned(made_once: MadeOnce) -> Project:
    """14 + 8 images, conv maps, a small fine-tuned head and SVMs on its fc7: a run through every stage. To read."""
    sections = config_with(
        features={"scales": [128, 160], "store": "maps"},
        head={"sizes": [48, 32]},
        finetune={"windows_per_image": 40, "batch": 32, "schedule": [[0.003, 100], [0.0003, 20]]},
        svm={"layer": "ftfc7"},
        execution={"checkpoint_seconds": 0.2},
    )

    def fill(folder: Path) -> None:
        assert small.make_project(folder, 14, 8, sections).spp("run") == 0

    return small.project_in(made_once("tuned", fill))


@pytest.fixture
def cloned(extracted: Project, tmp_path: Path) -> Project:
    """A project of 9 + 5 images that was run until extract, to be changed."""
    return extracted.clone(tmp_path)
