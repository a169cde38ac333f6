"""Labels and draws of training windows: proportions, what is never drawn twice, mirrored boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.detection.labels import finetune_labels
from pipeline.detection.window_sampling import draw_windows, mirrored

SCALES = (480, 576, 688, 864, 1200)


def reference_label(box, truth, classes, difficult, foreground, background) -> int:
    """The rule in words: look at the object that is overlapped most."""
    best, most = -1, 0.0
    for number, other in enumerate(truth):
        width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        shared = width * height
        union = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
        if union > 0 and shared / union > most:
            best, most = number, shared / union
    if best >= 0 and most >= foreground:
        return -1 if difficult[best] else 1 + classes[best]
    return 0 if background[0] <= most < background[1] else -1


corner = st.integers(0, 12)
side = st.integers(1, 8)
box = st.tuples(corner, corner, side, side).map(lambda v: [v[0], v[1], v[0] + v[2], v[1] + v[3]])


@given(
    st.lists(box, min_size=1, max_size=12),
    st.lists(st.tuples(box, st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
    st.sampled_from([(0.5, (0.1, 0.5)), (0.6, (0.0, 0.3)), (0.25, (0.1, 0.25))]),
)
def test_labels_follow_the_rule(boxes, objects, overlaps):
    boxes = np.array(boxes, np.float32)
    truth = np.array([o[0] for o in objects], np.float32)
    classes = np.array([o[1] for o in objects])
    difficult = np.array([o[2] for o in objects])
    found = finetune_labels(boxes, truth, classes, difficult, *overlaps)
    # at a threshold that floats cannot tell, or of equals, both are right
    values = iou(boxes, truth)
    near = (np.abs(values[:, :, None] - [overlaps[0], *overlaps[1]]) < 1e-6).any(axis=(1, 2))
    tied = (values == values.max(axis=1, keepdims=True)).sum(axis=1) > 1
    for row in np.flatnonzero(~near & ~tied):
        assert found[row] == reference_label(boxes[row], truth, classes, difficult, *overlaps)


def test_ground_truth_is_foreground_and_thresholds_are_where_they_are_said_to_be():
    truth = np.array([[0, 0, 10, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 1], [0, 0, 10, 0.9]], np.float32)
    labels = finetune_labels(boxes, truth, np.array([4]), np.array([False]))
    assert labels.tolist() == [5, 5, 0, 0, -1]
    labels = finetune_labels(boxes, truth, np.array([4]), np.array([True]))
    assert labels.tolist() == [-1, -1, 0, 0, -1]


def test_an_image_without_objects_has_neither():
    none = np.zeros((0, 4), np.float32)
    labels = finetune_labels(np.ones((3, 4), np.float32), none, np.zeros(0, int), np.zeros(0, bool))
    assert labels.tolist() == [-1, -1, -1]


def test_windows_scales_and_sides_come_in_their_proportions():
    labels = np.repeat([0, 1, 2, -1], [4000, 300, 700, 500])
    drawn = draw_windows(labels, SCALES, 8000, 0.25, True, np.random.default_rng(0))
    kinds = labels[drawn.rows]
    assert (kinds > 0).sum() == 2000
    assert (kinds == 0).sum() == 6000
    assert (kinds[:2000] > 0).all()
    for scale in SCALES:
        assert (drawn.scales == scale).mean() == pytest.approx(1 / len(SCALES), abs=0.02)
        of_scale = drawn.flipped[drawn.scales == scale]
        assert of_scale.mean() == pytest.approx(0.5, abs=0.04)
    assert (kinds == 1).sum() / 2000 == pytest.approx(0.3, abs=0.05)


@given(
    st.lists(st.integers(-1, 3), max_size=30),
    st.integers(1, 5),
    st.integers(4, 200),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_window_is_drawn_twice_the_same_way(labels, scales, count, flips, seed):
    labels = np.array(labels, np.int64)
    drawn = draw_windows(labels, SCALES[:scales], count, 0.25, flips, np.random.default_rng(seed))
    ways = set(zip(drawn.rows.tolist(), drawn.scales.tolist(), drawn.flipped.tolist(), strict=True))
    assert len(ways) == len(drawn.rows)
    assert (labels[drawn.rows] >= 0).all()
    sides = 2 if flips else 1
    foreground = min(round(count * 0.25), (labels > 0).sum() * scales * sides)
    background = min(count - round(count * 0.25), (labels == 0).sum() * scales * sides)
    assert (labels[drawn.rows] > 0).sum() == foreground
    assert (labels[drawn.rows] == 0).sum() == background
    assert flips or not drawn.flipped.any()
    again = draw_windows(labels, SCALES[:scales], count, 0.25, flips, np.random.default_rng(seed))
    assert np.array_equal(again.rows, drawn.rows)


def test_mirrored_boxes_hold_the_mirrored_pixels():
    image = np.arange(5 * 9).reshape(5, 9)
    boxes = np.array([[2, 1, 6, 4], [0, 0, 9, 5], [8, 4, 9, 5]], np.float32)
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(boxes.astype(int), mirrored(boxes, 9).astype(int), strict=True):
        np.testing.assert_array_equal(image[:, ::-1][v1:v2, u1:u2][:, ::-1], image[y1:y2, x1:x2])
    np.testing.assert_array_equal(mirrored(mirrored(boxes, 9), 9), boxes)
