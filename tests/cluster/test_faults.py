"""Faults of stores and workers, each injected: what the user sees, and content equal to an undisturbed run's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import EXTRACTING, HELD, DisturbedProject, assert_same_content, disturbed_project
from tests.project import EXTRACT, sets
from tests.voc_folder import VocFolder

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.usefixtures("embedded_ray")]

MADE = ("proposals", "features", "truth_features")
KILLER = "scene017"
"""An image that brings its workers down: of a small shard, and to test on, so that it is read for one dataset."""


@pytest.fixture
def project(tmp_path: Path, scenes: VocFolder) -> DisturbedProject:
    """The scenes, and a root on the store that fails, too."""
    return disturbed_project(tmp_path, scenes, f"faulty://{tmp_path}/root")


@pytest.fixture
def assert_undisturbed(undisturbed) -> Callable[[DisturbedProject], None]:
    """The content is that of the same run without faults; every image stands once."""

    def check(project: DisturbedProject) -> None:
        project.disturb()
        assert_same_content(project, undisturbed(project), MADE)
        assert project.spp("verify") == 0

    return check


def run_until_it_gets_through(project: DisturbedProject) -> int:
    """The driver's own small writes are not retried by the loop: the same command goes on, as a user would have it."""
    for _ in range(10):
        code = project.spp("run", *EXTRACT, *sets("execution.retries=20"))
        if code == 0:
            break
    return code


def test_a_put_that_fails_one_time_in_five_is_tried_again(project, assert_undisturbed):
    project.disturb(put_fails_every=5)
    assert run_until_it_gets_through(project) == 0
    assert_undisturbed(project)


def test_a_put_whose_answer_is_lost_is_tried_again_and_nothing_stands_twice(project, assert_undisturbed):
    project.disturb(put_loses_answer_every=7)
    assert run_until_it_gets_through(project) == 0
    assert_undisturbed(project)


def test_a_slow_store_only_takes_longer(project, assert_undisturbed):
    project.disturb(put_seconds=0.2)
    assert project.spp("run", *EXTRACT) == 0
    assert_undisturbed(project)


@pytest.mark.parametrize(("code", "says"), [("ENOSPC", "No space left"), ("EACCES", "Permission denied")])
def test_a_full_disk_or_refused_credentials_stop_the_run_with_the_reason_and_it_resumes(
    project, assert_undisturbed, capsys, code, says
):
    project.disturb(put_error=code, put_good=14)  # in mid-run: the index is written
    assert project.spp("run", *EXTRACT, *sets("execution.retries=1")) in (1, 2)
    assert says in capsys.readouterr().err
    project.disturb()
    assert project.spp("run", *EXTRACT) == 0
    assert_undisturbed(project)


def test_memory_that_runs_out_once_is_never_blamed_on_an_image(project, assert_undisturbed, capsys):
    assert project.spp("index") == 0
    project.disturb(memory_error_on=HELD)
    assert project.spp("propose") == 0
    assert "is tried again: MemoryError" in capsys.readouterr().err
    assert project.spp("extract") == 0
    assert_undisturbed(project)


def test_a_worker_that_hangs_is_ended_and_its_shard_done_again(project, assert_undisturbed, capsys):
    assert project.spp("index") == 0
    project.disturb(hang_on=HELD)
    assert project.spp("propose", *sets("execution.shard_deadline=20")) == 0
    assert "it hung for more than 20 s" in capsys.readouterr().err
    project.disturb()
    assert project.spp("extract") == 0
    assert_undisturbed(project)


def test_an_image_that_brings_its_workers_down_goes_to_the_ledger_and_the_rest_is_made(
    project, assert_undisturbed, capsys
):
    assert project.spp("index") == 0
    assert project.spp("propose") == 0
    project.disturb(exit_on=f"{KILLER}.jpg", only_in=EXTRACTING)
    assert project.spp("extract", *sets("execution.max_failed=1", "execution.max_deaths=2")) == 3
    captured = capsys.readouterr()
    assert "its images are tried one by one" in captured.err
    assert f"failed image {KILLER}: extract: WorkerDied" in captured.out
    assert image_ids(project, "features") == image_ids(project, "images") - {KILLER}
    assert project.spp("verify") == 0
    project.disturb()
    assert project.spp("retry", *EXTRACT) == 0
    assert_undisturbed(project)


def test_an_image_that_brings_proposal_workers_down_goes_to_the_ledger_too(project, assert_undisturbed):
    assert project.spp("index") == 0
    project.disturb(exit_on=f"{KILLER}.jpg")
    assert project.spp("propose", *sets("execution.max_failed=1")) == 3
    assert image_ids(project, "proposals") == image_ids(project, "images") - {KILLER}
    project.disturb()
    assert project.spp("retry", *EXTRACT) == 0
    assert_undisturbed(project)


def image_ids(project: DisturbedProject, dataset: str) -> set[str]:
    return set(project.table(dataset)["image_id"].to_pylist())
