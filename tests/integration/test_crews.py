"""Crews on a real Ray of two cores: an actor holds its core even when idle, so a crew must not take what is not its."""

from __future__ import annotations

import time

import pytest
import ray

from jobs.shards.crews import ActorCrew

LONG = 300.0
"""Seconds after which a test says that nothing came."""


@ray.remote(num_cpus=1, max_concurrency=2)
class _Worker:
    """Its work is done at once: what a crew knows is what it is told has ended."""

    def work(self, piece: int) -> int:
        return piece


@ray.remote(num_cpus=1)
def _task() -> str:
    return "done"


@pytest.fixture
def crew():
    """Two actors at most, one beside an earlier stage, two pieces of work in hand."""
    made = ActorCrew(_Worker.remote, "work", size=lambda: 2, beside=lambda: 1, hands=2, needs="1 CPU")
    gather(made, 2)
    yield made
    made.close()


def gather(crew: ActorCrew, actors: int, upstream_busy: bool = False, waiting: int = 9) -> None:
    """Let the crew prepare until it has so many actors ready."""
    end = time.monotonic() + LONG
    while True:
        crew.prepare(upstream_busy, waiting)
        if crew.actors() == actors:
            return
        assert time.monotonic() < end, f"{crew.actors()} actors, not {actors}"
        time.sleep(0.05)


def take(crew: ActorCrew, ref: ray.ObjectRef) -> int:
    """The result, reported to the crew."""
    piece = ray.get(ref, timeout=LONG)
    crew.finished(ref, died=False)
    return piece


def test_work_that_wants_an_actor_alone_waits_for_an_idle_one_and_makes_no_third(crew):
    alone = crew.start(1, alone=True)
    beside = crew.start(2)
    assert crew.actors() == 2
    assert crew.has_room()
    assert not crew.has_room(alone=True)  # one is taken whole, the other has something in hand
    take(crew, beside)
    assert crew.has_room(alone=True)
    second = crew.start(3, alone=True)
    assert crew.actors() == 2
    assert not crew.has_room()
    assert take(crew, second) == 3
    assert take(crew, alone) == 1


def test_a_worker_that_is_alone_gets_nothing_beside_it(crew):
    alone = [crew.start(1, alone=True), crew.start(2, alone=True)]
    assert not crew.has_room()
    for ref in alone:
        take(crew, ref)
    assert crew.has_room()


def test_an_earlier_stage_that_gets_work_again_gets_its_core_back(crew):
    refs = [crew.start(1), crew.start(2)]
    for ref in refs:
        take(crew, ref)
    assert crew.actors() == 2  # both cores are held, by actors that have nothing to do
    gather(crew, 1, upstream_busy=True)
    assert ray.get(_task.remote(), timeout=LONG) == "done"


def test_a_surplus_actor_ends_its_work_and_gets_no_more(crew):
    first, second = crew.start(1), crew.start(2)
    crew.prepare(upstream_busy=True, waiting=9)
    assert crew.actors() == 2
    assert crew.has_room()
    third = crew.start(3)  # goes to the one that stays
    assert not crew.has_room()
    for ref in (first, second, third):
        take(crew, ref)
    gather(crew, 1, upstream_busy=True)


def test_actors_that_wait_for_a_node_hold_nothing_up_and_are_named(embedded_ray):
    """Three are wanted, two cores are there: two get the work, and the third is one that an autoscaler would see."""
    crew = ActorCrew(_Worker.remote, "work", size=lambda: 3, beside=lambda: 3, hands=2, needs="1 CPU")
    try:
        gather(crew, 2)
        assert len(crew.joining()) == 1
        assert "2 have none, 1 wait to start, each needs 1 CPU" in crew.describe()
        refs = [crew.start(piece) for piece in range(4)]
        assert not crew.has_room()
        assert [take(crew, ref) for ref in refs] == [0, 1, 2, 3]
    finally:
        crew.close()


def test_the_last_pieces_of_work_are_left_to_actors_that_are_about_to_join(embedded_ray):
    crew = ActorCrew(_Worker.remote, "work", size=lambda: 3, beside=lambda: 3, hands=2)
    try:
        gather(crew, 2)
        crew.prepare(upstream_busy=False, waiting=3)
        refs = [crew.start(1), crew.start(2)]
        assert not crew.has_room(), "the third is not given to a busy actor"
        for ref in refs:
            take(crew, ref)
        assert crew.has_room(), "but it does not wait for ever"
    finally:
        crew.close()


def test_no_more_actors_are_made_than_there_is_work_for(embedded_ray):
    crew = ActorCrew(_Worker.remote, "work", size=lambda: 2, beside=lambda: 2, hands=2)
    try:
        gather(crew, 1, waiting=1)
        assert crew.joining() == []
        crew.prepare(upstream_busy=False, waiting=0)
        assert crew.joining() == []
    finally:
        crew.close()


def test_a_worker_that_cannot_start_says_why(embedded_ray):
    @ray.remote(num_cpus=1)
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no weights")

    crew = ActorCrew(Broken.remote, "work", size=lambda: 1, beside=lambda: 1, hands=1)
    with pytest.raises(ray.exceptions.RayActorError, match="no weights"):
        gather(crew, 1)
    crew.close()
