import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from pipeline.boxes import area, as_boxes, clip, first_of_duplicates, from_inclusive, iou, to_inclusive

SIDE = 24


@st.composite
def pixel_boxes(draw, most=6):
    """Boxes of whole pixels inside a SIDE x SIDE image, empty ones included."""
    corner = st.integers(0, SIDE)
    boxes = []
    for _ in range(draw(st.integers(0, most))):
        x = sorted((draw(corner), draw(corner)))
        y = sorted((draw(corner), draw(corner)))
        boxes.append((x[0], y[0], x[1], y[1]))
    return as_boxes(boxes)


def pixels(box):
    """The set of pixels that a box covers."""
    x1, y1, x2, y2 = (int(v) for v in box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def test_a_voc_box_becomes_half_open():
    # 2007_000027: 174..349 x 101..351, both ends counted
    box = from_inclusive([174, 101, 349, 351])
    assert box.tolist() == [[173, 100, 349, 351]]
    assert box.dtype == np.float32
    assert area(box).tolist() == [(349 - 174 + 1) * (351 - 101 + 1)]


def test_a_one_pixel_voc_box_has_area_one():
    assert area(from_inclusive([1, 1, 1, 1])).tolist() == [1]


@given(pixel_boxes(), st.sampled_from([0, 1]))
def test_to_inclusive_undoes_from_inclusive(boxes, base):
    np.testing.assert_array_equal(from_inclusive(to_inclusive(boxes, base), base), boxes)


def test_base_0_moves_only_the_far_corner():
    assert from_inclusive([3, 4, 5, 6], base=0).tolist() == [[3, 4, 6, 7]]


@given(pixel_boxes(), pixel_boxes())
def test_iou_is_the_share_of_common_pixels(a, b):
    found = iou(a, b)
    assert found.shape == (len(a), len(b))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            union = len(pixels(one) | pixels(other))
            expected = len(pixels(one) & pixels(other)) / union if union else 0
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


@given(pixel_boxes(), pixel_boxes())
def test_iou_equals_the_devkits_on_inclusive_coordinates(a, b):
    a, b = a[area(a) > 0], b[area(b) > 0]
    found = iou(a, b)
    for i, p in enumerate(to_inclusive(a).tolist()):
        for j, q in enumerate(to_inclusive(b).tolist()):
            # VOCevaldet.m:68-76
            iw = min(p[2], q[2]) - max(p[0], q[0]) + 1
            ih = min(p[3], q[3]) - max(p[1], q[1]) + 1
            expected = 0.0
            if iw > 0 and ih > 0:
                sizes = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (p, q)]
                expected = iw * ih / (sum(sizes) - iw * ih)
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


@given(pixel_boxes(), pixel_boxes())
def test_iou_agrees_with_torchvision(a, b):
    a, b = a[area(a) > 0], b[area(b) > 0]
    np.testing.assert_allclose(iou(a, b), box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy(), rtol=1e-6)


def test_iou_of_empty_boxes_is_zero_not_nan():
    empty = as_boxes([[3, 3, 3, 3], [5, 5, 2, 2]])
    assert iou(empty, empty).tolist() == [[0, 0], [0, 0]]


def test_an_iou_of_three_tenths_is_exact():
    assert iou(as_boxes([[0, 0, 10, 1]]), as_boxes([[7, 0, 10, 1]]))[0, 0] == np.float32(0.3)


def test_a_reversed_box_has_no_area():
    assert area(as_boxes([[5, 0, 2, 10], [0, 5, 10, 2], [5, 5, 2, 2]])).tolist() == [0, 0, 0]


@given(st.lists(st.tuples(*[st.integers(-10, SIDE + 10)] * 4), max_size=5), st.integers(1, SIDE), st.integers(1, SIDE))
def test_a_clipped_box_covers_what_it_covered_of_the_image(corners, height, width):
    boxes = as_boxes(corners)
    image = pixels((0, 0, width, height))
    for before, after in zip(boxes, clip(boxes, height, width), strict=True):
        assert pixels(after) == pixels(before) & image
        assert 0 <= after[0] <= width
        assert 0 <= after[1] <= height
        assert 0 <= after[2] <= width
        assert 0 <= after[3] <= height


@given(pixel_boxes(most=3), st.lists(st.integers(0, 2), max_size=12))
def test_the_first_of_repeated_boxes_stays_in_its_place(some, picks):
    boxes = as_boxes([some[i % len(some)] for i in picks] if len(some) else [])
    seen, expected = set(), []
    for index, box in enumerate(boxes.tolist()):
        if tuple(box) not in seen:
            seen.add(tuple(box))
            expected.append(index)
    assert first_of_duplicates(boxes).tolist() == expected


@pytest.mark.parametrize("nothing", [[], np.empty((0, 4)), ()])
def test_no_boxes_have_the_shape_of_boxes(nothing):
    boxes = as_boxes(nothing)
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32
    assert area(boxes).shape == (0,)
    assert iou(boxes, as_boxes([[0, 0, 1, 1]])).shape == (0, 1)
    assert clip(boxes, 5, 5).shape == (0, 4)
    assert from_inclusive(boxes).shape == (0, 4)


def test_one_box_becomes_a_row():
    assert as_boxes([1, 2, 3, 4]).tolist() == [[1, 2, 3, 4]]
