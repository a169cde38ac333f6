"""Content-defined shards: the same images make the same shard, whatever surrounds them.

Image ids are taken in sorted order and cut after every id whose hash is 0 mod 16. A run that is still too long, for 64
images or for 256 MB of expected rows, is cut in two after the id with the smallest hash in it, and so on. Where a cut
falls thus depends on the ids around it, never on a count from the left. A mended image makes one new shard, an added
one at most two, where it splits the one it falls into. And since a smaller limit only cuts further, the shards of a
stage with large rows lie within those of a stage with small ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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


def tiles(image_ids: Iterable[str]) -> list[tuple[str, ...]]:
    """Sorted ids cut into runs of at most 64: the shards of a stage whose rows are small."""
    return list(_parts(image_ids, MAX_IMAGES))


def shards(digests: Mapping[str, str], bytes_per_image: int, only: Collection[str] | None = None) -> list[Shard]:
    """The shards of the images in ``digests`` (image id to digest).

    ``bytes_per_image`` is what a stage expects to write for one image at most. It bounds a shard: without its last
    image it has less than 256 MB. With ``only``, all images are cut and then the others left out, so that the shards
    still lie within those of a stage that has them all.
    """
    limit = max(1, min(MAX_IMAGES, -(-MAX_BYTES // max(1, bytes_per_image))))
    parts = list(_parts(digests, limit))
    if only is not None:
        wanted = set(only)
        parts = [kept for ids in parts if (kept := tuple(i for i in ids if i in wanted))]
    return [Shard(shard_key([(i, digests[i]) for i in ids]), ids) for ids in parts]


def shard_key(pairs: Sequence[tuple[str, str]]) -> str:
    """Hash of (image id, image digest) pairs in order."""
    return digest(*(part.encode() for pair in pairs for part in pair))[:SHARD_LENGTH]


_HashedId = tuple[int, str]


def _parts(image_ids: Iterable[str], limit: int) -> Iterator[tuple[str, ...]]:
    """Sorted ids, cut after every one whose hash is 0 mod 16, and further down to ``limit`` ids."""
    run: list[_HashedId] = []
    for image_id in sorted(image_ids):
        hashed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little")
        run.append((hashed, image_id))
        if hashed % _MODULUS == 0:
            yield from _cut(run, limit)
            run = []
    yield from _cut(run, limit)


def _cut(run: list[_HashedId], limit: int) -> Iterator[tuple[str, ...]]:
    """``run`` in parts of at most ``limit``, which decides whether a cut is made, never where."""
    if len(run) <= limit:
        if run:
            yield tuple(image_id for _, image_id in run)
        return
    end = run.index(min(run[:-1])) + 1
    yield from _cut(run[:end], limit)
    yield from _cut(run[end:], limit)
