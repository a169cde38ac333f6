"""The columns of every dataset, and what a file says about itself.

``SCHEMA_VERSION`` is written into every file and record. A reader refuses a newer version by name instead of guessing.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from storage.columns import BOX, WINDOW, vector_type
from storage.root import StorageError

SCHEMA_VERSION = 1
VERSION_KEY = "spp.schema_version"
DATASET_KEY = "spp.dataset"
METHOD_KEY = "spp.method"
SHARD_KEY = "spp.shard"
"""Metadata of every data file: which one it is."""

VECTOR_COLUMN = "feature"
MAP_COLUMN = "map"
WEIGHT_COLUMN = "weight"
BULK_COLUMNS = (VECTOR_COLUMN, MAP_COLUMN, WEIGHT_COLUMN)
"""Long lists of numbers, nearly all of a file's bytes: no dictionary, no statistics."""

ONE_GROUP = (
    "images",
    "objects",
    "training_curve",
    "pretraining_curve",
    "svms",
    "regressors",
    "detections",
    "metrics",
    "image_scores",
    "classification",
)
"""Datasets of small rows: a shard is one row group. In all others no row group holds rows of two images."""

_UNITS = {
    "head": "name",
    "checkpoints": "name",
    "training_curve": "phase",
    "network": "name",
    "pretraining_curve": "phase",
    "svms": "class_name",
    "regressors": "class_name",
    "metrics": "class_name",
    "classification": "class_name",
}
"""Datasets whose rows, and what their commits count, are not of images: the column that says what they are of."""

_OBJECT = {"object_id": pa.int32(), "class_name": pa.string()}

_WINDOW_ROW = {
    "image_id": pa.string(),
    "proposal_id": pa.int32(),
    "box": BOX,
    "scale": pa.int32(),
    "window": WINDOW,
}

_TRUTH_ROW = {
    "image_id": pa.string(),
    **_OBJECT,
    "difficult": pa.bool_(),
    "box": BOX,
    "scale": pa.int32(),
    "window": WINDOW,
}


def _list(element: pa.DataType, size: int = -1) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False), size)


_FIT = pa.struct(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "pass": pa.int32(),
            "round": pa.int32(),
            "positives": pa.int32(),
            "negatives": pa.int32(),
            "added": pa.int32(),
            "left_out": pa.int64(),
            "evicted": pa.int32(),
            "loss_positive": pa.float64(),
            "loss_negative": pa.float64(),
            "regulariser": pa.float64(),
            "iterations": pa.int32(),
        }.items()
    ]
)
"""One fit of a class's SVM: its examples, and the parts of its objective after it."""

_TENSOR_ROW = {"name": pa.string(), "shape": _list(pa.int32()), WEIGHT_COLUMN: _list(pa.float32())}

_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "images": {
        "image_id": pa.string(),
        "uri": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "splits": pa.list_(pa.field("element", pa.string(), nullable=False)),
        "digest": pa.string(),
    },
    "objects": {"image_id": pa.string(), **_OBJECT, "box": BOX, "difficult": pa.bool_(), "truncated": pa.bool_()},
    "proposals": {
        "image_id": pa.string(),
        "proposal_id": pa.int32(),
        "box": BOX,
        "method": pa.string(),
        "rank": pa.int32(),
        "strategy": pa.string(),
        "level": pa.int32(),
    },
    "features": _WINDOW_ROW,
    "windows": _WINDOW_ROW,
    "maps": {
        "image_id": pa.string(),
        "scale": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "channels": pa.int32(),
        MAP_COLUMN: pa.list_(pa.field("element", pa.float16(), nullable=False)),
    },
    "truth_features": _TRUTH_ROW,
    "training_windows": {
        "image_id": pa.string(),
        "window_id": pa.int32(),
        "class_name": pa.string(),
        "flipped": pa.bool_(),
        "box": BOX,
        "scale": pa.int32(),
        "window": WINDOW,
    },
    "head": _TENSOR_ROW,
    "checkpoints": _TENSOR_ROW,
    "training_curve": {
        "phase": pa.string(),
        "iteration": pa.int32(),
        "learning_rate": pa.float64(),
        "loss": pa.float64(),
        "held_out_loss": pa.float64(),
        "held_out_accuracy": pa.float64(),
    },
    "network": _TENSOR_ROW,
    "pretraining_curve": {
        "phase": pa.string(),
        "epoch": pa.int32(),
        "size": pa.int32(),
        "learning_rate": pa.float64(),
        "loss": pa.float64(),
        "held_out_loss": pa.float64(),
        "top1": pa.float64(),
        "top5": pa.float64(),
    },
    "embeddings": _WINDOW_ROW,
    "truth_embeddings": _TRUTH_ROW,
    "svms": {
        "class_name": pa.string(),
        "bias": pa.float64(),
        "feature_scale": pa.float64(),
        "positives": pa.int32(),
        "negatives": pa.int32(),
        "left_out": pa.int64(),
        "all_negatives": pa.int64(),
        "violators": pa.int64(),
        "objective": pa.float64(),
        "objective_all": pa.float64(),
        "passes": pa.int32(),
        "history": _list(_FIT),
    },
    "regressors": {
        "class_name": pa.string(),
        "windows": pa.int32(),
        "feature_scale": pa.float64(),
        "ridge": pa.float64(),
        "bias": _list(pa.float64(), 4),
        "mean": _list(pa.float64(), 4),
        "whitening": _list(pa.float64(), 16),
    },
    "detections": {"image_id": pa.string(), "class_name": pa.string(), "score": pa.float32(), "box": BOX},
    "image_features": {
        "image_id": pa.string(),
        "view": pa.string(),
        "layer": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "channels": pa.int32(),
        VECTOR_COLUMN: pa.list_(pa.field("element", pa.float16(), nullable=False)),
    },
    "image_scores": {
        "image_id": pa.string(),
        "view": pa.string(),
        "layer": pa.string(),
        "split": pa.int32(),
        "class_name": pa.string(),
        "score": pa.float32(),
    },
    "classification": {
        "class_name": pa.string(),
        "view": pa.string(),
        "layer": pa.string(),
        "split": pa.int32(),
        "tested_on": pa.string(),
        "images": pa.int32(),
        "positives": pa.int32(),
        "accuracy": pa.float64(),
        "ap_11": pa.float64(),
        "ap_area": pa.float64(),
    },
    "metrics": {
        "class_name": pa.string(),
        "ap_11": pa.float64(),
        "ap_area": pa.float64(),
        "positives": pa.int32(),
        "detections": pa.int32(),
        "true_positives": pa.int32(),
        "score": _list(pa.float32()),
        "recall": _list(pa.float64()),
        "precision": _list(pa.float64()),
    },
}

_NULLABLE = {
    ("proposals", "strategy"),
    ("proposals", "level"),
    ("training_windows", "class_name"),
    ("training_curve", "held_out_loss"),
    ("training_curve", "held_out_accuracy"),
    ("pretraining_curve", "size"),
    ("pretraining_curve", "held_out_loss"),
    ("pretraining_curve", "top1"),
    ("pretraining_curve", "top5"),
    ("classification", "accuracy"),
    ("classification", "ap_11"),
    ("classification", "ap_area"),
    ("metrics", "ap_11"),
    ("metrics", "ap_area"),
}
"""Not every search has strategies and levels; the background is of no class; not every training holds windows out;
without an object of the class there is no average precision; a protocol measures accuracy or average precision."""

_WEIGHTS = {"svms": 1, "regressors": 4}
"""Vectors of weights in a row of these datasets."""

DATASETS = tuple(_COLUMNS)
"""Names of the datasets, in the order in which they come to be."""


def unit_column(dataset: str) -> str:
    """The column that names what a dataset's rows are of, and what its commits count: most often the image."""
    return _UNITS.get(dataset, "image_id")


def schema(dataset: str, dim: int | None = None, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema of a dataset's files.

    ``dim`` is the length of the vectors, for the datasets that hold some. ``metadata`` is written into each file's
    key/value metadata under ``spp.``, beside the schema version.
    """
    columns = dict(_COLUMNS[dataset])
    if dim is not None and dataset in _WEIGHTS:
        columns[WEIGHT_COLUMN] = _list(pa.float32(), _WEIGHTS[dataset] * dim)
    elif dim is not None:
        columns[VECTOR_COLUMN] = vector_type(dim)
    labels = {VERSION_KEY: str(SCHEMA_VERSION), DATASET_KEY: dataset}
    labels.update({f"spp.{key}": value for key, value in (metadata or {}).items()})
    fields = [pa.field(n, t, nullable=(dataset, n) in _NULLABLE) for n, t in columns.items()]
    return pa.schema(fields, metadata=labels)


def check_version(version: object, where: str, newest: int = SCHEMA_VERSION) -> None:
    """Raises StorageError unless this software reads ``version`` (of a file or record at ``where``)."""
    if not (str(version).isdecimal() and str(version).isascii() and 1 <= int(str(version)) <= newest):
        raise StorageError(
            f"{where} has schema version {version}, this software reads up to {newest}; update spp-pipeline"
        )
