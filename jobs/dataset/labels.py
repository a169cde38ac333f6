"""The classes of whole images, from their objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.index import Index


@dataclass(frozen=True)
class ImageLabels:
    """What each of N images (sorted) shows of K classes (sorted).

    ``shows`` (N, K): an object that is not difficult; ``ignored`` (N, K): difficult objects only. ``splits``: those
    that each image is in.
    """

    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    shows: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    splits: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, index: Index, without: frozenset[str] = frozenset()) -> ImageLabels:
        """Of the images of an index, but for some."""
        named = index.images.select(["image_id", "splits"]).to_pylist()
        rows = sorted((row for row in named if row["image_id"] not in without), key=lambda row: row["image_id"])
        image_ids = tuple(row["image_id"] for row in rows)
        class_names = tuple(index.class_names())
        places = {image_id: row for row, image_id in enumerate(image_ids)}
        numbers = {name: column for column, name in enumerate(class_names)}
        shows = np.zeros((len(image_ids), len(class_names)), np.bool_)
        difficult = np.zeros_like(shows)
        for thing in index.objects.select(["image_id", "class_name", "difficult"]).to_pylist():
            if thing["image_id"] in places:
                kind = difficult if thing["difficult"] else shows
                kind[places[thing["image_id"]], numbers[thing["class_name"]]] = True
        return cls(image_ids, class_names, shows, difficult & ~shows, tuple(tuple(row["splits"]) for row in rows))

    def rows_in(self, splits: Sequence[str]) -> NDArray[np.int64]:
        """The images of some splits, ascending."""
        wanted = set(splits)
        return np.array([row for row, own in enumerate(self.splits) if wanted.intersection(own)], np.int64)

    def single(self) -> NDArray[np.int64]:
        """The one class of each image (N,). ValueError, naming an image, where it has none or several."""
        counts = self.shows.sum(axis=1)
        if (counts != 1).any():
            row = int(np.flatnonzero(counts != 1)[0])
            named = [self.class_names[column] for column in np.flatnonzero(self.shows[row])]
            raise ValueError(f"image {self.image_ids[row]!r} shows {', '.join(named) or 'no class'}; one is needed")
        return self.shows.argmax(axis=1).astype(np.int64)

    def identity(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Image to its classes, difficult ones apart: what results depend on, as JSON values."""
        return {
            image_id: [
                [self.class_names[column] for column in np.flatnonzero(self.shows[row])],
                [self.class_names[column] for column in np.flatnonzero(self.ignored[row])],
            ]
            for row, image_id in enumerate(self.image_ids)
        }
