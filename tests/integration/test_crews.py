"""Crews on a real Ray of two cores: an actor holds its core even when idle, so a crew must not take what is not its."""

from __future__ import annotations

import time

import pytest
import ray

from jobs.crews import ActorCrew

LONG = 60.0
"""Seconds after which a test says that nothing came."""


@ray.remote(num_cpus=1, max_concurrency=2)
class _Sleeper:
    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


@ray.remote(num_cpus=1)
def _task() -> str:
    return "done"


@pytest.fixture
def crew():
    """Two actors at most, one beside an earlier stage, two pieces of work in hand."""
    made = ActorCrew(_Sleeper.remote, "work", size=2, beside=1, hands=2)
    made.share_cores(upstream_busy=False)
    yield made
    made.close()


def take(crew: ActorCrew, ref: ray.ObjectRef) -> float:
    """The result, reported to the crew."""
    value = ray.get(ref, timeout=LONG)
    crew.finished(ref, died=False)
    return value


def test_work_that_wants_an_actor_alone_waits_for_an_idle_one_and_makes_no_third(crew):
    alone = crew.start(1.0, alone=True)
    beside = crew.start(0.1)
    assert crew.actors() == 2
    assert crew.has_room()
    assert not crew.has_room(alone=True)  # one is taken whole, the other has something in hand
    take(crew, beside)
    assert crew.has_room(alone=True)
    second = crew.start(0.1, alone=True)
    assert crew.actors() == 2
    assert not crew.has_room()
    assert take(crew, second) == 0.1
    assert take(crew, alone) == 1.0


def test_a_worker_that_is_alone_gets_nothing_beside_it(crew):
    alone = [crew.start(0.5, alone=True), crew.start(0.5, alone=True)]
    assert not crew.has_room()
    for ref in alone:
        take(crew, ref)
    assert crew.has_room()


def test_an_earlier_stage_that_gets_work_again_gets_its_core_back(crew):
    refs = [crew.start(0.1), crew.start(0.1)]
    for ref in refs:
        take(crew, ref)
    assert crew.actors() == 2  # both cores are held, by actors that have nothing to do
    crew.share_cores(upstream_busy=True)
    assert crew.actors() == 1
    assert ray.get(_task.remote(), timeout=LONG) == "done"


def test_a_surplus_actor_ends_its_work_and_gets_no_more(crew):
    first, second = crew.start(0.5), crew.start(0.5)
    crew.share_cores(upstream_busy=True)
    assert crew.actors() == 2
    assert crew.has_room()
    third = crew.start(0.1)  # goes to the one that stays
    assert not crew.has_room()
    for ref in (first, second, third):
        take(crew, ref)
    crew.share_cores(upstream_busy=True)
    assert crew.actors() == 1
