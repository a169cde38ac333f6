"""Small tables, read whole."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a small Parquet file in memory.

    Without Arrow's threads: one that still holds Python's bytes, or a Python file, when the interpreter ends brings the
    process down ("terminate called without an active exception"). Not by ``pq.read_table``, which brings in pandas.
    """
    names = None if columns is None else list(columns)
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as parquet:
        return parquet.read(columns=names, use_threads=False)
