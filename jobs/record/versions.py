"""The versions of what ran: for records, and for every file that is written."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

_PACKAGES = (
    "spp-pipeline",
    "ray",
    "torch",
    "torchvision",
    "openvino",
    "timm",
    "pyarrow",
    "numpy",
    "numba",
    "scikit-learn",
    "opencv-contrib-python-headless",
)


def versions() -> dict[str, str]:
    """Package to installed version."""
    return versions_of(_PACKAGES) | {"python": platform.python_version()}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Some packages to their installed versions."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    """A submitted job may run from its working folder without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


PRODUCER = f"spp-pipeline {_version('spp-pipeline')}"
"""What files and commits say they were written by."""
