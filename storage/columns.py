"""Arrow columns from NumPy arrays and back, without copying vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


def _struct(names: Sequence[str], kind: pa.DataType) -> pa.StructType:
    return pa.struct([pa.field(name, kind, nullable=False) for name in names])


BOX = _struct(("x1", "y1", "x2", "y2"), pa.float32())
"""Half-open, 0-based pixels of the original image."""

WINDOW = _struct(("cx1", "cy1", "cx2", "cy2"), pa.int16())
"""Inclusive, 0-based cells of the conv map."""


def vector_type(dim: int) -> pa.FixedSizeListType:
    """``fixed_size_list<element: half not null>[dim]``: no definition levels for the elements, readable everywhere."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)


def box_column(boxes: NDArray[np.float32]) -> pa.StructArray:
    """Boxes (N, 4) as a column of type BOX."""
    return _struct_column(np.asarray(boxes, np.float32), BOX)


def window_column(windows: NDArray[np.int16]) -> pa.StructArray:
    """Windows (N, 4) as a column of type WINDOW."""
    return _struct_column(np.asarray(windows, np.int16), WINDOW)


def vector_column(vectors: NDArray[np.float16]) -> pa.FixedSizeListArray:
    """Vectors (N, dim), C-contiguous, as a column over the same memory."""
    dim = vectors.shape[1]
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector_type(dim))


def map_column(conv_maps: Sequence[NDArray[np.float16]]) -> pa.ListArray:
    """Conv maps (height, width, channels), each flattened to a list of float16."""
    offsets = np.cumsum([0, *(values.size for values in conv_maps)], dtype=np.int32)
    flat = np.concatenate([values.reshape(-1) for values in conv_maps]) if conv_maps else np.zeros(0, np.float16)
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)


def boxes_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    """A box column as float32 (N, 4)."""
    return _struct_array(column, BOX, np.float32)


def windows_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int16]:
    """A window column as int16 (N, 4)."""
    return _struct_array(column, WINDOW, np.int16)


def vectors_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
    """A vector column as a read-only float16 (N, dim) over its own memory (copied only if it has several chunks)."""
    array = _one_chunk(column)
    dim = array.type.list_size
    values = array.values.slice(array.offset * dim, len(array) * dim)
    vectors: NDArray[np.float16] = values.to_numpy(zero_copy_only=True).reshape(len(array), dim)
    return vectors


def no_rows(layout: pa.Schema) -> pa.Table:
    """A table of a schema, without rows. ``layout.empty_table()`` would import pandas, which looking at a run need not.

    pyarrow does so for any array that it makes of Python's objects or NumPy's, and a `spp status` took a third longer.
    """
    return pa.Table.from_batches([], layout)


def take_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows of a table, by number, in the order given. Imports no pandas either."""
    return table.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]))


def _struct_column(values: NDArray[_Scalar], kind: pa.StructType) -> pa.StructArray:
    fields = [pa.array(np.ascontiguousarray(values[:, i])) for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays(fields, fields=list(kind))


def _struct_array(column: pa.Array | pa.ChunkedArray, kind: pa.StructType, dtype: type[_Scalar]) -> NDArray[_Scalar]:
    array = _one_chunk(column)
    result = np.empty((len(array), kind.num_fields), dtype)
    for i, values in enumerate(array.flatten()):
        result[:, i] = values.to_numpy(zero_copy_only=False)
    return result


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column
