"""What a classification came to: each layer of each view, over all splits; read from what is stored, and printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from jobs.classify.task import HELD_OUT, TEST
from jobs.config.run_config import RunConfig
from jobs.console.grid import Grid
from jobs.record.recording import recorded_config
from pipeline.features.whole_image import whole_layers
from storage.quality import ClassificationQuality, LayerQuality
from storage.root import Root
from storage.runs import RunRecord, dataset_record
from storage.scan import scan_file


def measure_of(config: RunConfig) -> str:
    """The column of ``classification`` that its protocol reports."""
    return "ap_11" if config.classify.protocol == "voc07" else "accuracy"


def unit_of(config: RunConfig) -> str:
    """What that is, in words."""
    return "mean AP (11-point, %)" if config.classify.protocol == "voc07" else "mean class accuracy (%)"


def class_means(table: pa.Table, column: str) -> dict[tuple[str, str, str], list[float]]:
    """(view, layer, tested on) to the mean over classes of a column, split by split; classes without a value aside."""
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    wanted: Sequence[str] = ["view", "layer", "tested_on", "split", column]
    for row in table.select(wanted).to_pylist():
        if row[column] is not None:
            key = (row["view"], row["layer"], row["tested_on"])
            values.setdefault(key, {}).setdefault(row["split"], []).append(row[column])
    return {key: [float(np.mean(splits[n])) for n in sorted(splits)] for key, splits in values.items()}


def summary(root: Root, keys: Sequence[str], config: RunConfig) -> ClassificationQuality:
    """Means over splits of what is stored."""
    tables = [table for key in keys for table in scan_file(root, key)]
    means = class_means(pa.concat_tables(tables), measure_of(config))
    found = []
    for (view, layer, tested_on), values in means.items():
        if tested_on == TEST:
            chosen = means.get((view, layer, HELD_OUT))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found.append(
                LayerQuality(
                    view=view,
                    layer=layer,
                    mean=statistics.mean(values),
                    deviation=spread,
                    splits=len(values),
                    held_out=statistics.mean(chosen) if chosen else None,
                )
            )
    return ClassificationQuality(measure=measure_of(config), layers=found)


def measured_layers(record: RunRecord) -> list[LayerQuality]:
    """What a run's classification came to."""
    quality = dataset_record(record, "classification").quality
    assert isinstance(quality, ClassificationQuality)
    return quality.layers


def print_classification(record: RunRecord) -> None:
    """A row per layer and a column per view."""
    measured = measured_layers(record)
    config = recorded_config(record)
    columns = {view: {one.layer: one for one in measured if one.view == view} for view in config.classify.views}
    layer_grid(config, {view: cells for view, cells in columns.items() if cells}).show()


def layer_grid(config: RunConfig, columns: Mapping[str, Mapping[str, LayerQuality]]) -> Grid:
    """Layers, shallow to deep, by ``columns``: title to layer to what it came to."""
    splits = max(one.splits for cells in columns.values() for one in cells.values())
    return Grid(
        corner=("layer",),
        columns={title: title for title in columns},
        rows={
            (layer,): {title: _shown(cells[layer]) for title, cells in columns.items() if layer in cells}
            for layer in _in_order({layer for cells in columns.values() for layer in cells})
        },
        caption=unit_of(config) + (f", mean and standard deviation of {splits} splits" if splits > 1 else ""),
    )


def _in_order(layers: Iterable[str]) -> list[str]:
    """Layers as tables show them, shallow to deep: maps by name, then what is pooled of the last."""
    pooled = whole_layers(("pool", "spp", "fc6", "fc7"))
    return sorted(layers, key=lambda layer: (pooled.index(layer) + 1 if layer in pooled else 0, layer))


def _shown(one: LayerQuality) -> str:
    return f"{100 * one.mean:.2f}" + (f" ± {100 * one.deviation:.2f}" if one.splits > 1 else "")
