"""What the protocols of classify tell of the images before anything is made."""

from __future__ import annotations

import numpy as np

from jobs.classify.protocols import protocol_splits, split_notes
from jobs.config.run_config import RunConfig
from jobs.dataset.labels import ImageLabels

CONFIG = RunConfig.model_validate({"dataset": {"path": "data"}, "classify": {"protocol": "voc07"}})


def notes(images: dict[str, tuple[str, str]]) -> list[str]:
    """Of image to split and the classes that it shows, a letter each."""
    names = tuple(sorted({name for _, shown in images.values() for name in shown}))
    shows = np.array([[name in shown for name in names] for _, shown in images.values()])
    splits = tuple((split,) for split, _ in images.values())
    labels = ImageLabels(tuple(images), names, shows, np.zeros_like(shows), splits)
    return list(split_notes(CONFIG, labels, protocol_splits(CONFIG, labels)))


def test_classes_on_both_sides_need_no_note():
    assert notes({"1": ("trainval", "a"), "2": ("trainval", "b"), "3": ("test", "ab")}) == []


def test_a_class_that_cannot_be_trained_is_told():
    (note,) = notes({"1": ("trainval", "a"), "2": ("trainval", "ab"), "3": ("test", "abc")})
    assert note == (
        "classify: 2 of 3 classes: dataset.train_splits has not both images with and without them, "
        "so they have no SVM: a, c"
    )


def test_a_class_that_cannot_be_tested_is_told():
    (note,) = notes({"1": ("trainval", "a"), "2": ("trainval", "b"), "3": ("test", "a")})
    assert note.startswith("classify: 1 of 2 classes: dataset.test_splits has no image that shows them, so nothing is")
    assert note.endswith(": b")
