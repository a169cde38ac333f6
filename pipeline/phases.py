"""Seconds by phase, and passes of the body: what the pipeline did with its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Adds up wall seconds under names; several threads may use one clock.

    ``passes``: how often an image, or a part of one, went through the body.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passes = 0
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds spent inside under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` under ``name``."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def passed(self, images: int = 1) -> None:
        """Count ``images`` that went through the body."""
        with self._lock:
            self.passes += images
