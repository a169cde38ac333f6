"""Pictures with boxes: what was detected, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    (230, 25, 75),
    (0, 130, 200),
    (245, 130, 48),
    (60, 180, 75),
    (145, 30, 180),
    (0, 128, 128),
    (240, 50, 230),
    (128, 96, 0),
)
"""Taken in turn, a class each: told apart on most photographs, also without red and green."""


@dataclass(frozen=True)
class Label:
    """A box, half-open pixels, what stands on it, and the number of its colour."""

    box: tuple[float, float, float, float]
    text: str
    colour: int


def draw_boxes(image: NDArray[np.uint8], labels: Sequence[Label], least_width: int = 640) -> Image.Image:
    """A copy of an RGB image (height, width, 3) with boxes and their texts, drawn in order.

    A small image is enlarged by a whole number until it is ``least_width`` wide, so that texts can be read.
    """
    times = max(1, -(-least_width // image.shape[1]))
    picture = Image.fromarray(image)
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(12, picture.width // 45))
    line = max(2, picture.width // 300)
    for label in labels:
        colour = COLOURS[label.colour % len(COLOURS)]
        x1, y1, x2, y2 = (times * value for value in label.box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        _, _, width, height = pen.textbbox((0, 0), label.text, font=font)
        left = max(0.0, min(x1, picture.width - width - 6))
        top = y1 - height - 4 if y1 >= height + 4 else y1
        pen.rectangle((left, top, left + width + 6, top + height + 4), fill=colour)
        pen.text((left + 3, top + 1), label.text, fill="white", font=font)
    return picture
