"""The benchmarks that fit into a quarter of an hour, and the page that says what they found.

    python -m benchmarks.suite [--write docs/benchmarks.md] [--only NAME ...] [--data DIR]

Each runs in a process of its own, one after the other; nothing else should run. Those that need photographs are left
out, with a word, where ``--data`` (by default ``shared/data`` beside the checkout) has none. Exits with 1 if one
failed: most fail if results differ, or a promise is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.comparison import amount, processor

DATA = Path(__file__).parents[2] / "shared/data"
"""Photographs, beside a checkout."""

_PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "openvino",
    "ray",
    "pyarrow",
    "scikit-learn",
    "numba",
    "opencv-python-headless",
)

_HEAD = """# Benchmarks

Made by `make bench` (`python -m benchmarks.suite`), which takes a quarter of an hour; run it on a quiet machine. *Ours*
and *peer* are timed in the same run, in turn; *ratio* is peer / ours; *limit* is what no program could beat on this
machine, measured beside them; *equal* says whether both sides gave the same. What exactly is compared is said at the
head of each program.
"""


@dataclass(frozen=True)
class Claim:
    """A claim, the benchmark that holds it against something, and its arguments; ``{data}``: the folder of data."""

    text: str
    name: str
    arguments: tuple[str, ...] = ()

    def command(self, data: Path) -> list[str]:
        """What runs it."""
        return [f"benchmarks.{self.name}", *(part.format(data=data) for part in self.arguments)]

    def lacks(self, data: Path) -> Path | None:
        """A folder that it needs, and that is not there."""
        needed = [Path(part.format(data=data)) for part in self.arguments if "{data}" in part]
        return next((folder for folder in needed if not folder.is_dir()), None)


_VOC = "{data}/voc_subset/VOCdevkit/VOC2012"

_PHOTOGRAPHS = ("--data", f"{_VOC}/JPEGImages")
_ANIMALS = "{data}/raccoon_kangaroo"

CLAIMS = (
    Claim("Pyramid pooling, against torchvision's roi_pool", "pooling", _PHOTOGRAPHS),
    Claim("Selective search, against OpenCV's", "proposals", (_ANIMALS, "--images", "8", "--only", "OpenCV (50, 50)")),
    Claim(
        "The body by another engine, or in bfloat16, against PyTorch in float32",
        "body",
        (
            *(*_PHOTOGRAPHS, "--images", "8", "--bodies", "efficientnet_lite0", "alexnet", "resnet50"),
            *("--precisions", "float32", "bfloat16"),
        ),
    ),
    Claim("The actor, against a bare loop that reads and writes nothing", "extract", (*_PHOTOGRAPHS, "--rounds", "3")),
    Claim("Two workers, against one", "workers", (*_PHOTOGRAPHS, "--rounds", "3")),
    Claim("Conv maps, against vectors", "maps", (_ANIMALS, "--images", "12", "--rounds", "3")),
    Claim(
        "Writing and scanning vectors, against pyarrow's defaults",
        "store",
        ("--images", "3", "--rounds", "3", "--sizes", "8"),
    ),
    Claim("Scanning ten times more than fits in memory", "scan", ("--memory", "128")),
    Claim("Mining for 20 classes, against one after another", "mining", ("--memory", "512", "--timed", "3")),
    Claim(
        "SVMs of 20 classes, against LinearSVC",
        "training",
        ("--images", "100", "--windows", "300", "--dim", "4096"),
    ),
    Claim("SVMs where classes overlap", "crowded", ("--pictures", "80")),
    Claim("The driver, for more and more shards", "scale", ("--shards", "2000,20000", "--workers", "100")),
    Claim("Images that are no photographs", "extremes", ("--side", "1500")),
)
"""In the order in which they run; each takes a minute or so."""


@dataclass(frozen=True)
class Found:
    """What a benchmark printed as JSON (None: it failed, or could not be run, for ``reason``), and its seconds."""

    claim: Claim
    printed: Mapping[str, Any] | None
    seconds: float
    reason: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page to write, as Markdown")
    parser.add_argument("--only", nargs="+", choices=[claim.name for claim in CLAIMS], metavar="NAME")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="voc_subset and raccoon_kangaroo")
    options = parser.parse_args(arguments)
    found = []
    for claim in CLAIMS:
        if options.only is None or claim.name in options.only:
            found.append(_run(claim, options.data))
            print(f"{claim.name}: {found[-1].seconds:.0f} s {found[-1].reason}", file=sys.stderr, flush=True)
    page = render(found)
    if options.write is not None:
        options.write.write_text(page)
    else:
        print(page)
    return int(any(one.printed is None and one.seconds for one in found))


def _run(claim: Claim, data: Path) -> Found:
    lacking = claim.lacks(data)
    if lacking is not None:
        return Found(claim, None, 0.0, f"left out: {lacking.name} is not there")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *claim.command(data), "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.monotonic() - start
    lines = done.stdout.splitlines()
    printed = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    if printed is None:
        return Found(claim, None, seconds, f"FAILED with exit code {done.returncode}")
    return Found(claim, printed, seconds, "" if done.returncode == 0 else f"FAILED with exit code {done.returncode}")


def render(found: Sequence[Found]) -> str:
    """The page."""
    parts = [_HEAD, _machine(), ""]
    for one in found:
        parts += [f"## {one.claim.text}", ""]
        command = " ".join(one.claim.command(Path("DATA")))
        parts += [f"`python -m {command}`, {one.seconds:.0f} s. {one.reason}".rstrip(), ""]
        if one.printed is not None:
            parts += [_table(one.printed["cases"]), ""]
            parts += [f"- {note}" for note in one.printed.get("notes", ())]
            parts += [""] if one.printed.get("notes") else []
    return "\n".join(parts).rstrip() + "\n"


def _machine() -> str:
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    return "\n".join(
        [
            f"- {datetime.date.today()}, spp-pipeline {importlib.metadata.version('spp-pipeline')}",
            f"- {processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}",
            f"- Python {platform.python_version()}, {', '.join(versions)}",
        ]
    )


def _table(cases: Sequence[Mapping[str, Any]]) -> str:
    columns = [key for key in cases[0] if key != "unit" and any(case.get(key) is not None for case in cases)]
    rows = [columns, ["---", *("---:" for _ in columns[1:])]]
    rows += [[_cell(key, case.get(key), case.get("unit")) for key in columns] for case in cases]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(key: str, value: Any, unit: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if key == "ratio":
        return f"{value:.1f}"
    if key in ("ours", "peer", "limit"):
        return amount(value, unit or "s")
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
