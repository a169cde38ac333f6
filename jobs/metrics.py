"""What a run does, for Ray's Prometheus endpoint, where every name begins with ``ray_``. See docs/operations.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge

from jobs.progress import COMPUTE_PHASES
from jobs.shardloop import Work
from storage.commits import Commit

_BUSY_OVER = 10.0
"""Seconds over which the share of time in which devices are busy is taken."""


class RunMetrics:
    """A listener of the shard loop. ``devices``: how many extraction actors there are."""

    def __init__(self, run: str, devices: Callable[[], int]) -> None:
        tags = {"run": run}
        self._devices = devices
        counters = {
            "images": "Images of committed shards.",
            "images_failed": "Images that went to the ledger.",
            "windows": "Rows of committed shards.",
            "bytes_written": "Bytes of committed data files.",
            "shards": "Committed shards.",
        }
        self._by_dataset = {
            name: Counter(f"spp_{name}_total", text, ("run", "dataset")) for name, text in counters.items()
        }
        self._attempts = Counter("spp_attempts_failed_total", "Attempts that are repeated.", ("run", "stage"))
        self._phases = Counter("spp_phase_seconds_total", "Worker seconds by phase.", ("run", "stage", "phase"))
        self._queued = Gauge("spp_shards_queued", "Shards that nobody has in hand yet.", ("run", "stage"))
        self._busy = Gauge("spp_device_busy", "Share of time in which the extraction actors compute.", ("run",))
        for metric in (*self._by_dataset.values(), self._attempts, self._phases, self._queued, self._busy):
            metric.set_default_tags(tags)
        self._computed = 0.0
        self._since = time.monotonic()

    def committed(self, work: Work, commit: Commit) -> None:
        """Count a shard."""
        tags = {"dataset": work.dataset}
        counts = {
            "images": len(commit.images),
            "images_failed": len(commit.failed),
            "windows": commit.rows,
            "bytes_written": commit.bytes,
            "shards": 1,
        }
        for name, count in counts.items():
            if count:
                self._by_dataset[name].inc(count, tags)
        for phase, seconds in commit.seconds.items():
            if seconds > 0:
                self._phases.inc(seconds, {"stage": work.stage, "phase": phase})
        self._computed += sum(commit.seconds.get(phase, 0.0) for phase in COMPUTE_PHASES)

    def failed(self, work: Work, reason: str) -> None:
        """Count an attempt."""
        self._attempts.inc(1, {"stage": work.stage})

    def stalled(self, text: str) -> None:
        """The queues say it."""

    def tick(self, queued: Mapping[str, int]) -> None:
        """Set what changes without any end."""
        for stage, shards in queued.items():
            self._queued.set(shards, {"stage": stage})
        elapsed = time.monotonic() - self._since
        if elapsed >= _BUSY_OVER:
            self._busy.set(min(1.0, self._computed / elapsed / max(1, self._devices())))
            self._computed, self._since = 0.0, time.monotonic()
