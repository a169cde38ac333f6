"""Where the time of a run went: wall seconds by what was done, whose sum is the whole."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.run.forecast import DEVICE_PHASES

if TYPE_CHECKING:
    from jobs.execution.session import RaySession

_NAMES = {"conv": "body", "fc": "head"}
"""Phases by the names that users know them by."""

_WAITING = "waiting"
_STARTING = "starting Ray"
_REST = "the rest"
_LEAST = 0.01
"""Of the whole: what is less is told among the rest."""

_BECAUSE = {
    _WAITING: "workers that start, and the last shards of a stage",
    _STARTING: "the start of Ray",
    _REST: "many small things",
}


@dataclass(frozen=True)
class RunTiming:
    """``seconds`` of a run, and what they went into (``parts``, in seconds; their sum is the whole).

    Of stages whose shards many workers make: by phase, as the cores, or the GPUs where these had more to do, were busy
    with them, or waited. Of all others: by stage.
    """

    seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What the time went into, the largest share first, and what limits; empty if nothing was made."""
        if not self.parts:
            return ""
        told = sorted(self.parts.items(), key=lambda part: -part[1])
        large = [(name, part) for name, part in told if part >= _LEAST * self.seconds and name != _REST]
        left = self.seconds - sum(seconds for _, seconds in large)
        if left >= _LEAST * self.seconds:
            large.append((_REST, left))
        shares = ", ".join(f"{name} {100 * seconds / self.seconds:.0f}%" for name, seconds in large)
        return f"{self.seconds:.0f} s: {shares}; limited by {_BECAUSE.get(told[0][0], told[0][0])}"


class RunClock:
    """Measures a run on a Ray session, from now on."""

    def __init__(self, session: RaySession) -> None:
        self._session = session
        self._start = time.monotonic()
        self._parts: dict[str, float] = defaultdict(float)

    @contextmanager
    def making(self, stage: str) -> Iterator[dict[str, float]]:
        """Count the wall seconds spent inside, the start of Ray apart.

        They are those of ``stage``, or of the phases that are counted meanwhile in what this gives: worker seconds.
        """
        phases: dict[str, float] = {}
        begun, before = time.monotonic(), self._session.starting
        yield phases
        starting = self._session.starting - before
        wall = time.monotonic() - begun - starting
        if starting:
            self._parts[_STARTING] += starting
        if phases:
            self._shared(wall, phases)
        else:
            self._parts[stage] += wall

    def _shared(self, wall: float, phases: Mapping[str, float]) -> None:
        """Of workers that were busy with ``phases``: of cores, or of GPUs if these had more to do."""
        resources = self._session.resources()
        on_cores: dict[str, float] = defaultdict(float)
        on_device: dict[str, float] = defaultdict(float)
        for phase, seconds in phases.items():
            if phase != "wait":
                own = on_device if resources.gpus and phase in DEVICE_PHASES else on_cores
                own[_NAMES.get(phase, phase)] += seconds
        busy, units = on_cores, resources.cpus
        if resources.gpus and sum(on_device.values()) / resources.gpus > sum(on_cores.values()) / resources.cpus:
            busy, units = on_device, resources.gpus
        offered = max(wall * units, sum(busy.values()))
        for phase, seconds in busy.items():
            self._parts[phase] += wall * seconds / offered
        self._parts[_WAITING] += wall * (offered - sum(busy.values())) / offered

    def read(self) -> RunTiming:
        """What was measured; without parts if nothing was made."""
        seconds = time.monotonic() - self._start
        if not self._parts:
            return RunTiming(seconds)
        left = max(0.0, seconds - sum(self._parts.values()))
        return RunTiming(seconds, {**self._parts, _REST: left})
