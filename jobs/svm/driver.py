"""How the SVMs of a run are trained: the driver of train-svm (jobs/svm/__init__.py tells the story)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from jobs.features.training_data import TrainingData, TrainingShard
from jobs.record.lineage import stored_features
from jobs.record.publish import publish
from jobs.record.stage import Assignment
from jobs.svm import fits
from jobs.svm.fits import ClassFit, Examples
from jobs.svm.negatives import Negatives
from jobs.svm.positives import Positives
from jobs.svm.progress import ClassProgress, Progress, last_progress
from jobs.svm.tasks import Audit
from pipeline.detection.mining import NegativeRules
from pipeline.detection.scoring import LinearScorer
from pipeline.detection.svm import DualSolver, LinearSvcSolver, SvmProblem, SvmSolver
from pipeline.phases import PhaseClock
from storage.commits import LedgerRow
from storage.manifest import recorded_manifest
from storage.runs import hold
from storage.schemas import schema
from storage.tensors import drop_checkpoints

_log = logging.getLogger("spp")

_SHARE_OF_STORE = 0.25
"""Of the object stores' memory: what the vectors of a round may take before it is known which of them join."""

MOST_PASSES = 50
"""Of ``until_stable``: two fits that differ in their last digits could take turns for ever."""


def train_svms(assignment: Assignment, method: str) -> None:
    """Train the SVMs of a run, and commit them under ``method``; on from where an earlier driver was stopped."""
    context, record = assignment.context, assignment.record
    config, root = context.config.svm, context.root
    hold(root, record, [f"{name}/{method}" for name in ("svms", "checkpoints")])
    clock = PhaseClock()
    data = TrainingData.of(context, config.layer)
    resources = assignment.session.ready()
    with clock.phase("read"):
        truth = recorded_manifest(root, record, truth_dataset(config.layer))
        positives = Positives(root, truth, data.class_names, config.difficult_positive)
    cells_tell = context.config.features.source == "windows"
    training = _Training(config, data, positives, resources, clock, cells_tell)

    def keep(progress: Progress) -> None:
        with clock.phase("save"):
            progress.save(root, method)

    training.run(last_progress(root, method), keep)
    audited = training.audit()
    rows, notes = training.rows(audited)
    layout = schema(
        "svms", positives.dim, {"method": method, "features": stored_features(record).method, "layer": config.layer}
    )
    table = pa.Table.from_pylist(rows, schema=layout)
    counts = {row["class_name"]: 1 for row in rows}
    publish(root, "svms", method, table, counts, ledger=notes, seconds=clock.seconds)
    drop_checkpoints(root, method)


@dataclass(kw_only=True)
class _Class:
    """One class in training.

    ``rows``: its negatives since its last fit, whose coefficients ``fit`` has after those of the positives.
    """

    name: str
    number: int
    count: int
    fit: ClassFit | None = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    history: list[dict[str, Any]] = field(default_factory=list)

    def learned(self, fit: ClassFit, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
        """A fit on the negatives ``rows``, of which some are ``kept``."""
        coefficients = fit.coefficients
        if coefficients is not None:
            coefficients = np.concatenate([coefficients[: self.count], coefficients[self.count :][kept]])
        self.fit, self.rows = replace(fit, coefficients=coefficients, scores=fit.scores[kept]), rows[kept]

    def start(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The coefficients of the last fit, those of new ``rows`` being 0."""
        if self.fit is None or self.fit.coefficients is None:
            return None
        found = np.zeros(self.count + len(rows))
        found[: self.count] = self.fit.coefficients[: self.count]
        places = places_in(self.rows, rows)
        old = places >= 0
        found[self.count :][old] = self.fit.coefficients[self.count :][places[old]]
        return found


def places_in(known: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of ``rows`` stands in ``known``, both without repetition; -1 for one that does not."""
    order = np.argsort(known)
    places = np.searchsorted(known, rows, sorter=order)
    found = np.full(len(rows), -1, np.int64)
    inside = places < len(known)
    at = order[places[inside]]
    found[inside] = np.where(known[at] == rows[inside], at, -1)
    return found


class _Training:
    """The SVMs of all classes, their caches, and what has been measured on the way.

    ``cells_tell``: windows on the same cells have the same vector; not where each is warped, and has a map of its own.
    """

    def __init__(
        self,
        config: SvmConfig,
        data: TrainingData,
        positives: Positives,
        resources: Resources,
        clock: PhaseClock,
        cells_tell: bool,
    ) -> None:
        self._config = config
        self._data = data
        self._clock = clock
        self._resources = resources
        if not positives.dim:
            raise UsageError("train-svm: the training splits have no object to learn from")
        self._positives = positives
        self._dim = positives.dim
        self._problem = SvmProblem(config.C, config.positive_weight, config.bias)
        solver = DualSolver if config.solver == "gram" else LinearSvcSolver
        self._solver: SvmSolver = solver(tolerance=config.tolerance, seed=config.seed)
        self._most = self._solver.most_rows(config.fit_memory_mb * 10**6, self._dim)
        self._classes = [
            _Class(name=name, number=number, count=count)
            for number, name in enumerate(data.class_names)
            if (count := positives.count(number))
        ]
        self._check_memory()
        rules = NegativeRules(config.negative_overlap, config.negative_dedupe, config.once_per_cells and cells_tell)
        room = {one.number: self._most - one.count for one in self._classes}
        self._negatives = Negatives(data, rules, room, resources.store_memory * _SHARE_OF_STORE)
        self._scale = 1.0
        self._passes = 0
        self._notes: list[LedgerRow] = []

    def run(self, earlier: Progress | None, keep: Callable[[Progress], None]) -> None:
        """Train, round after round, and ``keep`` how far it is after each; from where ``earlier`` was."""
        done = (0, 0)
        found = 0
        if earlier is None:
            self._start()
            keep(self._progress(0, 0, 0))
            self._say(f"start: {self._described()}")
        else:
            self._restore(earlier)
            done, found = (earlier.pass_, earlier.round), earlier.found
            told = f"pass {earlier.pass_}, round {earlier.round}" if earlier.pass_ else "the first training"
            self._say(f"goes on after {told}: {self._described()}")
        groups = [self._data.shards[number :: self._config.rounds] for number in range(self._config.rounds)]
        rounds = [(number, group) for number, group in enumerate(groups, 1) if group]
        until_stable = self._config.passes == "until_stable"
        most = MOST_PASSES if until_stable else int(self._config.passes)
        for pass_ in range(max(1, done[0]), most + 1):
            found = found if pass_ == done[0] else 0
            for round_, group in rounds:
                if (pass_, round_) > done:
                    added = self._round(pass_, round_, group)
                    found += added
                    keep(self._progress(pass_, round_, found))
                    if added:
                        self._say(f"pass {pass_}, round {round_} of {len(groups)}: {self._described()}")
            self._passes = pass_
            if until_stable and not found:
                break
        else:
            if until_stable:
                text = f"not stable after {most} passes; svms says how many violators are left"
                self._say(f"note: {text}")
                self._notes.append(_note("", "NotStable", text))

    def _start(self) -> None:
        """Random negatives, the scale of the features, and the first training."""
        config = self._config
        with self._clock.phase("sample"):
            added = self._negatives.sample(config.start_negatives, config.seed)
            norms = [*self._positives.norms, *self._negatives.norms()]
        total = sum(count for _, count in norms)
        norm = sum(value * count for value, count in norms) / total
        if not 0 < norm < np.inf:
            raise RunFailed(f"train-svm: the mean norm of the features is {norm:g}; is the body trained?")
        self._scale = config.target_norm / norm
        self._train(added, 0, 0)

    def _round(self, pass_: int, round_: int, group: Sequence[TrainingShard]) -> int:
        """Hard negatives of a group of shards join, and the classes that got some are trained; how many joined."""
        trained = np.isin(np.arange(len(self._data.class_names)), [c.number for c in self._fitted()])
        with self._clock.phase("mine"):
            added = self._negatives.mine(
                group,
                self._scorer(),
                trained,
                join_above=self._config.join_above,
                max_per_image=self._config.max_per_image,
            )
        self._train(added, pass_, round_)
        return sum(added.values())

    def _progress(self, pass_: int, round_: int, found: int) -> Progress:
        fitted = self._fitted()
        rows = self._negatives.rows_of_any([one.number for one in fitted])
        image_ids, windows = self._negatives.windows_of(rows)
        classes = {}
        for one in fitted:
            assert one.fit is not None
            classes[one.name] = ClassProgress(
                members=np.searchsorted(rows, one.rows),
                fit=one.fit,
                left_out=self._negatives.left_out[one.number],
                history=one.history,
            )
        return Progress(
            pass_=pass_,
            round=round_,
            found=found,
            scale=self._scale,
            image_ids=image_ids,
            windows=windows,
            classes=classes,
        )

    def _restore(self, earlier: Progress) -> None:
        with self._clock.phase("restore"):
            saved = earlier.classes
            members = {one.number: saved[one.name].members for one in self._classes if one.name in saved}
            self._negatives.restore(earlier.image_ids, earlier.windows, members)
        self._scale = earlier.scale
        for one in self._classes:
            if one.name in saved:
                there = saved[one.name]
                one.fit, one.history = there.fit, there.history
                one.rows = self._negatives.rows_of(one.number)
                self._negatives.left_out[one.number] = there.left_out

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
                reason = "negatives" if self._positives.count(number) else "positives"
                text = f"class {name!r} has no {reason} in the training splits, so it has no SVM and is never detected"
                without.append(_note(name, "NoExamples", text))
                continue
            one = trained[name]
            assert one.fit is not None
            fit, violators = one.fit, int(audited.violators[number])
            if not fit.converged:
                far = "" if fit.gap is None else f", {fit.gap:.1e} from the minimum"
                text = f"class {name!r}: the solver stopped after {fit.iterations} iterations, not converged{far}"
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

    def _train(self, added: Mapping[int, int], pass_: int, round_: int) -> None:
        """Train the classes that got negatives, side by side, and let what has become easy leave their caches."""
        todo = [one for one in self._classes if added.get(one.number)]
        rows = {one.number: self._negatives.rows_of(one.number) for one in todo}
        with self._clock.phase("fit"):
            started = sorted(todo, key=lambda one: -one.count - len(rows[one.number]))  # the longest is not to be last
            refs = {one.number: self._fit(one, rows[one.number]) for one in started}
            found: list[ClassFit] = results("train-svm", [refs[one.number] for one in todo])
        for one, fit in zip(todo, found, strict=True):
            trained = rows[one.number]
            kept = fit.scores >= self._config.leave_below
            one.learned(fit, trained, kept)
            easy = trained[~kept]
            one.history.append(
                {
                    "pass": pass_,
                    "round": round_,
                    "positives": one.count,
                    "negatives": len(trained),
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
        stopped = [one.name for one, fit in zip(todo, found, strict=True) if not fit.converged]
        if stopped:
            self._say(f"note: the solver stopped before it converged for {len(stopped)} classes, such as {stopped[0]}")
        self._negatives.drop_unused()

    def _fit(self, one: _Class, rows: NDArray[np.int64]) -> ray.ObjectRef:
        """The fit of a class on its positives and these negatives."""
        count = one.count + len(rows)
        blocks = [*self._positives.vectors_of(one.number), *self._negatives.vectors_of(rows, one.count)]
        examples = Examples(one.count, count, self._dim, self._scale, blocks)
        task = as_task(fits.fit, memory=self._solver.bytes_needed(count, self._dim))
        ref: ray.ObjectRef = task.remote(self._solver, self._problem, examples, one.start(rows))
        return ref

    def _fitted(self) -> list[_Class]:
        return [one for one in self._classes if one.fit is not None]

    def _scorer(self) -> LinearScorer:
        weights = np.zeros((len(self._data.class_names), self._dim), np.float32)
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
        largest = max(one.count for one in self._classes)
        if self._most <= largest:
            enough = self._solver.bytes_needed(largest + config.start_negatives, self._dim)
            raise UsageError(
                f"svm.fit_memory_mb is {config.fit_memory_mb}: room for {self._most} examples of {self._dim} numbers, "
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
