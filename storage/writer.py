"""Writing one shard: a Parquet file whose row groups hold one image each, published whole, then its commit."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from storage.commits import Commit, CommitName, LedgerRow, Upstream, commit_key, data_key, new_attempt, write_commit
from storage.parts import part_key
from storage.root import Root
from storage.schemas import BULK_COLUMNS, METHOD_KEY, SHARD_KEY

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ROW_GROUP_BYTES = 8 * 1024 * 1024
"""An image of more bytes is split into several row groups; never are two images in one.

A reader needs several times the bytes of a group; smaller ones cost nothing to write, store or scan
(benchmarks/store.py).
"""

_DICTIONARY = ("image_id", "class_name", "method", "scale")


class ShardWriter:
    """Context manager that writes one attempt at one shard. Without ``commit`` nothing is left behind.

    Images come in sorted order, each once. Vectors: zstd level 1, no dictionary, no statistics. ``source``: it is a
    part of the shard, made with that shard of another dataset (``storage.parts``); ``publish`` it, and commit nothing.
    """

    def __init__(
        self,
        root: Root,
        dataset: str,
        method: str,
        shard: str,
        schema: pa.Schema,
        *,
        revision: int = 0,
        attempt: str | None = None,
        source: str | None = None,
    ) -> None:
        self.root = root
        self.dataset = dataset
        self.method = method
        self.name = CommitName(shard, revision, attempt or new_attempt())
        self._key = data_key(dataset, method, self.name)
        if source is not None:
            self._key = part_key(dataset, method, shard, source, self.name.attempt)
        self.images: dict[str, int] = {}
        self.bytes = 0
        identity = {METHOD_KEY: method, SHARD_KEY: shard}
        self._schema = schema.with_metadata({**(schema.metadata or {}), **identity})
        self._stack = ExitStack()
        self._groups = 0

    def __enter__(self) -> ShardWriter:
        self._path: Path = self._stack.enter_context(self.root.staged(self._key))
        self._file = _HashedFile(self._path)
        plain = [field.name for field in self._schema if field.name not in BULK_COLUMNS]
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in _DICTIONARY if name in plain],
            write_statistics=[leaf for name in plain for leaf in _leaves(self._schema.field(name))],
            store_schema=True,
            write_page_checksum=True,
        )
        return self

    def write_image(self, image_id: str, columns: pa.Table | None, group_rows: int | None = None) -> None:
        """All rows of one image, in their final order; None for an image without rows.

        ``group_rows``: so many rows to a row group, where readers want some of an image's rows only.
        """
        if self.images and image_id <= next(reversed(self.images)):
            raise ValueError(f"image {image_id!r} comes after {next(reversed(self.images))!r}; images must be sorted")
        rows = 0 if columns is None else len(columns)
        self.images[image_id] = rows
        if columns is None or rows == 0:
            return
        table = columns.cast(self._schema) if columns.schema != self._schema else columns
        per_group = max(1, rows * ROW_GROUP_BYTES // max(1, table.nbytes))
        per_group = min(per_group, group_rows or per_group)
        for start in range(0, rows, per_group):
            self._parquet.write_table(table.slice(start, per_group), row_group_size=per_group)
            self._groups += 1

    def write_shard(self, rows: pa.Table, counts: Mapping[str, int]) -> None:
        """All rows of the whole shard in one row group: for tables whose rows are small.

        ``counts`` gives every image of the shard, sorted, its number of rows.
        """
        self.images = dict(counts)
        if len(rows):
            self._parquet.write_table(rows.cast(self._schema), row_group_size=len(rows))
            self._groups += 1

    def commit(
        self,
        *,
        ledger: Sequence[LedgerRow] = (),
        skipped: Sequence[str] = (),
        upstream: Sequence[Upstream] = (),
        seconds: dict[str, float] | None = None,
        passes: int = 0,
        producer: str = "",
    ) -> Commit:
        """Close the file, check its footer, publish it, then publish its commit, which is returned."""
        rows = self.publish()
        timed = {**(seconds or {}), "write": self._write_seconds}
        record = Commit(
            dataset=self.dataset,
            method=self.method,
            shard=self.name.shard,
            revision=self.name.revision,
            attempt=self.name.attempt,
            data=data_key("", "", self.name).lstrip("/"),
            rows=rows,
            bytes=self.bytes,
            sha256=self._file.sha256,
            images=self.images,
            ledger=tuple(row.model_copy(update={"attempt": self.name.attempt}) for row in ledger),
            skipped=tuple(skipped),
            upstream=tuple(upstream),
            seconds={phase: round(value, 4) for phase, value in timed.items()},
            passes=passes,
            producer=producer,
        )
        write_commit(self.root, record)
        return record

    def publish(self) -> int:
        """Close the file, check its footer and publish it: what ``commit`` does first, and all that a part needs.

        Returns the number of its rows.
        """
        self._parquet.close()
        self._file.close()
        rows = sum(self.images.values())
        footer = pq.read_metadata(self._path)
        if (footer.num_rows, footer.num_row_groups) != (rows, self._groups):
            raise OSError(
                f"{self._path} has {footer.num_rows} rows in {footer.num_row_groups} groups after writing {rows}"
            )
        self.bytes = self._file.size
        start = time.perf_counter()
        self._stack.close()
        self._write_seconds = time.perf_counter() - start
        return rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self._parquet.close()  # or its destructor tries to, later and loudly
        self._file.close()
        if kind is None:
            kind, error = _NotCommitted, _NotCommitted()
        with contextlib.suppress(_NotCommitted):
            self._stack.__exit__(kind, error, None)  # an error: the staged file is dropped, nothing is published

    @property
    def commit_key(self) -> str:
        """Where the commit record will be."""
        return commit_key(self.dataset, self.method, self.name)


class _NotCommitted(Exception):
    """The block ended without ``commit``."""


class _HashedFile(io.RawIOBase):
    """A local file that is hashed while it is written, so that no second pass over its bytes is needed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _leaves(field: pa.Field, prefix: str = "") -> list[str]:
    """Paths of a field's Parquet columns."""
    name = f"{prefix}{field.name}"
    if pa.types.is_struct(field.type):
        return [leaf for child in field.type for leaf in _leaves(child, f"{name}.")]
    if pa.types.is_list(field.type):
        return [f"{name}.list.{field.type.value_field.name}"]
    return [name]
