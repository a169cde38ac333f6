"""What an extraction actor is given: its settings, and a shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jobs.config.features import FeaturesConfig
from jobs.shards.attempt import Trial
from storage.commits import CommitName, Upstream

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from jobs.dataset.image_file import ImageFile
    from jobs.features.drawing import DrawnParts
    from jobs.features.image_feed import ImageFeed
    from storage.root import Root


@dataclass(frozen=True, kw_only=True)
class TruthPart:
    """The part of a missing shard of ``truth_features`` whose images are among those of a shard of features.

    ``objects``: as in ``ExtractShard``, of these images.
    """

    method: str
    shard: str
    metadata: dict[str, str]
    objects: pa.Table


@dataclass(frozen=True)
class StoredMaps:
    """Where the conv maps of an image are stored, and what is to be pooled from them: a row of ``scales``, int32 (N,),
    and ``windows``, int16 (N, 4), for each of its annotated boxes."""

    key: str
    scales: NDArray[np.int32]
    windows: NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class ExtractShard:
    """All that a worker needs to know of its shard.

    ``proposals``: the commit of the proposals to pool, for ``features`` and ``windows`` (with which ``maps`` are
    made). ``objects``: the ground truth, columns as in the objects dataset, for ``truth_features``. ``windows``: the
    commit of the windows to make vectors of with those of ``maps``, where neither image nor body is needed.
    ``dim``: length of the vectors. ``truth``: what to make of ``truth_features`` beside features or windows, since the
    maps are at hand, and ``drawn`` of ``training_windows``. ``pooled``: of ``truth_features``, the images whose maps
    are stored.
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
    truth: tuple[TruthPart, ...] = ()
    drawn: DrawnParts | None = None
    pooled: Mapping[str, StoredMaps] = field(default_factory=dict)
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
