"""Detection in one image: scores of all classes, suppression, box regression (paper 4.2; spp_test.m:72-117)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, area, clip
from pipeline.detection.box_regression import Regressor, decode
from pipeline.detection.nms import nms
from pipeline.detection.scoring import LinearScorer, Probabilities
from pipeline.network.head import Embedder
from pipeline.phases import PhaseClock


@dataclass(frozen=True)
class DetectionRules:
    """What of the scored windows is a detection; the defaults are the released code's.

    Per class: windows scored above ``score_above``; of those that overlap by more than ``nms_overlap`` the best; of
    these the best ``max_per_class``. Regressed boxes are suppressed once more (imdb_eval_voc.m:65).
    """

    score_above: float = -1.5
    nms_overlap: float = 0.3
    max_per_class: int = 100


@dataclass(frozen=True)
class Found:
    """Detections in one image: classes (N,), scores float32 (N,), boxes float32 (N, 4). By class, best score first."""

    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: Boxes


class Detector:
    """SVMs and box regressors of K classes, applied to the windows of an image.

    Parameters
    ----------
    scorer : the SVMs' scores, K of them; or what makes scores of the head's probabilities.
    regressors : class number to its regressor; boxes of other classes stay as proposed.
    regression_scale : what features are multiplied by for the regressors.
    embedder : what makes of a pooled vector that which is scored; None: it is scored itself. Boxes are always regressed
        from pooled vectors.
    """

    def __init__(
        self,
        scorer: LinearScorer | Probabilities,
        regressors: Mapping[int, Regressor],
        regression_scale: float,
        rules: DetectionRules,
        embedder: Embedder | None = None,
    ) -> None:
        self._scorer = scorer
        self._embedder = embedder
        self._rules = rules
        self._regressors = regressors
        self._columns = {number: slice(4 * i, 4 * i + 4) for i, number in enumerate(regressors)}
        self._offsets: LinearScorer | None = None
        if regressors:
            weights = np.concatenate([one.weights for one in regressors.values()])
            biases = np.concatenate([one.bias for one in regressors.values()])
            self._offsets = LinearScorer(weights, biases, regression_scale)

    def __call__(
        self,
        boxes: Boxes,
        parts: Sequence[NDArray[np.float16]],
        height: int,
        width: int,
        clock: PhaseClock | None = None,
    ) -> Found:
        """Detect among proposals (N, 4) whose vectors are ``parts``, one after another, in an image of this size.

        ``clock`` counts the seconds of the phases ``fc``, ``svm``, ``nms`` and ``bbox``.
        """
        clock = clock or PhaseClock()
        none = np.zeros((0, self._scorer.classes), np.float32)
        scores = np.concatenate([none, *(self._scores(part, clock) for part in parts)])
        with clock.phase("nms"):
            kept = {number: self._best(boxes, scores[:, number]) for number in range(scores.shape[1])}
        with clock.phase("bbox"):
            whitened, place = self._regressed(parts, kept)
            return self._found(boxes, scores, kept, whitened, place, (height, width))

    def _scores(self, vectors: NDArray[np.float16], clock: PhaseClock) -> NDArray[np.float32]:
        if self._embedder is None:
            with clock.phase("svm"):
                return self._scorer(vectors)
        with clock.phase("fc"):
            outputs = self._embedder(vectors)
        with clock.phase("svm"):
            return self._scorer(outputs)

    def _found(
        self,
        boxes: Boxes,
        scores: NDArray[np.float32],
        kept: Mapping[int, NDArray[np.int64]],
        whitened: NDArray[np.float32],
        place: NDArray[np.intp],
        height_width: tuple[int, int],
    ) -> Found:
        """The kept windows of every class; where it has a regressor, moved and suppressed once more."""
        classes, values, found = [], [], []
        for number, rows in kept.items():
            mine, own = scores[rows, number], boxes[rows]
            if number in self._columns and len(rows):
                offsets = whitened[place[rows], self._columns[number]].astype(np.float64)
                own = clip(decode(own, self._regressors[number].unwhiten(offsets)), *height_width)
                inside = np.flatnonzero(area(own) > 0)  # one that was moved out of the image shows nothing
                again = inside[nms(own[inside], mine[inside], self._rules.nms_overlap)]
                mine, own = mine[again], own[again]
            classes.append(np.full(len(mine), number, np.int64))
            values.append(mine)
            found.append(own)
        if not classes:
            return Found(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
        return Found(np.concatenate(classes), np.concatenate(values), np.concatenate(found))

    def _best(self, boxes: Boxes, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Rows of a class's detections before regression, best score first."""
        rows = np.flatnonzero(scores > self._rules.score_above)
        return rows[nms(boxes[rows], scores[rows], self._rules.nms_overlap)[: self._rules.max_per_class]]

    def _regressed(
        self, parts: Sequence[NDArray[np.float16]], kept: Mapping[int, NDArray[np.int64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Whitened offsets of all windows that some class keeps, for all classes; and the row of each window there."""
        count = sum(map(len, parts))
        place = np.full(count, -1, np.intp)
        if self._offsets is None:
            return np.zeros((0, 0), np.float32), place
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(kept[number] for number in self._columns)]))
        place[rows] = np.arange(len(rows))
        starts = np.cumsum([0, *map(len, parts)])
        pieces = [
            self._offsets(part[rows[(rows >= first) & (rows < first + len(part))] - first])
            for part, first in zip(parts, starts, strict=False)
        ]
        none = np.zeros((0, self._offsets.classes), np.float32)
        return np.concatenate([none, *pieces]), place
