"""What is known of a body from an earlier command: enough to name methods without its weights, and without torch.

A small file per body in the user's cache folder (``$XDG_CACHE_HOME/spp``, else ``~/.cache/spp``), which may be deleted
at any time. It is found by all that the answer hangs on: the body, the file of its weights by path, size, times and
inode, and the code and the libraries that read it. A file younger than two seconds is not known: within the clock's
granularity it could change unseen. Who makes features compares (``jobs.features.driver``), so nothing is
ever written under a name that is not theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.record.versions import PRODUCER, versions_of
from pipeline.published_weights import published_file
from storage.identity import canonical_json, sha256

if TYPE_CHECKING:
    from jobs.config.features import FeaturesConfig

_YOUNG = 2.0
"""Seconds for which a file is not known. The times that a file system stamps may be that coarse (FAT)."""
_MOST = 200
"""Files in the cache; the oldest go first."""
_LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "openvino")
_SOURCES = ("pipeline/bodies/*.py", "jobs/features/body.py")
"""The code that decides what the entries of a state are, and what is made of them."""


@dataclass(frozen=True)
class BodyIdentity:
    """What names methods and sizes shards: ``channels`` of the map, ``digest`` of what makes it.

    That is: of the weights, and of engine and precision where these are not torch and float32. ``classifier``: digest
    of the fully connected layers that came with the weights, and of the order that they take vectors in; empty without.
    ``engine``: what runs the body, which is torch where the engine that the config names cannot.
    """

    channels: int
    digest: str
    classifier: str = ""
    engine: str = "torch"


def body_key(config: FeaturesConfig) -> str | None:
    """What stands for the body and weights of ``config`` as they are now; None if no short look can tell.

    That is: weights that do not exist, or have just been written, or that a library keeps where only it knows.
    """
    values: dict[str, Any] = {"body": config.body, "producer": PRODUCER, "code": _code(), **versions_of(_LIBRARIES)}
    values |= {"engine": config.engine, "precision": config.precision}
    if config.weights == "random":
        values |= {"seed": config.seed, "processor": _processor()}
    else:
        path = published_file(config.body) if config.weights == "default" else Path(config.weights)
        seen = None if path is None else _look(path)
        if seen is None:
            return None
        values |= {"weights": "default" if config.weights == "default" else "path", "file": seen}
    return sha256(canonical_json(values))


def recall(key: str | None) -> BodyIdentity | None:
    """What is known of the body behind ``body_key``, if anything is."""
    folder = _folder()
    if key is None or folder is None:
        return None
    try:
        with (folder / f"{key}.json").open("rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            found = json.loads(file.read())
    except (OSError, ValueError):  # not there, not to be read, damaged
        return None
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != _KINDS:
        return None
    return BodyIdentity(**found)


def remember(key: str | None, identity: BodyIdentity) -> None:
    """Keep what is known for the next command. Where that cannot be, nothing happens."""
    folder = _folder()
    if key is None or folder is None or recall(key) == identity:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, staging = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(asdict(identity)).encode())
            os.replace(staging, folder / f"{key}.json")
        finally:
            Path(staging).unlink(missing_ok=True)
        _drop_oldest(folder)


_KINDS = {"channels": int, "digest": str, "classifier": str, "engine": str}


def _look(path: Path) -> list[Any] | None:
    """Where a file is, and what changes when it does; None if it is none, or too young to tell."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or time.time() - max(found.st_mtime, found.st_ctime) < _YOUNG:
        return None
    return [
        os.fsencode(os.path.abspath(path)).hex(),
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
    ]


@cache
def _code() -> str:
    """Digest of the code that reads weights."""
    home = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in home.glob(pattern)):
        total.update(f"{path.name}\0".encode() + path.read_bytes())
    return total.hexdigest()


def _processor() -> str:
    """The kind of processor: torch's random numbers may differ in the last digit between two kinds."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
    except (OSError, UnicodeDecodeError):
        lines = {platform.processor()}
    kinds = sorted(line for line in lines if line.startswith(("flags", "Features", "model name")))
    return sha256(canonical_json([platform.machine(), os.environ.get("ATEN_CPU_CAPABILITY"), kinds or sorted(lines)]))


def _folder() -> Path | None:
    """The cache folder, there or not; None where no home is known."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache_home):
        cache_home = os.path.expanduser("~/.cache")
    return Path(cache_home) / "spp" / "bodies" if os.path.isabs(cache_home) else None


def _is_ours(found: os.stat_result) -> bool:
    """Whether nobody else has written a file; systems without users do not tell."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _drop_oldest(folder: Path) -> None:
    written = sorted((path.stat().st_mtime, path) for path in folder.iterdir())
    for _, path in written[:-_MOST]:
        path.unlink(missing_ok=True)
