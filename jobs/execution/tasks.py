"""Ray tasks that change nothing: repeated by Ray itself when their worker dies or a store fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions

from jobs.errors import RunFailed, reason
from storage.damage import DamagedFileError
from storage.root import store_errors

_RETRIES = 3


def as_task(function: Callable[..., Any], *, returns: int = 1, **resources: float) -> Any:
    """``function`` as a Ray task that is repeated when its worker dies or its store fails."""
    remote: Any = ray.remote  # its type lists what may be given, by name
    options = {"num_returns": returns, "max_retries": _RETRIES, "retry_exceptions": list(store_errors()), **resources}
    return remote(**options)(function)


def results(stage: str, refs: Sequence[ray.ObjectRef]) -> list[Any]:
    """What tasks returned, in the order of ``refs``.

    RunFailed, in one line, if one of them failed for good; DamagedFileError if it met a damaged file.
    """
    try:
        return ray.get(list(refs))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DamagedFileError):
            raise cause from error
        raise RunFailed(f"{stage}: {type(cause).__name__}: {reason(cause)}") from error
    except ray.exceptions.RayError as error:
        raise RunFailed(f"{stage}: {type(error).__name__}: {reason(error)}; run the same command again") from error
