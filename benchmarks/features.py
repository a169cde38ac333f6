"""Rows of ``features`` without images or bodies: random sparse conv maps, pooled as the real ones are.

A map is smoothed noise of which a tenth of the cells passes the ReLU, so that vectors have zeros, repeats (a bin is the
maximum of others) and a compressed size like those of a real body.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.spp import pyramid
from storage.columns import box_column, vector_column, window_column
from storage.schemas import schema

CHANNELS = 256
DIM = CHANNELS * pyramid.bin_count(pyramid.LEVELS)
STRIDE = 16
HEIGHT, WIDTH = 43, 57
"""Cells of a map of an image of 688 x 912 pixels."""

LAYOUT = schema("features", DIM, {"method": "benchmark"})


def rows_of(image_id: str, windows: int, seed: int, dim: int = DIM) -> pa.Table:
    """The rows of one image with so many windows; of its vectors the first ``dim`` numbers."""
    random = np.random.default_rng(seed)
    cells = _windows(random, windows)
    channels = -(-dim // pyramid.bin_count(pyramid.LEVELS))
    vectors = np.ascontiguousarray(pyramid.pool(_conv_map(random, channels), cells)[:, :dim])
    boxes = (cells + np.array([0, 0, 1, 1], np.int16)).astype(np.float32) * STRIDE
    columns = {
        "image_id": pa.array([image_id] * windows, pa.string()),
        "proposal_id": pa.array(range(windows), pa.int32()),
        "box": box_column(boxes),
        "scale": pa.array([688] * windows, pa.int32()),
        "window": window_column(cells),
        "feature": vector_column(vectors),
    }
    return pa.table(columns, schema=LAYOUT if dim == DIM else schema("features", dim, {"method": "benchmark"}))


def _conv_map(random: np.random.Generator, channels: int = CHANNELS) -> NDArray[np.float16]:
    smooth = random.standard_normal((HEIGHT + 2, WIDTH + 2, channels), np.float32)
    smooth = smooth[:-2] + 2 * smooth[1:-1] + smooth[2:]
    smooth = smooth[:, :-2] + 2 * smooth[:, 1:-1] + smooth[:, 2:]
    smooth /= smooth.std()
    return pyramid.half(np.maximum(smooth - 1.28, 0) * 10)


def _windows(random: np.random.Generator, count: int) -> NDArray[np.int16]:
    """Windows of all sizes, small ones being the commonest, in the order of a ranking, which is none."""
    low, high = np.empty((count, 2), int), np.empty((count, 2), int)
    for axis, length in enumerate((WIDTH, HEIGHT)):
        size = np.exp(random.uniform(np.log(2), np.log(length), count)).astype(int)
        low[:, axis] = random.integers(0, length - size + 1)
        high[:, axis] = low[:, axis] + size - 1
    return np.hstack([low, high]).astype(np.int16)
