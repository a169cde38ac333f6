"""The stage ``train-svm``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.survey import ShardedDataset


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.shards.survey import one_shard
    from jobs.svm.method import svm_method

    images = context.train_images()
    yield one_shard("train-svm", "svms", svm_method(context.config.svm, context.record, images), images)


def _make(assignment: Assignment, planned: ShardedDataset) -> None:
    from jobs.svm.driver import train_svms

    train_svms(assignment, planned.method)


def _foresee(context: Context) -> Iterator[str]:
    from jobs.dataset.examples import to_learn_from, untrained

    taken = context.config.svm.difficult_positive
    counts = to_learn_from(context, "train-svm", taken, "svm.difficult_positive")
    yield from untrained(counts, "so they have no SVM and are never detected")


TRAIN_SVM = Stage(
    name="train-svm",
    summary="One linear SVM per class, with hard negatives.",
    datasets=("svms",),
    planned=_planned,
    images=Context.train_images,
    wanted=lambda config: config.detect.classifier != "softmax",
    reads=lambda config: () if config.svm.layer == "pool5" else ("embed",),
    foresee=_foresee,
    make=_make,
)
