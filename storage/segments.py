"""Segments: what the commits of a thousand shards say, in one file. A cache, which may be deleted at any time.

A manifest is folded from every commit of a dataset. For a million shards that would be a million small reads at the end
of a run, and again for each look at how far it is. So the driver, who sees each commit as it is made, writes what it
saw down now and then; what stands in no segment is read from its commit.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.columns import no_rows
from storage.damage import DamagedFileError, read_file, reading
from storage.root import Root
from storage.tables import is_as_sealed, sealed, table_of, without_seal

_DATA = re.compile(r"data/[0-9a-f]+\.r[0-9]+\.[0-9a-z-]+\.parquet")

SIZE = 1000
"""Commits of one segment."""


def write_segment(root: Root, dataset: str, method: str, table: pa.Table) -> None:
    """Publish rows of a manifest."""
    buffer = io.BytesIO()
    pq.write_table(sealed(table, dataset, method), buffer, compression="zstd", write_page_checksum=True)
    root.write(f"{_folder(dataset, method)}/{uuid.uuid4().hex}.parquet", buffer.getvalue())


def read_segments(root: Root, dataset: str, method: str, schema: pa.Schema, stems: Sequence[str]) -> pa.Table:
    """The rows of those commits, named by ``stems``, that stand in a segment, each once.

    A segment that is damaged, or was not sealed, is passed over: the commits are there.
    """
    wanted = pa.array(sorted(stems), pa.string())
    parts = [no_rows(schema)]
    keys = [f"{_folder(dataset, method)}/{name}" for name in root.names(_folder(dataset, method))]
    for key in keys:
        try:
            data = read_file(root, key)
            with reading(key):
                table = table_of(data)
        except DamagedFileError:  # or deleted just now
            continue
        if is_as_sealed(table, dataset, method) and without_seal(table).schema.equals(schema, check_metadata=True):
            rows = without_seal(table)
            ours = pc.and_(pc.is_in(_stems(rows), value_set=wanted), pa.array(names_its_data(rows), pa.bool_()))
            parts.append(rows.filter(ours))
    found = pa.concat_tables(parts)
    if len(parts) <= 2:
        return found
    _, first = _unique(_stems(found))
    return found.take(first)


def names_its_data(table: pa.Table) -> list[bool]:
    """Whether the rows of a manifest or segment have names of ours, and name the data file that goes with them.

    A root is shared: what stands in its files must lead to no other file than their own. (Without Arrow's functions,
    which load pandas for their first argument that is Python's.)
    """
    columns = [table[name].to_pylist() for name in ("shard", "revision", "attempt", "data")]
    return [
        data == f"data/{shard}.r{revision}.{attempt}.parquet" and _DATA.fullmatch(data) is not None
        for shard, revision, attempt, data in zip(*columns, strict=True)
    ]


def _stems(table: pa.Table) -> pa.ChunkedArray:
    revision = pc.binary_join_element_wise("r", pc.cast(table["revision"], pa.string()), "")
    return pc.binary_join_element_wise(table["shard"], revision, table["attempt"], ".")


def _unique(stems: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Each stem, and where it stands first: two drivers may have written down the same commit."""
    rows = pa.table({"stem": stems, "at": pa.array(range(len(stems)), pa.int64())})
    grouped = rows.group_by("stem").aggregate([("at", "min")]).sort_by("at_min")
    return grouped["stem"].combine_chunks(), grouped["at_min"].combine_chunks()


def _folder(dataset: str, method: str) -> str:
    return f"{dataset}/{method}/segment"
