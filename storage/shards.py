"""Content-defined shards: the same images make the same shard, whatever surrounds them.

Image ids are taken in sorted order. A tile ends after an id whose hash is 0 mod 16, or at 64 images; a tile is cut
further where the expected bytes of its rows reach 256 MB. Adding or mending an image therefore renames only the shards
of one tile, and the shards of a stage with large rows lie within those of a stage with small ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from storage.identity import SHARD_LENGTH, digest

MAX_IMAGES = 64
MAX_BYTES = 256 * 1024 * 1024
_MODULUS = 16


@dataclass(frozen=True)
class Shard:
    """A run of images. ``key`` is the hash of its (image id, image digest) pairs."""

    key: str
    image_ids: tuple[str, ...]


def tiles(image_ids: Iterable[str]) -> list[list[str]]:
    """Sorted ids cut into tiles."""
    result: list[list[str]] = []
    current: list[str] = []
    for image_id in sorted(image_ids):
        current.append(image_id)
        if _ends_tile(image_id) or len(current) == MAX_IMAGES:
            result.append(current)
            current = []
    if current:
        result.append(current)
    return result


def shards(digests: dict[str, str], bytes_per_image: int) -> list[Shard]:
    """The shards of the images in ``digests`` (image id to digest).

    ``bytes_per_image`` is what a stage expects to write for one image at most; it bounds a shard, and its memory.
    """
    count = max(1, min(MAX_IMAGES, -(-MAX_BYTES // max(1, bytes_per_image))))
    result = []
    for tile in tiles(digests):
        for start in range(0, len(tile), count):
            ids = tile[start : start + count]
            result.append(Shard(shard_key([(i, digests[i]) for i in ids]), tuple(ids)))
    return result


def shard_key(pairs: Sequence[tuple[str, str]]) -> str:
    """Hash of (image id, image digest) pairs in order."""
    return digest(*(part.encode() for pair in pairs for part in pair))[:SHARD_LENGTH]


def _ends_tile(image_id: str) -> bool:
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little") % _MODULUS == 0
