"""Refuses to start where other code of the same names would run instead of ours. Standard library only.

Ray puts the driver's working folder first on its workers' import path, so a stray ``storage/`` there would shadow ours
on every worker; and ``python -m jobs`` puts it first in the driver itself.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("jobs", "pipeline", "storage")
HOME = Path(__file__).resolve().parent.parent
"""The folder that holds our packages."""


def shadowed(folder: Path) -> str | None:
    """What a Ray worker of a driver in ``folder`` would import instead of one of our packages, if anything.

    A worker searches ``folder`` first. A folder without ``__init__.py`` shadows a package only if that is installed
    through an import hook (an editable install), which Python asks after every folder.
    """
    search = [str(folder), *(entry for entry in sys.path if entry)]
    for package in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(package, search)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or []) if spec else []
        for place in places[:1]:
            if HOME not in Path(place).resolve().parents:
                return place.removesuffix(f"{os.sep}__init__.py")
    return None


def problem() -> str | None:
    """Why this process must not go on, or None."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != HOME:
            place = (spec.origin or next(iter(spec.submodule_search_locations or []), "?")) if spec else "nowhere"
            return f"Python would import {place} instead of {HOME / package}; run from another folder, or rename it"
    try:
        here = Path.cwd()
    except OSError as error:
        return f"the folder that you stand in cannot be used: {error.strerror}; go to another"
    other = shadowed(here)
    if other:
        return f"Ray workers would import {other} instead of SPP's own package; run from another folder, or rename it"
    return None


def check() -> None:
    """Exit with code 2 and one line if there is a problem."""
    found = problem()
    if found:
        print(f"spp: error: {found}", file=sys.stderr)
        raise SystemExit(2)
