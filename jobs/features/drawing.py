"""Which windows of a training image a head is fine-tuned on, and which of them are pooled while its maps are at hand.

The draw hangs on the image alone, so whoever holds its maps knows which windows will be asked for. Those that the
stored features will not have, at another scale than their box's own, are pooled with them (``storage.parts``); the
others are read from there. Mirrored ones are of another image, and pass the body when the windows are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.config.head import FinetuneConfig
from jobs.dataset.objects import ImageObjects, order_key
from pipeline.boxes import Boxes
from pipeline.detection.labels import finetune_labels
from pipeline.detection.window_sampling import Drawn, draw_windows
from storage.identity import method_id

PARTS_VERSION = 1


@dataclass(frozen=True)
class Chosen:
    """What was drawn of an image: the windows, their boxes (N, 4) and their labels (N,); those of the image as it is
    come first. ``candidates``: the boxes that they were drawn from, (M, 4), first those of its ``objects``."""

    drawn: Drawn
    boxes: Boxes
    labels: NDArray[np.int64]
    candidates: Boxes
    objects: int

    @property
    def plain(self) -> int:
        """How many are of the image as it is."""
        return int(np.count_nonzero(~self.drawn.flipped))


def choose(
    config: FinetuneConfig, image_id: str, objects: ImageObjects | None, proposed: Boxes, scales: Sequence[int]
) -> Chosen:
    """Windows of an image that is taken at ``scales``, drawn from the seed and the image id."""
    truth = objects.boxes if objects else np.zeros((0, 4), np.float32)
    candidates = np.concatenate([truth, proposed])
    labels = finetune_labels(
        candidates,
        truth,
        objects.classes if objects else np.zeros(0, np.int64),
        objects.difficult if objects else np.zeros(0, np.bool_),
        config.foreground_overlap,
        config.background_overlap,
    )
    seed = int.from_bytes(order_key(config.seed, image_id)[:8], "little")
    drawn = draw_windows(
        labels,
        scales,
        config.windows_per_image,
        config.foreground,
        config.flips,
        np.random.default_rng(seed),
    )
    order = np.argsort(drawn.flipped, kind="stable")
    drawn = Drawn(drawn.rows[order], drawn.scales[order], drawn.flipped[order])
    return Chosen(drawn, candidates[drawn.rows], labels[drawn.rows], candidates, len(truth))


@dataclass(frozen=True)
class DrawnParts:
    """What an actor pools of ``training_windows`` beside a shard of features: parts of ``method``.

    ``shards``: training image to the shard that its windows will be in. ``objects``: those of these images.
    """

    config: FinetuneConfig
    method: str
    shards: Mapping[str, str]
    objects: Mapping[str, ImageObjects]

    def of(self, image_ids: Sequence[str]) -> DrawnParts:
        """The same for some images."""
        shards = {image_id: self.shards[image_id] for image_id in image_ids if image_id in self.shards}
        objects = {image_id: self.objects[image_id] for image_id in shards if image_id in self.objects}
        return DrawnParts(self.config, self.method, shards, objects)


def parts_method(config: FinetuneConfig, proposals: str, truth: str) -> str:
    """Where parts of ``training_windows`` are kept. The windows' own method also hashes which proposals there are,
    which nobody knows yet."""
    return method_id("finetune-windows-parts", PARTS_VERSION, config.sampling(), upstream=[proposals, truth])
