"""Several nodes: what runs where, and what it costs to lose one. Real raylets, really killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests import REPOSITORY
from tests.cluster.commands import (
    EXTRACTED,
    FINETUNED,
    MODELS,
    PATIENCE,
    DisturbedProject,
    assert_same_content,
    disturbed_project,
    small_head,
    wait_until,
)
from tests.cluster.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as made:
        yield made


@pytest.fixture
def cluster(running_cluster: LocalCluster) -> LocalCluster:
    """A head, and two nodes of two cores. Tests that lose nodes leave it to the next, which finds others."""
    while len(running_cluster.nodes) < 2:
        running_cluster.add()
    return running_cluster


def lose_the_node_with(cluster: LocalCluster, find: Callable[[], psutil.Process | None]) -> None:
    """Kill a node as soon as it is found, and bring another in its place."""
    found: list[psutil.Process] = []

    def look() -> bool:
        node = find()
        found.extend([node] if node else [])
        return bool(found)

    wait_until(look)
    cluster.kill(found[0])
    cluster.add()


def test_a_node_lost_in_mid_extract_costs_its_shards_in_hand(tmp_path, scenes, cluster, begin, undisturbed):
    """Three actors, so that one at least is on the node that is left."""
    project = disturbed_project(tmp_path, scenes, execution={"workers": 3})
    project.hold_extraction()
    command = begin(project, address=cluster.address)
    command.wait_until(project.in_mid_extract)
    before = project.commits("features")
    (held,) = project.held()
    lose_the_node_with(cluster, lambda: cluster.node_of(held))
    project.disturb()
    assert "is tried again: its node was lost" in command.ended()
    assert before < project.commits("features")
    assert project.spp("verify") == 0
    assert_same_content(project, undisturbed(project))


def test_a_node_lost_in_mid_mining_changes_no_model(tmp_path, scenes, cluster, begin, undisturbed):
    """The root is on the store that fails: a task that mines is held where it reads features."""
    project = disturbed_project(tmp_path, scenes, f"faulty://{tmp_path}/root")
    project.disturb(hold_on=".parquet", only_in="ray::mine")
    command = begin(project, "evaluate", cluster.address)
    command.wait_until(lambda: bool(project.held()))
    lose_the_node_with(cluster, lambda: cluster.node_of(min(project.held())))
    project.disturb()
    command.ended()
    assert project.spp("verify") == 0
    assert_same_content(project, undisturbed(project, "evaluate"), (*EXTRACTED, *MODELS))


def test_a_node_lost_in_mid_fine_tuning_goes_on_from_a_checkpoint_elsewhere(
    tmp_path, scenes, cluster, begin, undisturbed
):
    project = disturbed_project(tmp_path, scenes, **small_head(schedule=[[0.003, 120]], measure_every=20))
    command = begin(project, "finetune", cluster.address)
    command.wait_until(lambda: max(iterations(project), default=0) >= 10)
    lose_the_node_with(cluster, lambda: cluster.node_with("ray::train_head"))
    reached = min(iterations(project))
    seen: set[int] = set()

    def over() -> bool:
        seen.update(iterations(project))
        return command.process.poll() is not None

    wait_until(over)
    command.ended()
    assert min(seen) >= reached, "it began anew"
    assert_same_content(project, undisturbed(project, "finetune"), FINETUNED)


def iterations(project: DisturbedProject) -> set[int]:
    """Those that there are checkpoints of."""
    return {int(name.split("/")[1].split(".")[0][4:], 16) for name in project.commits("checkpoints")}


def test_an_interrupt_ends_a_fine_tuning_at_once(tmp_path, scenes, cluster, begin):
    """The cluster goes on, and so would the worker."""
    project = disturbed_project(tmp_path, scenes, **small_head(schedule=[[0.001, 1_000_000]]))
    command = begin(project, "finetune", cluster.address)
    command.wait_until(lambda: bool(project.commits("checkpoints")))
    command.process.send_signal(signal.SIGINT)
    assert "interrupted; the same command goes on where it stopped" in command.ended(code=1)
    wait_until(lambda: cluster.node_with("ray::train_head") is None, 60)


def test_a_lost_head_ends_the_run_and_the_same_command_on_another_cluster_goes_on(project, cluster, begin, undisturbed):
    project.hold_extraction()
    with LocalCluster() as first:
        first.add()
        command = begin(project, address=first.address)
        command.wait_until(project.in_mid_extract)
    command.kill_tree()  # the driver lived on the head
    before = project.commits("features")
    project.disturb()
    begin(project, address=cluster.address).ended()
    after = project.commits("features")
    assert before < after
    shards = [name.split("/")[1].split(".")[0] for name in after]
    assert len(shards) == len(set(shards)), "a finished shard was done again"
    assert project.record().exit_code == 0
    assert_same_content(project, undisturbed(project))


def test_a_full_object_store_spills_and_changes_nothing(project, cluster, begin, undisturbed):
    """The body's weights and the mined negatives go through it."""
    with ballast(cluster):
        begin(project, "evaluate", cluster.address).ended()
    assert_same_content(project, undisturbed(project, "evaluate"), (*EXTRACTED, *MODELS))


@contextmanager
def ballast(cluster: LocalCluster) -> Iterator[None]:
    """Every object that comes to the cluster drives another one out to the disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.ballast", cluster.address],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        yield
        assert process.poll() is None
    finally:
        process.communicate("", timeout=PATIENCE)


def test_a_driver_whose_cluster_is_gone_says_so(project, begin):
    text = begin(project, address="127.0.0.1:1").ended(code=1)
    assert "cannot start on 127.0.0.1:1" in text
    assert "Traceback" not in text


def test_local_folders_are_refused_where_there_are_several_machines_unless_shared(project, begin):
    """Two loopback addresses, as two machines have."""
    with LocalCluster() as cluster:
        cluster.add(node_ip_address="127.0.0.2")
        text = begin(project, address=cluster.address).ended(code=2)
        assert f"root '{project.root}' is a folder of one machine, but the cluster has 2" in text
        assert "--set execution.shared_fs=true" in text
        record = project.record()
        assert (record.status, record.exit_code) == ("failed", 2)
        project.change_config(execution={"shared_fs": True})
        begin(project, "propose", cluster.address).ended()


@pytest.fixture(scope="module")
def placements() -> dict[str, dict]:
    """What drivers of their own processes report of where crews' workers run; both scenarios at once."""
    started = {
        scenario: subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.placement", scenario],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for scenario in ("growing", "from zero")
    }
    printed = {scenario: process.communicate(timeout=PATIENCE) for scenario, process in started.items()}
    for scenario, process in started.items():
        assert process.returncode == 0, printed[scenario][1]
    return {scenario: json.loads(out.splitlines()[-1]) for scenario, (out, _) in printed.items()}


def test_each_gpu_has_one_actor_and_tasks_of_cpus_have_none(placements):
    """Two nodes of two (pretended) GPUs. A third node that comes later is used as well."""
    found = placements["growing"]
    assert len({(node, *gpus) for node, gpus in found["first"]}) == 4
    assert len({node for node, _ in found["first"]}) == 2
    assert found["tasks"] == [[]] * 4
    assert len({node for node, _ in found["later"]}) == 3


def test_a_cluster_without_gpus_gets_actors_that_wait_for_one(placements):
    """Scale from zero: what is asked for is pending, which is what an autoscaler goes by; then the node comes."""
    found = placements["from zero"]
    assert found["joining"] == 2
    assert "2 wait to start, each needs 4 CPU and 1 GPU" in found["described"]
    assert not found["room"]
    assert [gpus for _, gpus in found["later"]] == [["0"]]
