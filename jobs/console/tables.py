"""Tables, numbers with units, JSON lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


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


def print_json(wanted: bool, value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, if it is ``wanted``; models within it as records have them."""
    if wanted:
        print(json.dumps(value, default=lambda one: one.model_dump() if hasattr(one, "model_dump") else str(one)))


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


def in_time(seconds: float) -> str:
    """Seconds, minutes or hours, for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
