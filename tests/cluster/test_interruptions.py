"""What is killed goes on where it stopped, and two who do the same do it once. Real processes, real signals."""

from __future__ import annotations

import signal
import time

import numpy as np
import psutil
import pytest

import storage
from jobs.cli import main
from tests.cluster.commands import (
    assert_same_content,
    commits,
    content,
    finetuned,
    kill_tree,
    start,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]


def test_a_run_killed_in_mid_extract_goes_on_and_ends_with_the_same_content(config, tmp_path, undisturbed):
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    kill_tree(process)
    before = commits(root, "features")
    process = start(config, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = commits(root, "features")
    assert before < after, "the run was over before it was killed"
    shards = [name.split(".")[0] for name in after]
    assert len(shards) == len(set(shards)), "a finished shard was done again"
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config))


def test_sigterm_abandons_what_is_in_hand_and_leaves_a_clean_end(config, tmp_path, undisturbed):
    """What a job that is stopped, or the driver of a preempted node, is sent."""
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "spp: error: interrupted; the same command goes on where it stopped" in output
    assert "Traceback" not in output
    record = storage.read_run(storage.open_root(str(root)), "small")
    assert (record.status, record.exit_code, record.error) == ("failed", 1, "interrupted")
    process = start(config, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config))


def test_two_processes_at_once_on_one_root_both_end_and_every_image_stands_once(config, tmp_path, undisturbed):
    root = tmp_path / "root"
    both = [start(config, root), start(config, root)]
    for process in both:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    assert main(["verify", "--root", str(root)]) == 0
    features = content(root, "features")
    pairs = list(zip(features["image_id"].to_pylist(), features["proposal_id"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert len(set(features["image_id"].to_pylist())) == 40
    assert_same_content(root, undisturbed(config))


def test_a_killed_actor_costs_a_shard_not_the_run(config, tmp_path, undisturbed):
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    actors = [
        member
        for member in psutil.Process(process.pid).children(recursive=True)
        if member.name().startswith("ray::FeatureAc")
    ]
    assert actors
    for actor in actors:
        actor.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "is tried again: its worker died" in output
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config))


def test_a_fine_tuning_killed_at_random_steps_ends_with_the_same_weights(config, tmp_path, undisturbed):
    chosen = {"learning_rates": [0.01, 0.003], "trial_iterations": 30, "max_iterations": 90, "measure_every": 15}
    finetuned(config, chosen)
    root = tmp_path / "root"
    random = np.random.default_rng()
    seen: set[str] = set()
    for _ in range(3):
        process = start(config, root, until="finetune")
        wait_until(lambda p=process, old=frozenset(seen): bool(commits(root, "checkpoints") - old) or p.poll() == 0)
        time.sleep(random.uniform(0, 4))
        kill_tree(process)
        seen |= commits(root, "checkpoints")
        assert commits(root, "checkpoints"), "the training was over before it was killed"
    process = start(config, root, until="finetune")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert_same_content(root, undisturbed(config, "finetune"), ("training_windows", "training_curve", "head"))
    print("killed after", sorted(seen))


def test_an_interrupt_ends_a_fine_tuning_at_once(config, tmp_path):
    finetuned(config, {"schedule": [[0.001, 1_000_000]]})
    root = tmp_path / "root"
    process = start(config, root, until="finetune")
    wait_until(lambda: bool(commits(root, "checkpoints")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; the same command goes on where it stopped" in output
    before = commits(root, "checkpoints")
    time.sleep(2)
    assert commits(root, "checkpoints") == before, "the worker went on"
