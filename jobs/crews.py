"""Crews: who does the work of a stage. A crew takes arguments and gives Ray references; it decides where they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ray

from storage.commits import Commit


class Crew(Protocol):
    """Who does the work of one stage."""

    def share_cores(self, upstream_busy: bool) -> None:
        """Before work is given out: take no more than is ours, now that an earlier stage has work as well, or not."""
        ...

    def has_room(self, alone: bool = False) -> bool:
        """Whether another piece of work can be given out; ``alone``: to a worker that has nothing beside it."""
        ...

    def start(self, argument: Any, alone: bool = False) -> ray.ObjectRef:
        """Give out a piece of work, after ``has_room`` said yes; ``alone``: its worker gets nothing beside it."""
        ...

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        """The work behind ``ref`` has ended, in a commit, an error or a death."""
        ...

    def kill(self, ref: ray.ObjectRef) -> None:
        """End the worker behind ``ref``, which hangs."""
        ...

    def close(self) -> None:
        """No more work comes."""
        ...


class TaskCrew:
    """Ray tasks of one core each; Ray queues them, so a few more are given out than can run.

    ``shared``: further arguments of all tasks, such as references to what Ray brings to each node once. ``gpus`` that
    each task holds beside its core; less than 1: so many share one.
    """

    def __init__(self, function: Callable[..., Commit | None], room: int, *shared: Any, gpus: float = 0) -> None:
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(function)
        self._room = room
        self._shared = shared
        self._running: set[ray.ObjectRef] = set()

    def share_cores(self, upstream_busy: bool) -> None:
        pass  # a task holds its core only while it runs

    def has_room(self, alone: bool = False) -> bool:
        return len(self._running) < self._room

    def start(self, argument: Any, alone: bool = False) -> ray.ObjectRef:
        ref = self._task.remote(argument, *self._shared)
        self._running.add(ref)
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        self._running.discard(ref)

    def kill(self, ref: ray.ObjectRef) -> None:
        ray.cancel(ref, force=True)

    def close(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()


class ActorCrew:
    """Actors that each have up to ``hands`` shards at once; made when there is work for them, replaced when they die.

    While an earlier stage wants the same cores, only ``beside`` of the ``size`` actors are kept: an actor holds its
    cores even when it has nothing to do, so a surplus one gets no more work and is ended as soon as it is idle.
    """

    def __init__(self, make: Callable[[], Any], method: str, *, size: int, beside: int, hands: int) -> None:
        self._make = make
        self._method = method
        self._size, self._beside, self._hands = size, beside, hands
        self._limit = beside
        self._load: dict[Any, int] = {}
        # the serving actors by load, so that neither a thousand actors nor a million shards make a choice dear
        self._serving: list[dict[Any, None]] = [{} for _ in range(hands + 1)]
        self._owner: dict[ray.ObjectRef, tuple[Any, int]] = {}

    def share_cores(self, upstream_busy: bool) -> None:
        limit = self._beside if upstream_busy else self._size
        if limit != self._limit:
            self._limit = limit
            self._choose_serving()
        for actor in list(self._load)[limit:]:
            if not self._load[actor]:
                ray.kill(actor)
                del self._load[actor]

    def has_room(self, alone: bool = False) -> bool:
        room = 1 if alone else self._hands  # an actor with less than this in hand takes the work
        return len(self._load) < self._limit or any(self._serving[:room])

    def start(self, argument: Any, alone: bool = False) -> ray.ObjectRef:
        # a second shard for a busy actor only hides the writing of its first: a further actor is worth more
        load = next((load for load, actors in enumerate(self._serving) if actors), None)
        if load is None or (load and len(self._load) < self._limit):
            actor = self._make()
            self._load[actor] = 0
            self._serving[0][actor] = None
        else:
            actor = next(iter(self._serving[load]))
        share = self._hands if alone else 1
        self._take(actor, share)
        ref = getattr(actor, self._method).remote(argument)
        self._owner[ref] = (actor, share)
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        actor, share = self._owner.pop(ref)
        if actor not in self._load:
            return
        if died:
            del self._load[actor]
            self._choose_serving()
        else:
            self._take(actor, -share)

    def kill(self, ref: ray.ObjectRef) -> None:
        ray.kill(self._owner[ref][0])

    def close(self) -> None:
        for actor in self._load:
            ray.kill(actor)
        self._load.clear()
        self._owner.clear()
        self._choose_serving()

    def actors(self) -> int:
        """Actors alive."""
        return len(self._load)

    def _take(self, actor: Any, share: int) -> None:
        """``actor`` has so much more, or less, in hand."""
        before = self._load[actor]
        self._load[actor] = before + share
        if actor in self._serving[before]:
            del self._serving[before][actor]
            self._serving[before + share][actor] = None

    def _choose_serving(self) -> None:
        """The first actors, as many as are ours, get work."""
        for actors in self._serving:
            actors.clear()
        for actor in list(self._load)[: self._limit]:
            self._serving[self._load[actor]][actor] = None
