"""What a run does, for Ray's Prometheus endpoint, where every name begins with ``ray_``. See docs/operations.md."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from jobs.shards.loop import Listener, Work
from storage.commits import Commit


class RunMetrics(Listener):
    """A listener of the shard loop."""

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        counters = {
            "images": "Images of committed shards.",
            "images_failed": "Images that went to the ledger.",
            "notes": "Notes on images that were accepted under some rule.",
            "windows": "Rows of committed shards.",
            "bytes_written": "Bytes of committed data files.",
            "shards": "Committed shards.",
        }
        self._by_dataset = {
            name: Counter(f"spp_{name}_total", text, ("run", "dataset")) for name, text in counters.items()
        }
        self._attempts = Counter("spp_attempts_failed_total", "Attempts that are repeated.", ("run", "stage"))
        self._phases = Counter("spp_phase_seconds_total", "Worker seconds by phase.", ("run", "stage", "phase"))
        self._passes = Counter("spp_body_passes_total", "Images that passed the body.", ("run", "dataset"))
        self._queued = Gauge("spp_shards_queued", "Shards that nobody has in hand yet.", ("run", "stage"))
        for metric in (*self._by_dataset.values(), self._attempts, self._phases, self._passes, self._queued):
            metric.set_default_tags(tags)

    def committed(self, work: Work, commit: Commit) -> None:
        """Count a shard."""
        tags = {"dataset": work.dataset}
        counts = {
            "images": len(commit.images),
            "images_failed": len(commit.failed),
            "notes": len(commit.ledger) - len(commit.failed),
            "windows": commit.rows,
            "bytes_written": commit.bytes,
            "shards": 1,
        }
        for name, count in counts.items():
            if count:
                self._by_dataset[name].inc(count, tags)
        if commit.passes:
            self._passes.inc(commit.passes, tags)
        for phase, seconds in commit.seconds.items():
            if seconds > 0:
                self._phases.inc(seconds, {"stage": work.stage, "phase": phase})

    def failed(self, work: Work, reason: str) -> None:
        """Count an attempt."""
        self._attempts.inc(1, {"stage": work.stage})

    def tick(self, queued: Mapping[str, int]) -> None:
        """Set what changes without any end."""
        for stage, shards in queued.items():
            self._queued.set(shards, {"stage": stage})
