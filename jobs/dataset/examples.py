"""What there is to learn from and to be measured on: the index tells it, before hours of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.dataset.index import Index
from jobs.errors import UsageError
from jobs.record.stage import Context

_MOST = 10
"""Classes that a note names."""


def examples_in(index: Index, splits: Sequence[str], difficult: bool = False) -> dict[str, int]:
    """Class to the number of its objects on the images of some splits, of every class of the index, sorted.

    Difficult objects count only if ``difficult``.
    """
    objects = index.objects.select(["image_id", "class_name", "difficult"])
    objects = objects.filter(pc.is_in(objects["image_id"], _images(index, splits)))
    if not difficult:
        objects = objects.filter(pc.invert(objects["difficult"]))
    found = {row["values"]: row["counts"] for row in objects["class_name"].value_counts().to_pylist()}
    names = sorted(index.objects["class_name"].unique().to_pylist())
    return {name: found.get(name, 0) for name in names}


def to_learn_from(context: Context, stage: str, difficult: bool = False, key: str | None = None) -> dict[str, int]:
    """Class to the number of its positives in the training splits. UsageError if there is none of any class.

    ``difficult``: whether difficult objects are positives, which ``key`` of the config says, if one does.
    """
    index, splits = context.index, context.config.dataset.train_splits
    counts = examples_in(index, splits, difficult)
    if any(counts.values()):
        return counts
    where = f"{stage}: dataset.train_splits ({', '.join(splits)}): "
    images, others = len(_images(index, splits)), sum(examples_in(index, splits, difficult=True).values())
    if not images:
        raise UsageError(f"{where}no usable image, and so no object to learn from; name splits that have some")
    if others:
        hint = f"; {key}: true learns from them" if key else ""
        raise UsageError(f"{where}all {others:,} objects are difficult, so there is no object to learn from{hint}")
    raise UsageError(
        f"{where}no object to learn from on {images:,} images; are the annotations there? What needs none is made by "
        f"`spp run --until extract`"
    )


def untrained(counts: Mapping[str, int], so: str) -> Iterator[str]:
    """A note on the classes without positives, if there are some; ``so``: what follows for them."""
    without = [name for name, count in counts.items() if not count]
    if without:
        share = f"{len(without)} of {len(counts)} classes"
        yield f"{share} have no positives in the training splits, {so}: {named(without)}"


def undetected(context: Context) -> Iterator[str]:
    """A note where there is no image to detect anything on."""
    splits = context.config.dataset.test_splits
    if not len(_images(context.index, splits)):
        yield f"dataset.test_splits ({', '.join(splits)}): no usable image, so nothing is detected"


def unmeasured(context: Context) -> Iterator[str]:
    """A note on what cannot be measured, if something cannot: all, or the classes without an object to be found."""
    index, splits = context.index, context.config.dataset.test_splits
    where, images = f"dataset.test_splits ({', '.join(splits)})", len(_images(index, splits))
    counts = examples_in(index, splits)
    without = [name for name, count in counts.items() if not count]
    if not images:
        yield f"{where}: no usable image, so nothing is measured"
    elif len(without) == len(counts):
        yield f"{where}: no object to find on {images:,} images, and so no AP"
    elif without:
        share = f"{len(without)} of {len(counts)} classes"
        yield f"{share} have no object to find in {where}, and so no AP: {named(without)}"


def named(names: Sequence[str]) -> str:
    """The first few of some classes."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _images(index: Index, splits: Sequence[str]) -> pa.ChunkedArray:
    """Ids of the images of some splits."""
    named_in = index.images["splits"].combine_chunks()
    rows = pc.list_parent_indices(named_in).filter(pc.is_in(pc.list_flatten(named_in), pa.array(splits, pa.string())))
    return index.images["image_id"].take(rows.unique())
