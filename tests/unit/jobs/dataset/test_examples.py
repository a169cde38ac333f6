"""What an index tells of a training and a test before either is made."""

from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.config.run_config import RunConfig
from jobs.dataset.examples import examples_in, named
from jobs.dataset.index import Index
from jobs.errors import UsageError
from jobs.record.stage import Context
from jobs.run.stages import foreseen, run_stages
from storage.root import open_root
from storage.runs import RunRecord
from storage.schemas import schema

GOOD = {"a": ("trainval", ["ring", "slab"]), "b": ("test", ["ring", "slab"])}
"""Image to its split and the classes of its objects; a class with a ? is of a difficult object."""


def index_of(images: dict[str, tuple[str, list[str]]]) -> Index:
    rows = [
        {"image_id": i, "uri": i, "width": 9, "height": 9, "splits": splits.split(), "digest": i}
        for i, (splits, _) in images.items()
    ]
    objects = [
        {
            "image_id": i,
            "object_id": number,
            "class_name": name.rstrip("?"),
            "box": {"x1": 0, "y1": 0, "x2": 1, "y2": 1},
            "difficult": name.endswith("?"),
            "truncated": False,
        }
        for i, (_, names) in images.items()
        for number, name in enumerate(names)
    ]
    tables = (pa.Table.from_pylist(part, schema=schema(n)) for part, n in ((rows, "images"), (objects, "objects")))
    return Index(*tables, ())


def told(images: dict[str, tuple[str, list[str]]], until: str | None = None, **sections: dict) -> list[str]:
    config = RunConfig.model_validate({"dataset": {"path": "data"}, **sections})
    context = Context(config, open_root("memory://examples"), index_of(images), RunRecord(name="trial"))
    return list(foreseen(run_stages(config, until), context))


def test_objects_are_counted_by_class_on_the_images_of_some_splits():
    index = index_of({**GOOD, "c": ("trainval extra", ["ring", "slab?"]), "d": ("other", ["blob"])})
    assert examples_in(index, ["trainval"]) == {"blob": 0, "ring": 2, "slab": 1}
    assert examples_in(index, ["trainval"], difficult=True) == {"blob": 0, "ring": 2, "slab": 2}
    assert examples_in(index, ["extra", "test"]) == {"blob": 0, "ring": 2, "slab": 1}
    assert examples_in(index, []) == {"blob": 0, "ring": 0, "slab": 0}
    assert examples_in(index_of({"a": ("test", [])}), ["test"]) == {}


def test_of_data_with_every_class_on_both_sides_nothing_is_told():
    assert told(GOOD) == []
    assert told(GOOD, detect={"classifier": "softmax"}) == []


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"a": ("trainval", []), "b": ("test", ["ring"])}, "no object to learn from on 1 images; are the annotations"),
        ({"b": ("test", ["ring"])}, "dataset.train_splits (trainval): no usable image, and so no object to learn from"),
        ({"a": ("trainval", ["ring?", "slab?"])}, "all 2 objects are difficult, so there is no object to learn from"),
        ({"a": ("trainval", []), "b": ("trainval", [])}, "`spp run --until extract`"),
    ],
)
@pytest.mark.parametrize(
    ("sections", "stage"),
    [({}, "train-svm"), ({"svm": {"layer": "ftfc7"}}, "finetune"), ({"detect": {"classifier": "softmax"}}, "finetune")],
)
def test_nothing_to_learn_from_is_refused_by_the_first_that_learns(images, says, sections, stage):
    with pytest.raises(UsageError) as refused:
        told(images, **sections)
    assert str(refused.value).startswith(f"{stage}: ")
    assert says in str(refused.value)
    assert told(images, "extract", **sections) == []


def test_difficult_objects_teach_those_that_take_them():
    images = {"a": ("trainval", ["ring?"]), "b": ("test", ["ring"])}
    with pytest.raises(UsageError, match=r"train-svm: .* svm\.difficult_positive: true learns from them"):
        told(images)
    taken = {"difficult_positive": True}
    with pytest.raises(UsageError, match=r"train-bbox: .* bbox\.difficult_positive: true learns from them"):
        told(images, svm=taken)
    assert told(images, svm=taken, bbox=taken) == []


def test_classes_without_positives_are_named():
    images = {**GOOD, "c": ("test", ["blob"])}
    (note,) = told(images)
    assert note == (
        "train-svm: 1 of 3 classes have no positives in the training splits, "
        "so they have no SVM and are never detected: blob"
    )
    (note,) = told(images, detect={"classifier": "softmax"})
    assert note.startswith("finetune: 1 of 3 classes have no positives in the training splits, so they are never")


def test_of_many_classes_the_first_are_named():
    names = [f"class {number:03d}" for number in range(200)]
    (note,) = told({**GOOD, "c": ("test", names)})
    assert "200 of 202 classes" in note
    assert note.endswith("class 009 and 190 more")
    assert named(["a"]) == "a"


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (
            {"a": GOOD["a"]},
            [
                "detect: dataset.test_splits (test): no usable image, so nothing is detected",
                "evaluate: dataset.test_splits (test): no usable image, so nothing is measured",
            ],
        ),
        (
            {**GOOD, "b": ("test", [])},
            ["evaluate: dataset.test_splits (test): no object to find on 1 images, and so no AP"],
        ),
        (
            {**GOOD, "b": ("test", ["ring?", "slab?"])},
            ["evaluate: dataset.test_splits (test): no object to find on 1 images, and so no AP"],
        ),
        (
            {**GOOD, "b": ("test", ["ring", "slab?"])},
            ["evaluate: 1 of 2 classes have no object to find in dataset.test_splits (test), and so no AP: slab"],
        ),
    ],
)
def test_what_cannot_be_detected_or_measured_is_told(images, says):
    assert told(images) == says
    assert told(images, "train-bbox") == []
