"""What an embedded Ray needs of this machine: a folder for its files, and a token, with or without a home folder."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path

from jobs.errors import UsageError

_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes in the path of a socket (``sockaddr_un``)."""

_SOCKET = "ray/session_2026-01-31_23-59-59_999999_{process}/sockets/plasma_store"
"""The longest path that Ray makes a socket of."""

_REMEDY = "set RAY_TMPDIR to a folder with a short name that can be written to, such as /tmp"


def ray_folder() -> str:
    """Where the embedded Ray is to keep its files, logs and sockets: below RAY_TMPDIR, else TMPDIR, else /tmp.

    UsageError if that cannot be.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    base = os.path.abspath(os.environ[name] if name else "/tmp")
    told = f"Ray would keep its files in {base}" + (f" ({name})" if name else "")
    longest = os.path.join(base, _SOCKET.format(process=os.getpid()))
    if len(os.fsencode(longest)) > _LONGEST_SOCKET:
        room = _LONGEST_SOCKET - len(longest) + len(base)
        raise UsageError(f"{told}, too long a name for its sockets, which leave room for {room} bytes; {_REMEDY}")
    folder = os.path.join(base, "ray")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise UsageError(f"{told}, where nothing can be written: {error.strerror}; {_REMEDY}") from error
    return folder


def bring_token() -> None:
    """Give the embedded Ray a token of its own, in the environment, where it would find none, or make a file for one.

    Ray takes that of RAY_AUTH_TOKEN, else of the file RAY_AUTH_TOKEN_PATH, else of ``~/.ray/auth_token``.
    """
    if not os.environ.get("RAY_AUTH_TOKEN") and not _token_in_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _token_in_file() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return bool(Path(path).read_bytes().strip())
    except OSError:  # none, or none that can be read
        return False
