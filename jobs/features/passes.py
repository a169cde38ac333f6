"""Which images pass the body: one pass per image and scale serves all that is pooled from its maps.

Light: a plan looks at it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jobs.config.features import FeaturesConfig
from jobs.shards.survey import ShardedDataset, Survey
from storage.commits import data_key, winners
from storage.parts import parts_of
from storage.root import Root
from storage.shards import Shard


@dataclass(frozen=True)
class Passes:
    """Which images pass the body for their features now, and where the missing shards of ``truth_features`` come from.

    ``features``: the dataset, ``features`` or ``windows``. ``truth``: image id to the missing shard of
    ``truth_features`` that it belongs to. Of these images, ``made``: image id to the shard of features that a body
    makes now; ``stored``: to the file of its conv maps. ``parts``: shards of ``truth_features`` of which parts are
    there. With ``features.source: warp`` there are no maps to share: then all these are empty.
    """

    features: ShardedDataset
    truth_method: str
    made: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    parts: Collection[str] = ()
    truth: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Root, config: FeaturesConfig, pooled: Survey, truths: Survey) -> Passes:
        """From what there is of both datasets."""
        dataset, method = pooled.dataset, pooled.dataset.method
        if config.source == "warp" or not truths.todo:
            return cls(dataset, truths.dataset.method)
        windows, maps = (winners(root, name, method) for name in ("windows", "maps"))
        truth = {image_id: shard.key for shard, _ in truths.todo for image_id in shard.image_ids}
        stored = {
            image_id: data_key("maps", method, maps[shard.key])
            for shard in dataset.shards
            if shard.key in windows and shard.key in maps
            for image_id in shard.image_ids
            if image_id in truth
        }
        made = {
            image_id: shard.key
            for shard, revision in pooled.todo
            if not is_from_maps(pooled, shard, revision, windows)
            for image_id in shard.image_ids
            if image_id in truth
        }
        parts = parts_of(root, truths.dataset.name, truths.dataset.method)
        return cls(dataset, truths.dataset.method, made, stored, parts.keys(), truth)

    def beside(self, shard: Shard) -> dict[str, list[str]]:
        """Missing shard of ``truth_features`` to those images of a ``shard`` of features that belong to it."""
        found: dict[str, list[str]] = {}
        for image_id in shard.image_ids:
            if image_id in self.truth:
                found.setdefault(self.truth[image_id], []).append(image_id)
        return found

    def alone(self, shard: Shard, annotated: Collection[str]) -> list[str]:
        """Images of a missing shard of ``truth_features`` that pass the body for it alone, as far as one can foresee.

        ``annotated``: those that have objects. Where there are parts of the shard, they are taken to be whole.
        """
        if shard.key in self.parts:
            return []
        known = (self.made, self.stored)
        return [i for i in shard.image_ids if i in annotated and not any(i in images for images in known)]


def is_from_maps(found: Survey, shard: Shard, revision: int, windows: Collection[str]) -> bool:
    """Whether a shard of vectors is made of stored ``windows`` and maps, by who needs no body."""
    return found.dataset.name == "features" and revision == 0 and shard.key in windows
