"""What every benchmark does: time its sides in turn, set the limit beside them, say whether they agree, print it.

``python -m benchmarks.NAME --json`` prints, as the last line of standard output, one JSON object
``{"title", "notes", "cases": [{"name", "ours", "peer", "limit", "ratio", "equal", "unit"}]}``: seconds or bytes, and
ratio = peer / ours.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Sample:
    """Seconds of the rounds of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / 2 / self.median


@dataclass(frozen=True)
class Case:
    """One line of a benchmark, smaller being better.

    ``peer``: what ours is held against. ``limit``: what no program could beat on this machine, measured in the same
    run. ``equal``: whether both sides gave the same result. ``spread`` is that of the ratio's two sides together.
    """

    name: str
    ours: float
    peer: float | None = None
    limit: float | None = None
    equal: bool | None = None
    unit: Literal["s", "B"] = "s"
    spread: float = 0.0

    @property
    def ratio(self) -> float | None:
        """How many times faster, or smaller, than the peer."""
        return None if self.peer is None else self.peer / self.ours


def take_turns(sides: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, Sample]:
    """Time every side once a round, in turn (A B A B ...), after one round that is not counted.

    What disturbs the machine for a while then disturbs all sides alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number:
                seconds[name].append(elapsed)
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


def timed_case(name: str, samples: Mapping[str, Sample], equal: bool | None = None) -> Case:
    """The case of the samples called ``ours`` and, where there are such, ``peer`` and ``limit``."""
    peer, limit = samples.get("peer"), samples.get("limit")
    return Case(
        name,
        ours=samples["ours"].median,
        peer=peer.median if peer else None,
        limit=limit.median if limit else None,
        equal=equal,
        spread=samples["ours"].spread + (peer.spread if peer else 0.0),
    )


def report(title: str, notes: Sequence[str], cases: Sequence[Case], as_json: bool) -> int:
    """Print what was compared, a table and, if asked for, the JSON line. Returns the exit code: 1 if results differ."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in ("ours", "peer", "limit", "ratio", "+-", "equal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        table.add_row(
            case.name,
            *("" if value is None else amount(value, case.unit) for value in (case.ours, case.peer, case.limit)),
            "" if case.ratio is None else f"{case.ratio:.1f}x",
            f"{case.spread:.0%}",
            "" if case.equal is None else "yes" if case.equal else "NO",
        )
    console.print(table)
    if as_json:
        keys = ("name", "ours", "peer", "limit", "ratio", "equal", "unit")
        told = [{key: getattr(case, key) for key in keys} for case in cases]
        print(json.dumps({"title": title, "notes": list(notes), "cases": told}), flush=True)
    return int(any(case.equal is False for case in cases))


def amount(value: float, unit: str) -> str:
    """Seconds or bytes, to read."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"
    return f"{value / 1e6:.2f} MB"


def processor() -> str:
    """The kind of processor, and what of its abilities decides how fast a network runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "?"
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    able = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{named[0] if named else '?'} ({', '.join(able)})"
