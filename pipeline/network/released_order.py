"""The order in which the released network takes a pooled vector, and ours: for the weights of fc6 that come from it.

Released (SPP_net): levels from coarse to fine, 1 2 3 6 (model-defs/Zeiler_conv5.prototxt:338-342, the concat layer
pool5_spm); in a level channel by channel, and in a channel its bins row by row, ``channel * n * n + y * n + x``
(utils/spm_pool/spm_pool_caffe_mex.cpp:187-195, where x runs inside y, and :217-234, ``d * bin_divs * bin_divs + ii``).
MATLAB's column-major arrays exchange nothing: maps go in with width fastest, as Caffe has them
(utils/caffe_anysize_test.m:18-29, utils/spm_pool/spm_pool.m:14).

Ours: levels in the order configured, bins row by row, channels last (``pipeline.spp.pyramid``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.bodies.classifier import Weight, level_columns, to_bin_major, to_channel_major

_LEVELS = (6, 3, 2, 1)


def from_released(fc6_weight: Weight, channels: int, levels: Sequence[int] = _LEVELS) -> Weight:
    """fc6's weights for vectors in our order, from those for the released one.

    Parameters
    ----------
    fc6_weight : a tensor or an array of shape (outputs, channels * sum of n * n), as Caffe has them; MATLAB's
        ``layers(i).weights{1}`` is its transpose.
    levels : of the pyramid, in the order of our vectors.

    Raises ValueError if the columns are not so many, or a level comes twice.
    """
    places = level_columns(_checked(fc6_weight, channels, sorted(levels)), channels)
    return _joined(fc6_weight, [to_bin_major(fc6_weight[:, places[n]], channels) for n in levels])


def to_released(fc6_weight: Weight, channels: int, levels: Sequence[int] = _LEVELS) -> Weight:
    """fc6's weights for vectors in the released order, from those for ours: what ``from_released`` undoes.

    Parameters and errors as there.
    """
    places = level_columns(_checked(fc6_weight, channels, levels), channels)
    return _joined(fc6_weight, [to_channel_major(fc6_weight[:, places[n]], channels) for n in sorted(levels)])


def _checked(weight: Weight, channels: int, levels: Sequence[int]) -> Sequence[int]:
    if len(set(levels)) != len(levels):
        raise ValueError(f"the pyramid {tuple(levels)} has a level twice")
    bins = sum(n * n for n in levels)
    if weight.ndim != 2 or weight.shape[1] != channels * bins:
        raise ValueError(
            f"fc6's weights must have the shape (outputs, {channels * bins}), for {channels} channels x {bins} bins; "
            f"these have {tuple(weight.shape)}"
        )
    return levels


def _joined(like: Weight, parts: Sequence[Any]) -> Weight:
    return torch.cat(list(parts), dim=1) if isinstance(like, torch.Tensor) else np.concatenate(list(parts), axis=1)
