"""Several nodes: what runs where, and what it costs to lose one. Real raylets, their processes really killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

import storage
from jobs.cli import main
from tests.cluster.commands import (
    EXTRACTED,
    assert_same_content,
    commits,
    finetuned,
    kill_tree,
    small_config,
    start,
    undisturbed,
    wait_until,
)
from tests.cluster.local_cluster import STORE, new_cluster

pytestmark = pytest.mark.full

HOME = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head, and two nodes of two cores."""
    made = new_cluster()
    for _ in range(2):
        made.add_node(num_cpus=2, object_store_memory=STORE)
    yield made
    made.shutdown()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return small_config(tmp_path)


def workers_of(node: object) -> list[psutil.Process]:
    """The processes of a node that have work of ours; Ray names a worker after what it runs."""
    raylet = node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]
    return [
        p for p in psutil.Process(raylet).children() if p.name().startswith("ray::") and "IDLE" not in p.cmdline()[0]
    ]


def node_with(cluster: Cluster, name: str) -> object:
    """The node on which a worker runs whose name begins with ``name``; waits for it."""
    found: list[object] = []

    def look() -> bool:
        found[:] = [
            node
            for node in cluster.worker_nodes
            if any(process.cmdline()[:1] and process.cmdline()[0].startswith(name) for process in workers_of(node))
        ]
        return bool(found)

    wait_until(look)
    return found[0]


def lose(cluster: Cluster, node: object) -> None:
    """Kill a node and all its workers, and bring another in its place."""
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=2, object_store_memory=STORE)


def ended(process: subprocess.Popen[str], log: Path) -> str:
    """Wait for a command that should succeed; its output."""
    code = process.wait(timeout=500)
    text = log.read_text()
    assert code == 0, text
    return text


def test_a_node_lost_in_mid_extract_costs_its_shards_in_hand(config, cluster, tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    process = start(config, root, address=cluster.address, log=log)
    wait_until(lambda: bool(commits(root, "features")))
    before = commits(root, "features")
    lose(cluster, node_with(cluster, "ray::FeatureActor"))
    text = ended(process, log)
    assert "is tried again: its node was lost" in text
    assert before < commits(root, "features")
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def test_a_node_lost_in_mid_mining_changes_no_model(config, cluster, tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    process = start(config, root, until="evaluate", address=cluster.address, log=log)
    wait_until(lambda: "train-svm: pass 1, round 1" in log.read_text())
    lose(cluster, cluster.worker_nodes[0])
    ended(process, log)
    assert main(["verify", "--root", str(root)]) == 0
    other = undisturbed(config, tmp_path / "other", until="evaluate")
    assert_same_content(root, other, (*EXTRACTED, "svms", "regressors", "detections", "metrics"))


def test_a_node_lost_in_mid_fine_tuning_goes_on_from_a_checkpoint_elsewhere(config, cluster, tmp_path):
    finetuned(config, {"schedule": [[0.003, 120]], "measure_every": 20})
    root, log = tmp_path / "root", tmp_path / "log"
    process = start(config, root, until="finetune", address=cluster.address, log=log)
    wait_until(lambda: len(commits(root, "checkpoints")) >= 2)
    before = commits(root, "head")
    assert not before
    lose(cluster, node_with(cluster, "ray::_train"))
    ended(process, log)
    other = undisturbed(config, tmp_path / "other", until="finetune")
    assert_same_content(root, other, ("training_windows", "training_curve", "head"))


def test_a_lost_head_ends_the_run_and_the_same_command_on_another_cluster_goes_on(config, tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    first = new_cluster()
    first.add_node(num_cpus=2, object_store_memory=STORE)
    process = start(config, root, address=first.address, log=log)
    wait_until(lambda: bool(commits(root, "features")))
    first.shutdown()  # the head, its node and all services
    kill_tree(process)  # the driver lived on the head
    before = commits(root, "features")
    second = new_cluster()
    try:
        second.add_node(num_cpus=2, object_store_memory=STORE)
        ended(start(config, root, address=second.address, log=log), log)
    finally:
        second.shutdown()
    after = commits(root, "features")
    assert before < after
    shards = [name.split(".")[0] for name in after]
    assert len(shards) == len(set(shards)), "a finished shard was done again"
    assert storage.read_run(storage.open_root(str(root)), "small").exit_code == 0
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def test_a_full_object_store_spills_and_changes_nothing(config, tmp_path):
    """The smallest store that Ray allows; the body's weights and the mined negatives go through it."""
    root, log = tmp_path / "root", tmp_path / "log"
    cluster = new_cluster(object_store_memory=80 * 1024 * 1024)
    try:
        cluster.add_node(num_cpus=2, object_store_memory=80 * 1024 * 1024)
        ended(start(config, root, until="evaluate", address=cluster.address, log=log), log)
    finally:
        cluster.shutdown()
    other = undisturbed(config, tmp_path / "other", until="evaluate")
    assert_same_content(root, other, (*EXTRACTED, "svms", "regressors", "detections", "metrics"))


def test_a_driver_whose_cluster_is_gone_says_so(config, tmp_path):
    log = tmp_path / "log"
    process = start(config, tmp_path / "root", address="127.0.0.1:1", log=log)
    assert process.wait(timeout=120) == 1
    text = log.read_text()
    assert "cannot start on 127.0.0.1:1" in text
    assert "Traceback" not in text


def test_local_folders_are_refused_where_there_are_several_machines_unless_they_are_shared(config, tmp_path):
    """Two loopback addresses, as two machines have."""
    root, log = tmp_path / "root", tmp_path / "log"
    cluster = new_cluster()
    try:
        cluster.add_node(num_cpus=2, object_store_memory=STORE, node_ip_address="127.0.0.2")
        process = start(config, root, address=cluster.address, log=log)
        assert process.wait(timeout=120) == 2
        text = log.read_text()
        assert f"root '{root}' is a folder of one machine, but the cluster has 2" in text
        assert "--set execution.shared_fs=true" in text
        record = storage.read_run(storage.open_root(str(root)), "small")
        assert (record.status, record.exit_code) == ("failed", 2)
        config.write_text(config.read_text().replace("execution:", "execution:\n  shared_fs: true"))
        ended(start(config, root, until="propose", address=cluster.address, log=log), log)
    finally:
        cluster.shutdown()


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
