"""``ray job submit`` end to end: a real cluster with its job server, with and without token authentication."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import storage
from tests.cluster.commands import commits, wait_until
from tests.cluster.local_cluster import LocalCluster
from tests.voc_folder import small_data_set

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]

HOME = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass
class JobServer:
    """A cluster that takes jobs. ``environment``: what a client has who may use it."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def submit(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit a command as the documents say, and follow its log to the end."""
        return subprocess.run(
            [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", str(HOME), "--", *command],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def driver_exit_code(self, output: str) -> int | None:
        """What the submitted command itself returned; ``ray job submit`` makes 1 of every failure."""
        (job,) = set(re.findall(r"raysubmit_\w+", output))
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/{job}")
        if "RAY_AUTH_TOKEN" in self.environment:
            request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["driver_exit_code"]


@pytest.fixture(scope="module", params=["open", "token"])
def server(request) -> Iterator[JobServer]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    if request.param == "token":
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    else:
        environment["RAY_AUTH_MODE"] = "disabled"
    options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    with LocalCluster(environment, num_cpus=2, **options) as cluster:
        made = JobServer(cluster.address, f"http://{cluster.dashboard}", environment)
        wait_until(lambda: made.submit("true").returncode == 0)  # it takes jobs some seconds after it has started
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    small_data_set(tmp_path / "data", train=9, test=5)
    path = tmp_path / "small.yaml"
    sections = {
        "dataset": {"path": str(tmp_path / "data")},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [96, 160]},
        "execution": {"progress_seconds": 1},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def spp(config: Path, root: Path, *more: str) -> list[str]:
    """The entry point of a job."""
    return ["python", "-m", "jobs", "run", "--config", str(config), "--root", str(root), *more]


def test_a_submitted_run_shows_progress_and_leaves_its_record_beside_the_data(server, config, tmp_path):
    root = tmp_path / "root"
    done = server.submit(*spp(config, root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"proposals \d+/14.*images/s", done.stdout)
    assert "AP (11-point)" in done.stdout
    record = storage.read_run(storage.open_root(str(root)), "small")
    assert (record.status, record.exit_code) == ("done", 0)
    assert record.argv[1:2] == ["run"]

    before = commits(root, "features")
    start = time.monotonic()
    again = server.submit(*spp(config, root))
    assert again.returncode == 0, again.stdout
    assert server.driver_exit_code(again.stdout) == 0
    assert commits(root, "features") == before
    assert "images/s" not in again.stdout, "nothing was made"
    print(f"a finished job again: {time.monotonic() - start:.0f} s")


def test_a_job_that_fails_gives_its_own_code_to_who_asks_for_it(server, config, tmp_path):
    config.write_text(config.read_text().replace("max_per_image", "max_per_imag"))
    failed = server.submit(*spp(config, tmp_path / "root"))
    assert failed.returncode == 1
    assert "unknown key 'proposals.max_per_imag'; did you mean 'max_per_image'" in failed.stdout
    assert server.driver_exit_code(failed.stdout) == 2


def test_a_stopped_job_says_so_beside_the_data_and_goes_on_when_it_is_submitted_again(server, config, tmp_path):
    sections = yaml.safe_load(config.read_text())
    sections["features"]["scales"] = [480, 688]
    config.write_text(yaml.safe_dump(sections))
    root = tmp_path / "root"
    job = f"stop-{tmp_path.name}".replace("_", "-")
    ray_job = [BIN / "ray", "job"]
    at = ["--address", server.dashboard]
    options = [*at, "--no-wait", "--submission-id", job, "--working-dir", str(HOME)]
    subprocess.run(
        [*ray_job, "submit", *options, "--", *spp(config, root, "--until", "extract")],
        env=server.environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    wait_until(lambda: bool(commits(root, "proposals")))
    subprocess.run([*ray_job, "stop", *at, job], env=server.environment, check=True, capture_output=True, timeout=120)
    record = storage.read_run(storage.open_root(str(root)), "small")
    assert (record.status, record.exit_code, record.error) == ("failed", 1, "interrupted")
    again = server.submit(*spp(config, root, "--until", "extract"))
    assert again.returncode == 0, again.stdout
    assert storage.read_run(storage.open_root(str(root)), "small").exit_code == 0


@pytest.mark.parametrize(
    "lacking", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"]
)
def test_a_driver_without_the_token_is_told_in_one_line_what_to_set(server, config, tmp_path, lacking):
    if "RAY_AUTH_TOKEN" not in server.environment:
        pytest.skip("this cluster is open")
    refused = {**server.environment, "RAY_ADDRESS": server.address, **lacking}
    found = subprocess.run(
        [BIN / "spp", *spp(config, tmp_path / "root")[3:]], env=refused, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("spp: error:")]
    assert re.search("refused us|somebody listens there", line)
    assert "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    assert "Traceback" not in found.stderr
    assert "f" * 32 not in found.stderr + found.stdout
    record = storage.read_run(storage.open_root(str(tmp_path / "root")), "small")
    assert record.exit_code == 1


def test_the_runs_metrics_stand_beside_rays_own(server, config, tmp_path):
    done = server.submit(*spp(config, tmp_path / "root", "--until", "extract", "--run", "measured"))
    assert done.returncode == 0, done.stdout
    text = ""
    wanted = [f"ray_spp_{name}_total" for name in ("images", "windows", "bytes_written", "phase_seconds")]

    def exported() -> bool:
        nonlocal text
        text = metrics_of(server)
        return all(name in text for name in wanted)

    wait_until(exported, 60)
    lines = [line for line in text.splitlines() if line.startswith("ray_spp_images_total") and 'run="measured"' in line]
    counts = {re.search(r'dataset="(\w+)"', line)[1]: float(line.rsplit(" ", 1)[1]) for line in lines}  # type: ignore[index]
    assert counts == {"proposals": 14, "features": 14, "truth_features": 9}


def metrics_of(server: JobServer) -> str:
    """What Prometheus would read."""
    code = (
        "import ray; ray.init(log_to_driver=False, logging_level=40); n = ray.nodes()[0]; "
        "print(n['NodeManagerAddress'], n['MetricsExportPort'])"
    )
    environment = {**server.environment, "RAY_ADDRESS": server.address}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    host, port = found.stdout.split()[-2:]
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()
