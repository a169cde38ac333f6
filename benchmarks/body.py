"""A body's network by each engine, at each precision, on photographs: seconds, error of the map, memory, first use.

    python -m benchmarks.body [--data DIR] [--images N] [--bodies NAME ...] [--engines E ...] [--precisions P ...]
                              [--threads N ...] [--scales N ...] [--json]

Every way to run a body takes each photograph once, in turn with all others, at one of the body's usual scales after the
other (``SCALES``). Ours: seconds an image, the median, from resized pixels to the map. Peer: PyTorch in float32, with
as many threads, in the same run. Several threads: so many images at once, each by one thread, as an actor of
several cores has it; the seconds are then those of a batch of images by their number.

Error: |map - PyTorch's float32 map| / |that map| (Euclidean), mean over photographs; ``largest``: the largest. Memory
and first use are those of a process of its own, in which PyTorch has run the body before: growth of what is resident up
to the third image, of another size; and seconds until the first map, less one more of the same image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import processor
from benchmarks.pooling import VOC_SUBSET
from pipeline.bodies import BODIES, Body, Engine, EngineError, Precision, body_spec, load_state
from pipeline.images.decode import RGB, decode_image
from pipeline.published_weights import published_file
from pipeline.spp.windows import scaled_size

PAPER = (480, 576, 688, 864, 1200)
SCALES = dict.fromkeys(("alexnet", "convnet5", "overfeat5", "overfeat7", "vgg16", "zf5"), PAPER)
"""Where they are usual; 480 alone for others."""

ENGINES: tuple[Engine, ...] = get_args(Engine)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
"""By default without float16, for which no CPU that was measured is made."""


@dataclass(frozen=True)
class Way:
    """One way to run a body."""

    body: str
    engine: Engine
    precision: Precision
    threads: int

    def make(self) -> Body:
        """The body, with its published weights if they are on this machine."""
        spec = body_spec(self.body)
        published = published_file(self.body)
        weights = "default" if published is not None and published.is_file() else "random"
        state = load_state(spec, weights)
        return Body(spec, state, engine=self.engine, precision=self.precision, at_once=self.threads)


@dataclass
class Measured:
    """What is found of a way: seconds an image, ``peer``'s, error of the map, bytes, and seconds of the first use."""

    way: Way
    seconds: float
    peer: float
    spread: float
    error: float
    largest: float
    memory: int
    first_use: float

    @property
    def case(self) -> dict[str, object]:
        """What is told as JSON."""
        way = self.way
        threads = f", {way.threads} threads" if way.threads > 1 else ""
        return {
            "name": f"{way.body}, {way.engine}, {way.precision}{threads}",
            "ours": self.seconds,
            "peer": self.peer,
            "ratio": self.ratio,
            "error": self.error,
            "largest error": self.largest,
            "memory": self.memory,
            "first use": self.first_use,
        }

    @property
    def ratio(self) -> float:
        """How many times faster than PyTorch in float32."""
        return self.peer / self.seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if an engine's float32 map is not PyTorch's within a thousandth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=VOC_SUBSET, metavar="DIR", help="folder of JPEG images")
    parser.add_argument("--images", type=int, default=40, metavar="N")
    parser.add_argument("--bodies", nargs="+", default=list(BODIES), metavar="NAME")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--scales", type=int, nargs="+", metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    files = sorted(path for path in options.data.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    photographs = [decode_image(path.read_bytes()) for path in files[: options.images]]
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: list[Measured] = []
    for name, threads in itertools.product(options.bodies, options.threads):
        ways = [Way(name, e, p, threads) for e, p in itertools.product(options.engines, options.precisions)]
        scales = options.scales or SCALES.get(name, (480,))
        found += _measure(ways, photographs, scales)
        _show(found)
    if options.json:
        notes = [f"{processor()}; {len(photographs)} photographs; memory in bytes, first use in seconds"]
        print(json.dumps({"notes": notes, "cases": [one.case for one in found]}), flush=True)
    return int(any(one.way.precision == "float32" and not one.error < 1e-3 for one in found))


def _measure(ways: Sequence[Way], photographs: Sequence[RGB], scales: Sequence[int]) -> Iterator[Measured]:
    """Of ways that differ in engine and precision alone."""
    reference = Way(ways[0].body, "torch", "float32", ways[0].threads)
    bodies: dict[Way, Body] = {reference: reference.make()}
    for way in ways:
        try:
            bodies.setdefault(way, way.make())
        except EngineError as error:
            print(f"{way.body}: {error}", file=sys.stderr)
    at_once = 1 if reference.threads == 1 else 2 * reference.threads
    seconds: dict[Way, list[float]] = {way: [] for way in bodies}
    errors: dict[Way, list[float]] = {way: [] for way in bodies}
    with ThreadPoolExecutor(reference.threads) as pool:
        for number, start in enumerate(range(0, len(photographs) + 1 - at_once, at_once)):
            images = [_resized(image, scales[number % len(scales)]) for image in photographs[start : start + at_once]]
            expected: list[torch.Tensor] = []
            for way, body in bodies.items():
                began = time.perf_counter()
                maps = list(pool.map(lambda image, body=body: _map(body, image), images))
                seconds[way].append((time.perf_counter() - began) / at_once)
                expected = expected or maps
                errors[way] += [_distance(one, other) for one, other in zip(maps, expected, strict=True)]
    small = _resized(photographs[0], min(scales))
    for way in (way for way in ways if way in bodies):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            memory, first_use = process.submit(_first_use, way, small).result()
        # by scales, which take turns: the median over all would be that of the middle one
        own, peers = (_by_scale(seconds[one], len(scales)) for one in (way, reference))
        yield Measured(
            way,
            seconds=statistics.mean(own),
            peer=statistics.mean(peers),
            spread=_spread(seconds[way][:: len(scales)]),
            error=statistics.mean(errors[way]),
            largest=max(errors[way]),
            memory=memory,
            first_use=first_use,
        )


def _map(body: Body, image: RGB) -> torch.Tensor:
    torch.set_num_threads(1)  # each thread's own
    return body.conv_map_of(body.preprocess(image))


def _resized(image: RGB, scale: int) -> RGB:
    height, width = scaled_size(image.shape[0], image.shape[1], scale)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def _by_scale(seconds: Sequence[float], scales: int) -> list[float]:
    """The median of each scale, of images that took one scale after the other."""
    return [statistics.median(seconds[i::scales]) for i in range(min(scales, len(seconds)))]


def _spread(seconds: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    if len(seconds) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / 2 / middle


def _first_use(way: Way, image: RGB) -> tuple[int, float]:
    """Bytes and seconds that a way takes in a process of its own."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _map(Way(way.body, "torch", "float32", 1).make(), image)  # what is imported and read, whatever the way
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    body = way.make()
    _map(body, image)
    first = time.perf_counter() - began
    began = time.perf_counter()
    _map(body, image)
    again = time.perf_counter() - began
    _map(body, np.ascontiguousarray(image[:, : image.shape[1] * 3 // 4]))
    return psutil.Process().memory_info().rss - before, first - again


def _show(found: Sequence[Measured]) -> None:
    table = Table(title=f"Bodies by engine and precision: {processor()}", title_justify="left")
    table.add_column("body", no_wrap=True)
    for heading in ("engine", "precision", "threads", "s/image", "+-", "ratio", "error", "largest", "MB", "first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        way = one.way
        table.add_row(
            *(way.body, way.engine, way.precision, str(way.threads)),
            *(f"{one.seconds:.4f}", f"{one.spread:.0%}", f"{one.ratio:.2f}x", f"{one.error:.1e}", f"{one.largest:.1e}"),
            *(f"{one.memory / 1e6:.0f}", f"{one.first_use:.2f} s"),
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    sys.exit(main())
