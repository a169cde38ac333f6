import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes
from pipeline.proposals.recall import best_overlaps, proposal_quality


def pixels(box):
    x1, y1, x2, y2 = (int(v) for v in box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@st.composite
def some_boxes(draw):
    sides = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 6), st.integers(1, 6))
    return as_boxes([(x, y, x + w, y + h) for x, y, w, h in draw(st.lists(sides, max_size=4))])


@given(some_boxes(), some_boxes())
def test_the_best_overlap_is_the_best_share_of_common_pixels(truth, proposals):
    found = best_overlaps(truth, proposals)
    assert found.shape == (len(truth),)
    for box, overlap in zip(truth, found, strict=True):
        shares = [len(pixels(box) & pixels(p)) / len(pixels(box) | pixels(p)) for p in proposals]
        assert overlap == pytest.approx(max(shares, default=0))


def test_an_overlap_of_one_half_is_a_recall():
    overlaps = best_overlaps(as_boxes([[0, 0, 10, 10]]), as_boxes([[0, 0, 10, 5]]))
    assert proposal_quality(["dog"], overlaps).recall == 1
    assert proposal_quality(["dog"], np.nextafter(overlaps, np.float32(0))).recall == 0


def test_mabo_is_the_mean_over_classes_of_the_mean_over_objects():
    quality = proposal_quality(["dog", "cat", "dog", "dog"], np.array([0.9, 0.4, 0.6, 0.3]))
    assert quality.objects == 4
    assert quality.recall == 0.5
    assert quality.mabo == pytest.approx(((0.9 + 0.6 + 0.3) / 3 + 0.4) / 2)


def test_recall_counts_objects_and_not_classes():
    assert proposal_quality(["dog"] * 3 + ["cat"], np.array([1.0, 1.0, 1.0, 0.0])).recall == 0.75


def test_without_objects_there_is_no_recall():
    quality = proposal_quality([], best_overlaps(as_boxes([]), as_boxes([[0, 0, 1, 1]])))
    assert (quality.objects, quality.recall, quality.mabo) == (0, None, None)


def test_without_proposals_nothing_is_found():
    quality = proposal_quality(["dog"], best_overlaps(as_boxes([[0, 0, 5, 5]]), as_boxes([])))
    assert (quality.recall, quality.mabo) == (0, 0)
