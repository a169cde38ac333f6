"""Functions compiled by numba, which keep what the compiler makes for the next process, wherever that can be."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import numba

_settings: Any = numba.config

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """As ``numba.njit(nogil=True, cache=True, **options)``, where numba finds a folder to cache in.

    That is the one of NUMBA_CACHE_DIR, beside the code, or in the home folder. If none of them can be written to: in a
    folder of this user among the temporary files; without that, every process compiles anew.
    """

    def decorate(function: _Function) -> _Function:
        for folder in (_given_folder, _temporary_folder):
            try:
                return _cached(function, folder(), options)
            except (RuntimeError, OSError):  # the first is what numba raises where it finds no folder
                continue
        plain: _Function = numba.njit(nogil=True, **options)(function)
        return plain

    return decorate


def _cached(function: _Function, folder: str, options: dict[str, Any]) -> _Function:
    before = _settings.CACHE_DIR
    _settings.CACHE_DIR = folder  # for this function alone: other packages keep theirs
    try:
        cached: _Function = numba.njit(nogil=True, cache=True, **options)(function)
    finally:
        _settings.CACHE_DIR = before
    if hasattr(cached, "_cache"):  # not with NUMBA_DISABLE_JIT
        cached._cache = _Forgiving(cached._cache)
    return cached


_OF_DAMAGE = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    MemoryError,
)
"""What numba raises at a full disk, and at files that a full disk or a lost machine has cut short: it has no care for
them, and no name."""


class _Forgiving:
    """numba's cache of one function. What cannot be read from it is compiled; what cannot be kept in it is not."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """What is kept for a signature; None if there is none that can be used."""
        try:
            return self._cache.load_overload(signature, target)
        except _OF_DAMAGE:
            return None

    def save_overload(self, signature: Any, made: Any) -> None:
        """Keep what was compiled, in the place of what is damaged."""
        try:
            self._cache.save_overload(signature, made)
        except _OF_DAMAGE:
            with contextlib.suppress(OSError):
                self._cache.flush()
                self._cache.save_overload(signature, made)


def _given_folder() -> str:
    """NUMBA_CACHE_DIR; empty if it is not set, and numba looks for a folder itself."""
    return str(_settings.CACHE_DIR)


def _temporary_folder() -> str:
    """A folder that nobody else can write to, for numba runs what it finds in it. OSError if there is none."""
    folder = os.path.join(tempfile.gettempdir(), f"spp-numba-{os.geteuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} can be written to by others")
    return folder
