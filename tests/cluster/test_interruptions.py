"""What is killed goes on where it stopped, and two who do the same do it once. Real processes, real signals."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.cluster.commands import (
    EXTRACTING,
    assert_same_content,
    shards_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.alone]


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
