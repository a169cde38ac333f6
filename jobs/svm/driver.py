"""How the SVMs of a run are trained: the driver of train-svm (jobs/svm/__init__.py tells the story)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from jobs.config.svm import SvmConfig
from jobs.errors import RunFailed, UsageError
from jobs.execution.session import Resources
from jobs.execution.tasks import as_task, results
from jobs.features.stored import truth_dataset
from jobs.features.training_data import TrainingData, positive_rows
from jobs.record.lineage import stored_features
from jobs.record.publish import publish
from jobs.record.stage import Assignment
from jobs.svm import tasks
from jobs.svm.negatives import Negatives
from jobs.svm.tasks import Audit, ClassFit
from pipeline.detection.mining import NegativeRules
from pipeline.detection.scoring import LinearScorer, mean_norm
from pipeline.detection.svm import GramSolver, LinearSvcSolver, SvmProblem, SvmSolver
from pipeline.phases import PhaseClock
from storage.columns import vectors_of
from storage.commits import LedgerRow
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import scan_manifest
from storage.schemas import VECTOR_COLUMN, schema

_log = logging.getLogger("spp")

MOST_PASSES = 50
"""Of ``until_stable``: two fits that differ in their last digits could take turns for ever."""


def train_svms(assignment: Assignment, method: str) -> None:
    """Train the SVMs of a run, and commit them under ``method``."""
    context, record = assignment.context, assignment.record
    config, root = context.config.svm, context.root
    clock = PhaseClock()
    data = TrainingData.of(context, config.layer)
    with clock.phase("read"):
        positives = _positives(root, record, truth_dataset(config.layer), data.class_names, config.difficult_positive)
    cells_tell = context.config.features.source == "windows"
    training = _Training(config, data, positives, assignment.session.ready(), clock, cells_tell)
    training.start()
    training.mine()
    audited = training.audit()
    rows, notes = training.rows(audited)
    layout = schema(
        "svms", training.dim, {"method": method, "features": stored_features(record).method, "layer": config.layer}
    )
    table = pa.Table.from_pylist(rows, schema=layout)
    counts = {row["class_name"]: 1 for row in rows}
    publish(root, "svms", method, table, counts, ledger=notes, seconds=clock.seconds)


def _positives(
    root: Root, record: RunRecord, dataset: str, class_names: Sequence[str], difficult: bool
) -> dict[str, NDArray[np.float16]]:
    """The vectors of each class's ground-truth boxes, (n, dim); classes without any are absent."""
    manifest = recorded_manifest(root, record, dataset)
    held: dict[str, list[NDArray[np.float16]]] = {name: [] for name in class_names}
    for table in scan_manifest(root, manifest, ["class_name", "difficult", VECTOR_COLUMN]):
        vectors, own = vectors_of(table[VECTOR_COLUMN]), positive_rows(table, class_names, difficult)
        for name, rows in zip(class_names, own.T, strict=True):
            held[name].extend(vectors[rows])
    return {name: np.stack(vectors) for name, vectors in held.items() if vectors}


@dataclass(kw_only=True)
class _Class:
    """One class in training."""

    name: str
    number: int
    positives: ray.ObjectRef
    count: int
    fit: ClassFit | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class _Training:
    """The SVMs of all classes, their caches, and what has been measured on the way.

    ``cells_tell``: windows on the same cells have the same vector; not where each is warped, and has a map of its own.
    """

    def __init__(
        self,
        config: SvmConfig,
        data: TrainingData,
        positives: dict[str, NDArray[np.float16]],
        resources: Resources,
        clock: PhaseClock,
        cells_tell: bool,
    ) -> None:
        self._config = config
        self._data = data
        self._clock = clock
        self._resources = resources
        if not positives:
            raise UsageError("train-svm: the training splits have no object to learn from")
        self._positives = positives
        self.dim = next(iter(positives.values())).shape[1]
        self._problem = SvmProblem(config.C, config.positive_weight, config.bias)
        solver = GramSolver if config.solver == "gram" else LinearSvcSolver
        self._solver: SvmSolver = solver(tolerance=config.tolerance, seed=config.seed)
        self._most = self._solver.most_rows(config.fit_memory_mb * 10**6, self.dim)
        self._check_memory()
        self._classes = [
            _Class(name=name, number=number, positives=ray.put(positives[name]), count=len(positives[name]))
            for number, name in enumerate(data.class_names)
            if name in positives
        ]
        rules = NegativeRules(config.negative_overlap, config.negative_dedupe, config.once_per_cells and cells_tell)
        self._negatives = Negatives(data, rules, {one.number: self._most - one.count for one in self._classes})
        self._scale = 1.0
        self._passes = 0
        self._notes: list[LedgerRow] = []

    def start(self) -> None:
        """Random negatives, the scale of the features, and the first training."""
        config = self._config
        with self._clock.phase("sample"):
            added = self._negatives.sample(config.start_negatives, config.seed)
            norms = [(mean_norm(values), len(values)) for values in self._positives.values()] + self._negatives.norms()
        total = sum(count for _, count in norms)
        norm = sum(value * count for value, count in norms) / total
        if not 0 < norm < np.inf:
            raise RunFailed(f"train-svm: the mean norm of the features is {norm:g}; is the body trained?")
        self._scale = config.target_norm / norm
        self._train(added, 0, 0)
        self._say(f"start: {self._described()}")

    def mine(self) -> None:
        """The passes over the features."""
        config = self._config
        most = MOST_PASSES if config.passes == "until_stable" else config.passes
        groups = [self._data.shards[number :: config.rounds] for number in range(config.rounds)]
        for number in range(1, most + 1):
            found = 0
            for round_, group in enumerate(groups, 1):
                if not group:
                    continue
                trained = np.isin(np.arange(len(self._data.class_names)), [c.number for c in self._fitted()])
                with self._clock.phase("mine"):
                    added = self._negatives.mine(
                        group,
                        self._scorer(),
                        trained,
                        join_above=config.join_above,
                        max_per_image=config.max_per_image,
                    )
                found += sum(added.values())
                self._train(added, number, round_)
                if added:
                    self._say(f"pass {number}, round {round_} of {len(groups)}: {self._described()}")
            self._passes = number
            if config.passes == "until_stable" and not found:
                break
        else:
            if config.passes == "until_stable":
                text = f"not stable after {most} passes; svms says how many violators are left"
                self._say(f"note: {text}")
                self._notes.append(_note("", "NotStable", text))

    def audit(self) -> Audit:
        """Score every negative once more."""
        with self._clock.phase("audit"):
            return self._negatives.audit(self._scorer())

    def rows(self, audited: Audit) -> tuple[list[dict[str, Any]], list[LedgerRow]]:
        """The rows of ``svms``, and notes: on the classes that have none, and on what did not come to its end."""
        rows, without, notes = [], [], list(self._notes)
        trained = {c.name: c for c in self._fitted()}
        for number, name in enumerate(self._data.class_names):
            if name not in trained:
                reason = "negatives" if name in self._positives else "positives"
                text = f"class {name!r} has no {reason} in the training splits, so it has no SVM and is never detected"
                without.append(_note(name, "NoExamples", text))
                continue
            one = trained[name]
            assert one.fit is not None
            fit, violators = one.fit, int(audited.violators[number])
            if not fit.converged:
                text = f"class {name!r}: the solver stopped after {fit.iterations} iterations, not converged"
                notes.append(_note(name, "NotConverged", text))
            left_out = self._negatives.left_out[number]
            last = fit.loss_positive + fit.loss_negative + fit.regulariser
            everything = fit.loss_positive + fit.regulariser + self._config.C * float(audited.hinge[number])
            rows.append(
                {
                    "class_name": name,
                    "weight": fit.weight,
                    "bias": fit.bias,
                    "feature_scale": self._scale,
                    "positives": one.count,
                    "negatives": self._negatives.count(number),
                    "left_out": self._negatives.left_out[one.number],
                    "all_negatives": int(audited.negatives[number]),
                    "violators": violators,
                    "objective": last,
                    "objective_all": everything,
                    "passes": self._passes,
                    "history": one.history,
                }
            )
            self._say(
                f"{name}: {one.count} positives, {int(audited.negatives[number]):,} negatives, "
                f"{self._negatives.count(number):,} of them cached, {violators:,} others above -1; "
                f"objective {last:.4f}, over all windows {everything:.4f}"
                + (f"; {left_out:,} left out by a cap" if left_out else "")
            )
        if without:
            share = f"{len(without)} of {len(self._data.class_names)} classes"
            self._say(f"note: {share} have no SVM, such as: {without[0].message}")
        return rows, [*notes, *without]

    def _train(self, added: dict[int, int], pass_: int, round_: int) -> None:
        """Train the classes that got negatives, side by side, and let what has become easy leave their caches."""
        todo = [one for one in self._classes if added.get(one.number)]
        rows = {one.number: self._negatives.rows_of(one.number) for one in todo}
        with self._clock.phase("fit"):
            refs = []
            for one in todo:
                count = one.count + len(rows[one.number])
                memory = self._solver.bytes_needed(count, self.dim)
                blocks = self._negatives.vectors_of(rows[one.number])
                task = as_task(tasks.fit, memory=memory)
                refs.append(task.remote(self._solver, self._problem, self._scale, one.positives, blocks))
            fits: list[ClassFit] = results("train-svm", refs)
        for one, fit in zip(todo, fits, strict=True):
            one.fit = fit
            easy = rows[one.number][fit.scores < self._config.leave_below]
            one.history.append(
                {
                    "pass": pass_,
                    "round": round_,
                    "positives": one.count,
                    "negatives": len(rows[one.number]),
                    "added": added[one.number],
                    "left_out": self._negatives.left_out[one.number],
                    "evicted": len(easy),
                    "loss_positive": fit.loss_positive,
                    "loss_negative": fit.loss_negative,
                    "regulariser": fit.regulariser,
                    "iterations": fit.iterations,
                }
            )
            self._negatives.evict(one.number, easy)
        stopped = [one.name for one, fit in zip(todo, fits, strict=True) if not fit.converged]
        if stopped:
            self._say(f"note: the solver stopped before it converged for {len(stopped)} classes, such as {stopped[0]}")
        self._negatives.drop_unused()

    def _fitted(self) -> list[_Class]:
        return [one for one in self._classes if one.fit is not None]

    def _scorer(self) -> LinearScorer:
        weights = np.zeros((len(self._data.class_names), self.dim), np.float32)
        biases = np.zeros(len(self._data.class_names))
        for one in self._fitted():
            assert one.fit is not None
            weights[one.number], biases[one.number] = one.fit.weight, one.fit.bias
        return LinearScorer(weights, biases, self._scale)

    def _described(self) -> str:
        total = sum(f.loss_positive + f.loss_negative + f.regulariser for c in self._fitted() if (f := c.fit))
        cached = sum(self._negatives.count(one.number) for one in self._classes)
        return f"{len(self._fitted())} classes, {cached:,} cached negatives, sum of objectives {total:.4f}"

    def _check_memory(self) -> None:
        """Refuse what could never run, before anything starts."""
        config = self._config
        largest = max(len(values) for values in self._positives.values())
        if self._most <= largest:
            enough = self._solver.bytes_needed(largest + config.start_negatives, self.dim)
            raise UsageError(
                f"svm.fit_memory_mb is {config.fit_memory_mb}: room for {self._most} examples of {self.dim} numbers, "
                f"but a class has {largest} positives; give at least {enough // 10**6 + 1}"
            )
        if config.fit_memory_mb * 10**6 > self._resources.node_memory:
            raise UsageError(
                f"svm.fit_memory_mb is {config.fit_memory_mb}, but Ray has {self._resources.node_memory // 10**6} MB "
                f"to give on one node; lower it to bound the caches of hard negatives, or use larger nodes"
            )

    def _say(self, text: str) -> None:
        _log.log(logging.WARNING if text.startswith("note: ") else logging.INFO, "train-svm: %s", text)


def _note(name: str, kind: str, text: str) -> LedgerRow:
    return LedgerRow(image_id=name, stage="train-svm", type=kind, message=text, level="note")
