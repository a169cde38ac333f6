"""SQL over a run: a DuckDB connection with one view per complete dataset, and questions to it that do no harm.

``ask`` is for whoever types SQL, or was sent some: it sees the run's datasets and nothing else. ``connect`` is DuckDB
as it comes, which reads and writes what its user may.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import IO, Any

import duckdb
import fsspec

from storage.columns import no_rows
from storage.manifest import read_manifest
from storage.root import Root, StorageError
from storage.runs import RunRecord, read_run
from storage.schemas import schema

_BATCH = 10_000
"""Rows fetched at a time: between them it is seen whether the time is over."""

_AGAIN = 0.1
"""Seconds after which a query that does not stop is asked again."""

_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_EXPLAIN = re.compile(r"\s*explain\s+(?!analy[sz]e\b)(?=[a-z])", re.IGNORECASE)

_READING_NODES = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
"""Of a parsed query. Others write: since DuckDB 2.0 ``with x as (copy ...) select`` is a SELECT, too."""

_RUN_SQL = frozenset(("json_execute_serialized_sql", "query"))
"""The functions whose argument is a query, which nobody has looked at."""

_FOLDERS = ("home_directory", "extension_directory", "secret_directory")


class QueryError(StorageError):
    """A query that is wrong, not allowed, or took too much. The message is one line and says which."""


@dataclass(frozen=True)
class Limits:
    """What a query may take: seconds until it is stopped, and bytes of memory. Without ``memory`` half of what DuckDB
    would take: 40% of the machine's, or of the container's."""

    seconds: float = 600.0
    memory: int | None = None


@dataclass(frozen=True)
class Answer:
    """Rows of a query. ``more``: there were others, which were not asked for."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: bool = False


def connect(root: Root, run: str | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection whose views are the run's datasets.

    DuckDB reads the files itself; float16 vectors come as FLOAT[]. Of a store of conv maps, ``features`` has every
    column but ``feature``. StorageError if the run has no dataset yet.
    """
    return _open(root, read_run(root, run))


def ask(
    root: Root, record: RunRecord, sql: str, limit: int = 0, limits: Limits | None = None, unsafe: bool = False
) -> Answer:
    """The first ``limit`` rows (0: all) of one query over a run's datasets.

    It is one SELECT (or FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW, PIVOT, EXPLAIN) and reads the committed files that
    the run names: no other file, no network, no extension, no setting. What does not fit into memory lies meanwhile in
    a folder of its own. Of ``limits`` the time is looked at between two steps of a query: a single function call over
    a huge value is finished first. ``unsafe``: any SQL, as DuckDB runs it, without limits.

    Raises QueryError, and StorageError if the run has no dataset yet.
    """
    given = limits or Limits()
    start = time.monotonic()
    try:
        if unsafe:
            with _open(root, record) as connection:
                return _rows(connection.execute(_text(sql)), limit, None)
        with _confined(root, record, given) as connection, _stopped_after(connection, given.seconds) as end:
            return _rows(connection.execute(_only_select(connection, sql)), limit, end)
    except duckdb.Error as error:
        if not unsafe and time.monotonic() - start >= given.seconds:
            raise QueryError(
                f"query: it was stopped after {given.seconds:g} seconds; ask for less, or allow more with --seconds"
            ) from error
        raise QueryError(f"query: {str(error).splitlines()[0]}{_hint(error, record, sql)}") from error


def _open(root: Root, record: RunRecord) -> duckdb.DuckDBPyConnection:
    connection, _ = _connected(root, record)
    if not root.is_local:
        connection.register_filesystem(root.fs)
    return connection


def _connected(root: Root, record: RunRecord) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """The connection, and all that its views read, in each form in which DuckDB asks for it."""
    connection = duckdb.connect()
    keys: dict[str, list[str]] = {
        dataset: read_manifest(root, dataset, entry.method, entry.manifest).keys
        for dataset, entry in record.datasets.items()
        if entry.manifest is not None
    }
    if not keys:
        raise StorageError(f"run {record.name!r} has no complete dataset yet; `spp run` makes them")
    if not root.is_local:
        connection.register_filesystem(_CommittedFiles(root, [key for some in keys.values() for key in some]))
    read: set[str] = set()
    for dataset, some in keys.items():
        if not some:
            connection.register(dataset, no_rows(schema(dataset)))
            continue
        # a path is taken for a pattern, and a folder named a=b for a column: neither is meant
        paths = [root.path(key) if root.is_local else f"{_CommittedFiles.protocol}://{key}" for key in some]
        patterns = [glob.escape(path) for path in paths]
        read.update(paths, patterns)
        files = f"read_parquet({_texts(patterns)}, hive_partitioning = false)"
        connection.execute(f"create view {_name(dataset)} as select * from {files}")
    if "windows" in keys and "features" not in keys:
        connection.execute("create view features as select * from windows")
    return connection, sorted(read)


class _CommittedFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files of a store, by key, for DuckDB to read: these and no others, and none to write."""

    protocol = "spp"
    cachable = False

    def __init__(self, root: Root, keys: Iterable[str]) -> None:
        super().__init__()
        self._root = root
        self._keys = frozenset(keys)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _SharedFile:
        key = self._key(path)
        if "r" not in mode or "+" in mode:
            raise PermissionError(f"{key} is committed, nobody writes to it")
        return _SharedFile(self._root.open(key))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        key = self._key(path)
        return {"name": key, "size": self._root.size(key), "type": "file"}

    def modified(self, path: str) -> datetime:
        """Always the same: a committed file never changes."""
        return datetime.fromtimestamp(0, timezone.utc)

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:
        return [self._key(path)]  # which has no magic: its names are ours

    def _key(self, path: str) -> str:
        key = path.removeprefix(f"{self.protocol}://")
        if key not in self._keys:
            raise FileNotFoundError(f"{key} is no committed file of the run")
        return key


class _SharedFile:
    """A file that DuckDB's threads read at once. Each seeks, then reads, and between the two another one may seek: so
    each has its own place. (By number: a thread that is not Python's has no storage of its own there.)"""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._places: dict[int, int] = {}

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._lock:
            if whence:
                self._file.seek(self._places.get(threading.get_ident(), 0))
                offset = self._file.seek(offset, whence)
            self._places[threading.get_ident()] = offset
        return offset

    def tell(self) -> int:
        return self._places.get(threading.get_ident(), 0)

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            self._file.seek(self._places.get(threading.get_ident(), 0))
            data = self._file.read(size)
            self._places[threading.get_ident()] = self._file.tell()
        return data

    def close(self) -> None:
        self._file.close()


@contextmanager
def _confined(root: Root, record: RunRecord, limits: Limits) -> Iterator[duckdb.DuckDBPyConnection]:
    """The connection, shut off from everything but the files of its views."""
    connection, read = _connected(root, record)
    with tempfile.TemporaryDirectory(prefix="spp-query-") as folder, connection:
        memory = limits.memory or _default_memory(connection) // 2
        settings = {
            "memory_limit": f"'{memory}B'",
            "max_temp_directory_size": f"'{shutil.disk_usage(folder).free // 2}B'",
            "temp_directory": _text_of(f"{folder}/spilled"),  # DuckDB allows what lies in it, too
            **dict.fromkeys(_FOLDERS, _text_of(folder)),
            "allow_persistent_secrets": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",  # else a variable of ours is a table
            "allowed_paths": _texts(read),
            "enable_external_access": "false",
            "lock_configuration": "true",
        }
        for name, value in settings.items():
            connection.execute(f"set {name} = {value}")
        yield connection


@contextmanager
def _stopped_after(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[float]:
    """Stops what the connection does, from then on and until the block ends; gives that time."""
    over = threading.Event()

    def stop() -> None:
        wait = seconds
        while not over.wait(wait):
            connection.interrupt()
            wait = _AGAIN

    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    try:
        yield time.monotonic() + seconds
    finally:
        over.set()
        watch.join()


def _rows(cursor: duckdb.DuckDBPyConnection | None, limit: int, end: float | None) -> Answer:
    if cursor is None:
        raise QueryError(_NOTHING)
    columns = [str(column[0]) for column in cursor.description or ()]
    rows: list[tuple[Any, ...]] = []
    while not limit or len(rows) <= limit:
        part = cursor.fetchmany(min(_BATCH, limit + 1 - len(rows)) if limit else _BATCH) if columns else []
        if not part:
            break
        rows += part
        if end is not None and time.monotonic() > end:
            raise duckdb.InterruptException("fetching took too long")
    return Answer(columns, rows[:limit] if limit else rows, bool(limit) and len(rows) > limit)


_NOTHING = "query: there is no statement in it; for instance: select class_name, count(*) from objects group by 1"


def _only_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of ``sql``; QueryError unless it does nothing but return rows.

    The files that a query may read DuckDB would also let it write: that none does so is decided here.
    """
    statements = connection.extract_statements(_text(sql))
    if not statements:
        raise QueryError(_NOTHING)
    if len(statements) > 1:
        raise QueryError(f"query: it is {len(statements)} statements; ask one at a time, or add --unsafe")
    kind = _kind(statements[0])
    explained = _EXPLAIN.match(sql)
    if kind == "EXPLAIN" and explained:  # without ANALYZE, which does what it explains
        _only_select(connection, sql[explained.end() :])
    elif kind == "MULTI":
        raise QueryError("query: of several steps; a PIVOT is one if it names its columns: ON column IN (value, ...)")
    elif kind != "SELECT" or not _only_reads(connection, sql):
        said = "a SELECT of which a part writes or runs SQL" if kind == "SELECT" else kind
        raise QueryError(
            f"query: {said} is not allowed, only what reads: SELECT, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW, "
            f"PIVOT, EXPLAIN without ANALYZE; --unsafe allows all that DuckDB can do"
        )
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # one that DuckDB's parser knows and its Python package does not
        return "statement"


def _only_reads(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether no part of a SELECT writes, or runs SQL that is not to be seen here, by DuckDB's own parser."""
    row = connection.execute(f"select json_serialize_sql({_text_of(sql)})").fetchone()  # a parameter would load pandas
    try:
        parsed = json.loads(row[0]) if row else {"error": True}
    except RecursionError:
        raise QueryError("query: it is nested too deeply; write it in several WITH clauses") from None
    return not parsed["error"] and all(map(_reads, _parts(parsed)))


def _reads(part: dict[str, Any]) -> bool:
    kind, function = str(part.get("type")), str(part.get("function_name")).lower()
    return function not in _RUN_SQL and (not kind.endswith("_NODE") or kind in _READING_NODES)


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON value."""
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _hint(error: duckdb.Error, record: RunRecord, sql: str) -> str:
    """What may help, if something is known to."""
    text = str(error)
    if isinstance(error, duckdb.PermissionException) or "configuration has been locked" in text:
        return "; a query sees the datasets of its run and nothing else, --unsafe allows all that DuckDB can do"
    if isinstance(error, duckdb.OutOfMemoryException):
        return "; ask for less, or allow more with --memory"
    if "'pytz'" in text:
        return "; show a time with a zone as text: column::varchar"
    if "windows" in record.datasets and "features" not in record.datasets and re.search(r"\bfeature\b", sql):
        return (
            "; this run stores features as conv maps, without the column feature: "
            "spp extract --set features.store=vectors makes vectors of them"
        )
    return ""


def _default_memory(connection: duckdb.DuckDBPyConnection) -> int:
    """The bytes that DuckDB takes at most: it knows a container's limit."""
    row = connection.execute("select current_setting('memory_limit')").fetchone()
    number, unit = str(row[0] if row else "").split()
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(float(number) * _BYTES.get(unit, whole), 0.8 * whole))  # some versions say 16383.9 PiB


def _text(sql: str) -> str:
    """``sql``; QueryError if it came as bytes that are no text."""
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise QueryError("query: the SQL is not UTF-8") from None
    return sql


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text_of(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_text_of, values))}]"
