"""The tables of a verb, in every form: on the terminal, as comma-separated values, as Markdown and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.console.runs import list_failed
from jobs.console.tables import print_json, print_table
from jobs.errors import UsageError

Rows = Mapping[tuple[str, ...], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows by columns of text, under a ``caption`` (``heading``: the caption in Markdown, if that is another).

    ``columns``: key to title. ``rows``: what names a row, in the columns ``corner``, to its cells by key of column; a
    place without a cell shows a dash.
    """

    corner: tuple[str, ...] = ("",)
    columns: Mapping[str, str]
    rows: Rows
    caption: str = ""
    heading: str = ""

    @property
    def titles(self) -> list[str]:
        """Of all columns."""
        return [*self.corner, *self.columns.values()]

    @property
    def body(self) -> list[list[str]]:
        """The rows, as long as ``titles``."""
        return [[*names, *(cells.get(key) or "-" for key in self.columns)] for names, cells in self.rows.items()]

    def show(self) -> None:
        """Print it."""
        if self.caption:
            print(self.caption)
        print_table(self.titles, self.body, len(self.corner))

    def markdown(self) -> str:
        """The same in Markdown: the first column is text, numbers follow."""
        lines = [self.titles, ["---"] + ["---:"] * (len(self.titles) - 1), *self.body]
        return "\n".join([self.heading or self.caption, "", *("| " + " | ".join(line) + " |" for line in lines)])


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What a verb has to show: ``grids`` and ``notes`` to look at, the same as JSON ``values``, and, titles first, as
    ``lines`` of comma-separated ones; images that ``failed`` on the way, and why."""

    grids: Sequence[Grid]
    notes: Sequence[str] = ()
    values: Mapping[str, Any]
    lines: Sequence[Sequence[Any]] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    exit_code: int = 0

    def csv(self) -> str:
        """``lines`` as comma-separated values."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self.lines)
        return out.getvalue()

    def markdown(self) -> str:
        """``grids``, one after the other."""
        return "\n\n".join(grid.markdown() for grid in self.grids) + "\n"

    def show(self, as_json: bool, csv_file: str | None = None, markdown_file: str | None = None) -> int:
        """Print it, and write the files that are asked for; returns the exit code."""
        for grid in self.grids:
            grid.show()
        for note in self.notes:
            print(note)
        list_failed(self.failed)
        _write(csv_file, self.csv)
        _write(markdown_file, self.markdown)
        print_json(as_json, self.values)
        return self.exit_code


def _write(path: str | None, text: Callable[[], str]) -> None:
    """UsageError for a file that cannot be written; None: not asked for."""
    if path is not None:
        try:
            Path(path).write_text(text(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error
