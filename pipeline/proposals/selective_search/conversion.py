"""The colours in which an image is segmented: OpenCV's conversion, then a blur in whole numbers."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.proposals.selective_search import Colour

_CONVERSIONS = {"hsv": cv2.COLOR_RGB2HSV_FULL, "lab": cv2.COLOR_RGB2LAB}


def converted(image: NDArray[np.uint8], colour: Colour, sigma: float) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """An RGB image in another colour space, uint8 (H, W, 3), and the same blurred, uint16 (3, H, W) in 256ths."""
    colours = _convert(image, colour)
    return colours, _blur(colours, sigma)


def _convert(image: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    if colour == "rgb":
        return np.array(image, order="C")  # a copy: of an array that is read-only, everything would be compiled again
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), _CONVERSIONS[colour]), np.uint8)


def _blur(colours: NDArray[np.uint8], sigma: float) -> NDArray[np.uint16]:
    """Planes uint16 (3, H, W) in 256ths of a unit, blurred; the kernel ends at 4 sigma (filter.h, released code)."""
    half = np.exp(-0.5 * (np.arange(int(np.ceil(4 * sigma)) + 1) / sigma) ** 2) if sigma > 0 else np.ones(1)
    kernel = np.round(half / (2 * half.sum() - half[0]) * 65536).astype(np.uint32)
    kernel = kernel[: np.count_nonzero(kernel)]
    kernel[0] = 65536 - 2 * kernel[1:].sum()
    planes = np.empty((3, *colours.shape[:2]), np.uint16)
    _convolve(colours, kernel, planes)
    return planes


@compiled()
def _convolve(colours: NDArray[np.uint8], kernel: NDArray[np.uint32], planes: NDArray[np.uint16]) -> None:
    """Across, then down, with half a symmetric kernel in 65536ths; the border goes on for ever."""
    height, width = colours.shape[:2]
    reach = kernel.size - 1
    wide = np.empty(width + 2 * reach, np.uint32)
    across = np.empty((height, width), np.uint16)
    sums = np.empty(width, np.uint32)
    for channel in range(3):
        for y in range(height):
            for x in range(width):
                wide[reach + x] = colours[y, x, channel]
            wide[:reach] = wide[reach]
            wide[reach + width :] = wide[reach + width - 1]
            row, middle = across[y], wide[reach : reach + width]
            for x in range(width):
                sums[x] = middle[x] * kernel[0] + np.uint32(128)
            for step in range(1, reach + 1):
                left, right, factor = wide[reach - step :], wide[reach + step :], kernel[step]
                for x in range(width):
                    sums[x] += (left[x] + right[x]) * factor
            for x in range(width):
                row[x] = sums[x] >> np.uint32(8)
        for y in range(height):
            row, middle = planes[channel, y], across[y]
            for x in range(width):
                sums[x] = np.uint32(middle[x]) * kernel[0] + np.uint32(32768)
            for step in range(1, reach + 1):
                above, below = across[max(y - step, 0)], across[min(y + step, height - 1)]
                factor = kernel[step]
                for x in range(width):
                    sums[x] += (np.uint32(above[x]) + np.uint32(below[x])) * factor
            for x in range(width):
                row[x] = sums[x] >> np.uint32(16)
