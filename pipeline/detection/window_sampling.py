"""Which windows of an image the head is fine-tuned on, each at a random scale, some of them mirrored (paper 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes


@dataclass(frozen=True)
class Drawn:
    """Training windows of an image, (N,) each: row of the box, short side to pool at, whether mirrored."""

    rows: NDArray[np.int64]
    scales: NDArray[np.int32]
    flipped: NDArray[np.bool_]


def draw_windows(
    labels: NDArray[np.int64],
    scales: Sequence[int],
    count: int,
    foreground_share: float,
    flips: bool,
    random: np.random.Generator,
) -> Drawn:
    """Of the windows with ``labels`` (of ``finetune_labels``) up to ``count``, ``foreground_share`` of them foreground.

    What is drawn without replacement is a window with one of its ``scales`` and, with ``flips``, one of its two sides:
    so scales and mirrored windows come in equal shares, and an image of few windows shows them several times, never
    twice the same way (random_scale and flip_finetune of spp_finetune_voc.m:46, 216 and Script_spp_voc.m:27). Fewer
    windows come from an image that has no more. Foreground first, each part in random order.
    """
    sides = 2 if flips else 1
    ways = len(scales) * sides
    chosen = []
    foreground = round(count * foreground_share)
    for rows, wanted in ((np.flatnonzero(labels > 0), foreground), (np.flatnonzero(labels == 0), count - foreground)):
        drawn: Any = random.choice(len(rows) * ways, min(wanted, len(rows) * ways), replace=False) if len(rows) else []
        picked = np.asarray(drawn, np.int64)
        chosen.append(np.stack([rows[picked // ways], picked % ways // sides, picked % sides], axis=1))
    rows, scale, side = np.concatenate(chosen).T
    return Drawn(rows, np.asarray(scales, np.int32)[scale], side == 1)


def mirrored(boxes: Boxes, width: int) -> Boxes:
    """Boxes (N, 4) as they lie in the mirrored image of ``width`` pixels (roidb_from_voc.m:142-144, half-open)."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
