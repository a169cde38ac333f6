import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes
from pipeline.detection.box_regression import Regressor
from pipeline.detection.detector import DetectionRules, Detector
from pipeline.detection.nms import nms
from pipeline.detection.scoring import LinearScorer

HEIGHT, WIDTH = 30, 40
DIM = 3
SCALE, REGRESSION_SCALE = 0.5, 0.25


@dataclass(frozen=True)
class Models:
    """SVMs (K, dim), (K,) and regressors. All numbers are such that float32 makes no error with them."""

    weights: np.ndarray
    biases: np.ndarray
    regressors: dict

    @property
    def detector(self):
        return self.ruled(DetectionRules())

    def ruled(self, rules):
        return Detector(LinearScorer(self.weights, self.biases, SCALE), self.regressors, REGRESSION_SCALE, rules)


def moved(box, dx, dy, dw, dh):
    """A box whose centre moves by shares of its sides, which grow by exponents (R-CNN, appendix C); clipped."""
    x1, y1, x2, y2 = map(float, box)
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [
        min(max(np.float32(x - width / 2), 0), WIDTH),
        min(max(np.float32(y - height / 2), 0), HEIGHT),
        min(max(np.float32(x + width / 2), 0), WIDTH),
        min(max(np.float32(y + height / 2), 0), HEIGHT),
    ]


def deltas_of(regressor, vector):
    """What a regressor says of one vector, number by number."""
    x = [REGRESSION_SCALE * float(value) for value in vector]
    raw = [np.dot(row.astype(float), x) + b for row, b in zip(regressor.weights, regressor.bias, strict=True)]
    return [sum(raw[j] * regressor.unwhitening[j, i] for j in range(4)) + regressor.mean[i] for i in range(4)]


def reference(models, rules, boxes, vectors):
    """Class, score and box of every detection, one class after another."""
    found = []
    for number, (weight, bias) in enumerate(zip(models.weights, models.biases, strict=True)):
        scores = vectors.astype(np.float64) @ weight * SCALE + bias
        rows = [i for i in range(len(boxes)) if scores[i] > rules.score_above]
        rows = [rows[i] for i in nms(boxes[rows], scores[rows], rules.nms_overlap)][: rules.max_per_class]
        kept = [(scores[row], boxes[row].tolist()) for row in rows]
        if number in models.regressors:
            kept = [(scores[r], moved(boxes[r], *deltas_of(models.regressors[number], vectors[r]))) for r in rows]
            kept = [(score, box) for score, box in kept if box[2] > box[0] and box[3] > box[1]]
            again = nms(as_boxes([box for _, box in kept]), np.array([score for score, _ in kept]), rules.nms_overlap)
            kept = [kept[i] for i in again]
        found += [(number, score, box) for score, box in kept]
    return found


def check(found, expected):
    assert (found.classes.dtype, found.scores.dtype, found.boxes.dtype) == (np.int64, np.float32, np.float32)
    assert found.boxes.shape == (len(found.classes), 4)
    assert found.classes.tolist() == [number for number, _, _ in expected]
    assert found.scores.tolist() == [score for _, score, _ in expected]
    np.testing.assert_allclose(found.boxes, as_boxes([box for _, _, box in expected]), rtol=1e-6, atol=1e-5)


def check_equal(one, other):
    for name in ("classes", "scores", "boxes"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def a_regressor(rng, dim, size=2):
    """One that moves boxes by halves and quarters of their sides."""
    unwhitening = np.eye(4) + rng.integers(-1, 2, (4, 4)) / 4
    return Regressor(
        (rng.integers(-size, size + 1, (4, dim)) / 4).astype(np.float32),
        rng.integers(-2, 3, 4) / 4,
        rng.integers(-2, 3, 4) / 8,
        np.linalg.pinv(unwhitening),
        unwhitening,
    )


@st.composite
def scenes(draw, least_classes=0):
    """Models, rules, boxes and vectors, drawn so that scores are often equal and boxes overlap."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, count = draw(st.integers(least_classes, 4)), draw(st.integers(0, 14))
    numbers = draw(st.lists(st.integers(0, 3), unique=True))
    corners, sides = rng.integers(0, [[20, 15]], (count, 2)), rng.integers(1, 15, (count, 2))
    models = Models(
        rng.integers(-2, 3, (classes, DIM)).astype(np.float32),
        rng.integers(-4, 3, classes) / 2,
        {number: a_regressor(rng, DIM) for number in numbers if number < classes},
    )
    rules = DetectionRules(
        draw(st.sampled_from([-1.5, -0.5, -9.0])), draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.integers(1, 6))
    )
    vectors = rng.integers(0, 4, (count, DIM)).astype(np.float16)
    return models, rules, as_boxes(np.concatenate([corners, corners + sides], axis=1)), vectors


@given(scenes())
def test_detections_are_those_of_a_loop_over_classes(scene):
    models, rules, boxes, vectors = scene
    check(models.ruled(rules)(boxes, [vectors], HEIGHT, WIDTH), reference(models, rules, boxes, vectors))


@given(scenes(), st.data())
def test_vectors_in_parts_give_the_same_detections(scene, data):
    models, rules, boxes, vectors = scene
    cuts = data.draw(st.lists(st.integers(0, len(vectors)), max_size=6))
    detector = models.ruled(rules)
    parts = np.split(vectors, sorted(cuts))
    check_equal(detector(boxes, parts, HEIGHT, WIDTH), detector(boxes, [vectors], HEIGHT, WIDTH))


@given(scenes(least_classes=1))
def test_detections_come_by_class_with_the_best_score_first(scene):
    models, rules, boxes, vectors = scene
    found = models.ruled(rules)(boxes, [vectors], HEIGHT, WIDTH)
    pairs = list(zip(found.classes.tolist(), (-found.scores).tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert (found.scores > rules.score_above).all()
    assert all((found.classes == number).sum() <= rules.max_per_class for number in range(len(models.weights)))


@pytest.mark.parametrize("seed", range(4))
def test_an_image_of_many_windows(seed):
    """Five hundred windows, twenty classes of which two have no regressor, in parts as row groups have them."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, [[30, 20]], (500, 2)), rng.integers(1, 12, (500, 2))
    boxes = as_boxes(np.concatenate([corners, corners + sides], axis=1))
    vectors = rng.integers(0, 8, (500, 64)).astype(np.float16)
    models = Models(
        (rng.integers(-8, 9, (20, 64)) / 64).astype(np.float32),
        rng.integers(-4, 1, 20) / 2,
        {n: a_regressor(rng, 64, 0) for n in rng.permutation(20)[:18].tolist()},
    )
    for number, regressor in models.regressors.items():
        regressor.weights[:] = rng.integers(-8, 9, (4, 64)) / 256 * (number % 3)
    rules = DetectionRules(max_per_class=30)
    found = models.ruled(rules)(boxes, np.split(vectors, [100, 101, 300]), HEIGHT, WIDTH)
    check(found, reference(models, rules, boxes, vectors))
    assert len(set(found.classes.tolist())) > 10
    check_equal(found, models.ruled(rules)(boxes, [vectors], HEIGHT, WIDTH))


# --- rule by rule: one class, whose score is a vector's first number, less 4 ---

ONE = np.array([[2.0, 0, 0]])
PLAIN = Models(ONE, np.array([-4.0]), {})


def vectors_of(*scores):
    return np.array([[score + 4, 1, 0] for score in scores], np.float16)


def shifts(dx=0.0, dy=0.0, dw=0.0, dh=0.0, slope=0.0):
    """A model whose regressor moves every box alike, and by ``slope`` of the score more to the right."""
    weights = np.zeros((4, 3), np.float32)
    weights[0] = [4 * slope, -16 * slope, 0]
    return Models(
        ONE, np.array([-4.0]), {0: Regressor(weights, np.zeros(4), np.array([dx, dy, dw, dh]), np.eye(4), np.eye(4))}
    )


def found_of(detector, boxes, scores):
    found = detector(as_boxes(boxes), [vectors_of(*scores)], HEIGHT, WIDTH)
    return found.scores.tolist(), found.boxes.tolist()


APART = [[0, 0, 8, 8], [10, 0, 18, 8], [20, 0, 28, 8], [0, 10, 8, 18]]


def test_the_defaults_are_the_released_code_s():
    assert DetectionRules() == DetectionRules(score_above=-1.5, nms_overlap=0.3, max_per_class=100)


def test_a_score_at_the_limit_is_no_detection():
    scores, _ = found_of(PLAIN.detector, APART, [-1.5, -1.25, -1.75, 1])
    assert scores == [1, -1.25]


def test_a_class_has_at_most_so_many_detections_its_best():
    detector = PLAIN.ruled(DetectionRules(max_per_class=2))
    assert found_of(detector, APART, [0, 3, 1, 2]) == ([3, 2], [APART[1], APART[3]])
    assert found_of(detector, APART, [1, 1, 1, 1]) == ([1, 1], [APART[0], APART[1]])


def test_so_many_are_counted_after_suppression():
    boxes = [[0, 0, 8, 8], [1, 0, 8, 8], [0, 1, 8, 8], [20, 0, 28, 8]]
    assert found_of(PLAIN.ruled(DetectionRules(max_per_class=2)), boxes, [3, 2, 1, 0])[0] == [3, 0]


def test_of_boxes_that_overlap_by_more_than_the_limit_the_best_stays():
    boxes = [[0, 0, 10, 1], [0, 0, 3, 1], [0, 0, 4, 1]]
    assert found_of(PLAIN.detector, boxes, [1, 0, -1]) == ([1, 0], [boxes[0], boxes[1]])
    assert found_of(PLAIN.ruled(DetectionRules(nms_overlap=0.5)), boxes, [1, 0, -1])[0] == [1, 0]
    assert found_of(PLAIN.ruled(DetectionRules(nms_overlap=0.25)), boxes, [1, 0, -1])[0] == [1]


def test_classes_do_not_suppress_each_other():
    both = Models(np.repeat(ONE, 2, axis=0), np.array([-4.0, -3.0]), {})
    found = both.detector(as_boxes([[0, 0, 8, 8]]), [vectors_of(1)], HEIGHT, WIDTH)
    assert (found.classes.tolist(), found.scores.tolist()) == ([0, 1], [1, 2])


def test_a_regressed_box_keeps_its_score():
    assert found_of(shifts(dx=0.25, dy=0.5).detector, APART[:2], [1, 2]) == ([2, 1], [[12, 4, 20, 12], [2, 4, 10, 12]])


def test_a_regressed_box_grows_about_its_centre():
    _, (box,) = found_of(shifts(dw=math.log(2), dh=math.log(0.5)).detector, [[10, 10, 18, 18]], [1])
    assert box == pytest.approx([6, 12, 22, 16])


def test_regressed_boxes_are_suppressed_once_more():
    """Two boxes apart: the better moves by its score onto the other, or the other way."""
    boxes = [[0, 0, 8, 8], [8, 0, 16, 8]]
    detector = shifts(slope=1.0).detector
    assert found_of(detector, boxes, [1, 0]) == ([1], [[8, 0, 16, 8]])
    assert found_of(detector, boxes, [0, 1]) == ([1, 0], [[16, 0, 24, 8], [0, 0, 8, 8]])


def test_what_was_suppressed_before_regression_does_not_return():
    """The second would have moved away from the first."""
    boxes = [[0, 0, 8, 8], [1, 0, 9, 8]]
    assert found_of(shifts(slope=1.0).detector, boxes, [1, 0])[0] == [1]


def test_so_many_are_counted_before_regression():
    detector = shifts(slope=1.0).ruled(DetectionRules(max_per_class=2))
    boxes = [[0, 0, 8, 8], [8, 0, 16, 8], [24, 20, 32, 28]]
    assert found_of(detector, boxes, [1, 0, -1]) == ([1], [[8, 0, 16, 8]])


def test_regressed_boxes_are_cut_at_the_image_s_borders():
    boxes = [[0, 0, 8, 8], [32, 22, 40, 30]]
    _, found = found_of(shifts(dx=0.5, dy=0.5).detector, boxes, [1, 0])
    assert found == [[4, 4, 12, 12], [36, 26, WIDTH, HEIGHT]]
    _, found = found_of(shifts(dx=-0.5, dy=-0.25).detector, boxes, [1, 0])
    assert found == [[0, 0, 4, 6], [28, 20, 36, 28]]


@pytest.mark.parametrize("step", [{"dx": 1.0}, {"dy": 1.0}, {"dx": 2.0, "dy": 2.0}, {"dx": -9.0}, {"dy": -9.0}])
def test_a_box_that_is_moved_out_of_the_image_is_dropped(step):
    scores, boxes = found_of(shifts(**step).detector, [[32, 22, 40, 30], [4, 4, 16, 16]], [3, 1])
    assert scores == ([] if min(step.values()) < 0 else [1])
    assert all(x2 > x1 and y2 > y1 for x1, y1, x2, y2 in boxes)


def test_a_box_that_was_dropped_suppresses_none():
    """Cut to the border it has no area; the other box, of lower score, stays."""
    scores, _ = found_of(shifts(dx=1.0).detector, [[32, 0, 40, 8], [30, 0, 31, 8]], [3, 1])
    assert scores == [1]


def test_a_class_without_a_regressor_keeps_its_boxes():
    both = Models(np.repeat(ONE, 2, axis=0), np.array([-4.0, -4.0]), {1: shifts(dx=0.5).regressors[0]})
    found = both.detector(as_boxes(APART[:1]), [vectors_of(0)], HEIGHT, WIDTH)
    assert (found.classes.tolist(), found.boxes.tolist()) == ([0, 1], [[0, 0, 8, 8], [4, 0, 12, 8]])


def test_every_class_has_its_own_regressor_in_whatever_order_they_are_given():
    moves = {number: shifts(dx=number / 4).regressors[0] for number in (2, 0, 1)}
    models = Models(np.repeat(ONE, 3, axis=0), np.full(3, -4.0), moves)
    found = models.detector(as_boxes(APART[:1]), [vectors_of(0)], HEIGHT, WIDTH)
    assert found.boxes[:, 0].tolist() == [0, 2, 4]


def test_proposals_and_vectors_are_left_as_they_are():
    boxes, vectors = as_boxes(APART), vectors_of(1, 2, 3, 4)
    before = boxes.copy(), vectors.copy()
    for values in (boxes, vectors):
        values.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shifts(dx=0.5).detector(boxes, [vectors[:1], vectors[1:]], HEIGHT, WIDTH)
    np.testing.assert_array_equal(boxes, before[0])
    np.testing.assert_array_equal(vectors, before[1])


# --- where there is nothing ---

NOTHING = {"no part": 0, "a part of no rows": 1, "parts of no rows": 3}


@pytest.mark.parametrize("models", [PLAIN, shifts(dx=0.5)], ids=["SVMs", "SVMs and regressors"])
@pytest.mark.parametrize("parts", list(NOTHING.values()), ids=list(NOTHING))
def test_an_image_without_windows_has_no_detections(models, parts):
    check(models.detector(as_boxes([]), [np.zeros((0, DIM), np.float16)] * parts, HEIGHT, WIDTH), [])


@pytest.mark.parametrize("models", [PLAIN, shifts(dx=0.5)], ids=["SVMs", "SVMs and regressors"])
def test_an_image_of_low_scores_has_no_detections(models):
    check(models.detector(as_boxes(APART), [vectors_of(-2, -2, -3), vectors_of(-4)], HEIGHT, WIDTH), [])


def test_without_classes_there_are_no_detections():
    none = Models(np.zeros((0, DIM)), np.zeros(0), {})
    check(none.detector(as_boxes(APART), [vectors_of(1, 2, 3, 4)], HEIGHT, WIDTH), [])
