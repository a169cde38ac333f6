"""What the command line prints: tables, numbers with units, what a run made, one JSON object."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import UsageError
from jobs.forecast import Forecast

if TYPE_CHECKING:
    from storage.root import Root
    from storage.runs import RunRecord


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, right_until: int | None = None
) -> None:
    """A table whose first ``left`` columns are text; numbers follow up to ``right_until``."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    end = len(columns) if right_until is None else right_until
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if left <= number < end else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=200, highlight=False, markup=False).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown: the first column is text, numbers follow."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_texts(texts: Mapping[str | None, Callable[[], str]]) -> None:
    """Write files, by path; None: not asked for. UsageError for one that cannot be written."""
    for path, text in texts.items():
        if path is not None:
            try:
                Path(path).write_text(text(), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error


def print_json(wanted: bool, value: dict[str, Any]) -> None:
    """One JSON object on a line of its own, if it is ``wanted``."""
    if wanted:
        print(json.dumps(value, default=str))


def print_run(root: Root, record: RunRecord) -> dict[str, Any]:
    """Print what a run made; returns the same as JSON values, the exit code among them."""
    rows = [
        (
            entry.stage,
            name,
            "complete" if entry.manifest else "not complete",
            f"{entry.images}",
            f"{entry.failed}",
            f"{entry.rows:,}",
            in_bytes(entry.bytes),
            ", ".join(f"{phase} {in_seconds(s)}" for phase, s in entry.seconds.items() if s >= 0.05),
        )
        for name, entry in record.datasets.items()
    ]
    print_table(("stage", "dataset", "state", "images", "failed", "rows", "bytes", "worker seconds"), rows, 3, 7)
    print_quality(record)
    print_metrics(metrics_of(record))
    failed = print_failed(root, record)
    return {
        "run": record.name,
        "root": root.url,
        "exit_code": record.exit_code or 0,
        "datasets": {name: entry.model_dump() for name, entry in record.datasets.items()},
        "metrics": metrics_of(record),
        "failed": failed,
    }


def print_failed(root: Root, record: RunRecord) -> dict[str, str]:
    """A line per failed image of a run, of the first twenty; returns all, with their reasons."""
    from jobs.recording import failed_images

    failed = failed_images(root, record)
    list_failed(failed)
    return failed


def list_failed(failed: Mapping[str, str]) -> None:
    """A line per failed image with its reason, of the first twenty."""
    for image_id, reason in list(failed.items())[:20]:
        print(f"failed image {image_id}: {reason}")
    if len(failed) > 20:
        print(f"... and {len(failed) - 20} more failed images")


def print_quality(record: RunRecord) -> None:
    """Recall and MABO of a run's proposals, a line per split."""
    for split, values in quality_of(record).items():
        if values["recall"] is not None:
            print(
                f"proposals on {split}: recall@0.5 {values['recall']:.3f}, MABO {values['mabo']:.3f} "
                f"({values['objects']} objects)"
            )
        else:
            print(f"proposals on {split}: no objects to measure recall with")


def quality_of(record: RunRecord) -> dict[str, Any]:
    """Split to recall and MABO; empty before proposals are complete."""
    entry = record.datasets.get("proposals")
    return entry.quality.get("splits", {}) if entry else {}


def metrics_of(record: RunRecord) -> dict[str, Any]:
    """Mean APs, and what is measured of each class; empty before they are measured."""
    entry = record.datasets.get("metrics")
    return entry.quality if entry and entry.manifest else {}


def print_metrics(measured: dict[str, Any]) -> None:
    """A line per class, and the mean; nothing if nothing was measured."""
    if not measured:
        return
    rows = [
        (
            row["class_name"],
            _ap(row["ap_11"]),
            _ap(row["ap_area"]),
            f"{row['positives']:,}",
            f"{row['detections']:,}",
            f"{row['true_positives']:,}",
        )
        for row in measured["classes"]
    ]
    rows.append(("mean", _ap(measured["map_11"]), _ap(measured["map_area"]), "", "", ""))
    print_table(("class", "AP (11-point)", "AP (area)", "objects", "detections", "found"), rows, 1)
    without = [row["class_name"] for row in measured["classes"] if row["ap_11"] is None]
    if without:
        print(f"no object to find, and so no AP: {', '.join(without)}")


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def cell(value: Any) -> str:
    """A value of a query's result; of a long vector the first numbers."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"[{', '.join(cell(v) for v in value[:4])}, ... {len(value)} values]"
    return str(value)


def in_bytes(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_seconds(value: float) -> str:
    """Seconds, with a decimal while it matters."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def print_forecast(expected: Forecast) -> None:
    """What is left of the map stages, in a line or two."""
    where = f"{expected.gpus} GPUs and {expected.cores} cores" if expected.gpus else f"{expected.cores} cores"
    if expected.seconds is not None:
        shares = ", ".join(f"{phase} {100 * share:.0f}%" for phase, share in expected.shares.items())
        print(
            f"with {where}: {in_bytes(expected.bytes)}, {in_time(expected.seconds)} at the pace of the shards so far; "
            f"the {expected.limit} are the bottleneck ({shares})"
        )
    if expected.unmeasured:
        print(
            f"no time is known yet for {', '.join(expected.unmeasured)}: it is learnt from the first committed shards "
            f"(give the command, interrupt it after a minute, plan again)"
        )


def in_time(seconds: float) -> str:
    """Seconds, minutes or hours, for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
