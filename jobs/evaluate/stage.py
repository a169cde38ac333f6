"""The stage ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.survey import ShardedDataset
    from storage.runs import DatasetRecord


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.evaluate.method import evaluate_method
    from jobs.shards.survey import one_shard

    objects = context.index.objects_in(context.config.dataset.test_splits)
    method = evaluate_method(context.config.evaluate, context.record, objects)
    yield one_shard("evaluate", "metrics", method, context.test_images())


def _foresee(context: Context) -> Iterator[str]:
    from jobs.dataset.examples import unmeasured

    return unmeasured(context)


def _make(assignment: Assignment, planned: ShardedDataset) -> None:
    from jobs.evaluate.driver import evaluate

    evaluate(assignment, planned.method)


def _measure(assignment: Assignment, earlier: DatasetRecord | None) -> None:
    from jobs.evaluate.driver import read_metrics, summary
    from storage.quality import MetricsQuality

    entry = assignment.record.datasets["metrics"]
    if not isinstance(entry.quality, MetricsQuality):
        entry.quality = summary(read_metrics(assignment.context.root, entry))


EVALUATE = Stage(
    name="evaluate",
    summary="VOC average precision per class: of the run's detections, or of result files.",
    datasets=("metrics",),
    planned=_planned,
    images=Context.test_images,
    reads=lambda config: ("detect",),
    foresee=_foresee,
    make=_make,
    measure=_measure,
)
