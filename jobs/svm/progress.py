"""How far train-svm has come: caches and SVMs after a round, as a checkpoint from which another driver goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.record.versions import PRODUCER
from jobs.svm.fits import ClassFit
from pipeline.detection.svm import as_two, sum_of_two
from storage.root import Root
from storage.tensors import Tensors, last_checkpoint, save_checkpoint

_EXACT = 2**24
"""Up to it float32 holds every whole number."""


@dataclass(kw_only=True)
class ClassProgress:
    """A class: which of the cached windows are its negatives, (n,), its last fit, and the history of its fits.

    The fit's coefficients are those of its positives and then of these negatives.
    """

    members: NDArray[np.int64]
    fit: ClassFit
    left_out: int
    history: list[dict[str, Any]]


@dataclass(kw_only=True)
class Progress:
    """After round ``round`` of pass ``pass_`` (0 and 0: after the first training), in which ``found`` negatives joined
    since the pass began.

    ``image_ids`` and ``windows`` (M,): the cached windows. ``classes``: class name to what is there of it (numbers are
    others when test images come to show another class, and the method is the same).
    """

    pass_: int
    round: int
    found: int
    scale: float
    image_ids: list[str]
    windows: NDArray[np.int64]
    classes: Mapping[str, ClassProgress]

    def save(self, root: Root, method: str) -> None:
        """Publish it; earlier ones but the last go."""
        ids = sorted(set(self.image_ids))
        numbers = {image_id: number for number, image_id in enumerate(ids)}
        tensors: dict[str, NDArray[np.float32]] = {
            "images": _exact(np.array([numbers[image_id] for image_id in self.image_ids], np.int64)),
            "windows": _exact(self.windows),
        }
        told: dict[str, Any] = {}
        for name, one in self.classes.items():
            fit = one.fit
            tensors[f"members {name}"] = _exact(one.members)
            tensors[f"weight {name}"] = fit.weight
            if fit.coefficients is not None:
                tensors[f"coefficients {name}"] = np.stack(as_two(fit.coefficients))
            told[name] = {
                "fit": {number: getattr(fit, number) for number in _NUMBERS},
                "left_out": one.left_out,
                "history": one.history,
            }
        progress = {"found": self.found, "scale": self.scale, "images": ids, "classes": told}
        save_checkpoint(root, method, self.pass_, self.round, tensors, progress, producer=PRODUCER)


_NUMBERS = sorted({field.name for field in fields(ClassFit)} - {"weight", "scores", "coefficients"})


def last_progress(root: Root, method: str) -> Progress | None:
    """What the newest checkpoint says; None without any."""
    found = last_checkpoint(root, method)
    if found is None:
        return None
    pass_, round_, tensors, progress = found
    ids = progress["images"]
    return Progress(
        pass_=pass_,
        round=round_,
        found=progress["found"],
        scale=progress["scale"],
        image_ids=[ids[number] for number in _whole(tensors["images"])],
        windows=_whole(tensors["windows"]),
        classes={name: _class(name, told, tensors) for name, told in progress["classes"].items()},
    )


def _class(name: str, told: Mapping[str, Any], tensors: Tensors) -> ClassProgress:
    coefficients = tensors.get(f"coefficients {name}")
    return ClassProgress(
        members=_whole(tensors[f"members {name}"]),
        fit=ClassFit(
            weight=tensors[f"weight {name}"],
            scores=np.zeros(0),
            coefficients=None if coefficients is None else sum_of_two(*coefficients),
            **told["fit"],
        ),
        left_out=told["left_out"],
        history=told["history"],
    )


def _exact(values: NDArray[np.int64]) -> NDArray[np.float32]:
    if len(values) and np.abs(values).max() > _EXACT:
        raise ValueError(f"a number of {np.abs(values).max()} cannot be kept in float32")
    return values.astype(np.float32)


def _whole(values: NDArray[np.float32]) -> NDArray[np.int64]:
    return values.astype(np.int64)
