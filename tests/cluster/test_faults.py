"""Faults of stores and workers, each injected: what the user sees, and content equal to an undisturbed run's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import storage
from jobs.cli import main
from storage.root import open_root
from tests.voc_folder import VocFolder, small_data_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("embedded_ray")]


@dataclass
class Project:
    """A data set and a root, both on a store that fails on a plan."""

    folder: Path
    data: VocFolder

    def plan(self, **faults: Any) -> None:
        """From now on the store fails so."""
        (self.folder / "plan.json").write_text(json.dumps(faults))

    def spp(self, verb: str, root: str = "root", **execution: Any) -> int:
        """Run a verb; ``execution`` keys are set."""
        overrides = [f"--set=execution.{key}={value}" for key, value in execution.items()]
        config = ["--config", str(self.folder / "small.yaml"), "--root", f"faulty://{self.folder / root}"]
        until = ["--until=extract"] if verb in ("run", "retry") else []
        return main([verb, *until, *config, *overrides])

    def table(self, dataset: str, root: str = "root"):
        """All rows of a dataset."""
        place = open_root(f"faulty://{self.folder / root}", {"plan": str(self.folder / "plan.json")})
        table = storage.open(place, dataset).to_table()
        keys = [name for name in ("image_id", "proposal_id", "object_id") if name in table.column_names]
        return table.sort_by([(key, "ascending") for key in keys])

    def assert_undisturbed(self) -> None:
        """The content is that of the same run without faults; every image stands once."""
        self.plan()
        assert self.spp("run", root="good") == 0
        for dataset in ("proposals", "features", "truth_features"):
            assert self.table(dataset).equals(self.table(dataset, "good")), dataset
        assert self.spp("verify") == 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """9 + 5 images."""
    data = small_data_set(tmp_path / "data")
    options = {"plan": str(tmp_path / "plan.json")}
    sections = {
        "dataset": {"path": f"faulty://{tmp_path / 'data'}", "storage_options": options},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [96, 160]},
        "execution": {"progress_seconds": 1, "backoff": 0.1},
        "storage_options": options,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sections))
    made = Project(tmp_path, data)
    made.plan()
    return made


def test_a_put_that_fails_one_time_in_five_is_tried_again(project, capsys):
    project.plan(put_fails_every=5)
    code = run_until_it_gets_through(lambda: project.spp("run", retries=20))
    assert code == 0
    project.assert_undisturbed()


def run_until_it_gets_through(run: Callable[[], int]) -> int:
    """The driver's own small writes are not retried by the loop: the same command goes on, as a user would have it."""
    for _ in range(10):
        code = run()
        if code == 0:
            break
    return code


def test_a_put_whose_answer_is_lost_is_tried_again_and_nothing_stands_twice(project):
    project.plan(put_loses_answer_every=7)
    assert run_until_it_gets_through(lambda: project.spp("run", retries=20)) == 0
    project.assert_undisturbed()


def test_a_slow_store_only_takes_longer(project):
    project.plan(put_seconds=0.2)
    assert project.spp("run") == 0
    project.assert_undisturbed()


@pytest.mark.parametrize(("code", "says"), [("ENOSPC", "No space left"), ("EACCES", "Permission denied")])
def test_a_full_disk_or_refused_credentials_stop_the_run_with_the_reason_and_it_resumes(project, capsys, code, says):
    project.plan(put_error=code, put_good=14)  # in mid-run: the index is written
    assert project.spp("run", retries=1) in (1, 2)
    assert says in capsys.readouterr().err
    project.plan()
    assert project.spp("run") == 0
    project.assert_undisturbed()


def test_memory_that_runs_out_once_is_never_blamed_on_an_image(project, capsys):
    assert project.spp("index") == 0
    project.plan(memory_error_on="im-004.jpg")
    assert project.spp("propose") == 0
    assert "is tried again: MemoryError" in capsys.readouterr().err
    assert project.spp("extract") == 0
    project.assert_undisturbed()


def test_a_worker_that_hangs_is_ended_and_its_shard_done_again(project, capsys):
    assert project.spp("index") == 0
    project.plan(hang_on="im-004.jpg")
    assert project.spp("propose", shard_deadline=20) == 0
    assert "it hung for more than 20 s" in capsys.readouterr().err
    project.plan()
    assert project.spp("extract") == 0
    project.assert_undisturbed()


def test_an_image_that_brings_its_workers_down_goes_to_the_ledger_and_the_rest_is_made(project, capsys):
    assert project.spp("index") == 0
    assert project.spp("propose") == 0
    project.plan(exit_on="im-004.jpg", exit_in_actor=True)
    assert project.spp("extract", max_failed=1) == 3
    captured = capsys.readouterr()
    assert "its images are tried one by one" in captured.err
    assert "failed image im-004: extract: WorkerDied" in captured.out
    features = project.table("features")
    assert set(features["image_id"].to_pylist()) == {f"im-{n:03d}" for n in range(14)} - {"im-004"}
    assert project.spp("verify") == 0
    project.plan()
    assert project.spp("retry") == 0
    project.assert_undisturbed()


def test_an_image_that_brings_proposal_workers_down_goes_to_the_ledger_too(project):
    assert project.spp("index") == 0
    project.plan(exit_on="im-011.jpg")
    assert project.spp("propose", max_failed=1) == 3
    assert set(project.table("proposals")["image_id"].to_pylist()) == {f"im-{n:03d}" for n in range(14)} - {"im-011"}
    project.plan()
    assert project.spp("retry") == 0
    project.assert_undisturbed()
