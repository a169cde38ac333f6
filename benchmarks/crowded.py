"""SVMs where classes overlap: 200 drawn pictures of 20 to 40 discs on one another, of three classes that look alike.

    python -m benchmarks.crowded [--pictures N] [--folder DIR] [--json]

Draws the data set, runs `spp run --until train-svm` on it with `execution.num_cpus: 2`, and tells the seconds of
train-svm as a user waits for them. Ours: those seconds. Limit: reading all features once, on one core, which each pass
and the audit do. Equal: whether all SVMs converged; exits with 1 if one did not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.comparison import Case, report
from jobs.cli.main import main as spp
from storage.manifest import recorded_manifest
from storage.root import open_root
from storage.runs import read_run
from storage.scan import scan_manifest

WIDTH, HEIGHT = 360, 280

CLASSES = {"amber": (236, 162, 40), "orange": (240, 140, 44), "rust": (226, 118, 50)}
"""Colours of the middle of each class; those of single discs differ more than these do."""

CONFIG = {
    "proposals": {"max_per_image": 600, "max_side": 240},
    "features": {"body": "efficientnet_lite0", "scales": [320], "store": "maps"},
    "svm": {"C": 0.003},
    "execution": {"num_cpus": 2},
}


def draw(folder: Path, pictures: int) -> int:
    """Write the data set in VOC's layout, all of it to train on; how many objects there are."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = 0
    for number in range(pictures):
        image, objects = _picture(number)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{number:06d}.jpg", quality=92)
        (folder / "Annotations" / f"{number:06d}.xml").write_text(_annotation(number, objects))
        count += len(objects)
    ids = "".join(f"{number:06d}\n" for number in range(pictures))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(ids)
    (folder / "ImageSets" / "Main" / "test.txt").write_text(ids[:7])
    return count


def _picture(number: int) -> tuple[NDArray[np.uint8], list[tuple[str, tuple[int, int, int, int]]]]:
    random = np.random.default_rng([7, number])
    canvas = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(v) for v in random.integers(90, 150, 3)))
    pen, objects = ImageDraw.Draw(canvas), []
    for _ in range(int(random.integers(20, 41))):
        name = list(CLASSES)[int(random.integers(len(CLASSES)))]
        colour = np.clip(np.array(CLASSES[name]) + random.normal(0, 14, 3), 0, 255).astype(int)
        radius = int(random.integers(14, 34))
        x, y = int(random.integers(radius, WIDTH - radius)), int(random.integers(radius, HEIGHT - radius))
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=tuple(colour.tolist()), outline=tuple((colour * 0.7).astype(int).tolist()), width=2)
        objects.append((name, box))
    values = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    return np.clip(values + random.normal(0, 6, values.shape), 0, 255).astype(np.uint8), objects


def _annotation(number: int, objects: Sequence[tuple[str, tuple[int, int, int, int]]]) -> str:
    """VOC's boxes: pixels counted from 1, both ends included."""
    boxes = "".join(
        f"<object><name>{escape(name)}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{number:06d}.jpg</filename>{size}{boxes}</annotation>"


def train(folder: Path) -> tuple[float, float, bool, list[str]]:
    """Seconds of train-svm and of one reading of the features, whether all SVMs converged, and what to tell."""
    config, root = folder / "crowded.yaml", folder / "root"
    config.write_text(yaml.safe_dump({"dataset": {"path": str(folder / "voc")}, **CONFIG}))
    asked = ["--config", str(config), "--root", str(root)]
    if spp(["run", "--until", "extract", *asked]) != 0:
        raise SystemExit("the features could not be made")
    start = time.perf_counter()
    if spp(["train-svm", *asked]) != 0:
        raise SystemExit("train-svm failed")
    seconds = time.perf_counter() - start
    place = open_root(str(root))
    record = read_run(place, "crowded")
    start = time.perf_counter()
    read = sum(len(table) for table in scan_manifest(place, recorded_manifest(place, record, "maps")))
    limit = time.perf_counter() - start
    manifest = recorded_manifest(place, record, "svms")
    notes = [f"{read} conv maps", *(f"{phase} {value:.1f} s" for phase, value in manifest.seconds.items())]
    for table in scan_manifest(place, manifest, ["class_name", "positives", "negatives", "objective", "history"]):
        for row in table.to_pylist():
            sweeps = [fit["iterations"] for fit in row["history"]]
            most = max(fit["positives"] + fit["negatives"] for fit in row["history"])
            notes.append(f"{row['class_name']}: {row['positives']} positives, at most {most} examples, sweeps {sweeps}")
    stopped = [row for rows in manifest.ledgers() for row in rows if row["type"] == "NotConverged"]
    return seconds, limit, not stopped, [*notes, *(row["message"] for row in stopped)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowded", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200, metavar="N")
    parser.add_argument("--folder", help="where data set and root are written, and removed (default: temporary)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        objects = draw(folder / "voc", options.pictures)
        seconds, limit, converged, notes = train(folder)
    cases = [Case("train-svm on crowded pictures", seconds, limit=limit, equal=converged)]
    title = f"{options.pictures} pictures of {objects} overlapping discs in {json.dumps(list(CLASSES))}"
    return report(title, notes, cases, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
