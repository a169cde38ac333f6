"""What an extraction actor is given: its settings, and a shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jobs.config.features import FeaturesConfig
from jobs.shards.attempt import Trial
from storage.commits import CommitName, Upstream

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.dataset.image_file import ImageFile
    from jobs.features.image_feed import ImageFeed
    from storage.root import Root


@dataclass(frozen=True, kw_only=True)
class ExtractShard:
    """All that a worker needs to know of its shard.

    ``proposals``: the commit of the proposals to pool, for ``features`` and ``windows`` (with which ``maps`` are
    made). ``objects``: the ground truth, columns as in the objects dataset, for ``truth_features``. ``windows``: the
    commit of the windows to make vectors of with those of ``maps``, where neither image nor body is needed.
    ``dim``: length of the vectors.
    """

    dataset: Literal["features", "windows", "truth_features"]
    method: str
    shard: str
    revision: int
    images: tuple[ImageFile, ...]
    metadata: dict[str, str]
    proposals: CommitName | None = None
    proposals_method: str = ""
    objects: pa.Table | None = None
    windows: CommitName | None = None
    maps: CommitName | None = None
    dim: int = 0
    trial: Trial = field(default_factory=Trial)

    def upstream(self) -> tuple[Upstream, ...]:
        """What the shard's commit names as its source."""
        if self.proposals is None:
            return ()
        name = self.proposals
        return (Upstream(dataset="proposals", method=self.proposals_method, shard=name.shard, revision=name.revision),)


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """What an actor is made with: the same for all shards of a run."""

    root: Root
    config: FeaturesConfig
    device: str
    threads: int
    decode_threads: int
    decode_ahead: int
    max_boxes: int
    storage_options: dict[str, Any]
    producer: str

    def feed(self) -> ImageFeed:
        """The images that an actor works on."""
        from jobs.features.image_feed import ImageFeed

        return ImageFeed(self.storage_options, self.decode_threads, self.decode_ahead)

    @property
    def images_at_once(self) -> int:
        """Images that an actor computes at once: one in each of its threads on a CPU."""
        return self.threads if self.device == "cpu" else 1
