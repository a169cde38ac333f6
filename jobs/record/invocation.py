"""What a command was asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config.run_config import RunConfig
from storage.root import Root


@dataclass(frozen=True)
class Invocation:
    """What a command was asked to do."""

    config: RunConfig
    root: Root
    name: str
    argv: tuple[str, ...]
