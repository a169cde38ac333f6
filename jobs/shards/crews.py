"""Crews: who does the work of a stage. A crew takes arguments and gives Ray references; it decides where they run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
import ray.exceptions

from storage.commits import Commit

MEMORY_RETRIES = 20
"""How often Ray may stop a worker for want of memory before the run stops: then the node is too small."""
_BACKOFF = 5.0
"""Seconds before another actor is made in the place of one that died while it started."""


class Crew(Protocol):
    """Who does the work of one stage."""

    def prepare(self, upstream_busy: bool, waiting: int) -> None:
        """Before work is given out: take no more cores than are ours, now that an earlier stage has work as well, or
        not; see to it that there are workers for ``waiting`` pieces of work.

        Raises RayError if a worker cannot start.
        """
        ...

    def joining(self) -> list[ray.ObjectRef]:
        """References that end when a further worker is ready."""
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

    def pending(self) -> list[ray.ObjectRef]:
        """Work that has been given out, but may not have begun."""
        ...

    def holder(self, ref: ray.ObjectRef) -> str:
        """Who has the work behind ``ref`` in hand, for a human."""
        ...

    def describe(self) -> str:
        """How many workers do what, and what those that wait for it need, for a human."""
        ...

    def close(self) -> None:
        """No more work comes."""
        ...


class TaskCrew:
    """Ray tasks of one core each; Ray queues them, so a few more are given out than can run.

    ``cores`` of the cluster, asked anew each time, since it grows and shrinks; an autoscaler sees the tasks that wait.
    ``shared``: further arguments of all tasks, such as references to what Ray brings to each node once. ``gpus`` that
    each task holds beside its core; less than 1: so many share one.
    """

    def __init__(
        self, function: Callable[..., Commit | None], cores: Callable[[], int], *shared: Any, gpus: float = 0
    ) -> None:
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(function)
        self._cores = cores
        self._needs = in_words(1, gpus)
        self._shared = shared
        self._running: dict[ray.ObjectRef, None] = {}

    def prepare(self, upstream_busy: bool, waiting: int) -> None:
        pass  # a task holds its core only while it runs

    def joining(self) -> list[ray.ObjectRef]:
        return []

    def has_room(self, alone: bool = False) -> bool:
        return len(self._running) < 2 * self._cores()

    def start(self, argument: Any, alone: bool = False) -> ray.ObjectRef:
        ref = self._task.remote(argument, *self._shared)
        self._running[ref] = None
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        self._running.pop(ref, None)

    def kill(self, ref: ray.ObjectRef) -> None:
        ray.cancel(ref, force=True)

    def pending(self) -> list[ray.ObjectRef]:
        # the oldest are at work; actors may hold the other half of the cores
        return list(self._running)[max(1, self._cores() // 2) :]

    def holder(self, ref: ray.ObjectRef) -> str:
        return "a task"

    def describe(self) -> str:
        return f"{len(self._running)} tasks are given out, each needs {self._needs}"

    def close(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()


class ActorCrew:
    """Actors that each have up to ``hands`` shards at once; made when there is work for them, replaced when they die.

    An actor gets work when it is ready: one that waits for a node to come holds nothing up, and tells an autoscaler
    what is wanted. ``size``: how many actors there may be, asked anew each time, since clusters grow and shrink. While
    an earlier stage wants the same cores, only ``beside`` of them are kept: an actor holds its cores even when it has
    nothing to do, so a surplus one gets no more work and is ended as soon as it is idle. ``images_at_once``: how many
    one computes at a time. ``needs``: what an actor needs, in words.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        method: str,
        *,
        size: Callable[[], int],
        beside: Callable[[], int],
        hands: int,
        images_at_once: int = 1,
        needs: str = "",
        max_deaths: int = 3,
    ) -> None:
        self.images_at_once = images_at_once
        self._make = make
        self._method = method
        self._size, self._beside, self._hands = size, beside, hands
        self._needs = needs
        self._max_deaths = max_deaths
        self._stillborn = 0
        self._not_before = 0.0
        self._limit = 0
        self._waiting = 0
        self._joining: dict[ray.ObjectRef, Any] = {}
        self._place: dict[Any, str] = {}
        self._load: dict[Any, int] = {}
        # the serving actors by load, so that neither a thousand actors nor a million shards make a choice dear
        self._serving: list[dict[Any, None]] = [{} for _ in range(hands + 1)]
        self._owner: dict[ray.ObjectRef, tuple[Any, int]] = {}

    def prepare(self, upstream_busy: bool, waiting: int) -> None:
        limit = min(self._beside(), self._size()) if upstream_busy else self._size()
        if limit != self._limit:
            self._limit = limit
            self._choose_serving()
        if self._joining:
            self._welcome()
        self._dismiss()
        self._waiting = waiting
        if time.monotonic() < self._not_before:
            return
        for _ in range(min(limit - len(self._load), waiting - len(self._serving[0])) - len(self._joining)):
            actor = self._make()
            self._joining[actor.__ray_call__.remote(_place_of)] = actor

    def joining(self) -> list[ray.ObjectRef]:
        return list(self._joining)

    def has_room(self, alone: bool = False) -> bool:
        # A second shard for a busy actor only hides the writing of its first: the last ones are for those that join
        alone = alone or self._waiting <= len(self._joining)
        return any(self._serving[: 1 if alone else self._hands])

    def start(self, argument: Any, alone: bool = False) -> ray.ObjectRef:
        actor = next(next(iter(actors)) for actors in self._serving if actors)
        share = self._hands if alone else 1
        self._take(actor, share)
        self._waiting -= 1
        ref = getattr(actor, self._method).remote(argument)
        self._owner[ref] = (actor, share)
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        actor, share = self._owner.pop(ref)
        if actor not in self._load:
            return
        if died:
            self._dead(actor)
        else:
            self._take(actor, -share)

    def kill(self, ref: ray.ObjectRef) -> None:
        ray.kill(self._owner[ref][0])

    def pending(self) -> list[ray.ObjectRef]:
        return []  # work is given to actors that are ready

    def holder(self, ref: ray.ObjectRef) -> str:
        return self._place.get(self._owner[ref][0], "?")

    def describe(self) -> str:
        busy = sum(load > 0 for load in self._load.values())
        text = f"{busy} workers have work, {len(self._load) - busy} have none"
        if self._joining:
            text += f", {len(self._joining)} wait to start, each needs {self._needs}"
        return text

    def close(self) -> None:
        for actor in [*self._load, *self._joining.values()]:
            ray.kill(actor)
        self._load.clear()
        self._joining.clear()
        self._place.clear()
        self._owner.clear()
        self._choose_serving()

    def actors(self) -> int:
        """Actors that are ready."""
        return len(self._load)

    def _welcome(self) -> None:
        """Those that have become ready get work from now on. RayError if none can start."""
        ready, _ = ray.wait(list(self._joining), num_returns=len(self._joining), timeout=0)
        for ref in ready:
            actor = self._joining.pop(ref)
            try:
                self._place[actor] = ray.get(ref)
            except ray.exceptions.RayError as error:
                ray.kill(actor)
                self._not_born(error)
                continue
            self._load[actor] = 0
            self._stillborn = 0
        if ready:
            self._choose_serving()

    def _not_born(self, error: ray.exceptions.RayError) -> None:
        """An actor has not come to be. Another is made, unless that would go on for ever."""
        if getattr(error, "actor_init_failed", False):
            raise error  # its constructor says why
        if node_was_lost(error):
            return
        # killed while it loaded: for memory, which may be there later, or by what it loads
        self._stillborn += 1
        most = MEMORY_RETRIES if isinstance(error, ray.exceptions.OutOfMemoryError) else self._max_deaths
        if self._stillborn >= most:
            raise error
        self._not_before = time.monotonic() + _BACKOFF

    def _dead(self, actor: Any) -> None:
        """An actor is no more; one that merely cannot be reached must not keep its GPU.

        What befell it may have befallen those that have nothing to do: they are asked before they get any work.
        """
        ray.kill(actor)
        del self._load[actor]
        self._place.pop(actor, None)
        for idle in [other for other, load in self._load.items() if not load]:
            del self._load[idle]
            self._joining[idle.__ray_call__.remote(_place_of)] = idle
        self._choose_serving()

    def _dismiss(self) -> None:
        """End the idle ones beyond what is ours."""
        for ref in list(self._joining)[max(0, self._limit - len(self._load)) :]:
            ray.kill(self._joining.pop(ref))
        for actor in list(self._load)[self._limit :]:
            if not self._load[actor]:
                ray.kill(actor)
                del self._load[actor]
                self._place.pop(actor, None)

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


def _place_of(_: Any) -> str:
    """Where an actor is; its first answer, when it is ready."""
    return f"{socket.gethostname()} (process {os.getpid()})"


def node_was_lost(error: BaseException) -> bool:
    """Ray has no error of its own for an actor whose node died; its message says so (``core_worker`` and GCS)."""
    return getattr(error, "preempted", False) or "node has died" in str(error) or "node is dead" in str(error).lower()


def in_words(cpus: float, gpus: float) -> str:
    """What a worker takes, in words."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
