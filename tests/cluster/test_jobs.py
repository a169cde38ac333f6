"""``ray job submit`` end to end: a real cluster with its job server, with and without token authentication.

A whole run is submitted to either. What does not depend on who may use the cluster is asked of the one with a token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.runs import RunRecord
from tests import REPOSITORY
from tests.cluster.commands import BIN, PATIENCE, SPP, DisturbedProject, disturbed_project, wait_until
from tests.cluster.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass
class JobServer:
    """A cluster that takes jobs. ``environment``: what a client has who may use it."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def ray_job(self, verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """``ray job`` as the documents say."""
        return subprocess.run(
            [BIN / "ray", "job", verb, "--address", self.dashboard, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Submit a command, and follow its log to the end."""
        return self.ray_job("submit", "--working-dir", REPOSITORY, "--", *command)

    def driver_exit_code(self, output: str) -> int | None:
        """What the submitted command itself returned; ``ray job submit`` makes 1 of every failure."""
        (job,) = set(re.findall(r"raysubmit_\w+", output))
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/{job}")
        if "RAY_AUTH_TOKEN" in self.environment:
            request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["driver_exit_code"]


@contextmanager
def job_server(**authentication: str) -> Iterator[JobServer]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    environment |= authentication
    options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    with LocalCluster(environment, num_cpus=2, **options) as cluster:
        made = JobServer(cluster.address, f"http://{cluster.dashboard}", environment)
        wait_until(lambda: made.submit("true").returncode == 0)  # it takes jobs some seconds after it has started
        yield made


@pytest.fixture(scope="module")
def open_server() -> Iterator[JobServer]:
    with job_server(RAY_AUTH_MODE="disabled") as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    """With a token."""
    with job_server(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as made:
        yield made


@dataclass
class SubmittedRun:
    """A whole run that was submitted as a job, and what its user saw."""

    server: JobServer
    project: DisturbedProject
    output: str


@pytest.fixture(scope="module")
def open_run(open_server, scenes, tmp_path_factory) -> SubmittedRun:
    return submitted_run(open_server, disturbed_project(tmp_path_factory.mktemp("open"), scenes))


@pytest.fixture(scope="module")
def token_run(server, scenes, tmp_path_factory) -> SubmittedRun:
    return submitted_run(server, disturbed_project(tmp_path_factory.mktemp("token"), scenes))


@pytest.fixture(params=["open_run", "token_run"])
def submitted(request) -> SubmittedRun:
    return request.getfixturevalue(request.param)


def submitted_run(server: JobServer, project: DisturbedProject) -> SubmittedRun:
    done = server.submit(*entry_point(project))
    assert done.returncode == 0, done.stdout + done.stderr
    return SubmittedRun(server, project, done.stdout)


def entry_point(project: DisturbedProject, until: str = "evaluate") -> list[str]:
    return ["python", "-m", "jobs", *project.arguments(until)]


def test_a_submitted_run_shows_progress_and_leaves_its_record_beside_the_data(submitted):
    assert re.search(r"proposals \d+/20.*images/s", submitted.output)
    assert "AP (11-point)" in submitted.output
    record = submitted.project.record()
    assert (record.status, record.exit_code) == ("done", 0)
    assert record.argv[1:2] == ["run"]


def test_a_finished_job_that_is_submitted_again_makes_nothing(submitted):
    before = submitted.project.all_commits()
    again = submitted.server.submit(*entry_point(submitted.project))
    assert again.returncode == 0, again.stdout
    assert submitted.server.driver_exit_code(again.stdout) == 0
    assert submitted.project.all_commits() == before
    assert "images/s" not in again.stdout, "something was made"


def test_the_runs_metrics_stand_beside_rays_own(token_run):
    url = metrics_url(token_run.server)
    wanted = [
        f"ray_spp_{name}_total" for name in ("images", "windows", "bytes_written", "phase_seconds", "body_passes")
    ]
    text = ""

    def exported() -> bool:
        nonlocal text
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        return all(name in text for name in wanted)

    wait_until(exported)
    lines = [line for line in text.splitlines() if line.startswith("ray_spp_images_total") and 'run="small"' in line]
    counts = {re.search(r'dataset="(\w+)"', line)[1]: float(line.rsplit(" ", 1)[1]) for line in lines}  # type: ignore[index]
    assert counts == {"proposals": 20, "features": 20, "truth_features": 13, "detections": 7}


def metrics_url(server: JobServer) -> str:
    """What Prometheus would read."""
    code = (
        "import ray; ray.init(log_to_driver=False, logging_level=40); n = ray.nodes()[0]; "
        "print(n['NodeManagerAddress'], n['MetricsExportPort'])"
    )
    environment = {**server.environment, "RAY_ADDRESS": server.address}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    host, port = found.stdout.split()[-2:]
    return f"http://{host}:{port}/metrics"


def test_a_job_that_fails_gives_its_own_code_to_who_asks_for_it(server, project):
    project.config.write_text(project.config.read_text().replace("max_per_image", "max_per_imag"))
    failed = server.submit(*entry_point(project))
    assert failed.returncode == 1
    assert "unknown key 'proposals.max_per_imag'; did you mean 'max_per_image'" in failed.stdout
    assert server.driver_exit_code(failed.stdout) == 2


@pytest.fixture(scope="module")
def stopped(server, scenes, tmp_path_factory) -> tuple[DisturbedProject, RunRecord]:
    """A project whose run was submitted and stopped in the middle, and the record that this left."""
    project = disturbed_project(tmp_path_factory.mktemp("stopped"), scenes)
    project.hold_extraction()
    job = (
        "--no-wait",
        "--submission-id",
        "stopped",
        "--working-dir",
        REPOSITORY,
        "--",
        *entry_point(project, "extract"),
    )
    submitted = server.ray_job("submit", *job)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_until(project.in_mid_extract)
    ended = server.ray_job("stop", "stopped")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    project.disturb()
    return project, project.record()


def test_a_stopped_job_says_so_beside_the_data(stopped):
    _, record = stopped
    assert (record.status, record.exit_code, record.error) == ("failed", 1, "interrupted")


def test_a_stopped_job_goes_on_when_it_is_submitted_again(server, stopped):
    project, _ = stopped
    before = project.commits("features")
    again = server.submit(*entry_point(project, "extract"))
    assert again.returncode == 0, again.stdout
    assert before < project.commits("features")
    assert project.record().exit_code == 0


@pytest.mark.parametrize(
    "lacking", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"]
)
def test_a_driver_without_the_token_is_told_in_one_line_what_to_set(server, project, lacking):
    refused = {**server.environment, "RAY_ADDRESS": server.address, **lacking}
    found = subprocess.run(
        [SPP, *project.arguments("evaluate")], env=refused, capture_output=True, text=True, timeout=PATIENCE
    )
    assert found.returncode == 1
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("spp: error:")]
    assert re.search("refused us|somebody listens there", line)
    assert "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    assert "Traceback" not in found.stderr
    assert "f" * 32 not in found.stderr + found.stdout
    assert project.record().exit_code == 1
