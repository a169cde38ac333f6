"""Damaged files: one error for all the ways in which a file of a root can be other than it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from storage.root import Root, StorageError

MISSING = "the file is missing"


class DamagedFileError(StorageError):
    """A file of a root that is missing, or is not what was written. ``key``: which; ``reason``: how that shows."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both, as it may come from another process
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {MISSING}" if self.reason == MISSING else f"{self.key} is damaged: {self.reason}"


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Inside, the committed file ``key`` is read and parsed: what fails because of its bytes is a DamagedFileError.

    What fails because of the store, a right or the memory stays what it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedFileError(key, MISSING) from error
    except (pa.ArrowMemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise DamagedFileError(key, _first_line(error)) from error
    except OSError as error:
        if error.errno is not None or type(error) is not OSError or str(error).startswith("Forbidden"):
            raise  # of the system or the store (gcsfs gives its 403 no number, as Arrow a broken file)
        raise DamagedFileError(key, _first_line(error)) from error


def read_file(root: Root, key: str) -> bytes:
    """A whole committed file. DamagedFileError if it is missing; what else a store raises stays what it is."""
    try:
        return root.read(key)
    except FileNotFoundError as error:
        raise DamagedFileError(key, MISSING) from error


def read_files(root: Root, keys: Sequence[str]) -> list[bytes]:
    """Whole committed files, fetched together; DamagedFileError if one is missing."""
    try:
        return root.read_many(list(keys))
    except FileNotFoundError:
        for key in keys:  # which one?
            read_file(root, key)
        raise


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
