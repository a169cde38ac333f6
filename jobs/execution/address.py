"""Which Ray is meant by ``RAY_ADDRESS``, and whether anybody listens there: Ray itself would try for minutes."""

from __future__ import annotations

import os
import re
import socket

from jobs.errors import RunFailed, UsageError

_SECONDS = 20
_ADDRESS = re.compile(r"(ray://)?(?P<host>[^\s/:]+|\[[0-9A-Fa-f:.%\w]+\]):(?P<port>\d{1,5})")
_WANTED = (
    "give HOST:PORT of the cluster's head (the port of `ray start --head`, 6379 as a rule), auto on one of its nodes, "
    "or unset it for a Ray of the command's own"
)


def cluster_address() -> str | None:
    """The cluster to join: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None for an embedded Ray.

    UsageError if it is no such address; RunFailed if nobody listens there.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if address == "auto":
        return address
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS is {address!r}, where `ray job submit` sends its jobs; a command itself joins a cluster: "
            f"{_WANTED}"
        )
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts["port"]) < 65536:
        raise UsageError(f"RAY_ADDRESS is {address!r}, which is no address of a Ray cluster; {_WANTED}")
    try:
        socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), timeout=_SECONDS).close()
    except UnicodeError as error:
        raise UsageError(f"RAY_ADDRESS is {address!r}, whose host is no name; {_WANTED}") from error
    except OSError as error:
        raise RunFailed(
            f"cannot start on {address}: {error.strerror or error}; if it is up, RAY_ADDRESS is not its "
            f"address: {_WANTED}"
        ) from error
    return address
