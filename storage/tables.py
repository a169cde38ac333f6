"""Small tables, read whole, and the seal by which a changed one is known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_SEAL = b"spp.digest"


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a small Parquet file in memory.

    Without Arrow's threads: one that still holds Python's bytes, or a Python file, when the interpreter ends brings the
    process down ("terminate called without an active exception"). Not by ``pq.read_table``, which brings in pandas.
    """
    names = None if columns is None else list(columns)
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as parquet:
        return parquet.read(columns=names, use_threads=False)


def sealed(table: pa.Table, *about: str) -> pa.Table:
    """The table with a digest of its values, and of ``about``, in its metadata."""
    metadata = dict(table.schema.metadata or {})
    return table.replace_schema_metadata({**metadata, _SEAL: _digest(table, about).encode()})


def is_as_sealed(table: pa.Table, *about: str) -> bool | None:
    """Whether the table is the one that was sealed; None if none was, as with those of version 0.1.0."""
    seal = (table.schema.metadata or {}).get(_SEAL)
    return None if seal is None else bool(seal.decode("ascii", "replace") == _digest(table, about))


def without_seal(table: pa.Table) -> pa.Table:
    """The table as it was before it was sealed."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _SEAL}
    return table.replace_schema_metadata(metadata or None)


def _digest(table: pa.Table, about: Sequence[str]) -> str:
    """SHA-256 of the columns' memory: a million rows take a moment, as JSON they would take seconds."""
    total = hashlib.sha256()
    for text in (*about, *table.column_names, str(len(table))):
        total.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    for column in table.combine_chunks().columns:
        for array in column.chunks:  # one, or none of an empty table
            _add(total, array)
    return total.hexdigest()


def _add(total: hashlib._Hash, array: pa.Array) -> None:
    """Texts and whole numbers, none of them null."""
    if array.null_count:
        total.update(array.is_null().to_pylist().__repr__().encode())
    _, *buffers = array.buffers()
    if not len(array):
        return
    if pa.types.is_string(array.type):
        places = np.frombuffer(buffers[0], np.int32)[array.offset : array.offset + len(array) + 1]
        total.update(np.diff(places).tobytes())
        if buffers[1] is not None:
            total.update(memoryview(buffers[1])[places[0] : places[-1]])
    else:
        width = array.type.bit_width // 8
        total.update(memoryview(buffers[0])[array.offset * width : (array.offset + len(array)) * width])
