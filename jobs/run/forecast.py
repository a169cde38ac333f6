"""How long what is left will take, and what will limit it: from the seconds that committed shards took, by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEVICE_PHASES = ("conv", "pool", "transfer", "fc")
"""Phases that a GPU does where there is one; all others are work of cores, except waiting."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is left, on so many GPUs and cores.

    ``seconds``: with all devices at work all the time, and if they are as those that made the shards so far: what a CPU
    took says little of a GPU. None if nothing was measured. ``limit``: what
    takes it, ``GPUs`` or ``cores``. ``shares``: the three phases with most of the limit's seconds, and their share.
    ``unmeasured``: datasets of which nothing is known yet, and which are therefore left out.
    """

    gpus: int
    cores: int
    bytes: int
    worker_seconds: float
    seconds: float | None
    limit: str
    shares: Mapping[str, float]
    unmeasured: tuple[str, ...]


Left = tuple[str, int, int | None, Mapping[str, float] | None]
"""A dataset, images to do, bytes and worker seconds by phase expected for them (None: not known)."""


def forecast(left: Iterable[Left], gpus: int, cores: int) -> Forecast:
    """What ``left`` takes on so many GPUs (0: none) and cores."""
    device: dict[str, float] = defaultdict(float)
    host: dict[str, float] = defaultdict(float)
    size, unmeasured = 0, []
    for dataset, images, expected, phases in left:
        if not images:
            continue
        size += expected or 0
        if phases is None:
            unmeasured.append(dataset)
            continue
        for phase, seconds in phases.items():
            if phase != "wait":
                (device if gpus and phase in DEVICE_PHASES else host)[phase] += seconds
    on_device, on_host = sum(device.values()) / max(1, gpus), sum(host.values()) / max(1, cores)
    limiting = device if on_device > on_host else host
    total = sum(limiting.values())
    most = sorted(limiting.items(), key=lambda item: -item[1])[:3]
    return Forecast(
        gpus=gpus,
        cores=cores,
        bytes=size,
        worker_seconds=round(sum(device.values()) + sum(host.values()), 1),
        seconds=round(max(on_device, on_host), 1) if total else None,
        limit="GPUs" if limiting is device else "cores",
        shares={phase: round(seconds / total, 3) for phase, seconds in most} if total else {},
        unmeasured=tuple(unmeasured),
    )
