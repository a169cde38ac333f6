from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops

from pipeline.boxes import as_boxes, to_inclusive
from pipeline.detection.nms import nms

LIMITS = {0.0: Fraction(0), 0.1: Fraction(1, 10), 0.3: Fraction(3, 10), 0.5: Fraction(1, 2), 0.7: Fraction(7, 10)}


def devkit_iou(a, b):
    """VOCevaldet.m, on inclusive corners and in fractions."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def reference(boxes, scores, limit):
    """The best box stays, those that overlap it too much go; again with the rest."""
    inclusive = [tuple(map(int, box)) for box in to_inclusive(boxes)]
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        kept.append(left[0])
        left = [i for i in left[1:] if devkit_iou(inclusive[kept[-1]], inclusive[i]) <= limit]
    return kept


@st.composite
def scored_boxes(draw):
    side = st.integers(1, 10)
    rows = draw(st.lists(st.tuples(st.integers(-3, 6), st.integers(0, 6), side, side, st.integers(0, 3)), max_size=12))
    boxes = as_boxes([(x, y, x + w, y + h) for x, y, w, h, _ in rows])
    return boxes, np.array([row[4] for row in rows], np.float32)


@given(scored_boxes(), st.sampled_from(sorted(LIMITS)))
def test_the_boxes_that_stay_are_the_references(scored, overlap):
    boxes, scores = scored
    kept = nms(boxes, scores, overlap)
    assert kept.dtype == np.int64
    assert kept.tolist() == reference(boxes, scores.tolist(), LIMITS[overlap])


@given(scored_boxes())
def test_none_of_those_that_stay_overlap_too_much_and_each_of_the_others_does(scored):
    boxes, scores = scored
    kept = nms(boxes, scores).tolist()
    inclusive = [tuple(map(int, box)) for box in to_inclusive(boxes)]
    for i in range(len(boxes)):
        above = [k for k in kept if k != i and devkit_iou(inclusive[k], inclusive[i]) > Fraction(3, 10)]
        assert bool(above) == (i not in kept)
        assert i in kept or any((scores[k], -k) > (scores[i], -i) for k in above)


@pytest.mark.parametrize("size", [1, 7, 13, 86, 683, 1999])
def test_an_overlap_of_exactly_three_tenths_stays(size):
    """The second box is 3/10 of the first; one pixel wider, it is more."""
    first, second = [0, 0, 10 * size, 1], [7 * size, 0, 10 * size, 1]
    assert nms(as_boxes([first, second]), np.array([1, 0], np.float32)).tolist() == [0, 1]
    larger = [7 * size - 1, 0, 10 * size, 1]
    assert nms(as_boxes([first, larger]), np.array([1, 0], np.float32)).tolist() == [0]


def test_a_tenth_of_a_pixel_above_three_tenths_is_too_much():
    """10 x 5384 x 2024 = 3 x 6001 x 6053 + 1: float32 does not tell such areas apart."""
    large = as_boxes([[0, 0, 6001, 6053], [0, 0, 5384, 2024]])
    assert nms(large, np.array([1, 0], np.float32)).tolist() == [0]
    exact = as_boxes([[0, 0, 8010, 7001], [0, 0, 2403, 7001]])
    assert nms(exact, np.array([1, 0], np.float32)).tolist() == [0, 1]


def test_equal_scores_go_by_index():
    boxes = as_boxes([[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [51, 0, 61, 10]])
    assert nms(boxes, np.zeros(4, np.float32)).tolist() == [0, 2]
    assert nms(boxes, np.array([0, 0, 1, 1], np.float32)).tolist() == [2, 0]


def test_a_removed_box_removes_none():
    chain = as_boxes([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert nms(chain, np.array([3, 2, 1], np.float32)).tolist() == [0, 2]


def test_boxes_without_area_stay():
    boxes = as_boxes([[0, 0, 10, 10], [5, 5, 5, 8], [5, 5, 5, 8], [9, 9, 2, 2]])
    assert nms(boxes, np.array([1, 2, 3, 4], np.float32), overlap=0).tolist() == [3, 2, 1, 0]


def test_no_boxes_give_none():
    kept = nms(as_boxes([]), np.empty(0, np.float32))
    assert (kept.dtype, kept.shape) == (np.int64, (0,))


def test_two_thousand_boxes_are_torchvisions():
    """On random corners, where no pair lies within float32's reach of the limit."""
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 500, (2000, 2))
    boxes = as_boxes(np.concatenate([corners, corners + rng.uniform(5, 200, (2000, 2))], axis=1))
    scores = rng.permutation(2000).astype(np.float32)
    expected = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3).numpy()
    assert 10 < len(expected) < 1500
    np.testing.assert_array_equal(nms(boxes, scores), expected)


@pytest.mark.parametrize(
    ("scores", "overlap", "message"),
    [([1.0], 0.3, "as many scores"), ([1.0, np.nan], 0.3, "NaN"), ([1.0, 0.0], 1.5, "from 0 to 1, not 1.5")],
)
def test_an_input_that_has_no_answer_is_refused(scores, overlap, message):
    with pytest.raises(ValueError, match=message):
        nms(as_boxes([[0, 0, 1, 1], [0, 0, 2, 2]]), np.array(scores, np.float32), overlap)


def test_a_corner_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        nms(as_boxes([[0, 0, np.inf, 1]]), np.ones(1, np.float32))
