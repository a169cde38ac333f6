"""Spatial pyramid pooling: one fixed-length vector per window of a conv map (paper 2.2, 4.1 and appendix A).

Level ``n`` cuts a window of ``w`` cells into ``n`` bins per axis, bin ``i`` being ``[floor(i*w/n), ceil((i+1)*w/n))``
(spm_pool_caffe_mex.cpp:187-195), the rule of PyTorch's ``adaptive_max_pool2d``. A vector holds the levels in the
order given, bins row-major, channels last: ``dim = channels * sum(n * n)``.

A level that divides a finer one is an exact union of its bins, for every window from 1x1 up, so (6, 3, 2, 1) takes one
pass over the map and three tiny reductions.

Numbers are float16. Maximum and rounding commute, so pooling the rounded map equals rounding the pooled map; and on
float16 bits turned into ordered int16 keys the maximum is an integer one, sixteen or more to an instruction.
-0 becomes +0 on the way in, which makes equality one of bits.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.spp.windows import Windows

if TYPE_CHECKING:
    import torch

LEVELS = (6, 3, 2, 1)
"""The paper's pyramid for detection: 50 bins (4.1)."""


_EXACT_IN_ROI_POOL = frozenset({1, 2, 3, 4, 5, 6, 8, 9, 10, 12})
"""Levels whose bins are the same in float32 as in whole numbers, for every window of up to 32,767 cells."""


def bin_count(levels: Sequence[int]) -> int:
    """Bins of all levels together: 50 for (6, 3, 2, 1)."""
    return sum(n * n for n in levels)


def bins(n: int, length: int) -> list[tuple[int, int]]:
    """The ``n`` bins, half-open and 0-based, of a window of ``length`` cells along one axis."""
    return [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]


def half(conv_map: NDArray[np.floating]) -> NDArray[np.float16]:
    """A conv map rounded to float16, contiguous, with +0 for -0: what is pooled and what a maps store keeps.

    Raises ValueError for a value that is NaN, infinite or beyond float16's 65,504.
    """
    with np.errstate(over="ignore"):
        rounded = np.array(conv_map, dtype=np.float16, order="C")
    if not _clear_negative_zero(rounded.view(np.int16).reshape(-1)):
        raise ValueError("the conv map has values that are not finite in float16 (beyond 65,504, or NaN)")
    return rounded


def pool(
    conv_map: NDArray[np.float16],
    windows: Windows,
    levels: Sequence[int] = LEVELS,
    *,
    threads: int = 1,
    out: NDArray[np.float16] | None = None,
    rows: NDArray[np.intp] | None = None,
) -> NDArray[np.float16]:
    """Pool windows of one conv map.

    Parameters
    ----------
    conv_map : float16 of shape (height, width, channels), C-contiguous, without NaN; as ``half`` returns it.
    windows : int16 of shape (N, 4), inclusive cells ``cx1 cy1 cx2 cy2`` inside the map.
    levels : bins per axis of each level, in the order of the vector.
    threads : windows are shared out to so many threads (the GIL is released).
    out : float16 of shape (M, dim), C-contiguous, to write to (default: a new one of N rows).
    rows : shape (N,): the row of ``out`` for each window, when they are not the first N in order.

    Returns
    -------
    ``out``, or float16 of shape (N, dim), dim = channels * sum(n * n for n in levels).

    Raises
    ------
    ValueError : a window outside the map, or arrays of another shape or type.
    """
    if conv_map.dtype != np.float16 or conv_map.ndim != 3 or not conv_map.flags.c_contiguous:
        raise ValueError("conv_map must be a C-contiguous float16 array of shape (height, width, channels)")
    height, width, channels = conv_map.shape
    windows = np.ascontiguousarray(windows, dtype=np.int16).reshape(-1, 4)
    _check_windows(windows, height, width)
    dim = channels * bin_count(levels)
    if out is None:
        out = np.empty((len(windows), dim), np.float16)
    if rows is None:
        rows = np.arange(len(windows))
    if out.ndim != 2 or out.shape[1] != dim or out.dtype != np.float16 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous float16 array of shape (rows, {dim})")
    if len(rows) != len(windows) or (len(rows) and not 0 <= rows.min() <= rows.max() < len(out)):
        raise ValueError(f"rows must give each of the {len(windows)} windows a row of out, which has {len(out)}")
    bits = conv_map.view(np.int16)
    signed = _has_negative(bits.reshape(-1))
    keys = _flip_negative(bits.reshape(-1)).reshape(bits.shape) if signed else bits
    plan = _plan(levels)
    target = out.view(np.int16)
    if threads == 1 or len(windows) < 2 * threads:
        _pool_keys(keys, windows, rows, plan, target, signed)
        return out
    cuts = np.linspace(0, len(windows), 4 * threads + 1).astype(int)  # more pieces than threads: windows differ in size
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    workers = _workers(threads, os.getpid())
    list(workers.map(lambda part: _pool_keys(keys, windows[part], rows[part], plan, target, signed), parts))
    return out


def pool_torch(conv_map: torch.Tensor, windows: Windows, levels: Sequence[int] = LEVELS) -> torch.Tensor:
    """The same vectors on the map's own device, by one torchvision ``roi_pool`` for each level that no other contains.

    ``conv_map`` is float16 or float32 of shape (channels, height, width); the result is float16 of shape (N, dim).
    roi_pool computes its bins in floating point; a level for which that is not exact is pooled window by window.
    """
    import torch
    from torch.nn.functional import adaptive_max_pool2d
    from torchvision.ops import roi_pool

    rois = torch.zeros((len(windows), 5), dtype=torch.float32, device=conv_map.device)
    rois[:, 1:] = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to(conv_map.device)
    pooled: dict[int, torch.Tensor] = {}  # (N, n, n, C)
    for n, source, _, _ in _plan(levels).tolist():
        if source < 0 and (n in _EXACT_IN_ROI_POOL or len(windows) == 0):
            grid = roi_pool(conv_map[None].float(), rois, (n, n), spatial_scale=1.0)  # (N, C, n, n)
            pooled[n] = grid.permute(0, 2, 3, 1)
        elif source < 0:
            crops = (conv_map[:, y1 : y2 + 1, x1 : x2 + 1].float() for x1, y1, x2, y2 in windows.tolist())
            grid = torch.stack([adaptive_max_pool2d(crop, n) for crop in crops])
            pooled[n] = grid.permute(0, 2, 3, 1)
        else:
            finer = levels[source]
            step = finer // n
            blocks = pooled[finer].reshape(len(windows), n, step, n, step, len(conv_map))
            pooled[n] = blocks.amax(dim=(2, 4))
    vectors = torch.cat([pooled[n].flatten(1) for n in levels], dim=1)
    return vectors.half() + 0.0  # -0 + 0 is +0


@functools.cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept, since starting threads can cost as much as pooling; a forked process needs its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="pyramid")


def _plan(levels: Sequence[int]) -> NDArray[np.int64]:
    """Rows (n, source, offset, source offset), finest first; source -1: from the map, else a level that n divides."""
    if not levels or min(levels) < 1 or len(set(levels)) != len(levels):
        raise ValueError(f"levels must be distinct positive numbers, got {list(levels)}")
    offsets = np.concatenate([[0], np.cumsum([n * n for n in levels])])
    order = sorted(range(len(levels)), key=lambda i: -levels[i])
    rows = []
    for i in order:
        finer = [j for j in order if levels[j] > levels[i] and levels[j] % levels[i] == 0]
        source = min(finer, key=lambda j: levels[j]) if finer else -1
        rows.append((levels[i], source, offsets[i], offsets[source] if finer else 0))
    return np.array(rows, dtype=np.int64)


def _check_windows(windows: Windows, height: int, width: int) -> None:
    if len(windows) == 0:
        return
    x1, y1, x2, y2 = windows.T
    if x1.min() < 0 or y1.min() < 0 or x2.max() >= width or y2.max() >= height or (x1 > x2).any() or (y1 > y2).any():
        raise ValueError(f"windows must be inclusive cells inside the {height} x {width} map, first <= last")


@compiled()
def _clear_negative_zero(bits: NDArray[np.int16]) -> bool:
    """-0 becomes +0, in place; False if some value is infinite or NaN (an exponent of all ones)."""
    beyond = 0
    for i in range(bits.size):
        value = bits[i]
        beyond |= (value & 0x7C00) == 0x7C00
        bits[i] = 0 if value == -32768 else value
    return beyond == 0


@compiled()
def _has_negative(bits: NDArray[np.int16]) -> np.bool_:
    signs = np.int16(0)
    for i in range(bits.size):
        signs |= bits[i]
    return signs < 0


@compiled()
def _flip_negative(bits: NDArray[np.int16]) -> NDArray[np.int16]:
    """float16 bits to int16 keys of the same order, and back: the map is its own inverse."""
    keys = np.empty_like(bits)
    for i in range(bits.size):
        keys[i] = bits[i] ^ ((bits[i] >> 15) & 0x7FFF)
    return keys


@compiled()
def _pool_keys(
    keys: NDArray[np.int16],
    windows: NDArray[np.int16],
    rows: NDArray[np.intp],
    plan: NDArray[np.int64],
    out: NDArray[np.int16],
    signed: np.bool_,
) -> None:
    """Maxima of int16 keys (height, width, channels) over the each window's bins, to its row of out (M, dim).

    A level taken from the map goes row of bins by row of bins: first a maximum down the rows, which runs over whole
    contiguous stretches of the map, then one across the columns of that strip.
    """
    channels = keys.shape[2]
    rows_of_cells = keys.reshape(keys.shape[0], -1)
    strip = np.empty(keys.shape[1] * channels, np.int16)
    for i in range(windows.shape[0]):
        x1, y1 = np.int64(windows[i, 0]), np.int64(windows[i, 1])
        w, h = np.int64(windows[i, 2]) - x1 + 1, np.int64(windows[i, 3]) - y1 + 1
        vector = out[rows[i]]
        for row in range(plan.shape[0]):
            n, source, offset, source_offset = plan[row]
            if source < 0:
                for by in range(n):
                    top, bottom = y1 + by * h // n, y1 - (-(by + 1) * h // n)
                    line = rows_of_cells[top, x1 * channels : (x1 + w) * channels]
                    size = line.size
                    if bottom - top == 1:
                        cells = line
                    else:
                        cells = strip[:size]
                        second = rows_of_cells[top + 1, x1 * channels : (x1 + w) * channels]
                        for c in range(size):
                            cells[c] = max(line[c], second[c])
                        for y in range(top + 2, bottom):
                            line = rows_of_cells[y, x1 * channels : (x1 + w) * channels]
                            for c in range(size):
                                cells[c] = max(cells[c], line[c])
                    for bx in range(n):
                        left, right = bx * w // n, -(-(bx + 1) * w // n)
                        start = (offset + by * n + bx) * channels
                        target = vector[start : start + channels]
                        cell = cells[left * channels : (left + 1) * channels]
                        for c in range(channels):
                            target[c] = cell[c]
                        for x in range(left + 1, right):
                            cell = cells[x * channels : (x + 1) * channels]
                            for c in range(channels):
                                target[c] = max(target[c], cell[c])
            else:
                finer = _side(plan, source_offset)
                step = finer // n
                for by in range(n):
                    for bx in range(n):
                        start = (offset + by * n + bx) * channels
                        target = vector[start : start + channels]
                        first = (source_offset + by * step * finer + bx * step) * channels
                        cell = vector[first : first + channels]
                        for c in range(channels):
                            target[c] = cell[c]
                        for sy in range(step):
                            for sx in range(step):
                                first = (source_offset + (by * step + sy) * finer + bx * step + sx) * channels
                                cell = vector[first : first + channels]
                                for c in range(channels):
                                    target[c] = max(target[c], cell[c])
        if signed:
            for c in range(vector.size):
                vector[c] = vector[c] ^ ((vector[c] >> 15) & 0x7FFF)


@compiled()
def _side(plan: NDArray[np.int64], offset: np.int64) -> np.int64:
    """Bins per axis of the level that stands at ``offset``."""
    for row in range(plan.shape[0]):
        if plan[row, 2] == offset:
            side: np.int64 = plan[row, 0]
            return side
    return np.int64(0)


def warm_up() -> None:
    """Compile (or load from the cache) every kernel, outside the time of the first image."""
    pool(half(np.full((2, 2, 8), -1.0, np.float32)), np.array([[0, 0, 1, 1]], np.int16))
