"""Classifying whole images by linear SVMs: splits, products of vectors, and what is measured (paper 3.2, 3.3).

Two protocols. VOC 2007: an image may show several classes, each class has an SVM of its own, and its ranking of the
test images is measured by average precision; an image that shows a class only as difficult is of neither side, in
training and in testing (devkit: label 0). Caltech-101: each image has one class, the SVM with the highest score names
it; measured is the mean over classes of the share that is named rightly, on several random splits.

Vectors are divided by their Euclidean norm (paper 3.2), which needs no vectors where their products are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.measures.average_precision import ClassResult, MatchedClass, measure
from pipeline.products import share_out

_COLUMNS = 4096
"""Of the vectors that are multiplied at a time: float32 copies of so many are held."""

_ROWS = 256
"""Of the products that are computed at a time, by one thread."""


class SplitError(ValueError):
    """The images do not suffice for the split that is asked for. The message names the class."""


@dataclass(frozen=True)
class Split:
    """Rows of the images to train on and to test on, both int64 and ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def random_split(
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    train_per_class: int,
    test_per_class: int | None,
    seed: int,
    number: int,
) -> Split:
    """Split ``number`` of a seed: of each class ``train_per_class`` images to train on, and at most ``test_per_class``
    of the others to test on (paper 3.3; None: all others).

    ``labels`` (N,) are places in ``class_names``. Each class is drawn by itself, from its name: another class more
    changes nothing for it. Raises SplitError for a class with no image left to test on.
    """
    train, test = [], []
    for place, name in enumerate(class_names):
        rows = np.flatnonzero(labels == place)
        if len(rows) <= train_per_class:
            raise SplitError(
                f"class {name!r} has {len(rows)} images, of which {train_per_class} to train on leave none to test on"
            )
        order = np.random.default_rng([seed, number, *name.encode()]).permutation(rows)
        train.append(order[:train_per_class])
        rest = order[train_per_class:]
        test.append(rest if test_per_class is None else rest[:test_per_class])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)))


def held_out_split(labels: NDArray[np.int64], rows: NDArray[np.int64], share: float, seed: int) -> Split:
    """Part of the training images ``rows`` to choose something on: ``share`` of each class is tested, at least one.

    A class of a single image has it trained on. Raises SplitError if all have.
    """
    random = np.random.default_rng([seed, 0x5E1EC7])
    train, test = [], []
    for label in np.unique(labels[rows]):
        own = random.permutation(rows[labels[rows] == label])
        count = min(max(1, round(share * len(own))), len(own) - 1)
        test.append(own[:count])
        train.append(own[count:])
    if not any(len(own) for own in test):
        raise SplitError("no class has two images to train on, of which one could be held out")
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)))


def products(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """The cosines of all pairs of vectors (N, dim): float32 (N, N); of a vector that is zero, 0.

    One half of the symmetric matrix is computed, over some columns of the vectors at a time: beside both it takes
    ``N * 4096 * 4`` bytes.
    """
    count, dim = vectors.shape
    gram = np.zeros((count, count), np.float32)
    strips = range(0, count, _ROWS)
    for first in range(0, dim, _COLUMNS):
        part = torch.from_numpy(np.asarray(vectors[:, first : first + _COLUMNS], np.float32, order="C"))

        def add(start: int, part: torch.Tensor = part) -> None:
            right_of = torch.from_numpy(gram[start : start + _ROWS, start:])  # the diagonal and what is right of it
            right_of.addmm_(part[start : start + _ROWS], part[start:].T)

        share_out(add, strips)
    norms = np.sqrt(np.einsum("ii->i", gram))
    if not np.isfinite(norms).all():
        raise ValueError("the vectors' squares are beyond float32; features this large are no features of images")
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    for start in strips:
        strip = gram[start : start + _ROWS, start:]
        strip *= scale[start : start + _ROWS, None] * scale[start:]
        square, rest = strip[:, :_ROWS], strip[:, _ROWS:]
        square[:] = np.triu(square) + np.triu(square, 1).T
        gram[start + _ROWS :, start : start + _ROWS] = rest.T
    return gram


def class_accuracies(named: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Of each class the share of its test images that are named rightly, (classes,); NaN for one without any.

    ``named`` and ``labels`` (N,) are places of classes.
    """
    totals = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[named == labels], minlength=classes)
    shares: NDArray[np.float64] = np.divide(right, totals, out=np.full(classes, np.nan), where=totals > 0)
    return shares


def image_ap(
    scores: NDArray[np.floating], images: Sequence[str], shows: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> ClassResult:
    """Average precision of a ranking of images by VOC's rules (VOCevalcls.m); those that are ``ignored`` do not count.

    Equal scores are taken by image id, so the result does not depend on the order given. An image with the score -inf
    is not ranked at all: where a class could not be trained, nothing is found.
    """
    ids = np.asarray(images)
    order = np.lexsort((ids, -scores))
    order = order[~ignored[order] & np.isfinite(scores[order])]
    return measure(
        MatchedClass(scores[order], ids[order], shows[order], np.zeros(len(order), np.bool_), ids[shows & ~ignored])
    )
