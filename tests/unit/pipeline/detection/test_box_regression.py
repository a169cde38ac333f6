import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.linear_model import Ridge

from pipeline.boxes import as_boxes
from pipeline.detection import box_regression
from pipeline.detection.box_regression import NoExamplesError, Regressor, choose, decode, encode, fit, fit_bytes

FORMS = pytest.mark.parametrize("form", ["primal", "dual"])
coordinate = st.floats(-200, 4000, width=32)


@st.composite
def float_boxes(draw, count, ordered=False):
    boxes = as_boxes([[draw(coordinate) for _ in range(4)] for _ in range(count)])
    return (
        np.concatenate([np.sort(boxes[:, ::2]), np.sort(boxes[:, 1::2])], axis=1)[:, [0, 2, 1, 3]] if ordered else boxes
    )


def overlap(a, b):
    """IoU as a fraction of pixels, counted."""
    one, other = (
        {(x, y) for x in range(int(x1), int(x2)) for y in range(int(y1), int(y2))} for x1, y1, x2, y2 in (a, b)
    )
    return Fraction(len(one & other), len(one | other)) if one | other else Fraction(0)


def examples(n, dim, seed=0):
    """Vectors of a mean norm of about 20, as in training, and deltas of the size that IoU > 0.5 allows, correlated."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.standard_normal((n, dim)), 0) * 20 / math.sqrt(dim / 2)
    mixed = np.array([[0.2, 0, 0, 0], [0.05, 0.1, 0, 0], [0.1, 0, 0.2, 0], [0, 0, 0.1, 0.3]])
    return features.astype(np.float32), rng.standard_normal((n, 4)) @ mixed + [0.02, -0.05, 0.1, 0.0]


def test_deltas_are_those_of_the_released_code():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (20, 2, 2))
    boxes, targets = (as_boxes(np.hstack([c, c + rng.uniform(1, 200, c.shape)])) for c in corners.swapaxes(0, 1))
    for box, target, found in zip(boxes.tolist(), targets.tolist(), encode(boxes, targets), strict=True):
        src_w, src_h = box[2] - box[0], box[3] - box[1]
        gt_w, gt_h = target[2] - target[0], target[3] - target[1]
        dx = (target[0] + 0.5 * gt_w - (box[0] + 0.5 * src_w)) / src_w
        dy = (target[1] + 0.5 * gt_h - (box[1] + 0.5 * src_h)) / src_h
        assert found.tolist() == pytest.approx([dx, dy, math.log(gt_w / src_w), math.log(gt_h / src_h)], abs=1e-12)


def test_no_deltas_leave_a_box_where_it_is():
    box = as_boxes([[3, 4, 10, 30]])
    assert encode(box, box).tolist() == [[0, 0, 0, 0]]
    assert decode(box, np.zeros((1, 4))).tolist() == box.tolist()


def test_a_box_moves_by_its_own_sides_and_grows_about_its_centre():
    found = decode(as_boxes([[10, 10, 20, 30]]), np.array([[0.5, -0.5, math.log(2), 0]]))
    np.testing.assert_allclose(found, [[10, 0, 30, 20]], atol=1e-5)
    assert found.dtype == np.float32


@given(float_boxes(3), float_boxes(3, ordered=True))
@example(as_boxes([[5, 5, 5, 5]]), as_boxes([[0, 0, 4000, 3999.75]]))
@example(as_boxes([[0, 0, 4000, 4000]]), as_boxes([[7, 7, 7, 7]]))
def test_decode_undoes_encode_from_any_box_empty_and_reversed_ones_too(boxes, targets):
    deltas = encode(boxes, targets)
    assert np.isfinite(deltas).all()
    np.testing.assert_allclose(decode(boxes, deltas), targets, rtol=0, atol=1e-4)


@given(float_boxes(2), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=8, max_size=8))
@example(as_boxes([[0, 0, 9, 9], [1, 1, 1, 1]]), [1.7e308, -1.7e308, 1.7e308, -1.7e308] * 2)
def test_whatever_the_deltas_a_box_is_finite_and_in_order(boxes, deltas):
    found = decode(boxes, np.reshape(deltas, (2, 4)))
    assert np.isfinite(found).all()
    assert (found[:, :2] <= found[:, 2:]).all()


def test_an_empty_box_stays_empty_and_a_reversed_one_becomes_its_centre():
    found = decode(as_boxes([[5, 5, 5, 9], [10, 0, 0, 8]]), np.full((2, 4), 0.1))
    assert found[0, [0, 2]].tolist() == [5, 5]
    assert found[1, [0, 2]].tolist() == [5, 5]


def test_no_boxes_no_deltas():
    assert encode(as_boxes([]), as_boxes([])).shape == (0, 4)
    assert decode(as_boxes([]), np.empty((0, 4))).shape == (0, 4)


@st.composite
def whole_boxes(draw, most):
    sides = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 8), st.integers(0, 8))
    return as_boxes([(x, y, x + w, y + h) for x, y, w, h in draw(st.lists(sides, max_size=most))])


@given(whole_boxes(8), whole_boxes(4), st.data(), st.booleans())
def test_a_window_trains_the_class_of_its_best_object_if_that_is_close_enough(boxes, truth, data, difficult_positive):
    several = {"min_size": len(truth), "max_size": len(truth)}
    classes = np.array(data.draw(st.lists(st.integers(0, 2), **several)), dtype=np.int64)
    difficult = np.array(data.draw(st.lists(st.booleans(), **several)), dtype=bool)
    found = choose(boxes, truth, classes, difficult, difficult_positive=difficult_positive)
    expected = []
    for i, box in enumerate(boxes):
        shares = [overlap(box, other) for other in truth]
        if shares and max(shares) > Fraction(1, 2):
            best = shares.index(max(shares))
            if difficult_positive or not difficult[best]:
                expected.append((i, classes[best], truth[best].tolist()))
    assert list(zip(found.rows, found.classes, found.targets.tolist(), strict=True)) == expected


def test_an_overlap_of_exactly_one_half_trains_nothing():
    truth = as_boxes([[0, 0, 10, 10]])
    found = choose(as_boxes([[0, 0, 10, 5], [0, 0, 10, 6], [0, 0, 10, 10]]), truth, np.array([4]), np.array([False]))
    assert found.rows.tolist() == [1, 2]
    assert found.classes.tolist() == [4, 4]
    assert found.targets.tolist() == truth.tolist() * 2


def test_a_window_best_on_a_difficult_object_does_not_train_towards_the_next_best():
    truth = as_boxes([[0, 0, 10, 10], [0, 0, 10, 9]])
    window, classes, difficult = as_boxes([[0, 0, 10, 10]]), np.array([1, 1]), np.array([True, False])
    assert len(choose(window, truth, classes, difficult).rows) == 0
    assert choose(window, truth, classes, difficult, difficult_positive=True).targets.tolist() == [[0, 0, 10, 10]]


def test_ground_truth_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="1 ground-truth boxes, but 1 classes and 0 difficult"):
        choose(as_boxes([]), as_boxes([[0, 0, 1, 1]]), np.array([0]), np.array([], dtype=bool))


def reference(features, deltas, ridge):
    """Deltas that scikit-learn's ridge regression and SciPy's matrix square root predict for new vectors."""
    mean = deltas.mean(axis=0)
    root = sqrtm(np.cov(deltas.T, bias=True) + 0.001 * np.eye(4))
    column_of_ones = lambda rows: np.hstack([rows.astype(np.float64), np.ones((len(rows), 1))])  # noqa: E731
    model = Ridge(alpha=ridge, fit_intercept=False, solver="svd")
    model.fit(column_of_ones(features), (deltas - mean) @ np.linalg.inv(root))
    return lambda rows: model.predict(column_of_ones(rows)) @ root + mean


@FORMS
@pytest.mark.parametrize(("n", "dim"), [(60, 9), (9, 60), (40, 40), (2, 30)])
@pytest.mark.parametrize("ridge", [0.1, 1000.0])
def test_a_regressor_is_a_ridge_regression_of_whitened_targets_with_a_penalised_bias(n, dim, ridge, form):
    features, deltas = examples(n, dim)
    unseen, _ = examples(7, dim, seed=1)
    found = fit(features, deltas, ridge, form=form).predict_deltas(unseen)
    np.testing.assert_allclose(found, reference(features, deltas, ridge)(unseen), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 5000), st.integers(0, 10))
def test_the_primal_and_the_dual_form_have_one_solution(n, dim, ridge, seed):
    features, deltas = examples(n, dim, seed)
    primal, dual = fit(features, deltas, ridge, form="primal"), fit(features, deltas, ridge, form="dual")
    np.testing.assert_allclose(primal.weights, dual.weights, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(primal.bias, dual.bias, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("n", "dim", "smaller"), [(5, 5, "dual"), (6, 5, "primal"), (7, 5, "primal"), (3, 9, "dual")])
def test_the_smaller_system_is_solved(n, dim, smaller):
    features, deltas = examples(n, dim)
    found, expected = fit(features, deltas), fit(features, deltas, form=smaller)
    assert found.weights.tobytes() == expected.weights.tobytes()
    assert fit_bytes(n, dim) == fit_bytes(n, dim, smaller) <= min(fit_bytes(n, dim, f) for f in ("primal", "dual"))


def test_targets_are_centred_and_whitened():
    features, deltas = examples(30, 12)
    found = fit(features, deltas)
    root = sqrtm(np.cov(deltas.T, bias=True) + 0.001 * np.eye(4))
    np.testing.assert_allclose(found.mean, deltas.mean(axis=0))
    np.testing.assert_allclose(found.unwhitening, root, atol=1e-12)
    np.testing.assert_allclose(found.whitening, np.linalg.inv(root), rtol=1e-9, atol=1e-9)


def test_whitening_cancels_out_of_predictions(monkeypatch):
    features, deltas = examples(30, 12)
    expected = fit(features, deltas).predict_deltas(features)
    monkeypatch.setattr(box_regression, "VARIANCE_FLOOR", 0.5)
    np.testing.assert_allclose(fit(features, deltas).predict_deltas(features), expected, rtol=1e-5, atol=1e-7)


def test_a_regressor_has_the_stated_shapes():
    found = fit(*examples(30, 12))
    assert (found.weights.shape, found.weights.dtype) == ((4, 12), np.float32)
    assert found.bias.shape == found.mean.shape == (4,)
    assert found.whitening.shape == found.unwhitening.shape == (4, 4)


@FORMS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_scale_is_applied_without_rounding_the_vectors_again(form, dtype):
    features, deltas = examples(20, 15)
    features = features.astype(dtype)
    scaled = features.astype(np.float64) * 0.0371
    found, expected = fit(features, deltas, 10, scale=0.0371, form=form), fit(scaled, deltas, 10, form=form)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.predict_deltas(features, 0.0371), expected.predict_deltas(scaled))


@FORMS
@pytest.mark.parametrize("numbers", [1, 50, 333])
def test_blocks_change_nothing(monkeypatch, form, numbers):
    features, deltas = examples(23, 17)
    whole = fit(features, deltas, 3, form=form)
    expected = whole.predict_deltas(features)
    monkeypatch.setattr(box_regression, "BLOCK_BYTES", 8 * numbers)
    found = fit(features, deltas, 3, form=form)
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.bias, whole.bias, rtol=1e-9)
    np.testing.assert_allclose(whole.predict_deltas(features), expected, rtol=1e-12)


@pytest.mark.parametrize(("n", "dim", "form"), [(1200, 3000, "dual"), (3000, 1200, "primal"), (30000, 5, None)])
def test_memory_stays_within_what_is_declared(monkeypatch, n, dim, form):
    features, deltas = examples(n, dim)
    features = features.astype(np.float16)
    monkeypatch.setattr(box_regression, "BLOCK_BYTES", 2**20)
    declared = fit_bytes(n, dim, form) - box_regression.BLAS_BYTES  # its buffers are out of Python's sight
    tracemalloc.start()
    try:
        fit(features, deltas, form=form)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert declared / 3 < peak <= declared


@FORMS
def test_few_examples_with_long_vectors_are_recovered(form):
    rng = np.random.default_rng(3)
    dim = 300 if form == "primal" else 12800
    corners = rng.uniform(0, 300, (25, 2))
    truth = as_boxes(np.hstack([corners, corners + rng.uniform(20, 199, (25, 2))]))
    boxes = truth + rng.uniform(-6, 6, truth.shape).astype(np.float32)
    features = examples(25, dim)[0].astype(np.float16)
    regressor = fit(features, encode(boxes, truth), 1e-6, form=form)
    np.testing.assert_allclose(regressor.predict_deltas(features), encode(boxes, truth), atol=1e-6)
    np.testing.assert_allclose(regressor.predict(boxes, features, 500, 500), truth, rtol=0, atol=1e-4)


def test_the_weights_are_whitened_and_a_prediction_is_not():
    regressor = Regressor(
        weights=np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.float32),
        bias=np.array([0, 0, math.log(2), 0]) / 2,
        mean=np.array([0.0, 0.0, 0.0, math.log(3)]),
        whitening=np.eye(4) / 2,
        unwhitening=np.eye(4) * 2,
    )
    found = regressor.predict(as_boxes([[10, 20, 14, 30]]), np.array([[0.25, 0.1]], np.float16), 100, 100, scale=2.0)
    # the centre (12, 25) moves by 1 and 0.4 sides to (16, 29); the sides 4 and 10 become 8 and 30
    np.testing.assert_allclose(found, [[12, 14, 20, 44]], atol=5e-3)


def still(dim):
    """A regressor that moves nothing."""
    return Regressor(np.zeros((4, dim), np.float32), np.zeros(4), np.zeros(4), np.eye(4), np.eye(4))


def test_predictions_end_at_the_image():
    found = still(2).predict(as_boxes([[-3, 5, 30, 90], [40, 60, 50, 70]]), np.zeros((2, 2), np.float32), 50, 20)
    assert found.tolist() == [[0, 5, 20, 50], [20, 50, 20, 50]]


def test_nothing_to_predict():
    assert still(3).predict(as_boxes([]), np.empty((0, 3), np.float16), 10, 10).shape == (0, 4)


def test_vectors_of_another_body_are_refused():
    with pytest.raises(ValueError, match="length 3"):
        still(3).predict(as_boxes([[0, 0, 1, 1]]), np.zeros((1, 4), np.float32), 10, 10)
    with pytest.raises(ValueError, match="1 boxes, but 2 vectors"):
        still(3).predict(as_boxes([[0, 0, 1, 1]]), np.zeros((2, 3), np.float32), 10, 10)


@FORMS
def test_without_examples_there_is_no_regressor(form):
    with pytest.raises(NoExamplesError, match="no example"):
        fit(np.empty((0, 5), np.float16), np.empty((0, 4)), form=form)


@FORMS
def test_one_example_makes_a_regressor_that_always_gives_its_deltas(form):
    features, deltas = examples(1, 6)
    found = fit(features, deltas, form=form)
    np.testing.assert_allclose(found.predict_deltas(examples(3, 6, seed=1)[0]), np.repeat(deltas, 3, axis=0))


@FORMS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(form, value):
    features, deltas = examples(5, 4)
    with pytest.raises(ValueError, match="deltas must be finite"):
        fit(features, np.where(np.eye(5, 4) > 0, value, deltas), form=form)
    features[3, 2] = value
    with pytest.raises(ValueError, match="features must be finite"):
        fit(features, deltas, form=form)


def test_impossible_arguments_are_refused():
    features, deltas = examples(3, 2)
    with pytest.raises(ValueError, match="ridge must be positive"):
        fit(features, deltas, 0)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2, 4\)"):
        fit(features, deltas[:2])
    with pytest.raises(ValueError, match="too small"):
        fit(np.full((3, 2), 1e6, np.float32), deltas, 1e-9, form="primal")
