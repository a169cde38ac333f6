"""The columns of every dataset, and what a file says about itself.

``SCHEMA_VERSION`` is written into every file and record. A reader refuses a newer version by name instead of guessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import pyarrow as pa
import pydantic_core
from pydantic import BaseModel, ValidationError

from storage.columns import BOX, WINDOW, vector_type
from storage.root import StorageError

_Record = TypeVar("_Record", bound=BaseModel)

SCHEMA_VERSION = 1
VERSION_KEY = "spp.schema_version"

VECTOR_COLUMN = "feature"
MAP_COLUMN = "map"
BULK_COLUMNS = (VECTOR_COLUMN, MAP_COLUMN)
"""float16 values, nearly all of a file's bytes: no dictionary, no statistics."""

_OBJECT = {"object_id": pa.int32(), "class_name": pa.string()}

_WINDOW_ROW = {
    "image_id": pa.string(),
    "proposal_id": pa.int32(),
    "box": BOX,
    "scale": pa.int32(),
    "window": WINDOW,
}

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
    "truth_features": {
        "image_id": pa.string(),
        **_OBJECT,
        "difficult": pa.bool_(),
        "box": BOX,
        "scale": pa.int32(),
        "window": WINDOW,
    },
}

DATASETS = tuple(_COLUMNS)
"""Names of the datasets, in the order in which they come to be."""


def schema(dataset: str, dim: int | None = None, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema of a dataset's files.

    ``dim`` is the length of the vectors, for the datasets that hold some. ``metadata`` is written into each file's
    key/value metadata under ``spp.``, beside the schema version.
    """
    columns = dict(_COLUMNS[dataset])
    if dim is not None:
        columns[VECTOR_COLUMN] = vector_type(dim)
    labels = {VERSION_KEY: str(SCHEMA_VERSION), "spp.dataset": dataset}
    labels.update({f"spp.{key}": value for key, value in (metadata or {}).items()})
    return pa.schema([pa.field(n, t, nullable=False) for n, t in columns.items()], metadata=labels)


def read_record(model: type[_Record], data: bytes, where: str) -> _Record:
    """A JSON record. Its version is looked at first: a newer one may have other fields.

    Raises StorageError: the version is newer, or this is no such record.
    """
    try:
        fields = pydantic_core.from_json(data)
        check_version(fields["schema_version"], where)
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (LookupError, TypeError):
        reason = "no schema_version"
    except StorageError:
        raise
    except ValueError as error:
        reason = str(error)
    raise StorageError(f"{where} is damaged: {reason}")


def check_version(version: object, where: str) -> None:
    """Raises StorageError if ``version`` (of a file or record at ``where``) is newer than this software reads."""
    if not str(version).isdigit() or int(str(version)) > SCHEMA_VERSION:
        raise StorageError(
            f"{where} has schema version {version}, this software reads up to {SCHEMA_VERSION}; update spp-pipeline"
        )
