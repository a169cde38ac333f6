"""The products of examples: of two examples always the same number, wherever they stand."""

import numpy as np
import pytest
import torch

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
    for rows in (order, order[:50], order[:0]):
        np.testing.assert_array_equal(gram(features, rows), whole[np.ix_(rows, rows)])


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
