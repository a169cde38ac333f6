"""A small data set in VOC layout, made and changed by tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Object = tuple[str, int, int, int, int]
"""Class name and VOC's own 1-based inclusive xmin, ymin, xmax, ymax."""


class VocFolder:
    """``VOC2007`` under a folder: pictures of rectangles on noise."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "VOC2007"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.path / part).mkdir(parents=True, exist_ok=True)

    def add(self, image_id: str, split: str, objects: Sequence[Object], size: tuple[int, int] = (90, 120)) -> Path:
        """Draw an image of (height, width), annotate it and append it to a split."""
        height, width = size
        random = np.random.default_rng(sum(image_id.encode()))
        pixels = (
            random.integers(60, 120, (height // 4 + 1, width // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
        )
        for number, (_, x1, y1, x2, y2) in enumerate(objects):
            pixels[y1 - 1 : y2, x1 - 1 : x2] = (255, 40 * number, 0) if number % 2 else (20, 255 - 40 * number, 240)
        picture = self.path / "JPEGImages" / f"{image_id}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(picture, quality=95)
        self.annotate(image_id, objects, size)
        with (self.path / "ImageSets/Main" / f"{split}.txt").open("a") as lines:
            lines.write(f"{image_id}\n")
        return picture

    def annotate(self, image_id: str, objects: Sequence[Object], size: tuple[int, int] = (90, 120)) -> None:
        """Write the annotation of an image."""
        described = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><truncated>0</truncated><bndbox><xmin>{x1}</xmin>"
            f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for name, x1, y1, x2, y2 in objects
        )
        (self.path / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{described}</annotation>"
        )

    def move(self, image_id: str, old: str, new: str) -> None:
        """Take an image from one split to another."""
        main = self.path / "ImageSets/Main"
        kept = [line for line in (main / f"{old}.txt").read_text().splitlines() if line != image_id]
        (main / f"{old}.txt").write_text("".join(f"{line}\n" for line in kept))
        with (main / f"{new}.txt").open("a") as lines:
            lines.write(f"{image_id}\n")


def small_data_set(folder: Path, train: int = 9, test: int = 5, names: str = "im-{:03d}") -> VocFolder:
    """A few images of two classes; ``names`` decides how they fall into shards."""
    data = VocFolder(folder)
    for number in range(train + test):
        shift = 3 * number % 20
        objects: list[Object] = [("square", 11 + shift, 21, 50 + shift, 60)]
        if number % 3:
            objects.append(("slab", 61, 31 + shift, 110, 60 + shift))
        data.add(names.format(number), "trainval" if number < train else "test", objects)
    return data
