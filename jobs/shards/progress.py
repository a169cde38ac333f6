"""Progress: a bar on a terminal, one line every few seconds elsewhere. On standard error."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jobs.shards.loop import Listener, Work
from storage.commits import Commit

_log = logging.getLogger("spp")

COMPUTE_PHASES = ("conv", "pool", "transfer")
"""Phases in which an extraction actor's device is busy."""


class ProgressReport(Listener):
    """A listener of the shard loop: images done, images/s, device busy %, bytes written, errors, time left.

    ``totals`` and ``done`` are images by dataset: all of them, and those that were there before.
    """

    devices: Callable[[], int]
    """How many images the extraction actors can compute at once."""

    seconds: Counter[str]
    """Of workers, by phase."""

    def __init__(self, totals: Mapping[str, int], done: Mapping[str, int], seconds_between: float) -> None:
        self.devices = lambda: 1
        self._totals = totals
        self._done = Counter(done)
        self._before = Counter(done)
        self._between = seconds_between
        self._start = self._last = time.monotonic()
        self._bytes = 0
        self._failed = 0
        self.seconds = Counter()
        console = Console(stderr=True)
        self._bar = self._make_bar(console) if console.is_terminal and _log.isEnabledFor(logging.INFO) else None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
            for name, total in self._totals.items():
                self._bars[name] = self._bar.add_task(name, total=total, completed=self._done[name], notes="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif any(self._done[name] > self._before[name] for name in self._totals):
            self._line()

    def committed(self, work: Work, commit: Commit) -> None:
        """Count a shard."""
        self._done[work.dataset] += work.images
        self._bytes += commit.bytes
        self._failed += len(commit.failed)
        self.seconds.update(commit.seconds)
        for row in commit.failed:
            _log.warning("failed image %s (%s): %s: %s", row.image_id, row.stage, row.type, row.message)
        if self._bar is not None:
            self._bar.update(self._bars[work.dataset], completed=self._done[work.dataset], notes=self._notes())

    def failed(self, work: Work, reason: str) -> None:
        """Say why an attempt is repeated."""
        _log.warning("%s: shard %s of %s is tried again: %s", work.stage, work.shard, work.dataset, reason)

    def stalled(self, text: str) -> None:
        """Say what nothing moves for."""
        _log.warning(text)

    def tick(self, queued: Mapping[str, int]) -> None:
        """Print a line if it is time."""
        if self._bar is None and time.monotonic() - self._last >= self._between:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        counts = ", ".join(f"{name} {self._done[name]}/{total}" for name, total in self._totals.items())
        _log.info(f"{counts} images | {self._notes()} | {self._time_left()}")

    def _notes(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        new = sum(self._done[name] - self._before[name] for name in self._totals)
        devices = max(1, self.devices())
        compute = sum(self.seconds[phase] for phase in COMPUTE_PHASES)
        busy = f"device busy {100 * compute / elapsed / devices:.0f}% | " if compute else ""
        return f"{new / elapsed:.2f} images/s | {busy}{self._bytes / 1e6:,.0f} MB written | {self._failed} failed"

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self._start
        new = sum(self._done[name] - self._before[name] for name in self._totals)
        left = sum(total - self._done[name] for name, total in self._totals.items())
        if not new or not left:
            return f"{elapsed:.0f} s"
        return f"{elapsed:.0f} s, about {left * elapsed / new:.0f} s left"

    @staticmethod
    def _make_bar(console: Console) -> Progress:
        return Progress(
            TextColumn("{task.description:>15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[notes]}"),
            console=console,
        )
