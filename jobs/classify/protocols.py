"""Which images a protocol of classify trains on and tests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jobs.config.run_config import RunConfig
from jobs.dataset.examples import named
from jobs.dataset.labels import ImageLabels
from jobs.errors import UsageError
from pipeline.measures.classification import Split, SplitError, held_out_split, random_split


def protocol_splits(config: RunConfig, labels: ImageLabels) -> list[tuple[int, Split]]:
    """The splits of the protocol by number, of rows of ``labels``. UsageError if the images do not allow them."""
    classify, dataset = config.classify, config.dataset
    train, test = labels.rows_in(dataset.train_splits), labels.rows_in(dataset.test_splits)
    if classify.protocol == "voc07" or (classify.protocol == "folder" and len(train) and len(test)):
        for key, rows in (("train_splits", train), ("test_splits", test)):
            if not len(rows):
                raise UsageError(
                    f"dataset.{key}: {', '.join(getattr(dataset, key)) or 'nothing'} has no image, which "
                    f"classify.protocol: {classify.protocol} needs; name splits that are there, or use caltech101, "
                    f"which draws its own"
                )
        both = np.intersect1d(train, test)
        if len(both):
            raise UsageError(
                f"dataset: image {labels.image_ids[both[0]]!r} is in a training and in a test split; results on images "
                f"that were trained on say nothing"
            )
        _check_classes(config, labels, train, test)
        return [(0, Split(train, test))]
    single = _single(labels)
    if len(labels.class_names) < 2:
        raise UsageError(
            f"dataset.path: the images are of {len(labels.class_names)} class ({', '.join(labels.class_names)}), and "
            f"two or more can be told apart; does {config.dataset.path!r} hold the class folders themselves?"
        )
    try:
        return [
            (
                number,
                random_split(
                    single,
                    labels.class_names,
                    classify.train_per_class,
                    classify.most_tested,
                    classify.seed,
                    number,
                ),
            )
            for number in range(classify.splits)
        ]
    except SplitError as error:
        raise UsageError(f"classify.train_per_class: {error}; lower it, or leave the class out") from error


def split_notes(config: RunConfig, labels: ImageLabels, splits: Sequence[tuple[int, Split]]) -> Iterator[str]:
    """Notes on the classes that one of ``splits`` gives nothing to train on, or nothing to test on."""
    shows, used = labels.shows, ~labels.ignored
    sides = [(shows[split.train], used[split.train], shows[split.test]) for _, split in splits]
    trained = [(own & used).any(axis=0) & (~own & used).any(axis=0) for own, used, _ in sides]
    tested = [own.any(axis=0) for _, _, own in sides]
    for there, lack in (
        (trained, "train_splits has not both images with and without them, so they have no SVM"),
        (tested, "test_splits has no image that shows them, so nothing is measured of them"),
    ):
        without = [labels.class_names[column] for column in np.flatnonzero(~np.all(there, axis=0))]
        if without:
            yield f"classify: {len(without)} of {len(labels.class_names)} classes: dataset.{lack}: {named(without)}"


def _check_classes(config: RunConfig, labels: ImageLabels, train: np.ndarray, test: np.ndarray) -> None:
    """UsageError for own splits on which nothing, or nonsense, would be measured."""
    if config.classify.protocol == "folder":
        _single(labels)
        unknown = np.flatnonzero(labels.shows[test].any(axis=0) & ~labels.shows[train].any(axis=0))
        if len(unknown):
            raise UsageError(
                f"dataset: class {labels.class_names[unknown[0]]!r} has images to test on and none to train on; add "
                f"some, or leave it out with dataset.classes"
            )
    for key, rows in (("train_splits", train), ("test_splits", test)):
        if not labels.shows[rows].any():
            raise UsageError(
                f"dataset.{key}: no image of {', '.join(getattr(config.dataset, key))} shows an object; are the "
                f"annotations there?"
            )


def _single(labels: ImageLabels) -> np.ndarray:
    try:
        return labels.single()
    except ValueError as error:
        raise UsageError(f"classify.protocol: {error}; use protocol voc07 for images that show several") from error


def held_out_splits(
    config: RunConfig, labels: ImageLabels, splits: Sequence[tuple[int, Split]]
) -> list[tuple[int, Split]]:
    """Parts of each split's training images, on which a short side is chosen.

    Of images that show several classes each counts for its first, to take a share of each.
    """
    first = np.where(labels.shows.any(axis=1), labels.shows.argmax(axis=1), -1)
    seed, share = config.classify.seed, config.classify.held_out
    try:
        return [(number, held_out_split(first, split.train, share, seed)) for number, split in splits]
    except SplitError as error:
        raise UsageError(f"classify.views: {error}; give a single full view, or more training images") from error
