"""The pool of several detectors against the slow way: one detection after the other."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes, iou
from pipeline.detection.combination import DetectionSet, combine
from pipeline.detection.nms import nms


def found(rows):
    """From (image, class, score, box)."""
    images, classes, scores, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return DetectionSet(
        np.array(images, np.int64), np.array(classes, np.int64), np.array(scores, np.float32), as_boxes(boxes)
    )


def rows_of(detections):
    corners = detections.boxes.tolist()
    return [
        (int(image), int(number), float(score), tuple(box))
        for image, number, score, box in zip(
            detections.images, detections.classes, detections.scores, corners, strict=True
        )
    ]


def slowly(detectors, overlap):
    """All in one order; each stays unless one that stayed before it, of its image and class, overlaps it too much."""
    pool = [(row, owner) for owner, rows in enumerate(detectors) for row in rows]
    pool.sort(key=lambda one: (one[0][0], one[0][1], -one[0][2], one[1], one[0][3]))
    stay = []
    for (image, number, score, box), _ in pool:
        rivals = [other[3] for other in stay if other[:2] == (image, number)]
        if not any(iou(as_boxes([box]), as_boxes([rival]))[0, 0] > overlap for rival in rivals):
            stay.append((image, number, score, tuple(map(float, box))))
    return stay


corner, side = st.integers(0, 6), st.integers(1, 8)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
detection = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-2, 2).map(float), box)
some_detectors = st.lists(st.lists(detection, max_size=12), max_size=3)


@given(some_detectors, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_what_stays_is_what_no_better_one_overlaps_too_much(detectors, overlap):
    assert rows_of(combine([found(rows) for rows in detectors], overlap)) == slowly(detectors, overlap)


@given(some_detectors, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_given_does_not_matter(detectors, random):
    shuffled = [random.sample(rows, len(rows)) for rows in detectors]
    first, second = (rows_of(combine([found(rows) for rows in some])) for some in (detectors, shuffled))
    assert first == second


@given(st.lists(detection, max_size=15))
def test_a_detector_twice_is_that_detector_once_more_suppressed(rows):
    once, twice = combine([found(rows)]), combine([found(rows), found(rows)])
    assert rows_of(twice) == rows_of(once)


def test_images_and_classes_do_not_touch_each_other():
    same = (0, 0, 10, 10)
    rows = [(image, number, 1.0, same) for image, number in itertools.product(range(2), range(3))]
    assert rows_of(combine([found(rows[::2]), found(rows[1::2])])) == [(*row[:3], (0, 0, 10, 10)) for row in rows]


def test_the_more_confident_detector_wins_and_of_equals_the_first():
    low, high = (0, 0, 10, 10), (1, 0, 11, 10)
    one, two = found([(0, 0, 1.0, high)]), found([(0, 0, 2.0, low)])
    assert rows_of(combine([one, two])) == [(0, 0, 2.0, low)]
    equal = found([(0, 0, 1.0, low)])
    assert rows_of(combine([one, equal])) == [(0, 0, 1.0, high)]
    assert rows_of(combine([equal, one])) == [(0, 0, 1.0, low)]


def test_an_overlap_of_exactly_the_limit_stays():
    best, other = (0, 0, 10, 10), (0, 0, 10, 3)
    both = [found([(0, 0, 2.0, best)]), found([(0, 0, 1.0, other)])]
    assert len(combine(both, 0.3).scores) == 2
    assert len(combine(both, 0.29).scores) == 1


def test_a_combination_of_one_image_and_class_is_nms():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (200, 2))
    boxes = as_boxes(np.concatenate([corners, corners + rng.integers(5, 30, (200, 2))], axis=1))
    scores = rng.permutation(200).astype(np.float32)
    zeros = np.zeros(100, np.int64)
    halves = [DetectionSet(zeros, zeros, scores[half], boxes[half]) for half in (slice(0, 100), slice(100, 200))]
    joined, kept = combine(halves), nms(boxes, scores)
    np.testing.assert_array_equal(joined.scores, scores[kept])
    np.testing.assert_array_equal(joined.boxes, boxes[kept])
    assert (joined.scores.dtype, joined.boxes.dtype) == (np.float32, np.float32)


def test_nothing_found_is_nothing():
    for detectors in ([], [found([])], [found([]), found([])]):
        joined = combine(detectors)
        assert (joined.images.shape, joined.scores.shape, joined.boxes.shape) == ((0,), (0,), (0, 4))
    assert len(combine([found([]), found([(3, 1, 0.5, (0, 0, 1, 1))])]).scores) == 1


def test_arrays_that_do_not_fit_are_refused():
    one = found([(0, 0, 1.0, (0, 0, 1, 1))])
    with pytest.raises(ValueError, match="detector 1 have different lengths"):
        combine([one, DetectionSet(one.images, one.classes, np.zeros(2, np.float32), one.boxes)])
    with pytest.raises(ValueError, match="scores must not be NaN"):
        combine([DetectionSet(one.images, one.classes, np.full(1, np.nan, np.float32), one.boxes)])
    with pytest.raises(ValueError, match="from 0 to 1, not 30"):
        combine([one], 30)
