from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes, iou
from pipeline.detection.labels import class_overlaps, dedupe_negatives, first_of_cells, negatives, positives

CLASSES = 3
DOG, CAT, HORSE = range(CLASSES)


def overlap(a, b):
    """IoU as a fraction of pixels, counted."""
    one, other = (
        {(x, y) for x in range(int(x1), int(x2)) for y in range(int(y1), int(y2))} for x1, y1, x2, y2 in (a, b)
    )
    return Fraction(len(one & other), len(one | other)) if one | other else Fraction(0)


@st.composite
def some_boxes(draw, most=6):
    sides = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 10), st.integers(0, 10))
    return as_boxes([(x, y, x + w, y + h) for x, y, w, h in draw(st.lists(sides, max_size=most))])


@st.composite
def ground_truth(draw):
    boxes = draw(some_boxes(4))
    classes = draw(st.lists(st.integers(0, CLASSES - 1), min_size=len(boxes), max_size=len(boxes)))
    return boxes, np.array(classes, dtype=np.int64)


@given(some_boxes(), ground_truth())
def test_a_class_overlap_is_the_best_share_of_common_pixels_with_its_objects(boxes, truth):
    found = class_overlaps(boxes, *truth, CLASSES)
    assert found.dtype == np.float32
    assert found.shape == (len(boxes), CLASSES)
    for i, box in enumerate(boxes):
        for c in range(CLASSES):
            shares = [overlap(box, other) for other, its in zip(*truth, strict=True) if its == c]
            assert found[i, c] == pytest.approx(float(max(shares, default=0)))


@given(some_boxes(), ground_truth())
def test_a_negative_overlaps_no_object_of_its_class_by_three_tenths(boxes, truth):
    found = negatives(class_overlaps(boxes, *truth, CLASSES))
    assert found.dtype == bool
    for i, box in enumerate(boxes):
        for c in range(CLASSES):
            shares = [overlap(box, other) for other, its in zip(*truth, strict=True) if its == c]
            assert found[i, c] == all(share < Fraction(3, 10) for share in shares)


def test_an_overlap_of_exactly_three_tenths_is_no_negative():
    overlaps = class_overlaps(as_boxes([[0, 0, 3, 1]]), as_boxes([[0, 0, 10, 1]]), np.array([DOG]), 1)
    assert not negatives(overlaps).any()
    assert negatives(np.nextafter(overlaps, np.float32(0))).all()


def test_an_object_is_a_negative_of_the_other_classes_only():
    truth, its = as_boxes([[0, 0, 10, 10], [50, 50, 60, 60]]), np.array([DOG, HORSE])
    found = negatives(class_overlaps(truth, truth, its, CLASSES))
    assert found.tolist() == [[False, True, True], [True, True, False]]


def test_without_ground_truth_every_box_is_a_negative_of_every_class():
    overlaps = class_overlaps(as_boxes([[0, 0, 1, 1]]), as_boxes([]), np.array([], dtype=int), CLASSES)
    assert overlaps.tolist() == [[0, 0, 0]]
    assert negatives(overlaps).all()


def test_a_positive_is_an_object_of_the_class_that_is_not_difficult():
    its, difficult = np.array([CAT, DOG, CAT]), np.array([False, False, True])
    assert positives(its, difficult, CLASSES).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]


def test_the_released_code_takes_difficult_objects_as_positives():
    found = positives(np.array([CAT, CAT]), np.array([True, False]), CLASSES, difficult_positive=True)
    assert found.tolist() == [[False, True, False]] * 2


def test_a_window_on_a_difficult_object_is_neither_positive_nor_negative():
    truth, its, difficult = as_boxes([[0, 0, 10, 10]]), np.array([DOG]), np.array([True])
    assert not negatives(class_overlaps(as_boxes([[0, 0, 10, 8]]), truth, its, 1)).any()
    assert not positives(its, difficult, 1).any()


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_class_that_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be 0 \.\. 2"):
        class_overlaps(as_boxes([]), as_boxes([[0, 0, 1, 1]]), np.array([wrong]), CLASSES)
    with pytest.raises(ValueError, match=r"must be 0 \.\. 2"):
        positives(np.array([wrong]), np.array([False]), CLASSES)


def test_ground_truth_without_a_class_is_refused():
    with pytest.raises(ValueError, match="1 ground-truth boxes, but 2 classes"):
        class_overlaps(as_boxes([]), as_boxes([[0, 0, 1, 1]]), np.array([0, 1]), CLASSES)


def greedy(same, negative):
    """The rule said plainly, class by class: ``same(i, j)`` says that boxes i and j are one too many."""
    kept = np.zeros_like(negative)
    for c in range(negative.shape[1]):
        remaining = []
        for i in np.flatnonzero(negative[:, c]):
            if not any(same(i, j) for j in remaining):
                remaining.append(i)
        kept[remaining, c] = True
    return kept


@given(some_boxes(12), st.data())
def test_a_negative_goes_when_it_overlaps_an_earlier_remaining_one_by_more_than_seven_tenths(boxes, data):
    row = st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)
    rows = data.draw(st.lists(row, min_size=len(boxes), max_size=len(boxes)))
    negative = np.array(rows, dtype=bool).reshape(len(boxes), CLASSES)
    expected = greedy(lambda i, j: overlap(boxes[i], boxes[j]) > Fraction(7, 10), negative)
    np.testing.assert_array_equal(dedupe_negatives(boxes, negative), expected)


@pytest.mark.parametrize("seed", range(5))
def test_many_near_repetitions_are_deduped_as_one_by_one(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (25, 2))
    places = np.concatenate([corners, corners + rng.uniform(5, 200, (25, 2))], axis=1)
    boxes = as_boxes(places[rng.integers(0, 25, 300)] + rng.normal(0, 5, (300, 4)))
    negative = rng.random((300, CLASSES)) < [1.0, 0.9, 0.3]
    before, overlaps = negative.copy(), iou(boxes, boxes)
    found = dedupe_negatives(boxes, negative)
    np.testing.assert_array_equal(found, greedy(lambda i, j: overlaps[i, j] > np.float32(0.7), negative))
    np.testing.assert_array_equal(negative, before)
    assert 0 < found.sum() < negative.sum()


def test_an_overlap_of_exactly_seven_tenths_stays():
    boxes, negative = as_boxes([[0, 0, 10, 1], [0, 0, 7, 1]]), np.ones((2, 1), bool)
    assert dedupe_negatives(boxes, negative).all()
    assert dedupe_negatives(boxes, negative, above=0.69).tolist() == [[True], [False]]


def test_a_negative_that_went_removes_nothing():
    # each overlaps the next by 8/10, the outer two by 6/10
    chain = as_boxes([[0, 0, 90, 1], [10, 0, 100, 1], [20, 0, 110, 1]])
    assert dedupe_negatives(chain, np.ones((3, 1), bool))[:, 0].tolist() == [True, False, True]


def test_what_is_no_negative_of_a_class_removes_nothing_of_it():
    same = as_boxes([[0, 0, 9, 9]] * 2)
    assert dedupe_negatives(same, np.array([[True, False], [True, True]])).tolist() == [[True, False], [False, True]]


def test_nothing_to_dedupe():
    assert dedupe_negatives(as_boxes([]), np.ones((0, CLASSES), bool)).shape == (0, CLASSES)
    assert dedupe_negatives(as_boxes([[0, 0, 1, 1]]), np.ones((1, 0), bool)).shape == (1, 0)


def test_a_mask_for_other_boxes_is_refused():
    with pytest.raises(ValueError, match=r"\(1, classes\), got \(2, 3\)"):
        dedupe_negatives(as_boxes([[0, 0, 1, 1]]), np.ones((2, CLASSES), bool))


@given(st.lists(st.tuples(st.sampled_from([480, 688]), *[st.integers(0, 2)] * 4), max_size=30))
def test_one_window_remains_of_those_on_the_same_cells_at_the_same_scale(pairs):
    seen, expected = set(), []
    for i, pair in enumerate(pairs):
        if pair not in seen:
            expected.append(i)
        seen.add(pair)
    scales = np.array([pair[0] for pair in pairs], dtype=np.int32)
    windows = np.array([pair[1:] for pair in pairs], dtype=np.int16).reshape(-1, 4)
    assert first_of_cells(scales, windows).tolist() == expected
