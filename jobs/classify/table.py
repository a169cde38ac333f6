"""table --classification: the paper's classification tables (6 and 7) for the data at hand.

    spp table --classification --config configs/caltech101.yaml --root /data/spp --set dataset.path=...

Rows are layers, shallow to deep. Columns: the network trained without SPP on a crop (``classify.no_spp_weights``),
the network on a crop, on a warped image, on the full image at the first short side of ``classify.views``, and at the
best one: chosen for the whole column on parts of the training images, never on those tested. ``--random`` adds the
body with random weights. Each kind of weights is a run of its own, ``<run>.classify``, ``<run>.no-spp`` and
``<run>.random``, made if it is not there yet.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.classify.driver import check_layers, classify
from jobs.classify.summary import layer_grid, measured_layers, unit_of
from jobs.config.run_config import RunConfig
from jobs.console.grid import Tables
from jobs.errors import UsageError
from jobs.features.body import load_body
from jobs.record.invocation import Invocation
from jobs.record.recording import failed_images
from pipeline.features.whole_image import POOL_LEVEL
from pipeline.images.view import View
from storage.quality import LayerQuality

_log = logging.getLogger("spp")

_ABSENT = {"classify": (), "no-spp": ("spp",), "random": ("fc6", "fc7")}
"""Layers that a kind of weights does not have: a network without SPP its pyramid, random weights a classifier."""


@dataclass(frozen=True)
class Column:
    """A column: its title, the run and the view that it shows."""

    title: str
    run: str
    view: str
    cells: dict[str, LayerQuality]


def make_table(invocation: Invocation, random: bool) -> Tables:
    """Run what is missing, and put it together. UsageError for a config without a crop or a full view."""
    config = invocation.config.classify
    full = [view for view in config.views if not View.parse(view).fixed]
    if "crop" not in config.views or not full:
        raise UsageError("classify.views: the table needs crop and a full view, such as [crop, full-224, full-392]")
    kinds: dict[str, dict[str, dict[str, Any]]] = {"classify": {}}
    if config.no_spp_weights is not None:  # its fc6 takes the 6 x 6 level alone
        features = {"weights": config.no_spp_weights, "pyramid": (POOL_LEVEL,)}
        kinds = {"no-spp": {"features": features, "classify": {"views": ("crop",)}}, **kinds}
    if random:
        kinds["random"] = {"features": {"weights": "random"}, "classify": {"views": ("crop", full[0])}}
    configs = {name: _changed(invocation.config, changes, leave_out=_ABSENT[name]) for name, changes in kinds.items()}
    for changed in configs.values():  # all of them before the first takes hours
        check_layers(changed, load_body(changed.features))
    cells = {name: _cells(invocation, name, changed) for name, changed in configs.items()}
    columns: list[Column] = []
    if "no-spp" in cells:
        columns.append(Column("no SPP, crop", *_of(cells["no-spp"], "crop", without=("spp",))))
    columns.append(Column("SPP, crop", *_of(cells["classify"], "crop")))
    if "warp" in config.views:
        columns.append(Column("SPP, warp", *_of(cells["classify"], "warp")))
    columns.append(Column(f"SPP, {_in_words(full[0])}", *_of(cells["classify"], full[0])))
    if len(full) > 1:
        best = best_view(cells["classify"].measured, full)
        columns.append(Column(f"SPP, {_in_words(best)} (best)", *_of(cells["classify"], best)))
    if "random" in cells:
        columns += [Column(f"random, {_in_words(v)}", *_of(cells["random"], v)) for v in ("crop", full[0])]
    codes = [run.exit_code for run in cells.values()]
    failed = {image_id: reason for run in cells.values() for image_id, reason in run.failed.items()}
    return _tables(invocation, columns, dict(sorted(failed.items())), max(codes))


def _tables(invocation: Invocation, columns: Sequence[Column], failed: Mapping[str, str], exit_code: int) -> Tables:
    """Everything in every form; a line of CSV per cell."""
    config, told = invocation.config, ("view", "layer", "mean", "deviation", "splits", "held_out")
    lines: list[tuple[Any, ...]] = [("column", "run", *told)]
    for column in columns:
        lines += [(column.title, column.run, *(getattr(one, n) for n in told)) for one in column.cells.values()]
    cells = [
        {"title": column.title, "run": column.run, "cells": [one.model_dump() for one in column.cells.values()]}
        for column in columns
    ]
    about = {"run": invocation.name, "root": invocation.root.url, "measure": unit_of(config)}
    values = {**about, "columns": cells, "failed": failed, "exit_code": exit_code}
    grid = layer_grid(config, {column.title: column.cells for column in columns})
    return Tables(grids=[grid], lines=lines, values=values, failed=failed, exit_code=exit_code)


def best_view(measured: Sequence[LayerQuality], views: Sequence[str]) -> str:
    """The view whose layers do best, on average, on the images that were held out; of equals the first."""

    def held_out(view: str) -> float:
        return statistics.mean(one.held_out or 0.0 for one in measured if one.view == view)

    return max(views, key=held_out)


@dataclass(frozen=True)
class _Run:
    name: str
    measured: list[LayerQuality]
    failed: dict[str, str]
    exit_code: int


def _changed(config: RunConfig, changes: Mapping[str, dict[str, Any]], leave_out: Sequence[str]) -> RunConfig:
    """A config with other values, without the layers that it cannot have."""
    values = config.model_dump(mode="json")
    for section, changed in changes.items():
        values[section] = {**values[section], **changed}
    layers = config.classify.layers
    if layers is not None and leave_out:
        kept = [layer for layer in layers if layer not in leave_out]
        if not kept:
            raise UsageError(f"classify.layers: {', '.join(layers)} leave a column of the table empty; add pool")
        values["classify"]["layers"] = kept
    return RunConfig.model_validate(values)


def _cells(invocation: Invocation, name: str, config: RunConfig) -> _Run:
    run = f"{invocation.name}.{name}"
    _log.info(f"table: {run}")
    record = classify(Invocation(config, invocation.root, run, invocation.argv))
    return _Run(run, measured_layers(record), failed_images(invocation.root, record), record.exit_code or 0)


def _of(run: _Run, view: str, without: Sequence[str] = ()) -> tuple[str, str, dict[str, LayerQuality]]:
    cells = {one.layer: one for one in run.measured if one.view == view and one.layer not in without}
    return run.name, view, cells


def _in_words(view: str) -> str:
    return f"full, s = {View.parse(view).size}" if view.startswith("full-") else view
