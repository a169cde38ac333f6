"""A root: one fsspec URL under which everything lies, and the one way in which a file gets there whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.secrets import keep_secrets, open_options, secret_in

_UPLOAD_DELAYS = (0.2, 1.0, 5.0)
"""Seconds before a failed upload is repeated."""
_BY_PREFIX = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "az"))
"""Protocols whose file systems list the names that begin with something."""
_WRAPPERS = frozenset(
    ("zip", "tar", "libarchive", "reference", "dir", "simplecache", "filecache", "blockcache", "cached")
)
"""Protocols of fsspec that open what another one holds."""
_DIGITS = "0123456789abcdef"
_MANY_NAMES = 1000
_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "created")


def store_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What file systems raise when a store cannot be reached or refuses, and ``more``.

    OSError, and the errors of those clients in use that are none.
    """
    errors: list[type[Exception]] = [OSError, *more]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


class StoredFile(NamedTuple):
    """A file as a listing shows it: its key, its size, and when it was written, in seconds by the store's clock."""

    key: str
    bytes: int
    modified: float


class StorageError(ValueError):
    """Something about a root, a run or a dataset that the user can mend. The message says how."""


def open_root(url: str, storage_options: Mapping[str, Any] | None = None) -> Root:
    """The root at ``url``; nothing is created or read yet.

    ``storage_options`` go to the fsspec file system. A value ``env:NAME`` is taken from the environment, and what
    is not known to be harmless must be given so (or by a profile): configs are written beside the data.

    Raises StorageError: an unknown protocol, a missing package, a secret in the open, an unset variable.
    """
    check_url("root", url)
    options = resolve_options(storage_options or {})
    check_chain(url, "root")
    if "://" in url and not url.startswith(("file://", "local://", "memory://")):
        options.setdefault("use_listings_cache", False)  # another process's commits must be seen
    try:
        fs, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise StorageError(f"root {url!r}: {error} (for s3://: pip install 'spp-pipeline[s3]')") from error
    except ValueError as error:
        raise StorageError(f"root {url!r}: {error}") from error
    if isinstance(fs, LocalFileSystem):
        url = path  # absolute: a worker's current folder is another one
    return Root(url.rstrip("/"), fs, path.rstrip("/"), dict(storage_options or {}))


def check_chain(url: str, key: str) -> None:
    """Raises StorageError for a path or URL with ``::`` in a name, which fsspec would cut there, and open the rest.

    What it is meant for stays: ``zip://a.jpg::s3://bucket/data.zip``, ``simplecache::https://...``.
    """
    for piece in url.split("::")[:-1]:
        if piece.partition("://")[0] not in _WRAPPERS:
            raise StorageError(f"{key}: {url!r}: a path must not hold '::', which separates URLs; rename the folder")


def is_local(url: str) -> bool:
    """Whether a path or URL is of this machine's file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def check_url(where: str, url: str) -> None:
    """Raises StorageError, which does not repeat it, if a path or URL holds what grants access; ``where``: its key."""
    found = secret_in(url)
    if found is not None:
        raise StorageError(
            f"{where}: {found} stands in the URL in the open; leave it out, and name it in storage_options: env:NAME "
            f"(or by the store's own profiles and variables)"
        )


def check_options(options: Mapping[str, Any], key: str = "storage_options") -> None:
    """Raises StorageError, which does not repeat it, for an option that may be a secret and stands in the open.

    What the others take from the environment is shown nowhere from now on.
    """
    for where, problem in open_options(options, key):
        name = where.rsplit(".", 1)[-1].split("[")[0]
        raise StorageError(f"{where} {problem}; name an environment variable instead: {name}: env:NAME")
    keep_secrets(options)


def resolve_options(options: Mapping[str, Any], key: str = "storage_options") -> dict[str, Any]:
    """``options`` with every ``env:NAME`` replaced by the variable's value; StorageError for an open secret."""
    check_options(options, key)
    return {name: _resolved(value, f"{key}.{name}") for name, value in options.items()}


def _resolved(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _resolved(one, f"{where}.{name}") for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolved(one, where) for one in value]
    if not (isinstance(value, str) and value.startswith("env:")):
        return value
    variable = value.removeprefix("env:")
    if variable not in os.environ:
        raise StorageError(f"{where} names the environment variable {variable!r}, which is not set")
    return os.environ[variable]


class Root:
    """Files by key, a ``/``-separated path relative to the root's URL.

    Pickles as its URL and unresolved options, so that no secret travels with it.
    """

    def __init__(self, url: str, fs: fsspec.AbstractFileSystem, path: str, options: dict[str, Any]) -> None:
        self.url = url
        self.fs = fs
        self._path = path
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return open_root, (self.url, self._options)

    @property
    def is_local(self) -> bool:
        """Whether files lie on this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, key: str) -> str:
        """The path of ``key`` in the root's file system."""
        return f"{self._path}/{key}"

    def url_of(self, key: str) -> str:
        """What other tools open: a plain path on a local root, else a URL."""
        return self.path(key) if self.is_local else self.fs.unstrip_protocol(self.path(key))

    def names(self, key: str) -> list[str]:
        """Names of the files and folders directly under the folder ``key``; empty if it does not exist."""
        self.fs.invalidate_cache(self.path(key))
        try:
            entries = self.fs.ls(self.path(key), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(name for name in names if name and not name.startswith("."))

    def hashed_names(self, key: str) -> list[str]:
        """As ``names``, of a folder whose files' names begin with a hash.

        An object store lists a thousand names a request, one after the other: a million would take minutes. Where the
        names with a first 0 are many, those with each other digit are asked for at the same time.
        """
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        if not _BY_PREFIX.intersection(protocols) or len(self._beginning_with("0", key)) < _MANY_NAMES:
            return self.names(key)
        with ThreadPoolExecutor(len(_DIGITS)) as listers:
            parts = listers.map(lambda digit: self._beginning_with(digit, key), _DIGITS)
            return sorted(name for part in parts for name in part)

    def _beginning_with(self, digit: str, key: str) -> list[str]:
        self.fs.invalidate_cache(self.path(key))
        return [path.rsplit("/", 1)[-1] for path in self.fs.find(self.path(key), prefix=digit)]

    def read(self, key: str) -> bytes:
        """A whole file; FileNotFoundError if there is none."""
        data: bytes = self.fs.cat_file(self.path(key))
        return data

    def read_many(self, keys: list[str]) -> list[bytes]:
        """Whole files, fetched together where the file system can."""
        if not keys:
            return []
        # not fs.cat, which takes "[1]" in a path for a pattern
        contents: list[bytes] = self.fs.cat_ranges([self.path(key) for key in keys], None, None, on_error="return")
        for content in contents:
            if isinstance(content, BaseException):
                raise content
        return contents

    def exists(self, key: str) -> bool:
        """Whether there is a file or folder."""
        there: bool = self.fs.exists(self.path(key))
        return there

    def size(self, key: str) -> int:
        """Bytes of a file."""
        self.fs.invalidate_cache(self.path(key))
        return int(self.fs.size(self.path(key)))

    def open(self, key: str) -> IO[bytes]:
        """A file to read from, seekable."""
        file: IO[bytes] = self.fs.open(self.path(key), "rb")
        return file

    def write(self, key: str, data: bytes) -> None:
        """Publish a small file whole."""
        with self.staged(key) as path:
            path.write_bytes(data)

    @contextmanager
    def staged(self, key: str) -> Iterator[Path]:
        """A local path to write to; when the block ends without an error its file becomes ``key``, whole or not at all.

        On a local root it is a hidden file in the final folder, synced and renamed; elsewhere a temporary file that is
        uploaded in one request (or one completed multipart upload). No rename is assumed of an object store.
        """
        target = self.path(key)
        if self.is_local:
            folder = Path(target).parent
            folder.mkdir(parents=True, exist_ok=True)
            staging = folder / f".{Path(target).name}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                yield staging
                _sync(staging)
                os.replace(staging, target)
                _sync(folder)
            finally:
                staging.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="spp-") as folder_name:
            staging = Path(folder_name) / "file"
            yield staging
            if isinstance(self.fs, MemoryFileSystem):
                self.fs.pipe_file(target, staging.read_bytes())  # its put_file shows the file while it grows
            else:
                self._upload(staging, target)

    def _upload(self, source: Path, target: str) -> None:
        """PUT a whole file, again if that fails for a reason that may pass: a PUT may be repeated without harm."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_chain(*map(wait_fixed, _UPLOAD_DELAYS)),
            stop=stop_after_attempt(1 + len(_UPLOAD_DELAYS)),
            reraise=True,
        )
        attempts(self.fs.put_file, str(source), target)

    def files(self, key: str) -> Iterator[StoredFile]:
        """All files under the folder ``key``, hidden ones too; none if it does not exist."""
        self.fs.invalidate_cache(self.path(key))
        try:
            found = self.fs.find(self.path(key), detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            relative = self.fs._strip_protocol(path).removeprefix(self.fs._strip_protocol(self._path)).lstrip("/")
            yield StoredFile(relative, int(info["size"] or 0), _modified(info))

    def now(self) -> float:
        """The time by the store's own clock, which stamps its files: that of a file written for it."""
        key = f".spp-probe-{uuid.uuid4().hex[:8]}"
        self.write(key, b"")
        try:
            self.fs.invalidate_cache(self._path)
            return _modified(self.fs.info(self.path(key)))
        finally:
            self.delete_if_there(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove files, a thousand in one request where the store can; some may be gone already."""
        if keys and hasattr(self.fs, "_bulk_delete") and not glob.has_magic(self._path):
            self.fs.rm([self.path(key) for key in keys])
            return
        for key in keys:
            self.delete_if_there(key)

    def drop_empty_folders(self, key: str) -> None:
        """Remove the folder ``key`` and those in it, as far as they are empty; object stores have no folders."""
        if self.is_local:
            for folder, _, _ in os.walk(self.path(key), topdown=False):
                with contextlib.suppress(OSError):  # not empty, or a writer is quicker
                    os.rmdir(folder)

    def delete(self, key: str) -> None:
        """Remove one file."""
        self.fs.rm_file(self.path(key))

    def delete_if_there(self, key: str) -> None:
        """Remove one file, unless somebody else did."""
        with contextlib.suppress(FileNotFoundError):
            self.delete(key)

    def delete_folder(self, key: str) -> None:
        """Remove all files under a folder, if it is there."""
        if glob.has_magic(self._path) and not self.is_local:  # rm would take the root's name for a pattern
            self.delete_many([file.key for file in self.files(key)])
            return
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(key), recursive=True)

    def arrow_fs(self) -> pyarrow.fs.FileSystem:
        """The same file system for pyarrow."""
        if self.is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def check_writable(self) -> None:
        """Write and remove a small file; StorageError says why the root cannot be used."""
        key = f".spp-probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(key, b"")
            self.delete(key)
        except store_errors(ValueError) as error:
            raise StorageError(f"root {self.url!r} cannot be written to: {error}") from error

    def __repr__(self) -> str:
        return f"Root({self.url!r})"


def _may_pass(error: BaseException) -> bool:
    """Whether a store's error is of a kind that goes away by itself: not a missing right or bucket, not a full disk."""
    if isinstance(error, (PermissionError, FileNotFoundError)):
        return False
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, store_errors()) and not full


def _modified(info: Mapping[str, Any]) -> float:
    """When a listed file was written; file systems name it differently."""
    value = next((info[name] for name in _MODIFIED if info.get(name) is not None), None)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, str):
        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    if value is None:
        raise StorageError(f"the store does not say when {info.get('name')!r} was written")
    return float(value)


def _sync(path: Path) -> None:
    """Make the file or folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
