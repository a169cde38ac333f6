"""Spatial pyramid pooling against torchvision's ``roi_pool``, on real windows.

    python -m benchmarks.pooling [--data DIR] [--images N] [--rounds N] [--json]

Windows: proposals, up to 2,000 an image, of the first N images by name under DIR (default: the VOC2012 part of
``shared/data/voc_subset`` beside the checkout, else pictures that the demo draws), on AlexNet's map at scale 688.

Ours: the body's float32 map in, float16 vectors of 50 bins out, rounding included, into a buffer that is used again
for every image, as the actor does; beside it with a fresh output each time. Peer: four calls of ``roi_pool``, for 6x6,
3x3, 2x2 and 1x1, on the same float32 map, already contiguous as it wants it, with whole-cell windows; to put its four
results in order and round them is not counted. Limit: writing the output's bytes once (memset), by as many threads.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torchvision.ops import roi_pool

from benchmarks.comparison import Case, report, take_turns, timed_case
from jobs.demo.drawing import draw_scene
from pipeline.bodies import BODIES, Body, load_state
from pipeline.features.regions import RegionExtractor
from pipeline.images.decode import RGB, decode_image
from pipeline.proposals.methods import propose, seed_of
from pipeline.proposals.selective_search import SelectiveSearch
from pipeline.spp import pyramid
from pipeline.spp.windows import Windows

SCALE = 688
VOC_SUBSET = Path(__file__).parents[2] / "shared/data/voc_subset/VOCdevkit/VOC2012/JPEGImages"
SIZES = {"small": (0, 64), "medium": (64, 400), "large": (400, 10**9)}
"""Cells of a window: more than the first, at most the second."""


@dataclass(frozen=True)
class Windowed:
    """An image's windows and its float32 map: (C, H, W) as the body gives it, (1, C, H, W) contiguous for the peer."""

    name: str
    conv_map: torch.Tensor
    peers_map: torch.Tensor
    windows: Windows

    def only(self, low: int, high: int) -> Windowed:
        """With those windows that have more than ``low`` and at most ``high`` cells."""
        x1, y1, x2, y2 = self.windows.astype(np.int64).T
        cells = (x2 - x1 + 1) * (y2 - y1 + 1)
        return Windowed(self.name, self.conv_map, self.peers_map, self.windows[(cells > low) & (cells <= high)])


def pool_ours(item: Windowed, threads: int, out: NDArray[np.float16] | None) -> NDArray[np.float16]:
    """What ``RegionExtractor`` does with a map: round it, pool it."""
    rounded = pyramid.half(item.conv_map.permute(1, 2, 0).half().numpy())
    return pyramid.pool(rounded, item.windows, threads=threads, out=out)


def pool_peers(item: Windowed) -> list[torch.Tensor]:
    """Four (N, C, n, n) tensors."""
    rois = torch.zeros((len(item.windows), 5))
    rois[:, 1:] = torch.from_numpy(item.windows.astype(np.float32))
    return [roi_pool(item.peers_map, rois, (n, n), spatial_scale=1.0) for n in pyramid.LEVELS]


def agree(item: Windowed, threads: int) -> bool:
    """Whether both sides give the same bits, once the peer's are in our order and rounded."""
    bins = [grid.permute(0, 2, 3, 1).flatten(1) for grid in pool_peers(item)]
    expected = torch.cat(bins, dim=1).half() + 0.0
    found = pool_ours(item, threads, None)
    return np.array_equal(found.view(np.uint16), expected.numpy().view(np.uint16))


def write_once(out: NDArray[np.float16], threads: int, workers: ThreadPoolExecutor) -> None:
    """The bytes of ``out`` written once, by so many threads."""
    if threads == 1:
        out.fill(0)
        return
    cuts = np.linspace(0, len(out), threads + 1).astype(int)
    list(workers.map(lambda part: out[part[0] : part[1]].fill(0), itertools.pairwise(cuts)))


def compare(name: str, items: Sequence[Windowed], threads: int, rounds: int, fresh: bool = False) -> Case:
    """Time both sides over all images."""
    torch.set_num_threads(threads)
    dim = len(items[0].conv_map) * pyramid.bin_count(pyramid.LEVELS)
    most = max(len(item.windows) for item in items)
    buffer = None if fresh else np.zeros((most, dim), np.float16)

    def each(run: Callable[[Windowed], object]) -> Callable[[], None]:
        def all_images() -> None:
            for item in items:
                run(item)

        return all_images

    def limit(item: Windowed) -> None:
        rows = len(item.windows)
        write_once(np.empty((rows, dim), np.float16) if buffer is None else buffer[:rows], threads, workers)

    ours = each(lambda item: pool_ours(item, threads, buffer))
    with ThreadPoolExecutor(threads) as workers:
        samples = take_turns({"ours": ours, "peer": each(pool_peers), "limit": each(limit)}, rounds)
    return timed_case(name, samples, equal=all(agree(item, threads) for item in items))


def read_images(folder: Path | None, count: int) -> dict[str, RGB]:
    """The first images by name under a folder, or drawn ones."""
    if folder is None:
        return {f"drawn {number}": draw_scene(number).image for number in range(count)}
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")][:count]
    if not paths:
        raise SystemExit(f"no .jpg or .png under {folder}")
    return {path.stem: decode_image(path.read_bytes()) for path in paths}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if the results differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pooling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=VOC_SUBSET if VOC_SUBSET.is_dir() else None, metavar="DIR")
    parser.add_argument("--images", type=int, default=6, metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)

    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(every)
    spec = BODIES["alexnet"]
    extractor = RegionExtractor(Body(spec, load_state(spec, "random")), (SCALE,))
    items = []
    for name, image in read_images(options.data, options.images).items():
        boxes = propose(SelectiveSearch(), image, seed_of(name, 0)).boxes
        conv_map = extractor.body.conv_map(image, SCALE)
        windows = extractor.windows(boxes, *image.shape[:2])[1]
        items.append(Windowed(name, conv_map, conv_map[None].contiguous(), windows))
    pyramid.warm_up()

    cases = []
    for threads in sorted({1, every}):
        label = "1 thread" if threads == 1 else f"{threads} threads"
        cases.append(compare(f"real mix, {label}", items, threads, options.rounds))
        cases.append(compare(f"real mix, {label}, fresh output", items, threads, options.rounds, fresh=True))
        for size, bounds in SIZES.items():
            chosen = [part for part in (item.only(*bounds) for item in items) if len(part.windows)]
            if chosen:
                cases.append(compare(f"{size} windows, {label}", chosen, threads, options.rounds))
    counts = {size: sum(len(item.only(*bounds).windows) for item in items) for size, bounds in SIZES.items()}
    notes = [
        f"{sum(counts.values())} windows of {len(items)} images at scale {SCALE}: {', '.join(i.name for i in items)}",
        f"small: up to 64 cells ({counts['small']}), medium: up to 400 ({counts['medium']}), large ({counts['large']})",
        "ours: float16 vectors of 50 bins into a reused buffer, as the actor does; peer: four roi_pool calls",
        "limit: the output's bytes written once; medians of "
        f"{options.rounds} interleaved rounds; torch {torch.__version__}, torchvision {torchvision.__version__}",
    ]
    return report("Spatial pyramid pooling against torchvision.ops.roi_pool", notes, cases, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
