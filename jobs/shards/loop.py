"""The loop that gets shards done: ``ray.wait``, explicit attempts, and nothing that Ray retries behind our back.

It knows neither progress bars nor what a shard is made of. Each stage has a crew that takes work and returns Ray
references to commits; work may wait for the commit of an upstream shard, and starts as soon as that is there.

What went wrong is told apart:

* a content error never gets here: the worker writes it to the shard's ledger;
* an outage (I/O, memory, permission) fails an attempt, which is repeated with backoff, ``retries`` times;
* a worker that died, or that was ended for hanging longer than ``shard_deadline``, is replaced, and its shards are
  given out again. A shard that has brought down ``max_deaths`` workers is looked at image by image: the images that
  bring down a worker alone go to the ledger, and the rest of the shard is made without them;
* a node that was lost, or a worker that Ray stopped for memory, counts against nobody.

ActorPool is not used: it loses pending items when its last actor dies.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from jobs.config.execution import ExecutionConfig
from jobs.errors import RunFailed
from jobs.shards.attempt import NotForThis, Trial
from jobs.shards.crews import MEMORY_RETRIES, Crew, node_was_lost
from storage.commits import Commit, CommitName
from storage.damage import DamagedFileError
from storage.root import store_errors

LOOK_AT_FAILURES_FROM = 50
"""Images after which the share of failed ones is looked at."""

_MANY = 100
_GATHER = 0.02
"""With more references than ``_MANY``, seconds in which further ends are gathered."""


@dataclass(eq=False, kw_only=True)
class Work:
    """One shard to make.

    ``make`` gives the crew's argument when an attempt starts, from the commit of ``needs`` (the (dataset, shard) that
    the work waits for; None without) and from what is different about the attempt. ``after``: others (dataset, shard)
    that it waits for. ``otherwise``: the stage whose crew does it where that of ``stage`` raises NotForThis. ``trial``:
    the first attempt's.
    """

    stage: str
    dataset: str
    shard: str
    image_ids: Sequence[str]
    make: Callable[[CommitName | None, Trial], Any]
    needs: tuple[str, str] | None = None
    after: Sequence[tuple[str, str]] = ()
    otherwise: str | None = None
    trial: Trial = field(default_factory=Trial)
    outages: int = 0
    deaths: int = 0
    memory: int = 0
    suspects: _Suspects | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and shard."""
        return self.dataset, self.shard

    @property
    def images(self) -> int:
        """How many images the shard has."""
        return len(self.image_ids)


@dataclass
class _Suspects:
    """The images of a shard that are yet to be tried alone, and those found guilty."""

    shard: Work
    left: int
    guilty: dict[str, str] = field(default_factory=dict)


class Listener:
    """Who wants to know: progress, metrics. What one has no use for it leaves as it is here."""

    def committed(self, work: Work, commit: Commit) -> None:
        """A shard is there."""

    def failed(self, work: Work, reason: str) -> None:
        """An attempt failed, and will be repeated."""

    def tick(self, queued: Mapping[str, int]) -> None:
        """Called about once a second; ``queued``: stage to shards that nobody has in hand yet."""

    def stalled(self, text: str) -> None:
        """Nothing has ended for long; ``text`` says who has what in hand, and what is missing."""


class ShardLoop:
    """Runs work to its end.

    ``_active`` counts, by stage, what runs or waits to be repeated.

    Parameters
    ----------
    crews : one per stage, the earlier stage first: it is served first.
    done : (dataset, shard) to commit, of what is there already; the loop adds to it.
    """

    def __init__(
        self,
        crews: Mapping[str, Crew],
        config: ExecutionConfig,
        listeners: Sequence[Listener],
        done: dict[tuple[str, str], CommitName],
    ) -> None:
        self.done = done
        self._crews = crews
        self._config = config
        self._listeners = listeners
        self._ready: dict[str, deque[Work]] = {stage: deque() for stage in crews}
        self._blocked: dict[tuple[str, str], list[Work]] = {}
        self._later: list[tuple[float, int, Work]] = []
        self._running: dict[ray.ObjectRef, Work] = {}
        self._started: dict[ray.ObjectRef, float] = {}
        self._hung: set[ray.ObjectRef] = set()
        self._failures: dict[str, Counter[str]] = {}
        self._finished: Counter[str] = Counter()
        self._order = itertools.count()
        self._active: Counter[str] = Counter()
        self._next_look = 0.0
        self._last_end = time.monotonic()
        self._next_alarm = self._last_end + config.stall_seconds

    def run(self, works: Iterable[Work]) -> None:
        """Do all of ``works``. Raises RunFailed with the reason if it has to stop; what is committed stays."""
        for work in works:
            self._place(work)
        try:
            self._start_ready()
            while self._running or self._later or any(self._ready.values()):
                for ref, commit in self._ended():
                    self._end(ref, commit)
                self._start_ready()
                if time.monotonic() >= self._next_look:
                    self._next_look = time.monotonic() + 1
                    self._look()
        finally:
            for crew in self._crews.values():
                crew.close()
        left = sum(len(queue) for queue in self._ready.values()) + sum(map(len, self._blocked.values()))
        if left:
            raise RuntimeError(f"{left} shards wait for shards that nobody makes: {sorted(self._blocked)[:3]}")

    def _place(self, work: Work) -> None:
        """Among what is ready, or what waits for the first of the shards that are not there yet."""
        needed = (work.needs, *work.after) if work.needs is not None else work.after
        missing = next((key for key in needed if key not in self.done), None)
        if missing is not None:
            self._blocked.setdefault(missing, []).append(work)
        elif work.after:  # what others have made ready for it lies about until it is done
            self._ready[work.stage].appendleft(work)
        else:
            self._ready[work.stage].append(work)

    def _start_ready(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            work = heapq.heappop(self._later)[2]
            self._active[work.stage] -= 1
            self._ready[work.stage].appendleft(work)
        upstream_busy = False
        for stage, crew in self._crews.items():
            queue = self._ready[stage]
            try:
                crew.prepare(upstream_busy, len(queue))
            except ray.exceptions.RayError as error:
                raise RunFailed(f"{stage}: a worker cannot start: {_reason(error)}") from error
            upstream_busy = upstream_busy or bool(queue) or self._active[stage] > 0
            while queue and crew.has_room(queue[0].trial.alone is not None):
                work = queue.popleft()
                self._active[work.stage] += 1
                argument = work.make(self.done.get(work.needs) if work.needs else None, work.trial)
                ref = crew.start(argument, alone=work.trial.alone is not None)
                self._running[ref] = work
                self._started[ref] = time.monotonic()

    def _ended(self) -> list[tuple[ray.ObjectRef, Commit | None]]:
        """All that has ended, as soon as there is something; nothing if nothing has within a second.

        With thousands of references one at a time would cost a look at all others for each, so the next few
        milliseconds are waited for. What came of them is fetched together; None where it must be asked for one by one,
        since a failure is among them.
        """
        running = list(self._running)
        joining = [ref for crew in self._crews.values() for ref in crew.joining()]  # a worker that is ready gets work
        if not running and not joining:
            time.sleep(min(1.0, max(0.01, self._later[0][0] - time.monotonic()) if self._later else 1.0))
            return []
        ready, others = ray.wait([*running, *joining], num_returns=1, timeout=1.0, fetch_local=False)
        if ready and others:
            gather = _GATHER if len(running) > _MANY else 0
            more, _ = ray.wait(others, num_returns=len(others), timeout=gather, fetch_local=False)
            ready += more
        ended = [ref for ref in ready if ref in self._running]
        try:
            return list(zip(ended, ray.get(ended), strict=True))
        except ray.exceptions.RayError:
            return [(ref, None) for ref in ended]

    def _look(self) -> None:
        """What is done once a second."""
        for crew in self._crews.values():
            self._started.update(dict.fromkeys(crew.pending(), time.monotonic()))
        self._end_hung()
        queued = {stage: len(queue) for stage, queue in self._ready.items()}
        for listener in self._listeners:
            listener.tick(queued)
        if time.monotonic() >= self._next_alarm:
            text = self._holdings()
            for listener in self._listeners:
                listener.stalled(text)
            self._next_alarm = time.monotonic() + 2 * (time.monotonic() - self._last_end)

    def _holdings(self) -> str:
        """Who has what in hand, and what is missing, in words."""
        now = time.monotonic()
        free, have = ray.available_resources(), ray.cluster_resources()
        parts = [f"nothing has ended for {now - self._last_end:.0f} s"]
        parts += [
            f"{stage}: {crew.describe()}; {len(self._ready[stage])} shards wait"
            for stage, crew in self._crews.items()
            if self._ready[stage] or self._active[stage]
        ]
        left = [f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")]
        parts.append(f"the cluster has {' and '.join(left)} free")
        oldest = sorted(self._running, key=self._started.__getitem__)[:3]
        held = [
            f"{work.shard} of {work.dataset} for {now - since:.0f} s by {self._crews[work.stage].holder(ref)}"
            for ref in oldest
            for work, since in [(self._running[ref], self._started[ref])]
        ]
        return "; ".join([*parts, *(["longest in hand: " + ", ".join(held)] if held else [])])

    def _end_hung(self) -> None:
        limit = time.monotonic() - self._config.shard_deadline
        for ref, work in self._running.items():
            if self._started[ref] < limit and ref not in self._hung:
                self._hung.add(ref)
                self._crews[work.stage].kill(ref)

    def _end(self, ref: ray.ObjectRef, commit: Commit | None) -> None:
        """One piece of work has ended: take its ``commit``, or ask for it and decide what a failure means."""
        work = self._running.pop(ref)
        self._last_end = time.monotonic()
        self._next_alarm = self._last_end + self._config.stall_seconds
        self._active[work.stage] -= 1
        del self._started[ref]
        hung = ref in self._hung
        self._hung.discard(ref)
        crew = self._crews[work.stage]
        try:
            commit = commit or ray.get(ref)
        except ray.exceptions.OutOfMemoryError as error:
            crew.finished(ref, died=True)
            work.memory += 1
            if work.memory > MEMORY_RETRIES:
                raise RunFailed(
                    f"{work.stage}: a node's memory is too small for its workers: {_reason(error)}"
                ) from error
            self._again(work, "Ray stopped its worker to save the node's memory", self._config.backoff)
        except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):  # of the worker, or of what it returned
            crew.finished(ref, died=True)
            self._again(work, "its node was lost", 0)
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.TaskCancelledError,
        ) as error:
            crew.finished(ref, died=True)
            if node_was_lost(error):
                self._again(work, "its node was lost", 0)
            elif isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
                raise RunFailed(f"{work.stage}: a worker cannot start: {_reason(error)}") from error
            else:
                seconds = self._config.shard_deadline
                self._died(work, f"it hung for more than {seconds:g} s" if hung else _reason(error))
        except ray.exceptions.RayTaskError as error:
            crew.finished(ref, died=False)
            self._outage(work, error)
        else:
            crew.finished(ref, died=False)
            if work.suspects is not None:
                self._tried_alone(work, None)
            else:
                assert commit is not None
                self._commit(work, commit)

    def _died(self, work: Work, reason: str) -> None:
        """A worker died, or was ended, over this work."""
        work.deaths += 1
        if work.deaths < self._config.max_deaths:
            self._again(work, f"its worker died: {reason}", 0)
        elif work.suspects is not None:
            self._tried_alone(work, reason)
        else:
            for listener in self._listeners:
                listener.failed(work, f"it brought down {work.deaths} workers; its images are tried one by one")
            left = [image_id for image_id in work.image_ids if image_id not in work.trial.excluded]
            if not left:
                raise RunFailed(f"{work.stage}: workers die on shard {work.shard} of {work.dataset}: {reason}")
            suspects = _Suspects(work, len(left))
            for image_id in left:
                alone = Trial(alone=image_id, earlier=work.trial.earlier)
                self._ready[work.stage].append(
                    Work(
                        stage=work.stage,
                        dataset=work.dataset,
                        shard=work.shard,
                        image_ids=[image_id],
                        make=work.make,
                        needs=work.needs,
                        otherwise=work.otherwise,
                        trial=alone,
                        suspects=suspects,
                    )
                )

    def _tried_alone(self, work: Work, reason: str | None) -> None:
        """An image was tried alone; ``reason`` says what it did to its workers. After the last one: the shard again."""
        suspects = work.suspects
        assert suspects is not None
        if reason is not None:
            suspects.guilty[work.image_ids[0]] = f"{work.deaths} workers died on this image alone: {reason}"
        suspects.left -= 1
        if suspects.left:
            return
        shard = suspects.shard
        if len(suspects.guilty) == len(shard.image_ids) > 1:
            raise RunFailed(
                f"{shard.stage}: workers die on every image of shard {shard.shard} of {shard.dataset}, so the images "
                f"are not to blame: {next(iter(suspects.guilty.values()))}"
            )
        excluded = {**shard.trial.excluded, **suspects.guilty}
        shard.trial = Trial(excluded=excluded, earlier=shard.trial.earlier)
        shard.deaths = 0
        self._ready[shard.stage].appendleft(shard)

    def _outage(self, work: Work, error: ray.exceptions.RayTaskError) -> None:
        cause: Any = error.cause
        if isinstance(cause, NotForThis) and work.otherwise is not None:
            work.stage, work.otherwise = work.otherwise, None
            self._ready[work.stage].appendleft(work)
            return
        if isinstance(cause, DamagedFileError):
            raise cause from error
        if not isinstance(cause, store_errors(MemoryError)) and "OutOfMemory" not in type(cause).__name__:
            raise RunFailed(f"{work.stage}: shard {work.shard} of {work.dataset}: {_reason(cause)}") from error
        work.outages += 1
        if work.outages > self._config.retries:
            raise RunFailed(
                f"{work.stage}: shard {work.shard} of {work.dataset} failed {work.outages} times, the last time with: "
                f"{_reason(cause)}; mend that and run the same command again"
            ) from error
        self._again(work, _reason(cause), self._config.backoff * 2 ** (work.outages - 1))

    def _again(self, work: Work, reason: str, delay: float) -> None:
        for listener in self._listeners:
            listener.failed(work, reason)
        self._active[work.stage] += 1
        heapq.heappush(self._later, (time.monotonic() + delay, next(self._order), work))

    def _commit(self, work: Work, commit: Commit) -> None:
        self.done[work.key] = commit.name
        for listener in self._listeners:
            listener.committed(work, commit)
        for waiting in self._blocked.pop(work.key, []):
            self._place(waiting)
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


def _reason(error: BaseException | None) -> str:
    """The error's type, and its message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "exit_type" in line or "Error" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {told}"
