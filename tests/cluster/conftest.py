"""What the tests of faults share: a store that fails, a data set on it, and the same run without any fault."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import faulty_store
from tests.cluster.commands import Command, DisturbedProject, disturbed_project
from tests.project import Project
from tests.voc_folder import VocFolder, small_data_set

Undisturbed = Callable[..., Project]
Begin = Callable[..., Command]


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process that a test starts, and what comes of it, knows the faulty store; and Ray does not let workers give
    way to everything else on the machine."""
    faulty_store.register()
    folder = tmp_path_factory.mktemp("installed")
    faulty_store.install(folder)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> VocFolder:
    """20 images whose names cut them into seven shards, of 1, 3, 1, 10, 1, 2 and 2; for tests that change none."""
    return small_data_set(tmp_path_factory.mktemp("scenes"), train=13, test=7, names="scene{:03d}")


@pytest.fixture
def project(tmp_path: Path, scenes: VocFolder) -> DisturbedProject:
    """The scenes, and a config and a root of the test's own."""
    return disturbed_project(tmp_path, scenes)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, scenes: VocFolder, embedded_ray: None) -> Undisturbed:
    """A run with the sections of a project's config that nothing disturbs, made once for each.

    All are runs of one root, so that what they have in common is made once.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    made: dict[str, Project] = {}
    ended: set[tuple[str, str]] = set()

    def run_of(project: Project, until: str = "extract") -> Project:
        sections = yaml.safe_load(project.config.read_text())
        same: dict[str, Any] = {name: keys for name, keys in sections.items() if name not in _OF_A_PLACE}
        key = yaml.safe_dump(same)
        if key not in made:
            quiet = disturbed_project(folder, scenes, **same)
            made[key] = Project(scenes, quiet.config.rename(folder / f"run{len(made)}.yaml"), folder / "root")
        if (key, until) not in ended:
            assert made[key].spp("run", f"--until={until}") == 0
            ended.add((key, until))
        return made[key]

    return run_of


_OF_A_PLACE = ("dataset", "storage_options", "execution")
"""Sections that say where something is, and where it is made."""


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a run of a project in a process of its own; whatever becomes of the test, it ends."""
    begun: list[Command] = []

    def start(project: DisturbedProject, until: str = "extract", address: str | None = None) -> Command:
        begun.append(project.start(until, address))
        return begun[-1]

    yield start
    for command in begun:
        if command.process.poll() is None:
            command.kill_tree()
