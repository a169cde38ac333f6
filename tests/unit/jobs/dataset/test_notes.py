"""What is odd about a data set as a whole."""

import unicodedata

import pytest

from jobs.config.dataset import DatasetConfig
from jobs.dataset.labelled import Listing
from jobs.dataset.notes import alike, data_set_notes


def image(image_id, *splits, digest=None):
    return {"image_id": image_id, "splits": list(splits), "digest": digest or f"sha256:{image_id}"}


def notes(images=(), classes=None, listing=None, unturned=(), **config):
    images = list(images) or [image(i) for i in sorted({i for ids in (classes or {}).values() for i in ids})]
    found = data_set_notes(DatasetConfig(path="x", **config), listing or Listing(), images, classes or {}, unturned)
    assert all((row.stage, row.level) == ("index", "note") for row in found)
    return [(row.type, row.image_id, row.message) for row in found]


# --- class names ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("raccoon", "Raccoon"),
        ("STRASSE", "straße"),
        ("brand\u2122", "brandtm"),
        ("raccoon", "raccoon\u200b"),
        ("raccoon", "\ufeffraccoon"),
        ("raccoon", "rac\u00adcoon"),
        ("heart", "heart\ufe0f"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("dog", "\uff44\uff4f\uff47"),
        ("baby raccoon", "baby  raccoon"),
        ("baby raccoon", "babyraccoon"),
        ("baby raccoon", "baby_raccoon"),
        ("baby raccoon", "baby-raccoon "),
        ("İstanbul", "i̇stanbul"),
    ],
)
def test_names_that_are_written_in_two_ways_are_noted(one, other):
    assert alike(one) == alike(other)
    ((kind, image_id, message),) = notes(classes={one: ["a", "b"], other: ["c"]})
    assert (kind, image_id) == ("SimilarClassNames", "c")
    shown = message.split("written: ")[1].split("; each")[0].split(", ")
    assert len(set(shown)) == 2
    assert all(text.isprintable() for text in shown)


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "bat"), ("1-1", "11"), ("1 2", "12"), ("cat", "cats"), ("a", "á"), ("犬", "猫"), ("+", "-")],
)
def test_names_that_are_not_alike_are_not(one, other):
    assert notes(classes={one: ["a"], other: ["b"]}) == []


def test_names_that_are_not_kept_count_if_one_like_them_is():
    classes = {"raccoon": ["a"], "Raccoon": ["b"], "Cat": ["a"], "cat": ["b"]}
    ((_, _, message),) = notes_of_kept(classes)
    assert "'Raccoon', 'raccoon'" in message


def notes_of_kept(classes):
    found = data_set_notes(
        DatasetConfig(path="x", classes=["raccoon"]), Listing(), [image("a"), image("b")], classes, ()
    )
    return [(row.type, row.image_id, row.message) for row in found]


def test_folders_that_are_not_asked_for_count_too():
    listing = Listing(other_classes={"Raccoon", "dog"})
    found = data_set_notes(DatasetConfig(path="x", classes=["raccoon"]), listing, [image("a")], {"raccoon": ["a"]}, ())
    assert ["'Raccoon', 'raccoon'" in row.message for row in found] == [True]


# --- trained on and tested on ---

SPLITS = {"train_splits": ["train", "val"], "test_splits": ["test", "val"]}


def test_an_image_in_a_training_and_a_test_split_is_noted():
    ((kind, image_id, message),) = notes(
        [image("a", "train"), image("b", "train", "test"), image("c", "test")], **SPLITS
    )
    assert (kind, image_id) == ("TrainAndTest", "b")
    assert message.startswith("in the data set 1 of 2 test images is also in a training split;")


def test_a_split_that_is_trained_and_tested_on_is_noted():
    ((_, image_id, message),) = notes([image("a", "train"), image("b", "val"), image("c", "val")], **SPLITS)
    assert image_id == "b"
    assert "2 of 2 test images are also in a training split;" in message


def test_a_copy_under_another_id_is_noted_however_it_is_read():
    pair = [image("a", "train", digest="sha256:x"), image("b", "test", digest="sha256:x:turned"), image("c", "test")]
    ((_, image_id, message),) = notes(pair, **SPLITS)
    assert image_id == "b"
    assert "1 of 2 test images is also in a training split, 1 of them under another id" in message


def test_what_is_known_by_its_listing_has_no_copies():
    pair = [image("a", "train", digest="listing:x"), image("b", "test", digest="listing:x")]
    assert notes(pair, **SPLITS) == []


def test_splits_apart_are_not_noted():
    assert notes([image("a", "train"), image("b", "test"), image("c", "all")], **SPLITS) == []


# --- copies with other labels ---


def test_copies_of_other_classes_are_noted():
    copies = [image("cat/a", "all", digest="sha256:x"), image("dog/b", "all", digest="sha256:x"), image("dog/c", "all")]
    ((kind, image_id, message),) = notes(copies, {"cat": ["cat/a"], "dog": ["dog/b", "dog/c"]})
    assert (kind, image_id) == ("CopiesDiffer", "cat/a")
    assert "2 images are copies of each other and have other classes; the first are cat/a, dog/b" in message
    assert notes(copies, {"cat": ["cat/a", "dog/b"], "dog": ["dog/c"]}) == []


def test_the_notes_are_the_same_in_any_order_of_images():
    images = [
        image("b", "train", "test"),
        image("a", "test", digest="sha256:b"),
        image("c", "train", digest="sha256:b"),
    ]
    classes = {"x": ["a", "b"], "X": ["c", "b"]}
    listing = Listing(passed_over=["/d/z.txt", "/d/a.heic"])
    found = notes(images, classes, listing, ["b", "a"], **SPLITS)
    assert [kind for kind, _, _ in found] == [
        "PassedOver",
        "SimilarClassNames",
        "TrainAndTest",
        "CopiesDiffer",
        "NotTurned",
    ]
    turned = {name: ids[::-1] for name, ids in reversed(classes.items())}
    other = Listing(passed_over=listing.passed_over[::-1])
    assert notes(images[::-1], turned, other, ["a", "b"], **SPLITS) == found
