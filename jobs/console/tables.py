"""Tables, numbers with units, JSON lines."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

from jobs.console.streams import encodable


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, right_until: int | None = None
) -> None:
    """A table whose first ``left`` columns are text; numbers follow up to ``right_until``."""
    from rich.console import Console
    from rich.table import Table

    from storage.secrets import redacted  # the store's package, which the help does without

    table = Table(box=None, pad_edge=False, header_style="bold")
    end = len(columns) if right_until is None else right_until
    for number, column in enumerate(columns):
        table.add_column(encodable(column), justify="right" if left <= number < end else "left", overflow="fold")
    for row in rows:
        table.add_row(*(encodable(redacted(one)) for one in row))  # before the columns are aligned
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=200, highlight=False, markup=False).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def print_json(wanted: bool, value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, if it is ``wanted``; models within it as records have them.

    JSON knows few types: NaN and infinities are the texts "NaN", "Infinity" and "-Infinity", bytes hexadecimal digits,
    dates and times ISO 8601; all else that JSON has no form for (decimals, intervals, UUIDs) is its text.
    """
    if wanted:
        from storage.secrets import redacted_value

        value = redacted_value(_without_models(value))  # those of old records
        try:
            text = json.dumps(value, default=_json_text, allow_nan=False)
        except (TypeError, ValueError):  # a key that is no text, or a NaN: seldom, and looked for value by value
            text = json.dumps(_as_json(value), allow_nan=False)
        print(text)


def _without_models(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _without_models(inner) for key, inner in value.items()}
    return [_without_models(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _json_text(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else _json_key(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    return _json_text(value)


def _json_key(key: Any) -> str:
    """A key is a text: that of the number, or of the JSON that it would be."""
    value = _as_json(key)
    return value if isinstance(value, str) else json.dumps(value)


def _json_text(value: Any) -> str:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value.hex()
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


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
