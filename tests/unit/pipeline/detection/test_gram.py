"""The products of examples: of two examples always the same number, however the matrix came to be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detection.gram import TILE, gram


def drawn(count, dim=700, seed=0):
    return np.maximum(np.random.default_rng(seed).standard_normal((count, dim)), 0).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 60])
def test_it_holds_the_products(count):
    features = drawn(count)
    made = gram(features)
    assert (made.dtype, made.shape) == (np.float32, (count, count))
    np.testing.assert_allclose(made, features.astype(np.float64) @ features.T.astype(np.float64), rtol=1e-5)


def test_a_number_hangs_on_its_two_examples_alone():
    features = drawn(2 * TILE + 60, dim=1601)
    whole, order = gram(features), np.random.default_rng(1).permutation(2 * TILE + 60)
    np.testing.assert_array_equal(gram(features[order]), whole[np.ix_(order, order)])
    np.testing.assert_array_equal(gram(features[order[:50]]), whole[np.ix_(order[:50], order[:50])])
    np.testing.assert_array_equal(whole, whole.T)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_number(threads):
    features, before = drawn(3 * TILE), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = gram(features)
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(gram(features), alone)
    finally:
        torch.set_num_threads(before)


@given(st.integers(0, 300), st.integers(0, 300), st.randoms(use_true_random=False))
def test_a_grown_matrix_is_the_one_made_at_once(before, count, random):
    """Some examples have left, some are new, and those that are known stand anywhere."""
    features = drawn(max(before, count) + 20, dim=37)
    held = random.sample(range(len(features)), before)
    wanted = random.sample(range(len(features)), count)
    places = np.array([held.index(one) if one in held else -1 for one in wanted], np.int64)
    made = gram(features[wanted], gram(features[held]), places)
    np.testing.assert_array_equal(made, gram(features[wanted]))


def test_what_is_known_is_not_made_again():
    known = np.full((2, 2), 7, np.float32)
    made = gram(np.ones((3, 4), np.float32), known, np.array([1, -1, 0]))
    assert made.tolist() == [[7, 4, 7], [4, 4, 4], [7, 4, 7]]
