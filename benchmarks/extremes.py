"""Selective search on images that are no photographs: seconds, memory and boxes.

    python -m benchmarks.extremes [--side 8000] [--only NAME...] [--json]

Every image is searched in a process of its own, as it is and (``propose``) as ``spp propose`` does it: at 500 pixels,
sides of 20 and more, at most 2,000 boxes. Memory is what the process has at its highest above what it has with the
image (on Linux); seconds are without the start of the process and the compiler.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.images.decode import RGB
from pipeline.proposals.methods import propose
from pipeline.proposals.selective_search import SelectiveSearch


def noise(height: int, width: int) -> RGB:
    """Every value at random."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def flat(height: int, width: int) -> RGB:
    """One colour."""
    return np.full((height, width, 3), 90, np.uint8)


def grey(height: int, width: int) -> RGB:
    """A ramp with soft waves, the three channels alike."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = 120 + 60 * np.sin(y / 23) * np.cos(x / 31) + 40 * x / width
    return np.repeat(waves.astype(np.uint8)[:, :, None], 3, axis=2)


def stars(height: int, width: int) -> RGB:
    """Small squares of many colours on black, 40 pixels apart: one region that has all others for neighbours."""
    image = np.zeros((height, width, 3), np.uint8)
    colours = np.random.default_rng(0).integers(60, 256, (height // 40, width // 40, 3), np.uint8)
    for dy in range(14):
        for dx in range(14):
            image[dy + 10 :: 40, dx + 10 :: 40][: colours.shape[0], : colours.shape[1]] = colours
    return image


def squares(height: int, width: int) -> RGB:
    """A mosaic of squares of 20 pixels."""
    colours = np.random.default_rng(0).integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), np.uint8)
    return np.ascontiguousarray(colours.repeat(20, axis=0).repeat(20, axis=1)[:height, :width])


MAKERS: dict[str, Callable[[int, int], RGB]] = {f.__name__: f for f in (flat, grey, noise, squares, stars)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8000, help="of the largest images")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS), help="kinds of images")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    cases = [(name, side, side) for side in (1, 8, 32) for name in ("flat", "noise")]
    cases += [(name, *size) for size in ((1, 5000), (5000, 1)) for name in ("flat", "noise")]
    cases += [(name, side, side) for side in (500, given.side) for name in MAKERS]
    cases = [case for case in cases if case[0] in given.only]
    table = Table(title="Selective search of images that are no photographs, one core", title_justify="left")
    for heading in ("image", "searched as it is", "memory", "boxes", "propose", "memory", "boxes"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    results = []
    for name, height, width in track(cases, "searching", console=Console(stderr=True)):
        cells, values = [], {"name": f"{name} {width} x {height}"}
        for whole in (True, False):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, memory, boxes = pool.apply(_measure, (name, height, width, whole))
            cells += [f"{seconds:.3f} s", f"{memory / 1e6:,.0f} MB", f"{boxes:,}"]
            way = "searched as it is" if whole else "propose"
            values |= {f"{way}, s": seconds, f"{way}, bytes": memory, f"{way}, boxes": boxes}
        table.add_row(values["name"], *cells)
        results.append(values)
    Console(width=120).print(table)
    if given.json:
        print(json.dumps({"cases": results}), flush=True)
    return 0


def _measure(name: str, height: int, width: int, whole: bool) -> tuple[float, int, int]:
    cv2.setNumThreads(1)
    search = SelectiveSearch()
    search.warm_up()
    image = MAKERS[name](height, width)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far: that of the compiler, and of the maker
    before = _resident("VmRSS")
    start = perf_counter()
    boxes = len(search(image, 0)) if whole else len(propose(search, image, 0))
    seconds = perf_counter() - start
    return seconds, _resident("VmHWM") - before, boxes


def _resident(which: str) -> int:
    """Bytes in memory, of this process on Linux: now (VmRSS), or at the highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
