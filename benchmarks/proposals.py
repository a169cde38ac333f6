"""Proposals: ours against OpenCV's selective search and the package ``selectivesearch``, on annotated photographs.

    python -m benchmarks.proposals VOC_FOLDER... [--images N] [--plot FILE.svg] [--markdown FILE.md] [--json]

Every image of the folders (each with JPEGImages/ and Annotations/) is searched by all programs in turn, one core each,
as ``spp propose`` does it: at 500 pixels, sides of 20 and more, duplicates removed. Seconds are those of the search,
without decoding, and without the first image.

Recall and MABO are over all objects that are not difficult, with the first 500, 1,000 and 2,000 boxes of an image. Ours
is ranked with three seeds, and their mean is shown.

Then the phases of ours, with what none of them can avoid and what that costs at the least: bytes read and
written at the speed of a copy of an image, and steps, one value after another (an edge looked at, a pixel joined, a bin
counted, 16 bins of two histograms compared), at that of increments of a small table; both measured in the same run. For
segments the second is no bound that can be reached: each step depends on the one before, and the table does not.

Exits with 1 if ours is less than 18 times faster than OpenCV (50, 50), or its recall or MABO at 2,000 is lower.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.boxes import Boxes
from pipeline.images.decode import RGB, decode_image
from pipeline.images.voc_annotation import parse_annotation
from pipeline.phases import PhaseClock
from pipeline.proposals.methods import (
    AlpacaSelectiveSearch,
    OpenCVSelectiveSearch,
    ProposalMethod,
    propose,
    seed_of,
    shrunk,
)
from pipeline.proposals.recall import best_overlaps, proposal_quality
from pipeline.proposals.selective_search import Colour, SelectiveSearch, regions, segmentation
from pipeline.proposals.selective_search.conversion import converted

BINS = regions.COLOUR + regions.TEXTURE
OURS, PEER = "fast", "OpenCV (50, 50)"
PROGRAMS: dict[str, ProposalMethod] = {
    OURS: SelectiveSearch(),
    "fast, pruned": SelectiveSearch(prune=True),
    PEER: OpenCVSelectiveSearch(50, 50),
    "OpenCV (150, 150)": OpenCVSelectiveSearch(150, 150),
    "selectivesearch": AlpacaSelectiveSearch(),
}
CUTS = (500, 1000, 2000)
SEEDS = (0, 1, 2)
WANTED = 18
"""Times faster than the peer."""


@dataclass
class Outcome:
    """What a program did: seconds and boxes of every search; class of every object, and its best overlap per cut."""

    seconds: list[float] = field(default_factory=list)
    boxes: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    overlaps: dict[int, list[NDArray[np.float32]]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Quality:
    """Recall at an overlap of 0.5 and of 0.7, and MABO."""

    recall_5: float
    recall_7: float
    mabo: float


@dataclass(frozen=True)
class Curve:
    """What is plotted of a program: its median seconds, and its quality per cut."""

    median: float
    qualities: list[Quality]


@dataclass(frozen=True)
class Photograph:
    """An image with its objects that are not difficult."""

    name: str
    image: RGB
    classes: tuple[str, ...]
    truth: Boxes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="VOC_FOLDER")
    parser.add_argument("--images", type=int, help="the first so many of each folder")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="programs to run")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    programs = {name: PROGRAMS[name] for name in (OURS, PEER, *given.only)}
    for method in programs.values():
        method.warm_up()
    outcomes: dict[str, Outcome] = {name: Outcome() for name in programs}
    work = Work()
    files = [file for folder in given.folders for file in _images(folder)[: given.images]]
    console = Console(stderr=True)
    for number, (folder, file) in enumerate(track(files, "searching", console=console)):
        photograph = _read(folder, file)
        for name, method in programs.items():
            _search(method, photograph, outcomes[name], timed=number > 0)
        work.add(photograph)
    tables = [_programs(outcomes), work.table()]
    for heading, rows in tables:
        Console(width=150).print(_rich(heading, rows))
    if given.markdown is not None:
        given.markdown.write_text("\n".join(f"{heading}\n\n{_markdown(rows)}" for heading, rows in tables))
    if given.plot is not None:
        curves = {
            name: Curve(float(np.median(outcome.seconds)), [_quality(outcome, cut) for cut in CUTS])
            for name, outcome in outcomes.items()
        }
        _plot(curves, given.plot)
    ours, peer = (_quality(outcomes[name], CUTS[-1]) for name in (OURS, PEER))
    ratio = float(np.median(outcomes[PEER].seconds) / np.median(outcomes[OURS].seconds))
    equal = ours.recall_5 >= peer.recall_5 and ours.mabo >= peer.mabo
    if given.json:
        medians = [float(np.median(outcomes[name].seconds)) for name in (OURS, PEER)]
        case = {"name": "seconds an image", "ours": medians[0], "peer": medians[1], "limit": work.limit()}
        print(json.dumps({"cases": [{**case, "ratio": ratio, "equal": equal}]}), flush=True)
    return int(ratio < WANTED or not equal)


def _images(folder: Path) -> list[tuple[Path, Path]]:
    files = sorted((folder / "JPEGImages").iterdir())
    return [(folder, file) for file in files if (folder / "Annotations" / f"{file.stem}.xml").exists()]


def _read(folder: Path, file: Path) -> Photograph:
    image = decode_image(file.read_bytes())
    annotation = parse_annotation((folder / "Annotations" / f"{file.stem}.xml").read_bytes(), *image.shape[:2])
    easy = ~np.array(annotation.difficult, bool)
    names = tuple(name for name, chosen in zip(annotation.class_names, easy, strict=True) if chosen)
    return Photograph(file.stem, image, names, annotation.boxes[easy])


def _search(method: ProposalMethod, photograph: Photograph, outcome: Outcome, timed: bool) -> None:
    seeds = SEEDS if isinstance(method, SelectiveSearch) else SEEDS[:1]
    for seed in seeds:
        start = perf_counter()
        found = propose(method, photograph.image, seed_of(photograph.name, seed), max_boxes=1 << 30).boxes
        if timed and seed == SEEDS[0]:
            outcome.seconds.append(perf_counter() - start)
        outcome.boxes.append(len(found))
        outcome.classes.extend(photograph.classes)
        for cut in CUTS:
            outcome.overlaps[cut].append(best_overlaps(photograph.truth, found[:cut]))


def _quality(outcome: Outcome, cut: int) -> Quality:
    overlaps = np.concatenate(outcome.overlaps[cut])
    quality = proposal_quality(outcome.classes, overlaps)
    assert quality.recall is not None
    assert quality.mabo is not None
    return Quality(quality.recall, float((overlaps >= 0.7).mean()), quality.mabo)


Rows = list[list[str]]


def _programs(outcomes: Mapping[str, Outcome]) -> tuple[str, Rows]:
    heading = "Seconds an image on one core; recall@0.5 / recall@0.7 / MABO of the first boxes"
    rows = [["", "median", "p95", "times faster", "boxes", *(f"first {cut:,}" for cut in CUTS)]]
    slowest = np.median(outcomes[PEER].seconds)
    for name, outcome in outcomes.items():
        median, late = np.percentile(outcome.seconds, [50, 95])
        cells = [f"{median:.3f}", f"{late:.3f}", f"{slowest / median:.1f}", f"{np.mean(outcome.boxes):,.0f}"]
        for cut in CUTS:
            quality = _quality(outcome, cut)
            cells.append(f"{quality.recall_5:.3f} / {quality.recall_7:.3f} / {quality.mabo:.3f}")
        rows.append([name, *cells])
    images = len(outcomes[PEER].boxes)
    return f"{heading} ({images} images, {len(outcomes[PEER].classes)} objects)", rows


@dataclass
class Work:
    """What the phases of a search take, and what they cannot avoid, summed over images."""

    clock: PhaseClock = field(default_factory=PhaseClock)
    images: int = 0
    megabytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    megabyte_seconds: float = float("inf")
    step_seconds: float = float("inf")

    def add(self, photograph: Photograph) -> None:
        """Search once more, phase by phase, and count."""
        search = SelectiveSearch()
        image = shrunk(photograph.image, 500)
        found = search(image, 0, self.clock)
        self.images += 1
        costs = _costs(image.nbytes)
        self.megabyte_seconds = min(self.megabyte_seconds, costs[0])
        self.step_seconds = min(self.step_seconds, costs[1])
        pixels, spaces, cuts = image[:, :, 0].size, len(search.colours), len(search.ks)
        regions_of = [(np.asarray(found.strategies) == i).sum() // 2 + 1 for i in range(len(search.strategies))]
        edges = sum(_edges(image, colour) for colour in search.colours) / spaces
        values = {
            # read 3 bytes of colour, write 3 and 3 planes of 2 bytes
            "convert": (spaces * pixels * (3 + 3 + 6), 0),
            # read the planes, write four weights
            "weigh": (spaces * pixels * (6 + 8), 0),
            # write the sorted edges once, read them per k; a step for each edge per k, and for each join
            "segment": (spaces * edges * 4 * (1 + cuts) + spaces * cuts * pixels * 4, spaces * cuts * (edges + pixels)),
            # write and read 15 codes of a pixel; a step for each and segmentation
            "describe": (spaces * pixels * 15 * (1 + cuts), spaces * cuts * pixels * 15),
            # rows of the regions and of what they become, read once; each compared with three neighbours at least
            "group": (2 * sum(regions_of) * BINS * 8, 2 * sum(regions_of) * 3 * BINS / 16),
            "rank": (len(found) * 20, len(found)),
        }
        for phase, (size, steps) in values.items():
            self.megabytes[phase] += size / 1e6
            self.steps[phase] += steps / 1e6

    def limit(self) -> float:
        """Seconds an image of all that no phase can avoid."""
        return sum(self._least(phase) for phase in self.clock.seconds) / self.images

    def _least(self, phase: str) -> float:
        return self.megabytes[phase] * self.megabyte_seconds + self.steps[phase] * self.step_seconds

    def table(self) -> tuple[str, Rows]:
        """Milliseconds an image by phase, beside the bytes and steps that it cannot avoid."""
        rows = [["phase", "ms", "share", "MB", "million steps", "least ms"]]
        total = sum(self.clock.seconds.values())
        for phase, seconds in self.clock.seconds.items():
            numbers = (
                seconds / self.images * 1e3,
                self.megabytes[phase] / self.images,
                self.steps[phase] / self.images,
            )
            least = self._least(phase) / self.images * 1e3
            cells = [
                f"{numbers[0]:.1f}",
                f"{seconds / total:.0%}",
                f"{numbers[1]:.1f}",
                f"{numbers[2]:.2f}",
                f"{least:.1f}",
            ]
            rows.append([phase, *cells])
        rows.append(["together", f"{total / self.images * 1e3:.1f}", "", "", "", f"{self.limit() * 1e3:.1f}"])
        speed, step = 1e-3 / self.megabyte_seconds, self.step_seconds * 1e3
        return (
            f"Phases of ours; least: at {speed:.1f} GB/s of copying and {step:.2f} ns a step, both measured here",
            rows,
        )


def _edges(image: RGB, colour: Colour) -> int:
    """Edges of the pixel graph."""
    weights = segmentation.edge_weights(converted(image, colour, 0.8)[1])
    return int((weights != segmentation.NO_EDGE).sum())


def _costs(size: int) -> tuple[float, float]:
    """Seconds to read or write a million bytes (``size`` at a time), and of a million increments of a small table."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    table, keys = np.zeros(256, np.int64), (np.arange(size) * 7 % 256).astype(np.uint8)
    # a copy reads as many bytes as it writes
    copying = min(_seconds(lambda: np.copyto(target, source)) for _ in range(5)) / size * 1e6
    return copying / 2, min(_seconds(lambda: _tally(keys, table)) for _ in range(5)) / size * 1e6


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


@numba.njit(nogil=True, cache=True)
def _tally(keys, table):  # type: ignore[no-untyped-def]
    for key in keys:
        table[key] += 1


def _rich(heading: str, rows: Rows) -> Table:
    table = Table(title=heading, title_justify="left")
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _plot(curves: Mapping[str, Curve], file: Path) -> None:
    """Quality against seconds an image, a line per program through its cuts, and the best of all at the top left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, curve in curves.items():
        shown = ([quality.recall_5 for quality in curve.qualities], [quality.mabo for quality in curve.qualities])
        for axis, values in zip(axes, shown, strict=True):
            (line,) = axis.plot([curve.median] * len(CUTS), values, "-", linewidth=1, alpha=0.5)
            axis.scatter([curve.median] * len(CUTS), values, s=[15, 35, 70], color=line.get_color(), label=name)
    for axis, title in zip(axes, ("recall at IoU 0.5", "MABO"), strict=True):
        axis.set(xscale="log", xlabel="seconds an image, one core (median)", title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(loc="lower left", fontsize=8, title="dots: first 500, 1,000, 2,000 boxes", title_fontsize=8)
    figure.savefig(file)


if __name__ == "__main__":
    raise SystemExit(main())
