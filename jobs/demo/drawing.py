"""The demo's data set, drawn: six kinds of objects over textured backgrounds, in VOC layout, nothing to download.

Every picture follows from its number alone, so drawing twice gives the same bytes (with the same Pillow and NumPy).
A box is what can be seen of its object: the bounding box of the pixels that show it, as VOC's annotators drew theirs.
Objects cut by the border are ``truncated``; very small ones are ``difficult``.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.demo.motifs import BACKGROUNDS, FINER, OBJECTS, Pen, Random, Texture

SIZES = ((320, 240), (240, 320), (360, 240), (300, 300), (384, 216), (280, 350))
"""(width, height) of the pictures, taken in turn."""

CLASSES = tuple(OBJECTS)
"""The classes, in alphabetical order."""


@dataclass(frozen=True)
class DrawnObject:
    """An object of a scene. ``box`` is VOC's (xmin, ymin, xmax, ymax): pixels counted from 1, both ends included."""

    class_name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 RGB (height, width, 3), and what is on it.

    ``background`` is the picture without its objects; ``owner`` (height, width) tells which object each pixel shows,
    counted from 1 in the order of ``objects``; 0 is background.
    """

    image: NDArray[np.uint8]
    background: NDArray[np.uint8]
    owner: NDArray[np.int16]
    objects: tuple[DrawnObject, ...]


def draw_dataset(folder: Path, trainval: int = 60, test: int = 30) -> None:
    """Write a devkit of ``trainval`` + ``test`` pictures: JPEGImages/, Annotations/ and ImageSets/Main/.

    A file that is there already with the same bytes is left alone; none is ever seen half written.
    """
    ids = [f"{number:06d}" for number in range(1, trainval + test + 1)]
    for number, image_id in enumerate(ids):
        scene = draw_scene(number)
        _write(folder / "JPEGImages" / f"{image_id}.jpg", _jpeg(scene.image))
        _write(folder / "Annotations" / f"{image_id}.xml", annotation(image_id, scene).encode())
    for split, members in (("trainval", ids[:trainval]), ("test", ids[trainval:])):
        _write(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{i}\n" for i in members).encode())


def draw_scene(number: int) -> Scene:
    """Picture ``number``: one to four objects, most of them of different kinds, over one background."""
    random = np.random.default_rng([2014, number])
    width, height = SIZES[number % len(SIZES)]
    paint = BACKGROUNDS[random.integers(len(BACKGROUNDS))]
    background = _finish(paint(random, height, width), random)
    image = background.astype(np.float32)
    owner = np.zeros((height, width), np.int16)
    drawn: list[tuple[str, bool, bool]] = []
    taken: list[tuple[int, int, int, int]] = []
    for turn in range(random.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.35, 0.15])):
        # the first object's kind goes round, out of step with the sizes, so that every split has all kinds
        kind = number + number // len(SIZES) if turn == 0 else random.integers(len(CLASSES))
        name = CLASSES[kind % len(CLASSES)]
        tiny = turn > 0 and random.random() < 0.2
        cut = not tiny and random.random() < 0.18
        share = random.uniform(0.10, 0.14) if tiny else random.uniform(0.34, 0.72) * (1.0 if turn == 0 else 0.8)
        sprite = _sprite(name, random, share * min(width, height), 0.85 * width)
        place = _place(random, sprite, owner.shape, taken, cut)
        if place is None:
            continue
        drawn.append((name, cut, tiny))
        taken.append((*place, place[0] + sprite.shape[1], place[1] + sprite.shape[0]))
        _paste(image, owner, sprite, place, len(drawn))
    objects = tuple(
        DrawnObject(name, _visible_box(owner, turn), truncated, difficult)
        for turn, (name, truncated, difficult) in enumerate(drawn, start=1)
    )
    return Scene(np.clip(image + 0.5, 0, 255).astype(np.uint8), background, owner, objects)


def annotation(image_id: str, scene: Scene) -> str:
    """The VOC XML of a scene."""
    height, width = scene.owner.shape
    lines = [
        "<annotation>",
        "\t<folder>VOC2007</folder>",
        f"\t<filename>{image_id}.jpg</filename>",
        "\t<source>\n\t\t<database>drawn for the SPP demo</database>\n\t</source>",
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>0</segmented>",
    ]
    for thing in scene.objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(thing.class_name)}</name>",
            "\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{thing.truncated:d}</truncated>",
            f"\t\t<difficult>{thing.difficult:d}</difficult>",
            "\t\t<bndbox>",
            *(f"\t\t\t<{key}>{value}</{key}>" for key, value in corners),
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _sprite(name: str, random: Random, height: float, widest: float) -> NDArray[np.uint8]:
    """An object as RGBA, cut to its own bounding box, about ``height`` pixels high and at most ``widest`` wide."""
    draw, aspect, tilt = OBJECTS[name]
    aspect *= random.uniform(0.88, 1.14)
    height = min(height, widest / aspect)
    pen = Pen((round(height * aspect), round(height)))
    draw(pen, random)
    picture = pen.canvas
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(random.uniform(-tilt, tilt), Image.Resampling.BILINEAR, expand=True)
    rgba = np.array(picture.resize((picture.width // FINER, picture.height // FINER), Image.Resampling.BOX))
    solid = rgba[:, :, 3] >= 128
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lit = rgba[:, :, :3] * _light(random, rgba.shape[0], rgba.shape[1]) + random.normal(0, 4, rgba.shape[:2])[..., None]
    return np.dstack([np.clip(lit, 0, 255).astype(np.uint8), rgba[:, :, 3]])


def _light(random: Random, height: int, width: int) -> Texture:
    """Light from one upper corner: factors around 1, (height, width, 1)."""
    side = random.choice([-1.0, 1.0])
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (0.98 - 0.13 * y + 0.10 * side * x)[..., None].astype(np.float32)


def _place(
    random: Random,
    sprite: NDArray[np.uint8],
    shape: tuple[int, ...],
    taken: list[tuple[int, int, int, int]],
    cut: bool,
) -> tuple[int, int] | None:
    """Left and top for a sprite that hides little of the others; None where there is no room.

    A ``cut`` one has 15 to 40 % of its width or height beyond a border; all others are wholly inside.
    """
    high, wide = sprite.shape[:2]
    room_x, room_y = shape[1] - wide, shape[0] - high
    for _ in range(40):
        x, y = random.integers(1, max(2, room_x)), random.integers(1, max(2, room_y))
        if cut:
            beyond = random.uniform(0.15, 0.4)
            side = random.integers(4)
            x = (-round(beyond * wide), room_x + round(beyond * wide), x, x)[side]
            y = (y, y, -round(beyond * high), room_y + round(beyond * high))[side]
        elif room_x < 2 or room_y < 2:
            return None
        if all(_hidden((x, y, x + wide, y + high), other) <= 0.08 for other in taken):
            return int(x), int(y)
    return None


def _hidden(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Shared area of two half-open boxes, as a share of the smaller one."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return max(0, wide) * max(0, high) / min(areas)


def _paste(
    image: Texture, owner: NDArray[np.int16], sprite: NDArray[np.uint8], place: tuple[int, int], number: int
) -> None:
    """Lay a sprite over the picture, and its number over the owners of its solid pixels."""
    left, top = place
    high, wide = sprite.shape[:2]
    y1, x1 = max(0, top), max(0, left)
    y2, x2 = min(image.shape[0], top + high), min(image.shape[1], left + wide)
    piece = sprite[y1 - top : y2 - top, x1 - left : x2 - left]
    alpha = piece[:, :, 3:].astype(np.float32) / 255
    image[y1:y2, x1:x2] += alpha * (piece[:, :, :3] - image[y1:y2, x1:x2])
    owner[y1:y2, x1:x2][piece[:, :, 3] >= 128] = number


def _visible_box(owner: NDArray[np.int16], number: int) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(owner == number)
    return int(columns.min()) + 1, int(rows.min()) + 1, int(columns.max()) + 1, int(rows.max()) + 1


def _finish(texture: Texture, random: Random) -> NDArray[np.uint8]:
    """Exposure and a little sensor noise."""
    exposed = texture * random.uniform(0.82, 1.1) + random.normal(0, 3, texture.shape)
    return np.clip(exposed + 0.5, 0, 255).astype(np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=92)
    return data.getvalue()


def _write(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_bytes(data)
    staging.replace(path)
