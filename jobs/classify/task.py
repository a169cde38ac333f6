"""What one task of classify does: train and test the SVMs of one layer of one view, in all its splits.

Over the products of the images a task's threads share out the classes of a split. liblinear draws its random numbers
from one state for the whole process: on the vectors classes follow one another, and splits are tasks of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.classify.stored import layer_vectors
from jobs.config.classify import ClassifyConfig
from jobs.dataset.labels import ImageLabels
from pipeline.detection.svm import LinearSvcSolver, SvmFit, SvmProblem, solve_products
from pipeline.measures.classification import Split, class_accuracies, image_ap, products
from pipeline.phases import PhaseClock
from pipeline.products import one_thread
from storage.root import Root
from storage.schemas import schema

_BLOCK = 1024

TEST = "test"
HELD_OUT = "held out"


@dataclass(frozen=True, kw_only=True)
class LayerTask:
    """A layer of a view to measure. ``splits``: what it is tested on (``TEST`` or ``HELD_OUT``), the split's number,
    and its rows of ``labels``."""

    root: Root
    keys: tuple[str, ...]
    view: str
    layer: str
    levels: tuple[int, ...]
    config: ClassifyConfig
    labels: ImageLabels
    splits: tuple[tuple[str, int, Split], ...]
    solver: Literal["gram", "sklearn"]
    threads: int


@dataclass(frozen=True)
class LayerResult:
    """Rows of ``classification`` and ``image_scores``, seconds, and classes that did not converge."""

    measured: pa.Table
    scores: pa.Table
    seconds: Mapping[str, float]
    not_converged: int


def measure_layer(work: LayerTask) -> LayerResult:
    """Measure one layer of one view in every split."""
    clock = PhaseClock()
    labels, config = work.labels, work.config
    used = np.unique(np.concatenate([rows for _, _, split in work.splits for rows in (split.train, split.test)]))
    place = np.full(len(labels.image_ids), -1, np.int64)
    place[used] = np.arange(len(used))
    with clock.phase("read"):
        ids = [labels.image_ids[row] for row in used]
        vectors = layer_vectors(work.root, work.keys, work.view, work.layer, ids, work.levels)
    with clock.phase("products"):
        machine = _OfProducts(work, products(vectors)) if work.solver == "gram" else _OfVectors(work, vectors)
    del vectors
    problem = SvmProblem(C=config.C, positive_weight=1.0, bias=config.bias)
    measured: list[dict[str, Any]] = []
    scored: list[pa.Table] = []
    unfinished = 0
    for tested_on, number, split in work.splits:
        with clock.phase("svm"):
            scores, missed = machine.scores(split, place, problem)
        unfinished += missed
        with clock.phase("measure"):
            rows = _by_rank(work, split, scores) if config.protocol == "voc07" else _by_name(work, split, scores)
            measured += [{**row, "tested_on": tested_on, "split": number} for row in rows]
            if tested_on == TEST:
                scored.append(_scores(work, number, split, scores))
    about = {"view": work.view, "layer": work.layer}
    table = pa.Table.from_pylist([{**row, **about} for row in measured], schema=schema("classification"))
    return LayerResult(table, pa.concat_tables(scored), clock.seconds, unfinished)


@dataclass(frozen=True)
class _Examples:
    """A split, for K classes: rows of the vectors to train on (N,) and to test (T,), int64; and bool (N, K), which of
    the former show a class, and which its SVM is trained on."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    positive: NDArray[np.bool_]
    used: NDArray[np.bool_]


class _Machine(ABC):
    """SVMs of all classes on one split after another."""

    def __init__(self, work: LayerTask) -> None:
        self._work = work

    def scores(self, split: Split, place: NDArray[np.int64], problem: SvmProblem) -> tuple[NDArray[np.float64], int]:
        """Scores of the test images (n, K), -inf for a class that cannot be trained; classes that did not converge."""
        labels = self._work.labels
        scores = np.full((len(split.test), len(labels.class_names)), -np.inf)
        positive, used = labels.shows[split.train], ~labels.ignored[split.train]
        can = np.flatnonzero((positive & used).any(axis=0) & (~positive & used).any(axis=0))
        if not len(can):
            return scores, 0
        given = _Examples(place[split.train], place[split.test], positive[:, can], used[:, can])
        scores[:, can], missed = self.train_and_score(given, problem)
        return scores, missed

    @abstractmethod
    def train_and_score(self, given: _Examples, problem: SvmProblem) -> tuple[NDArray[np.float64], int]:
        """Scores (T, K) of the test images by SVMs of all classes, and how many of these did not converge."""


class _OfProducts(_Machine):
    """Over the products of all images, computed once."""

    def __init__(self, work: LayerTask, gram: NDArray[np.float32]) -> None:
        super().__init__(work)
        self._gram = gram

    def train_and_score(self, given: _Examples, problem: SvmProblem) -> tuple[NDArray[np.float64], int]:
        config, most = self._work.config, 10_000
        coefficients, sweeps = solve_products(
            self._gram[np.ix_(given.train, given.train)],
            given.positive,
            problem,
            used=given.used,
            tolerance=config.tolerance,
            max_iterations=most,
            seed=config.seed,
            threads=self._work.threads,
        )
        with one_thread():
            across = self._gram[np.ix_(given.test, given.train)] @ coefficients.astype(np.float32)
        return across + problem.bias**2 * coefficients.sum(axis=0), int((sweeps >= most).sum())


class _OfVectors(_Machine):
    """Over the vectors themselves: where images are many and dimensions few."""

    def __init__(self, work: LayerTask, vectors: NDArray[np.float16]) -> None:
        super().__init__(work)
        self._vectors = vectors
        norms = [np.linalg.norm(part.astype(np.float32), axis=1) for part in self._blocks(np.arange(len(vectors)))]
        self._norms = np.concatenate(norms)
        self._norms[self._norms == 0] = 1

    def train_and_score(self, given: _Examples, problem: SvmProblem) -> tuple[NDArray[np.float64], int]:
        config = self._work.config
        solver = LinearSvcSolver(config.tolerance, seed=config.seed)
        alike: dict[bytes, list[int]] = {}  # classes that train on the same images
        for column, kept in enumerate(given.used.T):
            alike.setdefault(kept.tobytes(), []).append(column)
        by_column: dict[int, SvmFit] = {}
        for columns in alike.values():
            kept = given.used[:, columns[0]]
            rows = given.train[kept]
            examples: NDArray[np.float64] = self._vectors[rows].astype(solver.dtype)
            examples /= self._norms[rows, None]
            for column in columns:
                by_column[column] = solver.fit(examples, given.positive[kept, column], problem)
            del examples
        fits = [by_column[column] for column in range(given.positive.shape[1])]
        weights = np.stack([fit.weight for fit in fits], axis=1).astype(np.float32)
        with one_thread():
            products = np.concatenate([part.astype(np.float32) @ weights for part in self._blocks(given.test)])
        biases = np.array([fit.bias for fit in fits])
        return products / self._norms[given.test, None] + biases, sum(not fit.converged for fit in fits)

    def _blocks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float16]]:
        """Some vectors, a few at a time: in float32 all would be twice as large."""
        for start in range(0, max(1, len(rows)), _BLOCK):
            yield self._vectors[rows[start : start + _BLOCK]]


def choose_solver(config: ClassifyConfig, images: int, train: int, dim: int) -> tuple[Literal["gram", "sklearn"], int]:
    """The solver of a layer (``classify.solver``) and the bytes that it takes at its highest.

    ``train``: images that are trained on at once, at most. Raises ValueError where none fits ``classify.memory_mb``.
    """
    most = config.memory_mb * 1_000_000
    needs: dict[Literal["gram", "sklearn"], int] = {
        # vectors, products, some columns; later the products of those trained on
        "gram": 2 * images * dim + 4 * images * (images + 4096) + 4 * train * train,
        "sklearn": 2 * images * dim + LinearSvcSolver().bytes_needed(train, dim),
    }
    order: tuple[Literal["gram", "sklearn"], ...] = ("gram", "sklearn") if images <= 2 * dim else ("sklearn", "gram")
    if config.solver != "auto":
        order = (config.solver,)
    for solver in order:
        if needs[solver] <= most:
            return solver, needs[solver]
    least = min(needs[solver] for solver in order)
    raise ValueError(
        f"{images} images, {train} of them to train on, by {' or '.join(order)} with {dim} numbers each take "
        f"{least / 1e6:,.0f} MB, and classify.memory_mb is {config.memory_mb:,}; raise it, or leave the layer out of "
        f"classify.layers"
    )


def _by_name(work: LayerTask, split: Split, scores: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """The share of each class's test images that is named rightly."""
    labels = work.labels.single()[split.test]
    shares = class_accuracies(scores.argmax(axis=1), labels, len(work.labels.class_names))
    for column, name in enumerate(work.labels.class_names):
        yield {
            "class_name": name,
            "images": len(labels),
            "positives": int((labels == column).sum()),
            "accuracy": None if np.isnan(shares[column]) else float(shares[column]),
            "ap_11": None,
            "ap_area": None,
        }


def _by_rank(work: LayerTask, split: Split, scores: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Average precision of each class."""
    images = [work.labels.image_ids[row] for row in split.test]
    for column, name in enumerate(work.labels.class_names):
        shows, ignored = work.labels.shows[split.test, column], work.labels.ignored[split.test, column]
        result = image_ap(scores[:, column], images, shows, ignored)
        yield {
            "class_name": name,
            "images": int((~ignored).sum()),
            "positives": int(shows.sum()),
            "accuracy": None,
            "ap_11": result.ap_11,
            "ap_area": result.ap_area,
        }


def _scores(work: LayerTask, number: int, split: Split, scores: NDArray[np.float64]) -> pa.Table:
    """Of protocol voc07 every class of every test image, of the others the one that it is named."""
    if work.config.protocol == "voc07":
        rows, columns = np.nonzero(np.isfinite(scores))
    else:
        rows, columns = np.arange(len(scores)), scores.argmax(axis=1)
    ids = pa.array([work.labels.image_ids[row] for row in split.test], pa.string())
    names = pa.array(work.labels.class_names, pa.string())
    count = len(rows)
    return pa.table(
        [
            ids.take(pa.array(rows)),
            pa.array([work.view] * count, pa.string()),
            pa.array([work.layer] * count, pa.string()),
            pa.array(np.full(count, number, np.int32)),
            names.take(pa.array(columns)),
            pa.array(scores[rows, columns].astype(np.float32)),
        ],
        schema=schema("image_scores"),
    )
