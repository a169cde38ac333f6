"""What a checkpoint of train-svm holds is what was saved, to the last bit."""

import uuid
from dataclasses import fields

import numpy as np
import pytest

from jobs.svm.fits import ClassFit
from jobs.svm.progress import ClassProgress, Progress, last_progress
from pipeline.detection.svm import as_two, sum_of_two
from storage.root import open_root
from storage.tensors import drop_checkpoints

METHOD = "0123456789ab"


def fit(seed=0, negatives=3, **changes):
    random = np.random.default_rng(seed)
    values = {
        "weight": random.standard_normal(7).astype(np.float32),
        "bias": float(random.standard_normal()),
        "scores": random.standard_normal(negatives),
        "coefficients": sum_of_two(*as_two(random.random(2 + negatives))),
        "loss_positive": 0.1,
        "loss_negative": 1 / 3,
        "regulariser": 2.5e-7,
        "iterations": 35,
        "gap": 1e-5 / 3,
        "converged": True,
    }
    return ClassFit(**{**values, **changes})


def progress(**changes):
    history = [{"pass": 0, "round": 0, "positives": 2, "loss_positive": 0.1}]
    values = {
        "pass_": 1,
        "round": 3,
        "found": 17,
        "scale": 20 / 3,
        "image_ids": ["b", "a", "ä", "a"],
        "windows": np.array([5, -1, 0, 1999]),
        "classes": {
            "cat": ClassProgress(members=np.array([0, 1, 3]), fit=fit(), left_out=4, history=history),
            "it's a dog": ClassProgress(members=np.array([], np.int64), fit=fit(1, 0), left_out=0, history=[]),
        },
    }
    return Progress(**{**values, **changes})


@pytest.fixture
def root():
    return open_root(f"memory://{uuid.uuid4().hex}")


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tolist() == other.tolist()
    return one == other


def test_what_is_saved_is_found(root):
    saved = progress()
    saved.save(root, METHOD)
    found = last_progress(root, METHOD)
    for name in ("pass_", "round", "found", "scale", "image_ids"):
        assert getattr(found, name) == getattr(saved, name), name
    assert found.windows.tolist() == saved.windows.tolist()
    assert list(found.classes) == ["cat", "it's a dog"]
    for name, one in saved.classes.items():
        there = found.classes[name]
        assert there.members.tolist() == one.members.tolist()
        assert (there.left_out, there.history) == (one.left_out, one.history)
        for field in fields(ClassFit):
            if field.name != "scores":  # of a fit that is over
                assert same(getattr(one.fit, field.name), getattr(there.fit, field.name)), field.name


def test_a_solver_without_coefficients_or_gap_has_none(root):
    plain = ClassProgress(members=np.array([0]), fit=fit(coefficients=None, gap=None), left_out=0, history=[])
    progress(classes={"cat": plain}).save(root, METHOD)
    found = last_progress(root, METHOD).classes["cat"].fit
    assert (found.coefficients, found.gap) == (None, None)


def test_the_last_round_is_found(root):
    for pass_, round_ in ((0, 0), (1, 9), (1, 10), (2, 1)):
        progress(pass_=pass_, round=round_).save(root, METHOD)
        found = last_progress(root, METHOD)
        assert (found.pass_, found.round) == (pass_, round_)
    drop_checkpoints(root, METHOD)
    assert last_progress(root, METHOD) is None


def test_a_number_that_float32_cannot_hold_is_refused(root):
    with pytest.raises(ValueError, match="16777217 cannot be kept"):
        progress(windows=np.array([5, -1, 0, 2**24 + 1])).save(root, METHOD)
