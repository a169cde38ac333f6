"""The stage ``propose``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.make import ShardMaker
    from jobs.shards.survey import ShardedDataset, Survey
    from storage.runs import DatasetRecord


def _dataset(context: Context, method: str, bytes_per_image: int) -> ShardedDataset:
    from jobs.shards.survey import ShardedDataset
    from storage.shards import shards

    digests = context.index.digests()
    return ShardedDataset(
        stage="propose",
        name="proposals",
        method=method,
        cut=lambda: list(shards(digests, bytes_per_image)),
        bytes_per_image=bytes_per_image,
    )


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.proposals.box_file import boxes_digest
    from jobs.proposals.method import BYTES_PER_BOX, propose_method

    config = context.config.proposals
    given = boxes_digest(config, context.config.dataset.storage_options)
    method = propose_method(config, context.record.datasets["images"].method, given)
    yield _dataset(context, method, config.max_per_image * BYTES_PER_BOX)


def _recorded(context: Context) -> Iterator[ShardedDataset]:
    entry = context.record.datasets.get("proposals")
    if entry is not None:
        yield _dataset(context, entry.method, entry.bytes_per_image)


def _makers(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    from jobs.proposals.driver import maker_of

    return [maker_of(assignment, found) for found in surveys]


def _measure(assignment: Assignment, earlier: DatasetRecord | None) -> None:
    from jobs.proposals.recall import measure

    measure(assignment.context, earlier)


PROPOSE = Stage(
    name="propose",
    summary="Boxes that may hold an object; recall and MABO per split.",
    datasets=("proposals",),
    planned=_planned,
    recorded=_recorded,
    feeds_next=True,
    reads_images=lambda config: True,
    makers=_makers,
    measure=_measure,
)
