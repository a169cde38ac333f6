import tracemalloc
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from pipeline.detection.svm import DualSolver, LinearSvcSolver, SvmProblem, objective


@dataclass(frozen=True)
class OverExamples(DualSolver):
    """Never over products."""

    multiplications: int = 0
    of_a_set: int = 0


@dataclass(frozen=True)
class OverSets(DualSolver):
    """Over the products of working sets, also of few examples."""

    multiplications: int = 0


SOLVERS = {"products": DualSolver, "examples": OverExamples, "sets": OverSets, "sklearn": LinearSvcSolver}
both_solvers = pytest.mark.parametrize("solver", list(SOLVERS.values()), ids=list(SOLVERS))

DRAWN = {
    "fewer rows than dim": {"rows": 40, "dim": 300},
    "more rows than dim": {"rows": 300, "dim": 12},
    "one positive": {"rows": 50, "dim": 60, "positives": 1},
    "one negative": {"rows": 30, "dim": 60, "positives": 29},
    "two rows": {"rows": 2, "dim": 5, "positives": 1},
    "one number a row": {"rows": 80, "dim": 1},
}
CONSTANTS = {
    "released": SvmProblem(),
    "positives weigh more": SvmProblem(positive_weight=7.0),
    "small bias feature": SvmProblem(bias=1.0),
    "positives weigh less, large C": SvmProblem(C=0.02, positive_weight=0.5, bias=3.0),
}


def drawn(rows=120, dim=80, positives=None, seed=0, norm=20.0):
    """Sparse rows as after a ReLU, of mean norm 20, positives shifted a little; and which are positives."""
    rng = np.random.default_rng(seed)
    positive = np.zeros(rows, bool)
    positive[rng.permutation(rows)[: max(1, rows // 5) if positives is None else positives]] = True
    features = np.maximum(rng.standard_normal((rows, dim)) + 0.3 * np.outer(positive, rng.standard_normal(dim)), 0)
    features *= norm / max(np.linalg.norm(features, axis=1).mean(), 1e-6)
    return features.astype(np.float16).astype(np.float64), positive


def cost(weight, bias, features, positive, problem):
    """The objective, summed over the examples one by one."""
    loss = 0.0
    for row, is_positive in zip(features, positive, strict=True):
        score = float(np.dot(row, weight)) + bias
        loss += problem.positive_weight * max(0.0, 1 - score) if is_positive else max(0.0, 1 + score)
    return 0.5 * float(np.dot(weight, weight)) + 0.5 * (bias / problem.bias) ** 2 + problem.C * loss


def best_cost(features, positive, problem):
    """The minimum by scikit-learn, to a tolerance a hundred times finer, the bias being one feature more."""
    wider = np.column_stack([features, np.full(len(features), problem.bias)])
    svc = LinearSVC(
        C=problem.C,
        loss="hinge",
        fit_intercept=False,
        class_weight={True: problem.positive_weight, False: 1.0},
        tol=1e-6,
        max_iter=100_000,
    ).fit(wider, positive)
    return cost(svc.coef_[0, :-1], svc.coef_[0, -1] * problem.bias, features, positive, problem)


def trained(solver, features, positive, problem=SvmProblem()):  # noqa: B008
    return solver.fit(features.astype(solver.dtype), positive, problem)


@both_solvers
@pytest.mark.parametrize("shape", list(DRAWN.values()), ids=list(DRAWN))
@pytest.mark.parametrize("problem", list(CONSTANTS.values()), ids=list(CONSTANTS))
def test_what_is_found_is_the_minimum(solver, shape, problem):
    features, positive = drawn(**shape)
    found = trained(solver(), features, positive, problem)
    assert found.converged
    assert cost(found.weight, found.bias, features, positive, problem) == pytest.approx(
        best_cost(features, positive, problem), rel=1e-3
    )


@pytest.mark.parametrize("shape", list(DRAWN.values()), ids=list(DRAWN))
def test_both_solvers_find_the_same_svm(shape):
    features, positive = drawn(**shape, seed=1)
    gram, svc = (trained(solver(tolerance=1e-6), features, positive) for solver in (DualSolver, LinearSvcSolver))
    np.testing.assert_allclose(gram.weight, svc.weight, atol=0.01 * np.abs(svc.weight).max() + 1e-6)
    assert gram.bias == pytest.approx(svc.bias, abs=0.01)
    np.testing.assert_allclose(gram.scores, svc.scores, atol=0.01)
    assert gram.objective.total == pytest.approx(svc.objective.total, rel=1e-4)


@both_solvers
def test_features_of_the_size_of_a_run(solver):
    """Vectors of ZF-5's length, mean norm 20 and C 1e-3, mostly negatives."""
    features, positive = drawn(rows=150, dim=12_800, positives=20)
    assert np.linalg.norm(features, axis=1).mean() == pytest.approx(20, rel=1e-2)
    found = trained(solver(), features, positive)
    expected = best_cost(features, positive, SvmProblem())
    assert cost(found.weight, found.bias, features, positive, SvmProblem()) == pytest.approx(expected, rel=1e-3)
    assert found.scores[positive].min() > found.scores[~positive].max()


@both_solvers
@given(
    st.integers(0, 10_000),
    st.integers(2, 30),
    st.integers(1, 30),
    st.floats(0.05, 0.95),
    st.builds(SvmProblem, st.floats(1e-4, 1e-2), st.floats(0.5, 10), st.floats(0.5, 20)),
)
def test_any_problem_is_solved(solver, seed, rows, dim, share, problem):
    features, positive = drawn(rows, dim, int(np.clip(share * rows, 1, rows - 1)), seed, norm=10.0)
    found = trained(solver(), features, positive, problem)
    expected = best_cost(features, positive, problem)
    assert cost(found.weight, found.bias, features, positive, problem) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-3])
def test_the_tolerance_of_gram_is_how_far_the_objective_may_be_from_its_minimum(tolerance):
    features, positive = drawn(rows=400, dim=100)
    problem = SvmProblem(C=0.1)
    found = trained(DualSolver(tolerance=tolerance), features, positive, problem)
    assert found.converged
    assert found.objective.total <= (1 + tolerance + 1e-5) * best_cost(features, positive, problem)


# --- problems that sweeps alone hardly solve ---


def around_centres(rows=500, dim=250, centres=8, seed=0):
    """Examples around some centres, of mean norm 20, with labels that say nothing."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((centres, dim))[rng.integers(centres, size=rows)]
    features += 0.5 * rng.standard_normal((rows, dim))
    features *= 20 / np.linalg.norm(features, axis=1).mean()
    return features, rng.random(rows) < 0.5


def twice(seed=0):
    """Every example twice, once of each class."""
    features, positive = drawn(rows=60, dim=30, seed=seed)
    return np.concatenate([features, features]), np.concatenate([positive, ~positive])


def flipped():
    """A tenth of the labels are wrong."""
    features, positive = drawn(rows=500, dim=90, seed=3)
    return features, positive ^ (np.random.default_rng(4).random(500) < 0.1)


HARD = {
    "around centres": (around_centres(), SvmProblem(C=0.1)),
    "around centres, smaller C": (around_centres(seed=1), SvmProblem(C=0.03)),
    "separable": (drawn(rows=300, dim=900), SvmProblem(C=1.0)),
    "every example of both classes": (twice(), SvmProblem(C=0.1)),
    "one positive": (drawn(rows=400, dim=50, positives=1), SvmProblem(C=0.1, positive_weight=100.0)),
    "wrong labels": (flipped(), SvmProblem(C=0.1)),
}


@pytest.mark.parametrize("solver", [DualSolver, OverExamples, OverSets])
@pytest.mark.parametrize("hard", list(HARD.values()), ids=list(HARD))
def test_the_gap_that_is_told_is_the_gap(solver, hard):
    """Of the examples in float64, summed one by one; and the minimum lies within it."""
    (features, positive), problem = hard
    found = trained(solver(), features, positive, problem)
    assert found.converged
    assert found.gap <= 1e-4
    signs = np.where(positive, 1.0, -1.0)
    most = np.where(positive, problem.C * problem.positive_weight, problem.C).astype(np.float32)
    assert ((found.coefficients >= 0) & (found.coefficients <= most)).all()
    wider = np.column_stack([features.astype(np.float32).astype(np.float64), np.full(len(features), problem.bias)])
    weight = (found.coefficients * signs) @ wider
    dual = found.coefficients.sum() - 0.5 * weight @ weight
    primal = cost(weight[:-1], weight[-1] * problem.bias, wider[:, :-1], positive, problem)
    assert (primal - dual) / dual == pytest.approx(found.gap, rel=1e-3, abs=1e-8)
    assert primal == pytest.approx(found.objective.total, rel=1e-9)
    assert dual <= best_cost(features, positive, problem) * (1 + 1e-9)


@pytest.mark.parametrize("solver", [DualSolver, OverExamples, OverSets])
def test_examples_that_overlap_take_few_sweeps(solver):
    """Sweeps alone take thousands; in float32 they never came to an end."""
    features, positive = around_centres(rows=2000, dim=1000)
    most = 3000 if solver is OverExamples else 300
    assert trained(solver(max_iterations=most), features, positive, SvmProblem(C=0.1)).converged


@pytest.mark.parametrize("solver", [DualSolver, OverExamples, OverSets])
def test_a_fit_from_the_coefficients_of_another_has_less_to_do(solver):
    features, positive = drawn(rows=600, dim=200, seed=2)
    problem = SvmProblem(C=0.1)
    first = trained(solver(), features[:550], positive[:550], problem)
    again = solver().fit(features[:550].astype(np.float32), positive[:550], problem, first.coefficients)
    assert again.iterations == 0
    assert again.weight.tobytes() == first.weight.tobytes()
    start = np.append(first.coefficients, np.zeros(50))
    warm = solver().fit(features.astype(np.float32), positive, problem, start)
    cold = trained(solver(), features, positive, problem)
    assert warm.converged
    assert 0 < warm.iterations < cold.iterations
    assert warm.objective.total == pytest.approx(cold.objective.total, rel=2e-4)


def test_few_are_solved_over_their_products_and_many_over_themselves():
    assert DualSolver().bytes_needed(1581, 16_000) == 4 * 1581 * (16_032 + 1581)
    assert DualSolver().bytes_needed(40_000, 16_000) == 4 * (40_000 * 16_032 + 4000**2)
    features, positive = drawn(rows=300, dim=40, seed=11)
    over = [trained(DualSolver(multiplications=m), features, positive) for m in (300 * 300 * 40 - 1, 300 * 300 * 40)]
    assert over[0].weight.tobytes() == trained(OverSets(), features, positive).weight.tobytes()
    assert over[1].weight.tobytes() == trained(DualSolver(), features, positive).weight.tobytes()
    assert over[0].weight.tobytes() != over[1].weight.tobytes()


@pytest.mark.parametrize("dim", [5, 2000, 16_000, 400_000])
def test_as_many_examples_as_fit_into_the_memory(dim):
    solver = DualSolver()
    for rows in (1, 7, 300, 312, 1580, 1581, 1582, 3999, 4000, 4001, 70_000):
        memory = solver.bytes_needed(rows, dim)
        found = solver.most_rows(memory, dim)
        assert found >= rows
        assert solver.bytes_needed(found, dim) <= memory
        assert solver.most_rows(memory - 1, dim) < found


def test_what_is_pressed_against_a_bound_is_left_to_itself():
    """Nine tenths are easy; the products made are those of the others."""
    features, positive = drawn(rows=3000, dim=60, seed=5)
    features, positive = np.concatenate([features, features[~positive] * 3]), np.append(positive, np.zeros(2400, bool))
    problem = SvmProblem(C=0.1)
    found = trained(OverSets(of_a_set=60 * 2000**2), features, positive, problem)
    examples = trained(OverExamples(), features, positive, problem)
    assert found.converged
    assert found.objective.total == pytest.approx(examples.objective.total, rel=2e-4)
    assert found.iterations < examples.iterations


def test_a_finer_tolerance_takes_more_sweeps():
    features, positive = drawn(rows=400, dim=100)
    sweeps = [
        trained(DualSolver(tolerance=t), features, positive, SvmProblem(C=0.1)).iterations for t in (0.1, 1e-3, 1e-5)
    ]
    assert sweeps == sorted(set(sweeps))


# --- what a fit says of itself ---


@both_solvers
def test_scores_are_those_of_the_weight_and_the_bias(solver):
    features, positive = drawn(seed=3)
    found = trained(solver(), features, positive)
    assert (found.weight.dtype, found.scores.dtype) == (np.float64, np.float64)
    assert (found.weight.shape, found.scores.shape) == ((80,), (120,))
    assert isinstance(found.bias, float)
    np.testing.assert_allclose(found.scores, features @ found.weight + found.bias, atol=1e-5)


@both_solvers
def test_the_parts_of_the_objective_are_those_of_the_formula(solver):
    features, positive = drawn(rows=200, dim=10, seed=4)
    problem = SvmProblem(C=0.01, positive_weight=3.0, bias=5.0)
    found = trained(solver(), features, positive, problem)
    scores = features @ found.weight + found.bias
    assert found.objective.positive == pytest.approx(0.03 * sum(max(0, 1 - s) for s in scores[positive]), rel=1e-4)
    assert found.objective.negative == pytest.approx(0.01 * sum(max(0, 1 + s) for s in scores[~positive]), rel=1e-4)
    assert found.objective.regulariser == pytest.approx(0.5 * (sum(found.weight**2) + (found.bias / 5) ** 2))
    parts = found.objective
    assert parts.total == parts.positive + parts.negative + parts.regulariser
    assert min(parts.positive, parts.negative, parts.regulariser) > 0
    assert parts.total == pytest.approx(cost(found.weight, found.bias, features, positive, problem), rel=1e-4)


def test_the_objective_by_hand():
    problem = SvmProblem(C=0.1, positive_weight=3.0, bias=2.0)
    scores, positive = np.array([0.5, 2.0, -3.0, 0.0]), np.array([True, True, False, False])
    parts = objective(np.array([3.0, 4.0]), 2.0, scores, positive, problem)
    assert parts.positive == pytest.approx(0.1 * 3 * 0.5)
    assert parts.negative == pytest.approx(0.1 * 1)
    assert parts.regulariser == pytest.approx(0.5 * 25 + 0.5 * 1)


@both_solvers
def test_two_points_by_hand(solver):
    """x = 1 and x = -1, C so large that both get their margin: w = 1 and b = 0."""
    found = solver(tolerance=1e-6).fit(
        np.array([[1.0], [-1.0]], solver.dtype), np.array([True, False]), SvmProblem(C=10)
    )
    assert found.weight == pytest.approx([1], abs=1e-3)
    assert found.bias == pytest.approx(0, abs=1e-3)
    assert found.scores == pytest.approx([1, -1], abs=1e-3)


@both_solvers
def test_the_bias_is_the_weight_of_a_feature_of_its_value(solver):
    """With all features zero only the bias is left: one positive of weight 2 against one negative moves it up.

    The objective is 0.5 (b / B)^2 + C (2 (1 - b) + 1 + b) for b in -1 .. 1, so b = C B^2.
    """
    for value in (2.0, 10.0):
        problem = SvmProblem(C=1e-3, positive_weight=2.0, bias=value)
        found = solver(tolerance=1e-7).fit(np.zeros((2, 3), solver.dtype), np.array([True, False]), problem)
        assert found.bias == pytest.approx(1e-3 * value**2, rel=1e-4)
        assert found.weight.tolist() == [0, 0, 0]


@both_solvers
def test_a_larger_bias_feature_takes_more_of_the_score(solver):
    features, positive = drawn(seed=5)
    biases = [abs(trained(solver(), features, positive, SvmProblem(bias=b)).bias) for b in (0.1, 1.0, 10.0)]
    assert biases == sorted(biases)
    assert biases[0] < 0.01 * biases[2]


@both_solvers
def test_weighing_positives_is_having_each_as_often(solver):
    features, positive = drawn(seed=6)
    order = np.concatenate([np.arange(len(features)), *[np.flatnonzero(positive)] * 2])
    weighed = trained(solver(tolerance=1e-6), features, positive, SvmProblem(positive_weight=3.0))
    repeated = trained(solver(tolerance=1e-6), features[order], positive[order], SvmProblem(positive_weight=1.0))
    np.testing.assert_allclose(weighed.weight, repeated.weight, atol=1e-3)
    assert weighed.bias == pytest.approx(repeated.bias, abs=1e-3)


@both_solvers
def test_the_same_seed_gives_the_same_bits(solver):
    features, positive = drawn(seed=7)
    one, same = (trained(solver(seed=3), features, positive) for _ in range(2))
    assert one.weight.tobytes() == same.weight.tobytes()
    assert one.scores.tobytes() == same.scores.tobytes()
    assert (one.bias, one.iterations, one.objective) == (same.bias, same.iterations, same.objective)


@both_solvers
def test_another_seed_gives_the_same_svm_by_another_way(solver):
    features, positive = drawn(rows=300, dim=12, seed=8)
    one, other = (trained(solver(seed=seed), features, positive) for seed in (3, 4))
    assert one.weight.tobytes() != other.weight.tobytes()
    assert one.objective.total == pytest.approx(other.objective.total, rel=1e-3)


def test_a_fit_disturbs_no_other_random_numbers():
    features, positive = drawn()
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    for solver in SOLVERS.values():
        trained(solver(seed=9), features, positive)
    assert np.random.get_state()[1].tolist() == before


@both_solvers
def test_features_are_left_as_they_are(solver):
    features, positive = drawn()
    given_ = features.astype(solver.dtype)
    before = given_.copy()
    solver().fit(given_, positive, SvmProblem())
    np.testing.assert_array_equal(given_, before)


@both_solvers
def test_one_cut_short_says_so_without_a_warning(solver):
    features, positive = drawn(rows=400, dim=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(solver(tolerance=1e-12, max_iterations=3), features, positive, SvmProblem(C=1.0))
    assert not found.converged
    assert found.iterations == 3


@both_solvers
@pytest.mark.parametrize(("kind", "told"), [(True, "3 positives of 3"), (False, "0 positives of 3")])
def test_examples_of_one_kind_are_refused(solver, kind, told):
    with pytest.raises(ValueError, match=f"both kinds, not {told}"):
        solver().fit(np.ones((3, 2), solver.dtype), np.full(3, kind), SvmProblem())


@both_solvers
def test_no_examples_are_refused(solver):
    with pytest.raises(ValueError, match="both kinds, not 0 positives of 0"):
        solver().fit(np.ones((0, 2), solver.dtype), np.zeros(0, bool), SvmProblem())


# --- memory ---


@both_solvers
@given(st.integers(0, 10**12), st.integers(1, 120_000))
def test_most_rows_are_the_most_whose_bytes_fit(solver, memory, dim):
    rows = solver().most_rows(memory, dim)
    assert isinstance(rows, int)
    assert solver().bytes_needed(rows, dim) <= memory < solver().bytes_needed(rows + 1, dim)


@both_solvers
@given(st.integers(0, 300_000), st.integers(1, 120_000))
def test_the_bytes_of_so_many_rows_are_enough_for_them_and_one_less_is_not(solver, rows, dim):
    needed = solver().bytes_needed(rows, dim)
    assert solver().most_rows(needed, dim) == rows
    if rows:
        assert solver().most_rows(needed - 1, dim) == rows - 1


@both_solvers
@pytest.mark.parametrize(("rows", "dim"), [(200, 3000), (700, 300)])
def test_a_fit_stays_within_its_bytes(solver, rows, dim):
    """As far as NumPy's own memory goes: the features and what a fit allocates beside them."""
    drawn_, positive = drawn(rows, dim)
    features = drawn_.astype(solver.dtype)
    solver().fit(features, positive, SvmProblem())
    tracemalloc.start()
    try:
        solver().fit(features, positive, SvmProblem())
        taken = features.nbytes + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= solver().bytes_needed(rows, dim) + 100_000  # what grows with rows + dim alone


@pytest.mark.parametrize("rows", [1, 1000])
def test_ours_needs_a_sixth_of_the_memory_for_long_vectors(rows):
    assert DualSolver().bytes_needed(rows, 51_200) < LinearSvcSolver().bytes_needed(rows, 51_200) / 5.8
