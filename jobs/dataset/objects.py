"""The objects of images, as training reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.index import Index


@dataclass(frozen=True)
class ImageObjects:
    """The ground truth of an image: boxes (M, 4), classes (M,), difficult (M,)."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]


def objects_of(index: Index, image_ids: Iterable[str], class_names: Sequence[str]) -> dict[str, ImageObjects]:
    """The ground truth of those images that have some."""
    wanted = set(image_ids)
    number = {name: i for i, name in enumerate(class_names)}
    found: dict[str, list[tuple[list[float], int, bool]]] = {}
    for row in index.objects.to_pylist():
        if row["image_id"] in wanted:
            values = (list(row["box"].values()), number[row["class_name"]], row["difficult"])
            found.setdefault(row["image_id"], []).append(values)
    return {
        image_id: ImageObjects(
            np.array([box for box, _, _ in rows], np.float32),
            np.array([label for _, label, _ in rows], np.int64),
            np.array([difficult for _, _, difficult in rows], np.bool_),
        )
        for image_id, rows in found.items()
    }


def order_key(seed: int, image_id: str) -> bytes:
    """Sorted by it, images come in an order drawn from the seed, in which one image more moves no other."""
    return hashlib.sha256(f"{seed} {image_id}".encode()).digest()


def is_held_out(share: float, seed: int, image_id: str) -> bool:
    """Whether an image is among the ``share`` that is held out. Drawn by a hash: one image more moves no other."""
    return int.from_bytes(order_key(seed + 1, image_id)[:8], "little") / 2**64 < share
