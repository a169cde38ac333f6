"""Standard output and error that take whatever is printed: a command's work and its code do not hang on who reads it.

Characters that a stream's encoding lacks are printed as escapes, as Python does on standard error. What cannot be
written, since the reader is gone, the disk full or the stream closed, is dropped, and told at the end by
:func:`code_at_the_end`.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import IO, Any

READER_GONE = 141
"""128 and SIGPIPE's number: what a shell says of a tool whose reader has gone."""


class _Steady(io.FileIO):
    """A file descriptor. After the first error of writing, ``lost``, the rest is dropped."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """All is taken, or what the descriptor takes at once."""
        while self.lost is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.lost = error
                break
            if written is not None:
                return written
            select.select((), (self,), ())  # some readers make the stream one that does not wait
        return memoryview(data).nbytes


def prepare() -> None:
    """Replace this process's standard output and error, before anything is printed."""
    _occupy()
    sys.stdout, sys.stderr = _steady(sys.stdout, 1), _steady(sys.stderr, 2)


def code_at_the_end(code: int) -> int:
    """The exit code, when all is printed: the command's own, unless that is 0 and its results did not get out."""
    for stream in (sys.stderr, sys.stdout):
        stream.flush()
    lost = _lost(sys.stdout)
    if lost is None or lost.errno == errno.EPIPE:
        return code or (0 if lost is None else READER_GONE)
    print(
        f"spp: error: the results could not be printed: standard output: {lost.strerror or lost}; the same command "
        f"prints them again, and makes nothing twice",
        file=sys.stderr,
        flush=True,
    )
    return code or 1


def encodable(text: str) -> str:
    """``text`` as standard output will show it: with escapes for what its encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _occupy() -> None:
    """Give the standard descriptors that are closed to nobody: a file opened later would be printed into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one


def _steady(stream: IO[str] | None, descriptor: int) -> io.TextIOWrapper:
    raw = _Steady(descriptor if stream is None else stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def _lost(stream: Any) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Steady) else None
