"""The loop that gets shards done: ``ray.wait``, explicit attempts, and nothing that Ray retries behind our back.

It knows neither progress bars nor what a shard is made of. Each stage has a crew that takes work and returns Ray
references to commits; work may wait for the commit of an upstream shard, and starts as soon as that is there.

What went wrong is told apart:

* a content error never gets here: the worker writes it to the shard's ledger;
* an outage (I/O, memory, permission) fails an attempt, which is repeated with backoff, ``retries`` times;
* a worker that died is replaced, and its shards are given out again, ``max_deaths`` times;
* a node that was lost, or a worker that Ray stopped for memory, counts against nobody.

ActorPool is not used: it loses pending items when its last actor dies.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import ray.exceptions

from jobs.errors import RunFailed
from jobs.execution import ExecutionConfig
from storage.commits import Commit, CommitName
from storage.root import store_errors

LOOK_AT_FAILURES_FROM = 50
"""Images after which the share of failed ones is looked at."""


@dataclass(eq=False)
class Work:
    """One shard to make.

    ``make`` gives the crew's argument when the work starts; it is called with the commit of ``needs``, the
    (dataset, shard) that the work waits for, or with None.
    """

    stage: str
    dataset: str
    shard: str
    images: int
    make: Callable[[CommitName | None], Any]
    needs: tuple[str, str] | None = None
    outages: int = field(default=0, compare=False)
    deaths: int = field(default=0, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and shard."""
        return self.dataset, self.shard


class Crew(Protocol):
    """Who does the work of one stage."""

    def has_room(self, upstream_busy: bool) -> bool:
        """Whether another piece of work can be given out; ``upstream_busy``: an earlier stage has work as well."""
        ...

    def start(self, argument: Any) -> ray.ObjectRef:
        """Give out a piece of work, after ``has_room`` said yes."""
        ...

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        """The work behind ``ref`` has ended, in a commit, an error or a death."""
        ...

    def close(self) -> None:
        """No more work comes."""
        ...


class Listener(Protocol):
    """Who wants to know: progress, metrics."""

    def committed(self, work: Work, commit: Commit) -> None:
        """A shard is there."""
        ...

    def failed(self, work: Work, reason: str) -> None:
        """An attempt failed, and will be repeated."""
        ...

    def tick(self) -> None:
        """Called about once a second."""
        ...


class TaskCrew:
    """Ray tasks of one core each; Ray queues them, so a few more are given out than can run."""

    def __init__(self, function: Callable[[Any], Commit], room: int) -> None:
        self._task = ray.remote(num_cpus=1, max_retries=0)(function)
        self._room = room
        self._running: set[ray.ObjectRef] = set()

    def has_room(self, upstream_busy: bool) -> bool:
        return len(self._running) < self._room

    def start(self, argument: Any) -> ray.ObjectRef:
        ref = self._task.remote(argument)
        self._running.add(ref)
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        self._running.discard(ref)

    def close(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()


class ActorCrew:
    """Actors that each have up to ``hands`` shards at once; made when there is work for them, replaced when they die.

    While an earlier stage wants the same cores, only ``beside`` of the ``size`` actors are made.
    """

    def __init__(self, make: Callable[[], Any], method: str, *, size: int, beside: int, hands: int) -> None:
        self._make = make
        self._method = method
        self._size, self._beside, self._hands = size, beside, hands
        self._limit = beside
        self._load: dict[Any, int] = {}
        self._owner: dict[ray.ObjectRef, Any] = {}

    def has_room(self, upstream_busy: bool) -> bool:
        self._limit = self._beside if upstream_busy else self._size
        return len(self._load) < self._limit or any(load < self._hands for load in self._load.values())

    def start(self, argument: Any) -> ray.ObjectRef:
        # a second shard for a busy actor only hides the writing of its first: a further actor is worth more
        actor = min(self._load, key=lambda a: self._load[a], default=None)
        if actor is None or (self._load[actor] > 0 and len(self._load) < self._limit):
            actor = self._make()
            self._load[actor] = 0
        self._load[actor] += 1
        ref = getattr(actor, self._method).remote(argument)
        self._owner[ref] = actor
        return ref

    def finished(self, ref: ray.ObjectRef, died: bool) -> None:
        actor = self._owner.pop(ref)
        if actor in self._load:
            self._load[actor] -= 1
            if died:
                del self._load[actor]

    def close(self) -> None:
        for actor in self._load:
            ray.kill(actor)
        self._load.clear()
        self._owner.clear()

    def actors(self) -> int:
        """Actors alive."""
        return len(self._load)


class ShardLoop:
    """Runs work to its end.

    Parameters
    ----------
    crews : one per stage, the earlier stage first: it is served first.
    done : (dataset, shard) to commit, of what is there already; the loop adds to it.
    """

    def __init__(
        self,
        crews: Mapping[str, Crew],
        config: ExecutionConfig,
        listener: Listener,
        done: dict[tuple[str, str], CommitName],
    ) -> None:
        self.done = done
        self._crews = crews
        self._config = config
        self._listener = listener
        self._ready: dict[str, deque[Work]] = {stage: deque() for stage in crews}
        self._blocked: dict[tuple[str, str], list[Work]] = {}
        self._later: list[tuple[float, int, Work]] = []
        self._running: dict[ray.ObjectRef, Work] = {}
        self._failures: dict[str, Counter[str]] = {}
        self._finished: Counter[str] = Counter()
        self._order = itertools.count()

    def run(self, works: Iterable[Work]) -> None:
        """Do all of ``works``. Raises RunFailed with the reason if it has to stop; what is committed stays."""
        for work in works:
            if work.needs is None or work.needs in self.done:
                self._ready[work.stage].append(work)
            else:
                self._blocked.setdefault(work.needs, []).append(work)
        try:
            self._start_ready()
            while self._running or self._later:
                if self._running:
                    ended, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0)
                else:
                    ended = []
                    time.sleep(min(1.0, max(0.0, self._later[0][0] - time.monotonic())))
                for ref in ended:
                    self._end(ref)
                self._start_ready()
                self._listener.tick()
        finally:
            for crew in self._crews.values():
                crew.close()
        left = sum(len(queue) for queue in self._ready.values()) + sum(map(len, self._blocked.values()))
        if left:
            raise RuntimeError(f"{left} shards wait for shards that nobody makes: {sorted(self._blocked)[:3]}")

    def _start_ready(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            work = heapq.heappop(self._later)[2]
            self._ready[work.stage].appendleft(work)
        upstream_busy = False
        for stage, crew in self._crews.items():
            queue = self._ready[stage]
            while queue and crew.has_room(upstream_busy):
                work = queue.popleft()
                ref = crew.start(work.make(self.done.get(work.needs) if work.needs else None))
                self._running[ref] = work
            upstream_busy = upstream_busy or bool(queue) or any(w.stage == stage for w in self._running.values())

    def _end(self, ref: ray.ObjectRef) -> None:
        """One piece of work has ended: take its commit, or decide what its failure means."""
        work = self._running.pop(ref)
        crew = self._crews[work.stage]
        try:
            commit: Commit = ray.get(ref)
        except ray.exceptions.OutOfMemoryError:
            crew.finished(ref, died=True)
            self._again(work, "Ray stopped the worker to save the node's memory", self._config.backoff)
        except ray.exceptions.NodeDiedError:
            crew.finished(ref, died=True)
            self._again(work, "its node was lost", 0)
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            crew.finished(ref, died=True)
            work.deaths += 1
            if work.deaths >= self._config.max_deaths:
                raise RunFailed(
                    f"{work.stage}: shard {work.shard} of {work.dataset} brought down {work.deaths} workers, the last "
                    f"with: {_first_line(error)}"
                ) from error
            self._again(work, f"its worker died: {_first_line(error)}", 0)
        except ray.exceptions.RayTaskError as error:
            crew.finished(ref, died=False)
            self._outage(work, error)
        else:
            crew.finished(ref, died=False)
            self._commit(work, commit)

    def _outage(self, work: Work, error: ray.exceptions.RayTaskError) -> None:
        cause: Any = error.cause
        if not isinstance(cause, store_errors(MemoryError)):
            raise RunFailed(f"{work.stage}: shard {work.shard} of {work.dataset}: {_first_line(cause)}") from error
        work.outages += 1
        if work.outages > self._config.retries:
            raise RunFailed(
                f"{work.stage}: shard {work.shard} of {work.dataset} failed {work.outages} times, the last time with: "
                f"{_first_line(cause)}; mend that and run the same command again"
            ) from error
        self._again(work, _first_line(cause), self._config.backoff * 2 ** (work.outages - 1))

    def _again(self, work: Work, reason: str, delay: float) -> None:
        self._listener.failed(work, reason)
        heapq.heappush(self._later, (time.monotonic() + delay, next(self._order), work))

    def _commit(self, work: Work, commit: Commit) -> None:
        self.done[work.key] = commit.name
        self._listener.committed(work, commit)
        for waiting in self._blocked.pop(work.key, []):
            self._ready[waiting.stage].append(waiting)
        self._finished[work.dataset] += work.images
        failures = self._failures.setdefault(work.dataset, Counter())
        failures.update(row.message.split(": ", 1)[-1] for row in commit.failed)
        failed, images = failures.total(), self._finished[work.dataset]
        if images >= LOOK_AT_FAILURES_FROM and failed > self._config.max_failed * images:
            message, count = failures.most_common(1)[0]
            raise RunFailed(
                f"{work.stage}: {failed} of the first {images} images failed, more than execution.max_failed "
                f"({self._config.max_failed:g}) allows; the commonest reason ({count}): {message}"
            )


def _first_line(error: BaseException | None) -> str:
    """The error's type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
