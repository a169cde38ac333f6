import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detection.scoring import LinearScorer, mean_norm

NUMBERS_OF_CLASSES = (*range(1, 41), 64, 65, 80, 201)


def bits(scores):
    """Floats as they are stored, so that 0 and -0 differ and NaN is NaN."""
    return np.ascontiguousarray(scores).view(np.uint32)


def drawn(rows, dim, classes, seed=0):
    """Vectors as after a ReLU, and SVMs for them: float16 (rows, dim), (classes, dim), (classes,)."""
    rng = np.random.default_rng(seed)
    vectors = np.maximum(rng.standard_normal((rows, dim)), 0).astype(np.float16)
    return vectors, rng.standard_normal((classes, dim)) / dim**0.5, rng.standard_normal(classes)


def reference(vectors, weights, biases, scale):
    """Scores (N, K) in float64, a product at a time."""
    wide = vectors.astype(np.float64)
    return np.array(
        [[scale * (row * weight).sum() + b for weight, b in zip(weights, biases, strict=True)] for row in wide]
    )


@given(st.integers(1, 140), st.integers(1, 70), st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_scores_are_the_references(rows, dim, classes, scale, seed):
    vectors, weights, biases = drawn(rows, dim, classes, seed)
    found = LinearScorer(weights, biases, scale)(vectors)
    assert (found.dtype, found.shape) == (np.float32, (rows, classes))
    np.testing.assert_allclose(
        found, reference(vectors, weights, biases, scale), rtol=1e-5, atol=1e-5 * max(1.0, scale)
    )


def test_scores_of_vectors_of_a_run_s_length_are_the_references():
    vectors, weights, biases = drawn(70, 12_800, 20)
    found = LinearScorer(weights.astype(np.float32), biases, 0.25)(vectors)
    np.testing.assert_allclose(found, reference(vectors, weights, biases, 0.25), rtol=1e-5, atol=2e-6)


def test_whole_numbers_are_scored_exactly():
    rng = np.random.default_rng(1)
    vectors, weights, biases = (rng.integers(-8, 9, shape) for shape in ((131, 300), (33, 300), (33,)))
    found = LinearScorer(weights, biases, 0.5)(vectors.astype(np.float16))
    np.testing.assert_array_equal(found, 0.5 * (vectors @ weights.T) + biases)


def test_the_scale_is_that_of_the_features_and_not_of_the_bias():
    one = LinearScorer(np.array([[1.0, 2.0]]), np.array([5.0]), 3.0)
    assert one(np.array([[1, 1], [0, 0]], np.float16)).tolist() == [[14], [5]]


# --- a row's scores depend on that row alone ---


def check_each_row_alone(classes, dim):
    rng = np.random.default_rng(classes)
    vectors, weights, biases = drawn(150, dim, classes, classes)
    scorer = LinearScorer(weights, biases, 0.3)
    expected = bits(scorer(vectors))
    alone = np.concatenate([bits(scorer(vectors[i : i + 1])) for i in range(0, 150, 10)])
    np.testing.assert_array_equal(alone, expected[::10])
    order = rng.permutation(150)
    np.testing.assert_array_equal(bits(scorer(vectors[order])), expected[order])
    others = rng.standard_normal((3, dim)).astype(np.float16)
    np.testing.assert_array_equal(bits(scorer(np.concatenate([others, vectors, others])))[3:-3], expected)


@pytest.mark.parametrize("classes", NUMBERS_OF_CLASSES)
def test_a_row_s_scores_do_not_depend_on_its_place_or_its_neighbours(classes):
    check_each_row_alone(classes, (24, 333, 1250)[classes % 3])


def test_nor_do_they_with_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for classes in (1, 5, 20, 33, 40):
            check_each_row_alone(classes, 1250)
    finally:
        torch.set_num_threads(before)


@given(st.integers(1, 40), st.integers(0, 140), st.lists(st.integers(0, 140), max_size=5), st.integers(0, 1000))
def test_vectors_scored_in_parts_are_those_scored_together(classes, rows, cuts, seed):
    vectors, weights, biases = drawn(rows, 37, classes, seed)
    scorer = LinearScorer(weights, biases, 0.3)
    parts = np.split(vectors, sorted(min(cut, rows) for cut in cuts))
    np.testing.assert_array_equal(bits(np.concatenate([scorer(part) for part in parts])), bits(scorer(vectors)))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 129, 200])
def test_blocks_of_odd_sizes_are_scored_row_by_row(rows):
    """Every row the same: so are its scores, wherever the row stands."""
    vectors, weights, biases = drawn(1, 12_800, 21)
    scores = bits(LinearScorer(weights, biases, 0.3)(np.repeat(vectors, rows, axis=0)))
    assert scores.shape == (rows, 21)
    np.testing.assert_array_equal(scores, np.repeat(scores[:1], rows, axis=0))


def test_a_vector_that_is_not_finite_spoils_no_other():
    vectors, weights, biases = drawn(130, 24, 5)
    expected = bits(LinearScorer(weights, biases, 0.3)(vectors))
    spoilt = vectors.copy()
    spoilt[3], spoilt[64] = np.inf, np.nan
    found = LinearScorer(weights, biases, 0.3)(spoilt)
    others = np.setdiff1d(np.arange(130), [3, 64])
    np.testing.assert_array_equal(bits(found)[others], expected[others])
    assert not np.isfinite(found[[3, 64]]).any()


# --- what it takes ---


@pytest.mark.parametrize("rows", [0, 1, 70])
def test_vectors_that_cannot_be_written_to_are_scored_without_a_warning_or_a_change(rows):
    vectors, weights, biases = drawn(rows, 24, 5)
    scorer = LinearScorer(weights, biases, 0.3)
    expected, content = scorer(vectors), vectors.tobytes()
    for values in (np.frombuffer(content, np.float16).reshape(rows, 24), np.array(vectors)):
        values.setflags(write=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(bits(scorer(values)), bits(expected))
        assert values.tobytes() == content


def test_every_other_row_is_scored_as_a_copy_of_it():
    vectors, weights, biases = drawn(140, 24, 5)
    scorer = LinearScorer(weights, biases, 0.3)
    np.testing.assert_array_equal(bits(scorer(vectors[::2])), bits(scorer(vectors[::2].copy())))


@pytest.mark.parametrize("classes", [0, 1, 40])
def test_no_vectors_have_no_scores(classes):
    found = LinearScorer(np.zeros((classes, 24)), np.zeros(classes), 1.0)(np.zeros((0, 24), np.float16))
    assert (found.dtype, found.shape) == (np.float32, (0, classes))


def test_vectors_have_no_scores_for_no_classes():
    assert LinearScorer(np.zeros((0, 24)), np.zeros(0), 1.0)(np.ones((70, 24), np.float16)).shape == (70, 0)


def test_scores_are_kept_when_others_are_made():
    vectors, weights, biases = drawn(70, 24, 5)
    scorer = LinearScorer(weights, biases, 0.3)
    first = scorer(vectors)
    before = first.copy()
    scorer(np.ones((70, 24), np.float16))
    np.testing.assert_array_equal(first, before)


def test_weights_are_copied():
    vectors, weights, biases = drawn(7, 24, 32)
    scorer = LinearScorer(weights, biases, 1.0)
    before = scorer(vectors)
    weights[:] = 0
    np.testing.assert_array_equal(scorer(vectors), before)


# --- mean norm ---


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 1000))
def test_the_mean_norm_is_that_of_the_rows(rows, dim, seed):
    vectors, _, _ = drawn(rows, dim, 0, seed)
    expected = sum(sum(float(x) ** 2 for x in row) ** 0.5 for row in vectors) / rows
    found = mean_norm(vectors)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_norm_of_large_numbers_overflows_no_float16():
    assert mean_norm(np.full((65, 12_800), 60_000, np.float16)) == pytest.approx(60_000 * 12_800**0.5, rel=1e-3)
