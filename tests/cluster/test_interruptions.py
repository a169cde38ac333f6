"""What is killed goes on where it stopped, and two who do the same do it once. Real processes, real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tests.cluster.commands import (
    EXTRACTING,
    FINETUNED,
    Command,
    DisturbedProject,
    assert_same_content,
    disturbed_project,
    small_head,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]


def shards_of(commits: set[str]) -> list[str]:
    return [name.split("/")[1].split(".")[0] for name in commits]


def test_a_run_killed_in_mid_extract_goes_on_and_ends_with_the_same_content(project, begin, undisturbed):
    project.hold_extraction()
    command = begin(project)
    command.wait_until(project.in_mid_extract)
    command.kill_tree()
    before = project.commits("features")
    project.disturb()
    begin(project).ended()
    after = project.commits("features")
    assert before < after
    assert len(shards_of(after)) == len(set(shards_of(after))), "a finished shard was done again"
    assert project.spp("verify") == 0
    assert_same_content(project, undisturbed(project))


def test_sigterm_abandons_what_is_in_hand_and_leaves_a_clean_end(project, begin, undisturbed):
    """What a job that is stopped, or the driver of a preempted node, is sent."""
    project.hold_extraction()
    command = begin(project)
    command.wait_until(project.in_mid_extract)
    command.process.send_signal(signal.SIGTERM)
    output = command.ended(code=1)
    assert "spp: error: interrupted; the same command goes on where it stopped" in output
    assert "Traceback" not in output
    record = project.record()
    assert (record.status, record.exit_code, record.error) == ("failed", 1, "interrupted")
    project.disturb()
    assert project.spp("run", "--until=extract") == 0
    assert project.spp("verify") == 0
    assert_same_content(project, undisturbed(project))


def test_two_processes_at_once_on_one_root_both_end_and_every_image_stands_once(project, begin, undisturbed):
    project.hold_extraction()
    both = [begin(project), begin(project)]
    for command in both:
        command.wait_until(lambda: len(project.held()) == 2)
    project.disturb()
    for command in both:
        command.ended()
    assert project.spp("verify") == 0
    features = project.table("features")
    pairs = list(zip(features["image_id"].to_pylist(), features["proposal_id"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert len(set(features["image_id"].to_pylist())) == 20
    assert_same_content(project, undisturbed(project))


def test_a_killed_actor_costs_a_shard_not_the_run(project, begin, undisturbed):
    project.hold_extraction()
    command = begin(project)
    command.wait_until(project.in_mid_extract)
    (actor,) = map(psutil.Process, project.held())
    assert actor.cmdline()[0].startswith(EXTRACTING)
    actor.kill()
    project.disturb()
    assert "is tried again: its worker died" in command.ended()
    assert project.spp("verify") == 0
    assert_same_content(project, undisturbed(project))


def test_a_fine_tuning_killed_at_random_steps_ends_with_the_same_weights(tmp_path, scenes, begin, undisturbed):
    chosen = {"learning_rates": [0.01, 0.003], "trial_iterations": 30, "max_iterations": 90, "measure_every": 15}
    project = disturbed_project(tmp_path, scenes, **small_head(**chosen))
    seen = killed_at_random(project, begin, "finetune", most=24)
    assert project.spp("run", "--until=finetune") == 0
    assert_same_content(project, undisturbed(project, "finetune"), FINETUNED)
    print("killed after", sorted(seen))


def test_a_training_of_svms_killed_at_random_rounds_goes_on_after_the_last(tmp_path, scenes, begin, undisturbed):
    svm = {"passes": 4, "rounds": 4, "start_negatives": 30}
    project = disturbed_project(tmp_path, scenes, f"faulty://{tmp_path}/root", svm=svm)
    project.disturb(put_seconds=0.05)
    seen = killed_at_random(project, begin, "train-svm", most=4)
    project.disturb()
    output = begin(project, "train-svm").ended()
    assert "train-svm: goes on after pass" in output
    assert len(shards_of(seen)) == len(set(shards_of(seen))), "a round was done again"
    assert not project.commits("checkpoints")
    assert_same_content(project, undisturbed(project, "train-svm"), ("svms",))
    print("killed after", sorted(seen))


def killed_at_random(project: DisturbedProject, begin: Callable[..., Command], until: str, most: int) -> set[str]:
    """Three runs, each killed after up to ``most`` new checkpoints; all checkpoints that there were."""
    random, seen = np.random.default_rng(), set[str]()
    for _ in range(3):
        count = int(random.integers(1, most + 1))
        command = begin(project, until)
        command.wait_until(lambda old=frozenset(seen), more=count: len(new_checkpoints(project, seen) - old) >= more)
        command.kill_tree()
    return seen


def new_checkpoints(project: DisturbedProject, seen: set[str]) -> set[str]:
    """All checkpoints that there have been so far; the last two are kept."""
    seen |= project.commits("checkpoints")
    return seen
