"""What the demo's pictures are made of: six kinds of objects and seven textures to put them on."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Random = np.random.Generator
Texture = NDArray[np.float32]
"""RGB from 0 to 255, (height, width, 3)."""

FINER = 3
"""Objects are drawn so many times larger and then reduced, for smooth edges."""
_DARK = (38, 34, 40)
_GLASS = (176, 214, 232)


class Pen:
    """Shapes in the unit square, y down, on a transparent canvas of ``size`` (width, height) times ``FINER``."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._wide, self._high = (FINER * side for side in size)
        self.canvas = Image.new("RGBA", (self._wide, self._high), (*_DARK, 0))
        self._draw = ImageDraw.Draw(self.canvas)
        self._line = max(1, round(0.012 * self._high))

    def polygon(self, *points: tuple[float, float], fill: Colour, outline: bool = True) -> None:
        """A filled polygon."""
        corners = [self._at(*point) for point in points]
        self._draw.polygon(corners, fill, _DARK if outline else None, self._line)

    def box(self, x1: float, y1: float, x2: float, y2: float, fill: Colour, rounded: float = 0.0) -> None:
        """An upright rectangle; ``rounded``: radius of its corners in heights."""
        corners = [self._at(x1, y1), self._at(x2, y2)]
        self._draw.rounded_rectangle(corners, rounded * self._high, fill, _DARK, self._line)

    def ellipse(self, x1: float, y1: float, x2: float, y2: float, fill: Colour, outline: bool = True) -> None:
        """An upright ellipse."""
        corners = [self._at(x1, y1), self._at(x2, y2)]
        self._draw.ellipse(corners, fill, _DARK if outline else None, self._line)

    def disc(self, x: float, y: float, radius: float, fill: Colour, outline: bool = True) -> None:
        """A true circle; ``radius`` in heights."""
        across = radius * self._high / self._wide
        self.ellipse(x - across, y - radius, x + across, y + radius, fill, outline)

    def line(self, *points: tuple[float, float], fill: Colour = _DARK, width: float = 0.02) -> None:
        """A line; ``width`` in heights."""
        stroke = max(1, round(width * self._high))
        self._draw.line([self._at(*point) for point in points], fill, stroke, "curve")

    def ring(self, x1: float, y1: float, x2: float, y2: float, fill: Colour, width: float) -> None:
        """An upright ellipse without its inside, ``width`` heights thick."""
        corners = [self._at(x1, y1), self._at(x2, y2)]
        self._draw.ellipse(corners, None, _DARK, round(width * self._high))
        inner = [(corners[0][0] + self._line, corners[0][1] + self._line)]
        inner += [(corners[1][0] - self._line, corners[1][1] - self._line)]
        self._draw.ellipse(inner, None, fill, round(width * self._high) - 2 * self._line)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return x * (self._wide - 1), y * (self._high - 1)


def _balloon(pen: Pen, random: Random) -> None:
    """A hot-air balloon: a striped envelope, ropes and a basket."""
    hue = random.random()
    stripes = [_paint(hue, 0.8, 0.9), _paint(hue + random.uniform(0.12, 0.5), 0.65, 0.97)]
    pen.line((0.2, 0.62), (0.42, 0.9))
    pen.line((0.8, 0.62), (0.58, 0.9))
    pen.polygon((0.1, 0.55), (0.9, 0.55), (0.62, 0.8), (0.38, 0.8), fill=stripes[0])
    for turn, half in enumerate((0.5, 0.37, 0.22, 0.08)):
        pen.ellipse(0.5 - half, 0, 0.5 + half, 0.74, stripes[turn % 2])
    pen.box(0.4, 0.88, 0.6, 1, (150, 98, 48), 0.02)


def _car(pen: Pen, random: Random) -> None:
    """A car from the side: cabin with two windows, wheels, lamps."""
    body = _paint(random.random(), random.uniform(0.6, 0.95), random.uniform(0.6, 0.95))
    roof = random.uniform(0.0, 0.12)
    pen.polygon((0.15, 0.5), (0.3, roof), (0.68, roof), (0.86, 0.5), fill=body)
    pen.polygon((0.22, 0.47), (0.33, roof + 0.09), (0.47, roof + 0.09), (0.47, 0.47), fill=_GLASS)
    pen.polygon((0.52, 0.47), (0.52, roof + 0.09), (0.65, roof + 0.09), (0.78, 0.47), fill=_GLASS)
    pen.box(0, 0.45, 1, 0.84, body, 0.12)
    pen.line((0.5, 0.48), (0.5, 0.8), width=0.015)
    pen.box(0.95, 0.52, 0.995, 0.64, (250, 236, 150), 0.03)
    pen.box(0.005, 0.52, 0.04, 0.64, (196, 32, 32), 0.03)
    for x in (0.22, 0.78):
        pen.disc(x, 0.8, 0.195, (30, 30, 32))
        pen.disc(x, 0.8, 0.09, (190, 192, 198))


def _clock(pen: Pen, random: Random) -> None:
    """An alarm clock: two bells, two legs, a white face with hands."""
    case = _paint(random.random(), random.uniform(0.5, 0.9), random.uniform(0.5, 0.9))
    for x in (-1, 1):
        pen.line((0.5 + 0.2 * x, 0.82), (0.5 + 0.33 * x, 0.99), width=0.06)
        pen.ellipse(0.5 + 0.27 * x - 0.19, 0, 0.5 + 0.27 * x + 0.19, 0.26, (206, 182, 92))
    pen.disc(0.5, 0.54, 0.42, case)
    pen.disc(0.5, 0.54, 0.33, (248, 246, 236))
    for hour in range(12):
        angle = math.tau * hour / 12
        inner, outer = (0.235 if hour % 3 == 0 else 0.265), 0.3
        pen.line(*((0.5 + r * math.sin(angle), 0.54 - r * math.cos(angle)) for r in (inner, outer)), width=0.025)
    for length, width, angle in ((0.15, 0.04, random.uniform(0, math.tau)), (0.24, 0.028, random.uniform(0, math.tau))):
        pen.line((0.5, 0.54), (0.5 + length * math.sin(angle), 0.54 - length * math.cos(angle)), width=width)
    pen.disc(0.5, 0.54, 0.03, (200, 40, 40))


def _fish(pen: Pen, random: Random) -> None:
    """A tropical fish: striped body, fins, forked tail, a round eye."""
    hue = random.random()
    body, stripe = _paint(hue, 0.75, 0.97), _paint(hue + random.uniform(0.3, 0.6), 0.6, 0.55)
    fin = _paint(hue + 0.05, 0.85, 0.75)
    pen.polygon((0.66, 0.5), (1, 0.1), (0.9, 0.5), (1, 0.9), fill=fin)
    pen.polygon((0.22, 0.24), (0.42, 0), (0.66, 0.3), fill=fin)
    pen.polygon((0.34, 0.76), (0.52, 1), (0.6, 0.72), fill=fin)
    pen.ellipse(0, 0.12, 0.8, 0.88, body)
    for x in (0.34, 0.5, 0.64):
        reach = 0.37 * math.sqrt(1 - ((x - 0.4) / 0.4) ** 2)
        pen.ellipse(x - 0.035, 0.5 - reach, x + 0.035, 0.5 + reach, stripe, outline=False)
    pen.disc(0.15, 0.4, 0.085, (250, 250, 250))
    pen.disc(0.14, 0.4, 0.045, _DARK)
    pen.line((0.02, 0.6), (0.1, 0.64), (0.15, 0.61), width=0.025)


def _house(pen: Pen, random: Random) -> None:
    """A house: pitched roof with a chimney, a door, two windows."""
    wall = _paint(random.uniform(0.02, 0.18), random.uniform(0.1, 0.35), random.uniform(0.85, 0.98))
    roof = _paint(random.choice([0.01, 0.03, 0.6, 0.35]), 0.6, random.uniform(0.45, 0.7))
    door = _paint(random.random(), 0.65, 0.5)
    pen.box(0.7, 0.06, 0.82, 0.35, (140, 78, 62))
    pen.box(0.08, 0.38, 0.92, 1, wall)
    pen.polygon((0, 0.42), (0.5, 0), (1, 0.42), fill=roof)
    for row, half in ((0.14, 0.13), (0.24, 0.25), (0.33, 0.36)):
        pen.line((0.5 - half, row), (0.5 + half, row), width=0.01)
    pen.box(0.41, 0.62, 0.59, 1, door)
    pen.disc(0.555, 0.82, 0.015, (240, 220, 120))
    for x in (0.15, 0.66):
        pen.box(x, 0.54, x + 0.19, 0.74, _GLASS)
        pen.line((x + 0.095, 0.54), (x + 0.095, 0.74), width=0.014)
        pen.line((x, 0.64), (x + 0.19, 0.64), width=0.014)


def _mug(pen: Pen, random: Random) -> None:
    """A mug: a handle, a dark drink, bands around it."""
    hue = random.random()
    glaze, band = _paint(hue, random.uniform(0.15, 0.7), 0.93), _paint(hue + 0.45, 0.7, 0.6)
    pen.ring(0.52, 0.26, 1, 0.78, glaze, 0.1)
    pen.polygon((0, 0.12), (0.74, 0.12), (0.7, 0.94), (0.04, 0.94), fill=glaze)
    pen.ellipse(0.04, 0.85, 0.7, 1, glaze)
    pen.polygon((0.05, 0.8), (0.69, 0.8), (0.68, 0.93), (0.06, 0.93), fill=glaze, outline=False)
    for y in (0.42, 0.66) if random.random() < 0.5 else (0.52,):
        pen.polygon((0.018, y), (0.722, y), (0.718, y + 0.1), (0.022, y + 0.1), fill=band)
    pen.ellipse(0, 0, 0.74, 0.25, glaze)
    pen.ellipse(0.05, 0.045, 0.69, 0.215, (74, 44, 26))


def _paint(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


OBJECTS: dict[str, tuple[Callable[[Pen, Random], None], float, float]] = {
    "balloon": (_balloon, 0.76, 10),
    "car": (_car, 2.0, 7),
    "clock": (_clock, 1.0, 14),
    "fish": (_fish, 1.6, 18),
    "house": (_house, 1.05, 4),
    "mug": (_mug, 1.15, 8),
}
"""Class to how it is drawn, its width over its height, and the most degrees by which it is tilted."""

# --- backgrounds


def _grain(random: Random, height: int, width: int, cell_x: float, cell_y: float) -> NDArray[np.float32]:
    """Smooth random values, about normal: one per cell, interpolated. (height, width)."""
    grid = random.normal(size=(math.ceil(height / cell_y) + 1, math.ceil(width / cell_x) + 1)).astype(np.float32)
    return np.array(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _clouds(random: Random, height: int, width: int, cell: float) -> NDArray[np.float32]:
    """Grain at four sizes, the finer the fainter."""
    return sum(
        (_grain(random, height, width, cell / 2**k, cell / 2**k) / 1.8**k for k in range(4)),
        np.zeros((height, width), np.float32),
    )


def _tint(values: NDArray[np.float32], low: Colour, high: Colour) -> Texture:
    """Values from 0 to 1 as colours between two."""
    share = np.clip(values, 0, 1)[..., None]
    return (np.array(low, np.float32) * (1 - share) + np.array(high, np.float32) * share).astype(np.float32)


def _grass(random: Random, height: int, width: int) -> Texture:
    blades = _grain(random, height, width, 2, 9) + 0.6 * _grain(random, height, width, 3, 14)
    return _tint(0.5 + 0.16 * blades + 0.1 * _clouds(random, height, width, 70), (38, 74, 24), (150, 184, 84))


def _bricks(random: Random, height: int, width: int) -> Texture:
    high, wide = random.integers(16, 26), random.integers(38, 60)
    row = np.arange(height)[:, None] // high
    along = np.arange(width)[None, :] + (row % 2) * (wide // 2)
    shade = random.normal(0, 0.16, (height // high + 1, (width + wide) // wide + 1))[row, along // wide]
    wall = _tint(0.5 + shade + 0.08 * _clouds(random, height, width, 12), (128, 58, 42), (196, 118, 88))
    mortar = ((np.arange(height) % high) < 2)[:, None] | ((along % wide) < 2)
    wall[mortar] = 168 + 6 * random.normal(size=(int(mortar.sum()), 1))
    return wall


def _wood(random: Random, height: int, width: int) -> Texture:
    plank = random.integers(44, 72)
    row = np.arange(height)[:, None] // plank
    start = random.uniform(0, 60, height // plank + 1)[row]
    wave = start + np.arange(height)[:, None] / 3.5 + 1.6 * _grain(random, height, width, 90, 18)
    shade = random.normal(0.5, 0.12, height // plank + 1)[row]
    boards = _tint(
        shade + 0.12 * np.sin(wave) + 0.06 * _grain(random, height, width, 24, 2), (104, 66, 34), (206, 158, 104)
    )
    boards[(np.arange(height) % plank) < 2] *= 0.45
    return boards


def _water(random: Random, height: int, width: int) -> Texture:
    y = np.arange(height)[:, None] / height
    ripples = np.sin(14 * np.log1p(4 * y) * 2 + 1.6 * _grain(random, height, width, 46, 12))
    return _tint(
        0.42 + 0.2 * ripples + 0.1 * _grain(random, height, width, 16, 4) + 0.2 * (0.5 - y),
        (18, 66, 108),
        (140, 202, 220),
    )


def _sky(random: Random, height: int, width: int) -> Texture:
    y = np.broadcast_to(np.linspace(0, 1, height, dtype=np.float32)[:, None], (height, width))
    cover = np.clip(0.4 * _clouds(random, height, width, 90) + 0.1, 0, 1)[..., None]
    return _tint(y, (66, 124, 196), (176, 210, 236)) * (1 - cover) + cover * np.array((244, 245, 248), np.float32)


def _cloth(random: Random, height: int, width: int) -> Texture:
    hue, pitch = random.random(), random.integers(26, 44)
    y, x = np.mgrid[0:height, 0:width]
    checks = ((x // pitch) % 2 + (y // pitch) % 2) / 2
    thread = 0.07 * (((x + y) % 4) < 2) + 0.05 * _grain(random, height, width, 3, 3)
    pattern = checks + thread + 0.06 * _clouds(random, height, width, 80)
    return _tint(pattern.astype(np.float32), _paint(hue, 0.3, 0.92), _paint(hue, 0.6, 0.6))


def _pebbles(random: Random, height: int, width: int) -> Texture:
    """One stone around a random site in each cell of a grid, darker towards the border with its neighbour."""
    cell = int(random.integers(17, 25))
    rows, columns = height // cell + 3, width // cell + 3
    sites = random.uniform(0, cell, (rows, columns, 2)).astype(np.float32)
    tones = random.normal(0.55, 0.16, (rows, columns)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.int32)
    nearest, second = np.full((2, height, width), np.inf, np.float32)
    tone = np.zeros((height, width), np.float32)
    for down in range(3):
        for right in range(3):
            row, column = y // cell + down, x // cell + right
            site = sites[row, column]
            away = np.hypot((row - 1) * cell + site[..., 0] - y, (column - 1) * cell + site[..., 1] - x)
            second = np.minimum(second, np.maximum(nearest, away))
            tone = np.where(away < nearest, tones[row, column], tone)
            nearest = np.minimum(nearest, away)
    relief = tone * np.clip(0.3 + (second - nearest) / 9, 0, 1)
    return _tint(relief + 0.05 * _grain(random, height, width, 2, 2), (46, 44, 44), (214, 204, 188))


BACKGROUNDS: tuple[Callable[[Random, int, int], Texture], ...] = (
    _grass,
    _bricks,
    _wood,
    _water,
    _sky,
    _cloth,
    _pebbles,
)
"""What lies behind the objects; it tells nothing about them."""
