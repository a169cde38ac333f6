"""A training that is killed at random goes on after its last checkpoint. Real processes, real signals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cluster.commands import (
    FINETUNED,
    Command,
    DisturbedProject,
    assert_same_content,
    disturbed_project,
    shards_of,
    small_head,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


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
