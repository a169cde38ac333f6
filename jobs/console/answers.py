"""Answers to queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.console.tables import cell, print_json, print_table

if TYPE_CHECKING:
    from storage.sql import Answer


def print_answer(answer: Answer, as_json: bool) -> None:
    """A table of all rows, and a note if there are more; with ``as_json`` also the object of columns and rows."""
    rows = [[cell(value) for value in row] for row in answer.rows]
    print_table(answer.columns, rows, len(answer.columns))
    if answer.more:
        print(f"(the first {len(rows)} rows; --limit 0 shows all)")
    print_json(as_json, {"columns": answer.columns, "rows": [list(row) for row in answer.rows]})
