"""How a shard is tried: whole, one image alone, without images that bring workers down, or after a last revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import pyarrow as pa

from storage.commits import CommitName, LedgerRow
from storage.root import Root
from storage.writer import ShardWriter


class NotForThis(Exception):
    """A worker lacks what its shard takes; whoever ``Work.otherwise`` names has it."""


class _Named(Protocol):
    @property
    def image_id(self) -> str: ...


_Image = TypeVar("_Image", bound=_Named)


@dataclass(frozen=True)
class Trial:
    """What is different about this attempt.

    ``alone``: only this image, and nothing is committed: does it bring the worker down? ``excluded``: images that did,
    with what is known of it; they go to the ledger. ``earlier``: dataset to the last revision's commit, whose rows are
    taken over for every image that had some.
    """

    alone: str | None = None
    excluded: Mapping[str, str] = field(default_factory=dict)
    earlier: Mapping[str, CommitName] = field(default_factory=dict)

    def images(self, images: Sequence[_Image]) -> tuple[_Image, ...]:
        """The images of a shard that this attempt works on."""
        return tuple(
            image for image in images if image.image_id not in self.excluded and self.alone in (None, image.image_id)
        )

    def ledger(self, stage: str) -> list[LedgerRow]:
        """The rows of the excluded images."""
        return [
            LedgerRow(image_id=image_id, stage=stage, type="WorkerDied", message=message)
            for image_id, message in self.excluded.items()
        ]


@dataclass(frozen=True, kw_only=True)
class ShardAttempt:
    """What every worker is told of its shard: where it goes, the revision to write, and what is different this time."""

    root: Root
    method: str
    shard: str
    revision: int
    trial: Trial = field(default_factory=Trial)

    def writer(self, dataset: str, layout: pa.Schema) -> ShardWriter:
        """The file of the shard in ``dataset``."""
        return ShardWriter(self.root, dataset, self.method, self.shard, layout, revision=self.revision)
