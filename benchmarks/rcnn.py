"""SPP-net against R-CNN: one pass of the body an image, or one a window (paper 4.3 and its Tables 9 and 10).

    python -m benchmarks.rcnn [--data DIR] [--images N] [--windows N] [--threads N] [--rounds N] [--json]

AlexNet with random weights, the same for both; real windows, up to 2,000 an image, of those photographs under DIR that
have most of them (of the first ones by name, four for each that is taken). Same processor, same number of threads: one
for the body, on both sides (``pipeline.products``), as many as given for pooling and what comes after it.

R-CNN: ``pipeline.features.warping``, every window warped to 224 x 224 and through the body, so many at a time as is
fastest (searched first), its warping (one thread: OpenCV finds too little in a window for two) apart from its conv. Its
pool5 is the body's own last pooling, 9,216 numbers. It takes minutes: so that whatever disturbs the machine disturbs
both sides alike, a round has a part of its windows, drawn at random, whose seconds count for all, and in the end every
window has had its turn.

Ours: ``RegionExtractor``, 12,800 numbers a window, resizing and pooling included, at one scale (688) and at the
paper's five.

Limit: R-CNN's seconds over the ratio of multiply-accumulates, that is, ours without pooling and resizing, if each
multiplication took as long as R-CNN's.

Then from decoded image with windows to 20 class scores for each: SVMs on pool5, on fc7 (4,096 and 4,096 outputs), and
on fc7 with fc6 and fc7 truncated to ranks 1,024 and 256 (Fast R-CNN 3.1); the peer is R-CNN's pool5 or fc7. What
comes after pooling takes the same at one scale as at five, and is timed for one.

Equal: both sides have numbers, all of them finite, for the same windows, and R-CNN's vectors of some are those that our
extractor gives for their warped crops as images of their own, up to float16's last digit. What the two say of a window
differs: that is what the paper's mAP is about, not this.

Exits with 1 if ours is less than 100 times (one scale) or 15 times (five) faster than R-CNN's conv alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Case, Sample, report, take_turns
from benchmarks.pooling import VOC_SUBSET, read_images
from pipeline.bodies import BODIES, Body, BodySpec, load_state
from pipeline.boxes import Boxes, as_boxes
from pipeline.detection.scoring import LinearScorer
from pipeline.features.regions import RegionExtractor
from pipeline.features.warping import WarpExtractor, warp
from pipeline.images.decode import RGB
from pipeline.network.head import SIZES, Embedder, Head, compressed, new_head
from pipeline.phases import PhaseClock
from pipeline.proposals.methods import propose, seed_of
from pipeline.proposals.selective_search import SelectiveSearch
from pipeline.spp import pyramid
from pipeline.spp.windows import scaled_size

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
    """Vectors to class scores: through the head, where there is one, and the SVMs.

    ``multiplications``: multiply-accumulates of a vector.
    """

    embed: Embedder | None
    score: LinearScorer
    multiplications: int

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

    def to_scores(self, name: str, like: Side | None = None) -> Sample:
        """Seconds from an image to the class scores of a tail: this side's, or that of one with vectors like these."""
        extracted, scored = self.sample("extract"), (like or self).sample(f"{name} fc", f"{name} svm")
        return Sample(tuple(map(sum, zip(extracted.seconds, scored.seconds, strict=True))))

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


def tails_of(heads: Mapping[str, Head]) -> dict[str, Tail]:
    """A tail without a head, ``pool5``, and one for each head, all for the same vectors. The SVMs are random."""
    random = np.random.default_rng(0)

    def svms(size: int) -> LinearScorer:
        return LinearScorer(random.standard_normal((CLASSES, size)), np.zeros(CLASSES), 1.0)

    dim, size = next((head.dim, head.size("fc7")) for head in heads.values())
    tails, on_fc7 = {"pool5": Tail(None, svms(dim), CLASSES * dim)}, svms(size)
    for name, head in heads.items():
        weights = [p for layer in (head.fc6, head.fc7) for p in layer.parameters() if p.dim() == 2]
        count = sum(weight.numel() for weight in weights) + CLASSES * size
        tails[name] = Tail(Embedder(head, "fc7"), on_fc7, count)
    return tails


def random_head(dim: int) -> Head:
    """A head with the paper's sizes."""
    return new_head(dim, SIZES, CLASSES + 1, seed=0, rms=1.0)


def same_as_of_crops(body: Body, photograph: Photograph, rcnn: WarpExtractor, count: int = 4) -> bool:
    """Whether R-CNN's first vectors are those that ours gives for warped crops, up to float16's last digit."""
    size, whole = body.spec.input_size, as_boxes([0, 0, body.spec.input_size, body.spec.input_size])
    ours = RegionExtractor(body, (size,), levels=rcnn.levels)
    crops = [warp(photograph.image, box, size, rcnn.context, rcnn.fill) for box in photograph.boxes[:count]]
    expected = np.concatenate([ours(crop, whole).vectors for crop in crops]).astype(np.float32)
    found = rcnn(photograph.image, photograph.boxes[:count]).vectors.astype(np.float32)
    return np.allclose(found, expected, rtol=2**-10, atol=1e-5 * expected.max())


@dataclass(frozen=True)
class Race:
    """Both sides after they were timed. ``tails`` of ours were timed at one scale."""

    photographs: Sequence[Photograph]
    rcnn: Side
    ours: Mapping[str, Side]
    tails: Mapping[str, Tail]
    spec: BodySpec

    @property
    def windows(self) -> int:
        """Of all photographs."""
        return sum(len(photograph.boxes) for photograph in self.photographs)

    @property
    def alone(self) -> int:
        """Multiply-accumulates of all windows through the body, each alone."""
        return multiplications(self.spec, self.spec.input_size, self.spec.input_size) * self.windows

    def together(self, name: str) -> int:
        """Multiply-accumulates of all photographs through the body at their scales."""
        return multiplications_at(self.spec, self.photographs, SCALES[name])

    def ceiling(self, name: str, tail: str | None = None) -> float:
        """How many times more multiply-accumulates R-CNN has: in the body, or up to the scores of a tail."""
        alone, together = self.alone, self.together(name)
        if tail is not None:
            alone += self.windows * self.rcnn.tails[_peers(tail)].multiplications
            together += self.windows * self.tails[tail].multiplications
        return alone / together

    def cases(self, equal: bool) -> Iterator[Case]:
        """Ours against R-CNN, for the vectors and for every tail's scores."""
        scored = next(iter(self.ours.values()))
        for name, side in self.ours.items():
            for what, phases in {"conv": ("conv",), "warp and conv": ("warp", "conv")}.items():
                times = side.sample("extract"), self.rcnn.sample(*phases)
                yield _case(f"{name}, against {what}", *times, self.ceiling(name), equal)
            for tail in self.tails:
                times = side.to_scores(tail, scored), self.rcnn.to_scores(_peers(tail))
                yield _case(f"{name}, scores by {tail}", *times, self.ceiling(name, tail), equal)

    def missed(self) -> list[str]:
        """Targets that are not reached."""
        conv = self.rcnn.sample("conv").median
        return [name for name, side in self.ours.items() if conv < WANTED[name] * side.sample("extract").median]

    def notes(self) -> Iterator[str]:
        """What was compared; the seconds of all phases; arithmetic, and how fast it went."""
        shown = ", ".join(f"{p.name} ({p.image.shape[1]} x {p.image.shape[0]})" for p in self.photographs)
        yield f"{self.windows:,} windows of {shown}; seconds an image, {torch.get_num_threads()} threads"
        yield f"R-CNN: {self.rcnn.phases()}"
        for name, side in self.ours.items():
            yield f"{name}: {side.phases()}"
        for name in self.ours:
            ceilings = ", ".join(f"to {tail} {self.ceiling(name, tail):.1f}" for tail in self.tails)
            yield f"multiply-accumulates, R-CNN's over those at {name}: to the map {self.ceiling(name):.1f}, {ceilings}"
        speeds = {"R-CNN": _speed(self.rcnn, self.alone / len(self.photographs))}
        for name, side in self.ours.items():
            speeds[name] = _speed(side, self.together(name) / len(self.photographs))
        yield "billions a second in conv: " + ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())


def _peers(tail: str) -> str:
    """R-CNN's tail that one of ours is held against."""
    return tail.removesuffix(TRUNCATED)


def _case(name: str, ours: Sample, peer: Sample, ceiling: float, equal: bool) -> Case:
    return Case(name, ours.median, peer.median, peer.median / ceiling, equal, spread=ours.spread + peer.spread)


def _speed(side: Side, count: float) -> float:
    """Billions of multiply-accumulates a second, of ``count`` an image."""
    return count / side.sample("conv").median / 1e9


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
    pyramid.warm_up()
    tries = search_batch(body, photographs[0], options.threads)
    rcnn = WarpExtractor(body, POOL5, batch=min(tries, key=lambda size: tries[size]), threads=options.threads)
    one, five = (RegionExtractor(body, scales, threads=options.threads) for scales in SCALES.values())

    head = random_head(one.dim)
    tails = tails_of({"fc7": head, "fc7" + TRUNCATED: compressed(head, RANKS)})
    parts = -(-max(len(photograph.boxes) for photograph in photographs) // options.windows)
    rounds = max(options.rounds, parts)
    peer = Side(photographs, rcnn, tails_of({"fc7": random_head(rcnn.dim)}), parts)
    ours = dict(zip(SCALES, (Side(photographs, one, tails), Side(photographs, five, {})), strict=True))
    take_turns({"R-CNN": peer, **ours}, rounds)

    race = Race(photographs, peer, ours, tails, spec)
    equal = all(side.finite for side in (peer, *ours.values())) and same_as_of_crops(body, photographs[0], rcnn)
    missed = race.missed()
    notes = [
        *race.notes(),
        "ms a window by batch of R-CNN's: " + ", ".join(f"{size}: {ms:.2f}" for size, ms in tries.items()),
        f"medians of {rounds} rounds, each with 1/{parts} of R-CNN's windows, in turn; load of the machine before: "
        f"{load:.2f}; torch {torch.__version__}",
        *(f"missed: {name}, {WANTED[name]} times" for name in missed),
    ]
    return int(report("SPP-net against R-CNN, AlexNet", notes, list(race.cases(equal)), options.json) or bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
