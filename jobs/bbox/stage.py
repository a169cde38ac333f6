"""The stage ``train-bbox``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.survey import ShardedDataset


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.bbox.method import bbox_method
    from jobs.shards.survey import one_shard

    images = context.train_images()
    yield one_shard("train-bbox", "regressors", bbox_method(context.config.bbox, context.record, images), images)


def _make(assignment: Assignment, planned: ShardedDataset) -> None:
    from jobs.bbox.driver import train_regressors

    train_regressors(assignment, planned.method)


def _foresee(context: Context) -> Iterator[str]:
    from jobs.dataset.examples import to_learn_from

    to_learn_from(context, "train-bbox", context.config.bbox.difficult_positive, "bbox.difficult_positive")
    return iter(())  # of classes without positives the stage before it tells


TRAIN_BBOX = Stage(
    name="train-bbox",
    summary="One box regressor per class.",
    datasets=("regressors",),
    planned=_planned,
    images=Context.train_images,
    foresee=_foresee,
    make=_make,
)
