"""Identities: what a stage's method id and a shard's key are hashes of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

METHOD_LENGTH = 12
"""Hex digits of a method id, and of a manifest's digest."""

METHOD_PATTERN = f"^[0-9a-f]{{{METHOD_LENGTH}}}$"
"""What either looks like. Both are folders or files of a root, so a record of another form leads elsewhere."""

SHARD_LENGTH = 16
"""Hex digits of a shard's key."""


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(*parts: bytes) -> str:
    """SHA-256 (hex) of parts, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def sha256(data: bytes) -> str:
    """Plain SHA-256 (hex) of ``data``, as ``sha256sum`` prints it."""
    return hashlib.sha256(data).hexdigest()


def method_id(
    stage: str,
    version: int,
    config: Mapping[str, Any],
    *,
    weights: str | None = None,
    upstream: Sequence[str] = (),
) -> str:
    """The method of a stage: what was done, not to which images, where, or how fast.

    Parameters
    ----------
    stage : its name.
    version : bumped by hand when the stage's code gives other content for the same config.
    config : the stage's own config, JSON values only.
    weights : digest of the weights it uses.
    upstream : the methods (map stages) or the manifest digests (reduce stages) of what it reads.
    """
    identity = {
        "stage": stage,
        "version": version,
        "config": config,
        "weights": weights,
        "upstream": list(upstream),
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:METHOD_LENGTH]
