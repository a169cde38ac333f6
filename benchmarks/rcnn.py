"""SPP-net against R-CNN: one pass of the body an image, or one a window (paper 4.3 and its Tables 9 and 10).

    python -m benchmarks.rcnn [--data DIR] [--images N] [--windows N] [--threads N] [--rounds N] [--json]

AlexNet with random weights, the same for both; real windows, up to 2,000 an image, of those photographs under DIR that
have most of them (of the first ones by name, four for each that is taken). Same processor, same number of threads.

R-CNN: ``pipeline.warping``, every window warped to 224 x 224 and through the body, so many at a time as is fastest
(searched first), its warping (one thread: OpenCV finds too little in a window for two) apart from its conv. Its pool5
is the body's own last pooling, 9,216 numbers. It takes minutes: so that whatever disturbs the machine disturbs both
sides alike, a round has a part of its windows, drawn at random, whose seconds count for all, and in the end every
window has had its turn.

Ours: ``RegionExtractor``, 12,800 numbers a window, resizing and pooling included, at one scale (688) and at the
paper's five.

Limit of the first cases: R-CNN's seconds over the ratio of multiply-accumulates, that is, ours without pooling and
resizing, if each multiplication took as long as R-CNN's.

Then from decoded image with windows to 20 class scores for each: SVMs on pool5, on fc7 (4,096 and 4,096 outputs), and
on fc7 with fc6 and fc7 truncated to ranks 1,024 and 256 (Fast R-CNN 3.1); the peer is R-CNN's pool5 or fc7.

Equal: both sides have numbers, all of them finite, for the same windows, and R-CNN's vectors of some are those that our
extractor gives for their warped crops as images of their own, up to float16's last digit. What the two say of a window
differs: that is what the paper's mAP is about, not this.

Exits with 1 if ours is less than 100 times (one scale) or 15 times (five) faster than R-CNN's conv alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Case, Sample, report, take_turns
from benchmarks.pooling import VOC_SUBSET, read_images
from pipeline import pyramid
from pipeline.bodies import BODIES, Body, BodySpec, load_state
from pipeline.boxes import Boxes, as_boxes
from pipeline.extraction import RegionExtractor
from pipeline.head import SIZES, Embedder, compressed, new_head
from pipeline.images import RGB
from pipeline.phases import PhaseClock
from pipeline.proposals import propose, seed_of
from pipeline.scoring import LinearScorer
from pipeline.selective_search import SelectiveSearch
from pipeline.warping import WarpExtractor, warp
from pipeline.windows import scaled_size

SCALES = {"1 scale": (688,), "5 scales": (480, 576, 688, 864, 1200)}
WANTED = {"1 scale": 100, "5 scales": 15}
"""Times faster than R-CNN's conv."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TRIED = 128
"""Windows of a try of a batch size."""

CANDIDATES = 4
CLASSES = 20
RANKS = (1024, 256)
POOL5 = (6,)
"""R-CNN's pyramid."""

TRUNCATED = ", truncated"


@dataclass(frozen=True)
class Photograph:
    """An image with its windows."""

    name: str
    image: RGB
    boxes: Boxes

    def parts(self, count: int) -> list[Photograph]:
        """So many photographs that share its windows out at random."""
        rows = np.random.default_rng(0).permutation(len(self.boxes))
        return [Photograph(self.name, self.image, self.boxes[part]) for part in np.array_split(rows, count)]


@dataclass(frozen=True)
class Tail:
    """Vectors to class scores: through the head, where there is one, and the SVMs."""

    embed: Embedder | None
    score: LinearScorer

    def __call__(self, vectors: NDArray[np.float16], name: str, clock: PhaseClock) -> NDArray[np.float32]:
        if self.embed is not None:
            with clock.phase(f"{name} fc"):
                vectors = self.embed(vectors).astype(np.float16)
        with clock.phase(f"{name} svm"):
            return self.score(vectors)


class Side:
    """One way from images with windows to class scores.

    Each call goes it once for every photograph, with one of the ``parts`` of its windows, which take turns, and keeps
    the seconds that each phase would take for all windows of an image.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        extractor: RegionExtractor | WarpExtractor,
        tails: Mapping[str, Tail],
        parts: int = 1,
    ) -> None:
        self.extractor, self.tails = extractor, tails
        self.finite = True
        self._windows = sum(len(p.boxes) for p in photographs)
        self._turns = itertools.cycle(zip(*(photograph.parts(parts) for photograph in photographs), strict=True))
        self._buffer = np.zeros((max(len(p.boxes) for p in photographs), extractor.dim), np.float16)
        self._rounds: list[dict[str, float]] = []

    def __call__(self) -> None:
        self.extractor.clock = clock = PhaseClock()
        turn = next(self._turns)
        for photograph in turn:
            with clock.phase("extract"):
                found = self.extractor(photograph.image, photograph.boxes, out=self._buffer).vectors
            scores = [tail(found, name, clock) for name, tail in self.tails.items()]
            numbers: list[NDArray[np.floating]] = [found, *scores]
            self.finite &= all(len(part) == len(photograph.boxes) and np.isfinite(part).all() for part in numbers)
        share = sum(len(photograph.boxes) for photograph in turn) / self._windows
        self._rounds.append({phase: value / share / len(turn) for phase, value in clock.seconds.items()})

    def sample(self, *phases: str) -> Sample:
        """Seconds an image of these phases together; the first round is not counted, as in ``take_turns``."""
        return Sample(tuple(sum(seconds.get(phase, 0) for phase in phases) for seconds in self._rounds[1:]))

    def to_scores(self, name: str) -> Sample:
        """Seconds from an image to the class scores of a tail."""
        return self.sample("extract", f"{name} fc", f"{name} svm")

    def phases(self) -> str:
        """Every phase's seconds an image."""
        return ", ".join(f"{name} {self.sample(name).median:.3f}" for name in self._rounds[0] if name != "extract")


def choose(folder: Path | None, count: int) -> list[Photograph]:
    """The photographs with most windows, by name, among the first under a folder."""
    found = [
        Photograph(name, image, propose(SelectiveSearch(), image, seed_of(name, 0)).boxes)
        for name, image in read_images(folder, CANDIDATES * count).items()
    ]
    most = sorted(found, key=lambda photograph: -len(photograph.boxes))[:count]
    return sorted(most, key=lambda photograph: photograph.name)


def multiplications(spec: BodySpec, height: int, width: int) -> int:
    """Multiply-accumulates of the body on an input of this size, from its layers."""
    with torch.device("meta"):
        network, batch = spec.build().eval(), torch.empty(1, 3, spec.padded_length(height), spec.padded_length(width))
    with FlopCounterMode(display=False) as counter:
        network(batch)
    return counter.get_total_flops() // 2


def multiplications_at(spec: BodySpec, photographs: Sequence[Photograph], scales: Sequence[int]) -> int:
    """Of all photographs at all scales."""
    sizes = [scaled_size(p.image.shape[0], p.image.shape[1], scale) for p in photographs for scale in scales]
    return sum(multiplications(spec, height, width) for height, width in sizes)


def search_batch(body: Body, photograph: Photograph, threads: int) -> dict[int, float]:
    """Batch size to milliseconds of conv a window, the better of two tries."""
    few = photograph.parts(-(-len(photograph.boxes) // TRIED))[0]
    times: dict[int, float] = {}
    for _ in range(2):
        for batch in BATCHES:
            clock = PhaseClock()
            WarpExtractor(body, POOL5, batch=batch, threads=threads, clock=clock)(few.image, few.boxes)
            tried = clock.seconds["conv"] / len(few.boxes) * 1e3
            times[batch] = min(tried, times.get(batch, tried))
    return times


def new_tails(dim: int, truncate: bool) -> dict[str, Tail]:
    """Tails for vectors of this length, by name, their weights random."""
    random = np.random.default_rng(0)

    def svms(size: int) -> LinearScorer:
        return LinearScorer(random.standard_normal((CLASSES, size)), np.zeros(CLASSES), 1.0)

    head = new_head(dim, SIZES, CLASSES + 1, seed=0, rms=1.0)
    tails = {"pool5": Tail(None, svms(dim)), "fc7": Tail(Embedder(head, "fc7"), svms(SIZES[1]))}
    if truncate:
        tails["fc7" + TRUNCATED] = Tail(Embedder(compressed(head, RANKS), "fc7"), tails["fc7"].score)
    return tails


def same_as_of_crops(body: Body, photograph: Photograph, rcnn: WarpExtractor, count: int = 4) -> bool:
    """Whether R-CNN's first vectors are those that ours gives for warped crops, up to float16's last digit."""
    size, whole = body.spec.input_size, as_boxes([0, 0, body.spec.input_size, body.spec.input_size])
    ours = RegionExtractor(body, (size,), levels=rcnn.levels)
    crops = [warp(photograph.image, box, size, rcnn.context, rcnn.fill) for box in photograph.boxes[:count]]
    expected = np.concatenate([ours(crop, whole).vectors for crop in crops]).astype(np.float32)
    found = rcnn(photograph.image, photograph.boxes[:count]).vectors.astype(np.float32)
    return np.allclose(found, expected, rtol=2**-10, atol=1e-5 * expected.max())


def compared(name: str, ours: Sample, peer: Sample, equal: bool, ceiling: float | None = None) -> Case:
    """The case of two samples; ``ceiling``: what the ratio would be if only multiplications took time."""
    limit = None if ceiling is None else peer.median / ceiling
    return Case(name, ours.median, peer.median, limit, equal, spread=ours.spread + peer.spread)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a target is missed or something is not finite."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rcnn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=VOC_SUBSET if VOC_SUBSET.is_dir() else None, metavar="DIR")
    parser.add_argument("--images", type=int, default=2, metavar="N")
    parser.add_argument("--windows", type=int, default=500, metavar="N", help="of an image, for R-CNN in a round")
    parser.add_argument("--threads", type=int, default=every, metavar="N")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="or more, for all windows")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    load = os.getloadavg()[0]

    spec = BODIES["alexnet"]
    body = Body(spec, load_state(spec, "random"))
    photographs = choose(options.data, options.images)
    windows, most = sum(len(p.boxes) for p in photographs), max(len(p.boxes) for p in photographs)
    parts = -(-most // options.windows)
    rounds = max(options.rounds, parts)
    pyramid.warm_up()
    tries = search_batch(body, photographs[0], options.threads)
    batch = min(tries, key=lambda size: tries[size])
    rcnn = WarpExtractor(body, POOL5, batch=batch, threads=options.threads)
    peer = Side(photographs, rcnn, new_tails(rcnn.dim, truncate=False), parts)
    ours: dict[str, Side] = {}
    for name, scales in SCALES.items():
        extractor = RegionExtractor(body, scales, threads=options.threads)
        tails = next(iter(ours.values())).tails if ours else new_tails(extractor.dim, truncate=True)
        ours[name] = Side(photographs, extractor, tails)
    take_turns({"R-CNN": peer, **ours}, rounds)

    equal = same_as_of_crops(body, photographs[0], rcnn) and peer.finite and all(side.finite for side in ours.values())
    alone = multiplications(spec, spec.input_size, spec.input_size) * windows
    ceilings = {name: alone / multiplications_at(spec, photographs, scales) for name, scales in SCALES.items()}
    cases = [
        compared(f"{name}, against {what}", side.sample("extract"), peer.sample(*phases), equal, ceilings[name])
        for name, side in ours.items()
        for what, phases in {"conv": ("conv",), "warp and conv": ("warp", "conv")}.items()
    ]
    missed = [case.name for case, name in zip(cases[::2], SCALES, strict=True) if (case.ratio or 0) < WANTED[name]]
    for name, side in ours.items():
        for tail in side.tails:
            like = peer.to_scores(tail.removesuffix(TRUNCATED))
            cases.append(compared(f"{name}, scores by {tail}", side.to_scores(tail), like, equal))
    shown = ", ".join(f"{p.name} ({p.image.shape[1]} x {p.image.shape[0]})" for p in photographs)
    notes = [
        f"{windows:,} windows of {shown}; seconds an image, {options.threads} threads",
        f"R-CNN: 1/{parts} of the windows a round, in {rounds} rounds all of them; ms a window by batch: "
        + ", ".join(f"{size}: {ms:.2f}" for size, ms in tries.items()),
        *(f"{name}: {side.phases()}" for name, side in {"R-CNN": peer, **ours}.items()),
        "multiply-accumulates, R-CNN's over ours: "
        + ", ".join(f"{name} {ceiling:.1f}" for name, ceiling in ceilings.items()),
        "billions of them a second: "
        + ", ".join(
            f"{name} {speed(side, alone / ceilings.get(name, 1) / len(photographs)):.0f}"
            for name, side in {"R-CNN": peer, **ours}.items()
        ),
        f"medians of {rounds} rounds; load of the machine before: {load:.2f}; torch {torch.__version__}",
        *(f"missed: {name}" for name in missed),
    ]
    return int(report("SPP-net against R-CNN, AlexNet", notes, cases, options.json) or bool(missed))


def speed(side: Side, count: float) -> float:
    """Billions of multiply-accumulates a second, of ``count`` an image."""
    return count / side.sample("conv").median / 1e9


if __name__ == "__main__":
    raise SystemExit(main())
