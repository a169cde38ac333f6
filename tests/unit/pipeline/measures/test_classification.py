"""Splits, products, the SVMs over them, accuracy and the average precision of a ranking of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.svm import LinearSVC

from pipeline.detection.svm import SvmProblem, solve_products
from pipeline.measures.classification import (
    SplitError,
    class_accuracies,
    held_out_split,
    image_ap,
    products,
    random_split,
)

NAMES = ("ant", "bee", "cat")


def labels_of(*counts):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


class TestRandomSplit:
    def test_takes_so_many_of_each_class_and_tests_others(self):
        labels = labels_of(40, 33, 90)
        split = random_split(labels, NAMES, 30, 50, seed=0, number=3)
        assert np.bincount(labels[split.train]).tolist() == [30, 30, 30]
        assert np.bincount(labels[split.test]).tolist() == [10, 3, 50]
        assert not np.intersect1d(split.train, split.test).size

    def test_without_a_limit_all_others_are_tested(self):
        labels = labels_of(40, 33, 90)
        split = random_split(labels, NAMES, 30, None, seed=0, number=0)
        assert sorted([*split.train, *split.test]) == list(range(163))

    def test_splits_differ_and_are_repeatable(self):
        labels = labels_of(40, 40, 40)
        first, again, other = (random_split(labels, NAMES, 30, 50, 0, number) for number in (0, 0, 1))
        np.testing.assert_array_equal(first.train, again.train)
        assert first.train.tolist() != other.train.tolist()

    def test_another_class_moves_no_image_of_the_others(self):
        labels = labels_of(40, 40, 40)
        both = random_split(np.where(labels == 2, -1, labels), NAMES[:2], 30, 50, 0, 0)
        three = random_split(labels, NAMES, 30, 50, 0, 0)
        assert set(both.train) == {row for row in three.train if labels[row] < 2}

    def test_a_class_without_a_test_image_is_named(self):
        with pytest.raises(SplitError, match=r"'bee' has 30 images"):
            random_split(labels_of(31, 30, 31), NAMES, 30, 50, 0, 0)


class TestHeldOutSplit:
    @given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.floats(0.05, 0.9))
    def test_parts_the_training_images_of_each_class(self, counts, share):
        labels = labels_of(*counts)
        rows = np.arange(len(labels))
        if max(counts) < 2:
            with pytest.raises(SplitError):
                held_out_split(labels, rows, share, 0)
            return
        split = held_out_split(labels, rows, share, 0)
        assert sorted([*split.train, *split.test]) == rows.tolist()
        for label, count in enumerate(counts):
            tested = int((labels[split.test] == label).sum())
            assert tested == (0 if count == 1 else min(max(1, round(share * count)), count - 1))


class TestProducts:
    @pytest.mark.parametrize("dim", [1, 7, 5000])
    def test_are_cosines(self, dim):
        vectors = np.random.default_rng(dim).normal(size=(9, dim)).astype(np.float16)
        wide = vectors.astype(np.float64)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        found = products(vectors)
        np.testing.assert_allclose(found, wide @ wide.T, atol=2e-6)
        np.testing.assert_array_equal(found, found.T)
        assert found.flags.c_contiguous

    def test_a_zero_vector_is_like_nothing(self):
        vectors = np.array([[0, 0], [1, 2]], np.float16)
        np.testing.assert_allclose(products(vectors), [[0, 0], [0, 1]], atol=1e-6)


class TestSolveProducts:
    def test_scores_are_those_of_linear_svc_on_the_vectors(self):
        random = np.random.default_rng(1)
        vectors = random.normal(size=(60, 200)).astype(np.float16)
        unit = vectors.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        train, test = np.arange(40), np.arange(40, 60)
        labels = random.integers(0, 3, 60)
        positive = labels[train, None] == np.arange(3)
        gram = products(vectors)
        problem = SvmProblem(C=1.0, positive_weight=1.0, bias=1.0)
        coefficients, sweeps = solve_products(gram[np.ix_(train, train)], positive, problem, tolerance=1e-5, threads=2)
        ours = gram[np.ix_(test, train)] @ coefficients + coefficients.sum(axis=0)
        theirs = LinearSVC(loss="hinge", tol=1e-7, max_iter=100_000).fit(unit[train], labels[train])
        np.testing.assert_allclose(ours, theirs.decision_function(unit[test]), atol=2e-3)
        assert (sweeps < 10_000).all()

    def test_examples_that_a_class_does_not_use_might_as_well_not_be_there(self):
        random = np.random.default_rng(2)
        gram = products(random.normal(size=(50, 200)).astype(np.float16))
        positive, used = random.random((50, 3)) < 0.4, random.random((50, 3)) < 0.7
        problem = SvmProblem(C=1.0, positive_weight=2.0, bias=1.0)
        found, _ = solve_products(gram, positive, problem, used=used, tolerance=1e-6)
        for column, kept in enumerate(used.T):
            rows = np.flatnonzero(kept)
            alone, _ = solve_products(gram[np.ix_(rows, rows)], positive[rows, column, None], problem, tolerance=1e-6)
            np.testing.assert_allclose(found[rows, column], alone[:, 0], atol=2e-3)
            assert not found[~kept, column].any()

    def test_a_class_of_one_kind_only_is_refused(self):
        gram = np.eye(3, dtype=np.float32)
        positive = np.array([[True], [True], [False]])
        with pytest.raises(ValueError, match="both kinds"):
            solve_products(gram, np.ones((3, 1), bool), SvmProblem())
        with pytest.raises(ValueError, match="both kinds"):
            solve_products(gram, positive, SvmProblem(), used=positive)


class TestClassAccuracies:
    def test_every_class_has_its_own_and_one_without_images_none(self):
        labels = np.array([0, 0, 0, 0, 1, 1])
        named = np.array([0, 0, 0, 0, 0, 1])
        np.testing.assert_array_equal(class_accuracies(named, labels, 3), [1.0, 0.5, np.nan])


IMAGES = [f"im{number:02d}" for number in range(30)]


class TestImageAp:
    def ranking(self, seed):
        random = np.random.default_rng(seed)
        return random.permutation(30).astype(np.float64), random.random(30) < 0.3

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_sklearns_ranking(self, seed):
        scores, shows = self.ranking(seed)
        result = image_ap(scores, IMAGES, shows, np.zeros(30, bool))
        precision, recall, _ = precision_recall_curve(shows, scores)
        precision, recall = precision[:-1], recall[:-1]  # without sklearn's own point at recall 0
        best = [max(precision[recall >= level - 1e-12], default=0.0) for level in np.arange(11) / 10]
        assert result.ap_11 == pytest.approx(np.mean(best))
        # VOC's area is under the precision made monotone; sklearn's under the precision as it is
        order = np.argsort(-scores)
        own = np.cumsum(shows[order]) / np.arange(1, 31)
        steps = np.diff(np.concatenate([[0], np.cumsum(shows[order]) / shows.sum()]))
        assert float((own * steps).sum()) == pytest.approx(average_precision_score(shows, scores))
        assert result.ap_area == pytest.approx((np.maximum.accumulate(own[::-1])[::-1] * steps).sum())

    def test_images_that_show_it_only_as_difficult_do_not_count(self):
        scores, shows = self.ranking(7)
        ignored = ~shows & (np.arange(30) % 4 == 0)
        kept = np.flatnonzero(~ignored)
        alone = image_ap(scores[kept], [IMAGES[row] for row in kept], shows[kept], np.zeros(len(kept), bool))
        assert image_ap(scores, IMAGES, shows, ignored).ap_11 == alone.ap_11

    def test_a_class_that_could_not_be_trained_is_found_nowhere(self):
        _, shows = self.ranking(2)
        assert image_ap(np.full(30, -np.inf), IMAGES, shows, np.zeros(30, bool)).ap_11 == 0
