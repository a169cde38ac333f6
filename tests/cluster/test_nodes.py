"""Several nodes: what runs where, and what it costs to lose one. Real raylets, really killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import storage
from jobs.cli import main
from tests.cluster.commands import (
    EXTRACTED,
    assert_same_content,
    commits,
    finetuned,
    kill_tree,
    start,
    wait_until,
)
from tests.cluster.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]

HOME = Path(__file__).parents[2]
MODELS = ("svms", "regressors", "detections", "metrics")

Spp = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A head, and two nodes of two cores."""
    with LocalCluster() as made:
        made.add()
        made.add()
        yield made


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def begin(config: Path, tmp_path: Path, log: Path) -> Iterator[Spp]:
    """Start the command on a cluster, its output in the log; whatever becomes of the test, it ends."""
    begun: list[subprocess.Popen[str]] = []

    def make(address: str, until: str = "extract") -> subprocess.Popen[str]:
        begun.append(start(config, tmp_path / "root", until=until, address=address, log=log))
        return begun[-1]

    yield make
    for process in begun:
        if process.poll() is None:
            kill_tree(process)


def ended(process: subprocess.Popen[str], log: Path) -> str:
    """Wait for a command that should succeed; its output."""
    code = process.wait(timeout=500)
    text = log.read_text()
    assert code == 0, text
    return text


def lose_the_node_with(cluster: LocalCluster, worker: str) -> None:
    """Kill the node on which a worker runs, once it does, and bring another in its place."""
    found: list[psutil.Process] = []

    def look() -> bool:
        node = cluster.node_with(worker)
        found.extend([node] if node else [])
        return bool(found)

    wait_until(look)
    cluster.kill(found[0])
    cluster.add()


def test_a_node_lost_in_mid_extract_costs_its_shards_in_hand(config, cluster, begin, log, tmp_path, undisturbed):
    root = tmp_path / "root"
    process = begin(cluster.address)
    wait_until(lambda: bool(commits(root, "features")))
    before = commits(root, "features")
    lose_the_node_with(cluster, "ray::FeatureActor")
    text = ended(process, log)
    assert "is tried again: its node was lost" in text
    assert before < commits(root, "features")
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config))


def test_a_node_lost_in_mid_mining_changes_no_model(config, cluster, begin, log, tmp_path, undisturbed):
    process = begin(cluster.address, until="evaluate")
    wait_until(lambda: "train-svm: start" in log.read_text())
    lose_the_node_with(cluster, "ray::mine")
    ended(process, log)
    root = tmp_path / "root"
    assert main(["verify", "--root", str(root)]) == 0
    other = undisturbed(config, "evaluate")
    assert_same_content(root, other, (*EXTRACTED, *MODELS))


def test_a_node_lost_in_mid_fine_tuning_goes_on_from_a_checkpoint_elsewhere(
    config, cluster, begin, log, tmp_path, undisturbed
):
    finetuned(config, {"schedule": [[0.003, 120]], "measure_every": 20})
    root = tmp_path / "root"
    process = begin(cluster.address, until="finetune")
    wait_until(lambda: iterations(root) != set() and max(iterations(root)) >= 10)
    lose_the_node_with(cluster, "ray::train_head")
    reached = min(iterations(root))
    seen: set[int] = set()

    def over() -> bool:
        seen.update(iterations(root))
        return process.poll() is not None

    wait_until(over, 300)
    ended(process, log)
    assert min(seen) >= reached, "it began anew"
    other = undisturbed(config, "finetune")
    assert_same_content(root, other, ("training_windows", "training_curve", "head"))


def iterations(root: Path) -> set[int]:
    """Those that there are checkpoints of."""
    return {int(name.split(".")[0][4:], 16) for name in commits(root, "checkpoints")}


def test_a_lost_head_ends_the_run_and_the_same_command_on_another_cluster_goes_on(
    config, begin, log, tmp_path, undisturbed
):
    root = tmp_path / "root"
    with LocalCluster() as first:
        first.add()
        process = begin(first.address)
        wait_until(lambda: bool(commits(root, "features")))
    kill_tree(process)  # the driver lived on the head
    before = commits(root, "features")
    with LocalCluster() as second:
        second.add()
        ended(begin(second.address), log)
    after = commits(root, "features")
    assert before < after
    shards = [name.split(".")[0] for name in after]
    assert len(shards) == len(set(shards)), "a finished shard was done again"
    assert storage.read_run(storage.open_root(str(root)), "small").exit_code == 0
    assert_same_content(root, undisturbed(config))


def test_a_full_object_store_spills_and_changes_nothing(config, begin, log, tmp_path, undisturbed):
    """The smallest store that Ray allows; the body's weights and the mined negatives go through it."""
    least = 80 * 1024 * 1024
    with LocalCluster(object_store_memory=least) as cluster:
        cluster.add(object_store_memory=least)
        ended(begin(cluster.address, until="evaluate"), log)
    other = undisturbed(config, "evaluate")
    assert_same_content(tmp_path / "root", other, (*EXTRACTED, *MODELS))


def test_a_driver_whose_cluster_is_gone_says_so(begin, log):
    assert begin("127.0.0.1:1").wait(timeout=120) == 1
    text = log.read_text()
    assert "cannot start on 127.0.0.1:1" in text
    assert "Traceback" not in text


def test_local_folders_are_refused_where_there_are_several_machines_unless_shared(config, begin, log, tmp_path):
    """Two loopback addresses, as two machines have."""
    root = tmp_path / "root"
    with LocalCluster() as cluster:
        cluster.add(node_ip_address="127.0.0.2")
        assert begin(cluster.address).wait(timeout=120) == 2
        text = log.read_text()
        assert f"root '{root}' is a folder of one machine, but the cluster has 2" in text
        assert "--set execution.shared_fs=true" in text
        record = storage.read_run(storage.open_root(str(root)), "small")
        assert (record.status, record.exit_code) == ("failed", 2)
        config.write_text(config.read_text().replace("execution:", "execution:\n  shared_fs: true"))
        ended(begin(cluster.address, until="propose"), log)


def placements(scenario: str) -> dict:
    """What a driver of its own process reports of where crews' workers run."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.cluster.placement", scenario],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HOME,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def test_each_gpu_has_one_actor_and_tasks_of_cpus_have_none():
    """Two nodes of two (pretended) GPUs. A third node that comes later is used as well."""
    found = placements("growing")
    assert len({(node, *gpus) for node, gpus in found["first"]}) == 4
    assert len({node for node, _ in found["first"]}) == 2
    assert found["tasks"] == [[]] * 4
    assert len({node for node, _ in found["later"]}) == 3


def test_a_cluster_without_gpus_gets_actors_that_wait_for_one():
    """Scale from zero: what is asked for is pending, which is what an autoscaler goes by; then the node comes."""
    found = placements("from zero")
    assert found["joining"] == 2
    assert "2 wait to start, each needs 4 CPU and 1 GPU" in found["described"]
    assert not found["room"]
    assert [gpus for _, gpus in found["later"]] == [["0"]]
