"""Where the time of a run went."""

import time

import pytest

from jobs.execution.session import Node, Resources
from jobs.run.timing import RunClock, RunTiming


class Session:
    """One that has these cores and GPUs, and was started when it was asked for."""

    def __init__(self, cpus: int, gpus: int = 0) -> None:
        self.starting = 0.0
        self._resources = Resources((Node(cpus, gpus, 10**9),))

    def resources(self) -> Resources:
        return self._resources


@pytest.fixture
def moments(monkeypatch):
    """What the clock reads, one after the other."""
    given: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: given.pop(0))
    return given


def test_phases_are_shares_of_the_cores_and_what_is_left_of_them_waited(moments):
    moments += [0.0, 0.0, 100.0, 102.0]
    clock = RunClock(Session(2))
    with clock.making("extract") as phases:
        phases.update({"conv": 120.0, "encode": 50.0, "wait": 500.0})
    timing = clock.read()
    assert timing.parts == {"body": 60.0, "encode": 25.0, "waiting": 15.0, "the rest": 2.0}
    assert timing.sentence == "102 s: body 59%, encode 25%, waiting 15%, the rest 2%; limited by body"


def test_more_worker_seconds_than_the_cores_had_are_shares_of_one_another(moments):
    moments += [0.0, 0.0, 10.0, 10.0]
    clock = RunClock(Session(1))
    with clock.making("extract") as phases:
        phases.update({"conv": 15.0, "decode": 5.0})
    assert clock.read().parts == {"body": 7.5, "decode": 2.5, "waiting": 0.0, "the rest": 0.0}


def test_where_gpus_had_more_to_do_the_phases_are_theirs(moments):
    moments += [0.0, 0.0, 100.0, 100.0]
    clock = RunClock(Session(8, gpus=1))
    with clock.making("extract") as phases:
        phases.update({"conv": 70.0, "pool": 10.0, "decode": 160.0})
    assert clock.read().parts == {"body": 70.0, "pool": 10.0, "waiting": 20.0, "the rest": 0.0}


def test_other_stages_count_as_a_whole_and_the_start_of_ray_apart(moments):
    moments += [0.0, 1.0, 31.0, 40.0]
    session = Session(2)
    clock = RunClock(session)
    with clock.making("train-svm"):
        session.starting = 10.0
    timing = clock.read()
    assert timing.parts == {"starting Ray": 10.0, "train-svm": 20.0, "the rest": 10.0}
    assert sum(timing.parts.values()) == timing.seconds


def test_a_run_with_nothing_to_do_has_nothing_to_tell(moments):
    moments += [0.0, 1.0]
    assert RunClock(Session(2)).read() == RunTiming(1.0)
    assert RunTiming(1.0).sentence == ""


def test_what_is_small_is_told_together():
    parts = {"body": 90.0, "decode": 0.6, "encode": 0.6, "read": 0.9, "waiting": 7.9}
    assert RunTiming(100.0, parts).sentence == "100 s: body 90%, waiting 8%, the rest 2%; limited by body"
    parts = {"waiting": 85.0, "body": 5.0, "the rest": 10.0}
    expected = (
        "100 s: waiting 85%, body 5%, the rest 10%; limited by workers that start, and the last shards of a stage"
    )
    assert RunTiming(100.0, parts).sentence == expected
