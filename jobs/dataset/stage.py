"""The stage ``index``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.record.stage import Context, Stage

if TYPE_CHECKING:
    from jobs.shards.survey import ShardedDataset


def _planned(context: Context) -> Iterator[ShardedDataset]:
    """Nothing: every run reads the index first, and plans all else by it."""
    return iter(())


INDEX = Stage(
    name="index",
    summary="Read the data set: tables images and objects.",
    datasets=("images", "objects"),
    planned=_planned,
)
