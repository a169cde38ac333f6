"""table: the paper's detection table (Table 9) for the data at hand.

    spp table --config configs/voc2007.yaml --root /data/spp --columns 1-scale,5-scale,R-CNN --markdown table.md

Each cell is a run of its own, ``<run>.<column>.<row>``, made if it is not there yet: all share proposals, and those of
a column features, training windows and head. Rows: pool5, fc6 (where the body's weights bring one), ftfc6, ftfc7 and
ftfc7 bb, the only one whose boxes are regressed. Columns: one scale, five scales, and R-CNN, whose windows are warped.
Beside each mean average precision stands its 95% interval, and below the table those of the differences: by bootstrap,
all cells on the same resamples of the test images. Seconds are of one worker, per image, of a column's last row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.compare.measured_run import check_current, check_same, matched_detections, read_measured
from jobs.config.run_config import RunConfig
from jobs.console.grid import Grid, Rows, Tables
from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.features.body import identify_body
from jobs.record.invocation import Invocation
from jobs.record.recording import recorded_config
from jobs.run.driver import run
from jobs.run.stages import run_stages
from storage.quality import MetricsQuality
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, read_run, run_names

if TYPE_CHECKING:
    from pipeline.measures.bootstrap import Bootstrap

_log = logging.getLogger("spp")

ROWS: dict[str, dict[str, Any]] = {
    "pool5": {"svm": {"layer": "pool5"}, "detect": {"regress": False}},
    "fc6": {"svm": {"layer": "fc6"}, "detect": {"regress": False}},
    "ftfc6": {"svm": {"layer": "ftfc6"}, "detect": {"regress": False}},
    "ftfc7": {"svm": {"layer": "ftfc7"}, "detect": {"regress": False}},
    "ftfc7 bb": {"svm": {"layer": "ftfc7"}, "detect": {"regress": True}},
}
"""Row to what it changes of the config."""

COLUMNS = ("1-scale", "5-scale", "R-CNN")

ONE_SCALE = (688,)
FIVE_SCALES = (480, 576, 688, 864, 1200)
"""The paper's, where the config has another number of scales."""

PHASES = ("conv", "pool", "fc", "SVM", "NMS", "bbox")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run of the table; AP of each class and their mean are None where no test image shows an object."""

    row: str
    column: str
    run: str
    map_11: float | None
    map_area: float | None
    ap_11: dict[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Difference:
    """How much higher the mean AP of one cell is than another's: value and 95% interval."""

    column: str
    of: str
    minus: str
    value: float
    low: float
    high: float


@dataclass
class Table:
    """What ``spp table`` shows. ``seconds``: column to phase to worker seconds per image. ``exit_code``: the highest of
    its runs."""

    images: int
    titles: dict[str, str]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    exit_code: int = 0


def make_table(invocation: Invocation, columns: Sequence[str], rows: Sequence[str], only_print: bool = False) -> Tables:
    """Run what is missing of the table's runs (unless ``only_print``), and read them all.

    Raises UsageError for a column or row that does not exist, and what a run raises.
    """
    for key, given, known in (("columns", columns, COLUMNS), ("rows", rows, tuple(ROWS))):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise UsageError(
                f"--{key}: there is no {unknown[0] if unknown else 'name'!r}; give some of {', '.join(known)}"
            )
    pretrained = bool(identify_body(invocation.config.features).classifier)
    records: dict[tuple[str, str], RunRecord] = {}
    there = run_names(invocation.root)
    for column in columns:
        for row in rows:
            if row == "fc6" and not pretrained:
                continue
            cell = _cell_invocation(invocation, column, row)
            if not only_print:
                _log.info("table: %s", cell.name)
                records[row, column], _ = run(cell, run_stages(cell.config))
            elif cell.name in there:
                records[row, column] = read_run(invocation.root, cell.name)
    done = {place: record for place, record in records.items() if record.complete("metrics")}
    if not done:
        raise UsageError("no run of the table is there yet; run `spp table` without --only-print")
    parts = [read_measured(invocation.root, record.name) for record in done.values()]
    for part in parts:
        check_same(parts[0], part)
        check_current(invocation.root, part)
    titles = {column: _title(invocation.config, column) for column in columns}
    return _tables(invocation, _read(invocation.root, done, titles))


def cell_config(config: RunConfig, column: str, row: str) -> RunConfig:
    """The config of one cell."""
    values = config.model_dump(mode="json")
    scales = config.features.scales
    if column == "1-scale":
        features: dict[str, Any] = {"scales": scales if len(scales) == 1 else ONE_SCALE}
    elif column == "5-scale":
        features = {"scales": scales if len(scales) > 1 else FIVE_SCALES}
    else:
        features = {"source": "warp", "store": "vectors"}
    for section, changes in {"features": features, **ROWS[row]}.items():
        values[section] = {**values[section], **changes}
    return RunConfig.model_validate(values)


def _cell_invocation(invocation: Invocation, column: str, row: str) -> Invocation:
    name = f"{invocation.name}.{column}.{row.replace(' ', '-')}"
    return Invocation(cell_config(invocation.config, column, row), invocation.root, name, invocation.argv)


def _title(config: RunConfig, column: str) -> str:
    if column == "R-CNN":
        return "R-CNN (warped)"
    scales = cell_config(config, column, "pool5").features.scales
    return f"{column} ({' '.join(map(str, scales))})"


def _read(root: Root, records: Mapping[tuple[str, str], RunRecord], titles: dict[str, str]) -> Table:
    """Precisions, intervals and seconds of runs that are measured on the same test images."""
    from pipeline.measures.bootstrap import bootstrap_maps, interval

    first = next(iter(records.values()))
    config = recorded_config(first)
    index = recorded_index(root, first)
    image_ids = index.images_in(config.dataset.test_splits)
    made = Table(len(image_ids), titles)
    matched = [matched_detections(root, record, config, index, image_ids) for record in records.values()]
    maps = bootstrap_maps(matched, max(1, len(image_ids)), thresholds=config.evaluate.thresholds)
    for row, column in sorted(records, key=lambda place: list(ROWS).index(place[0])):
        made.seconds[column] = seconds_per_image(records[row, column])  # of the last row, whatever order was asked for
    for (place, record), resampled in zip(records.items(), maps.map_11, strict=True):
        measured = record.datasets["metrics"].quality
        assert isinstance(measured, MetricsQuality)
        row, column = place
        made.cells[place] = Cell(
            row=row,
            column=column,
            run=record.name,
            map_11=measured.map_11,
            map_area=measured.map_area,
            ap_11={one.class_name: one.ap_11 for one in measured.classes},
            interval=None if measured.map_11 is None else interval(resampled),
        )
    made.differences = list(_differences(made, list(records), maps))
    made.exit_code = max(record.exit_code or 0 for record in records.values())
    return made


def _differences(table: Table, places: Sequence[tuple[str, str]], maps: Bootstrap) -> Iterator[Difference]:
    """Each row against the one above it, and against pool5; each column against the first."""
    from pipeline.measures.bootstrap import difference_interval

    def between(one: tuple[str, str], other: tuple[str, str], column: str, of: str, minus: str) -> Difference | None:
        ours, theirs = table.cells[one].map_11, table.cells[other].map_11
        if ours is None or theirs is None:
            return None
        low, high = difference_interval(maps.map_11[places.index(one)], maps.map_11[places.index(other)])
        return Difference(column, of, minus, ours - theirs, low, high)

    for column in table.titles:
        rows = [row for row in ROWS if (row, column) in table.cells]
        pairs = [*zip(rows[1:], rows, strict=False), *((row, rows[0]) for row in rows[2:] if rows[0] == "pool5")]
        for row, other in pairs:
            found = between((row, column), (other, column), column, row, other)
            if found is not None:
                yield found
    columns = list(table.titles)
    for column in columns[1:]:
        for row in ROWS:
            if (row, column) in table.cells and (row, columns[0]) in table.cells:
                found = between((row, column), (row, columns[0]), row, column, columns[0])
                if found is not None:
                    yield found


def seconds_per_image(record: RunRecord) -> dict[str, float]:
    """Phase of the paper's Table 9 to worker seconds per image of a run's features and detections."""
    datasets = record.datasets
    features = datasets["windows" if "windows" in datasets else "features"]  # vectors may have been made of maps
    detections = datasets["detections"]
    counted: dict[str, list[tuple[DatasetRecord, tuple[str, ...]]]] = {
        "conv": [(features if not features.partial else detections, ("conv", "warp", "transfer"))],
        "pool": [(features, ("pool",)), (detections, ("pool",))],
        "fc": [(detections, ("fc",))],
        "SVM": [(detections, ("svm",))],
        "NMS": [(detections, ("nms",))],
        "bbox": [(detections, ("bbox",))],
    }
    return {
        phase: sum(entry.seconds.get(name, 0.0) / max(1, entry.images) for entry, names in parts for name in names)
        for phase, parts in counted.items()
    }


def _tables(invocation: Invocation, table: Table) -> Tables:
    """Everything in every form; a line of CSV per cell, with the seconds of its column and the AP of each class."""
    names = sorted({name for cell in table.cells.values() for name in cell.ap_11})
    seconds = [f"seconds_{phase.lower()}" for phase in PHASES]
    lines: list[list[Any]] = [["column", "row", "run", "map_11", "low", "high", "map_area", *seconds, *names]]
    for (row, column), cell in table.cells.items():
        low, high = cell.interval or ("", "")
        own = [round(table.seconds[column][phase], 5) for phase in PHASES]
        classes = [cell.ap_11.get(name, "") for name in names]
        lines.append([column, row, cell.run, cell.map_11, low, high, cell.map_area, *own, *classes])
    values = {
        "run": invocation.name,
        "root": invocation.root.url,
        "images": table.images,
        "cells": [vars(cell) for cell in table.cells.values()],
        "seconds": table.seconds,
        "exit_code": table.exit_code,
        "differences": [vars(difference) for difference in table.differences],
    }
    grids = [_precisions(table), _difference_grid(table), _class_grid(table, names)]
    return Tables(grids=grids, lines=lines, values=values, exit_code=table.exit_code)


def _precisions(table: Table) -> Grid:
    """Precisions, then seconds."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in ROWS:
        for (own_row, column), cell in table.cells.items():
            if own_row == row:
                rows.setdefault((row,), {})[column] = _shown(cell)
    for phase in PHASES:
        rows[(f"{phase} s/image",)] = {column: f"{own[phase]:.4f}" for column, own in table.seconds.items()}
    totals = {column: sum(own.values()) for column, own in table.seconds.items()}
    rows[("total s/image",)] = {column: f"{total:.4f}" for column, total in totals.items()}
    slowest = totals.get("R-CNN")
    if slowest:
        rows[("speed-up over R-CNN",)] = {column: f"{slowest / total:.1f}" for column, total in totals.items() if total}
    caption = f"mean AP (11-point, %) on {table.images} test images, with 95% bootstrap intervals"
    heading = f"{caption[0].upper()}{caption[1:]}; worker seconds an image."
    return Grid(columns=table.titles, rows=rows, caption=caption, heading=heading)


def _difference_grid(table: Table) -> Grid:
    rows: Rows = {
        (d.column, f"{d.of} - {d.minus}"): {
            "difference": f"{100 * d.value:+.1f}",
            "interval": f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        }
        for d in table.differences
    }
    return Grid(
        corner=("in", "what"),
        columns={"difference": "difference", "interval": "interval"},
        rows=rows,
        caption="differences of mean AP (points), with 95% intervals of paired resamples",
        heading="Differences of mean AP (points), with 95% intervals of paired resamples.",
    )


def _class_grid(table: Table, names: Sequence[str]) -> Grid:
    rows: Rows = {
        (column, row): {name: f"{100 * ap:.1f}" for name, ap in cell.ap_11.items() if ap is not None}
        for (row, column), cell in table.cells.items()
    }
    caption = "AP (11-point, %) of each class"
    columns = {name: name for name in names}
    return Grid(corner=("column", "row"), columns=columns, rows=rows, caption=caption, heading=f"{caption}.")


def _shown(cell: Cell) -> str:
    if cell.map_11 is None or cell.interval is None:
        return "-"
    low, high = cell.interval
    return f"{100 * cell.map_11:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
