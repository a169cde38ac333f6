"""The stage ``detect``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.config.run_config import RunConfig
    from jobs.shards.make import ShardMaker
    from jobs.shards.survey import ShardedDataset, Survey


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.detect.method import planned_detections

    yield planned_detections(context)


def _makers(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    from jobs.detect.driver import maker_of

    return [maker_of(assignment, found) for found in surveys]


def _reads(config: RunConfig) -> tuple[str, ...]:
    models = ["finetune"] if config.needs_head else []
    models += ["train-svm"] if config.detect.classifier == "svm" else []
    return (*models, *(["train-bbox"] if config.detect.regress else []))


def _foresee(context: Context) -> Iterator[str]:
    from jobs.dataset.examples import undetected

    return undetected(context)


DETECT = Stage(
    name="detect",
    summary="The SVMs and box regressors on the proposals of the test splits.",
    datasets=("detections",),
    planned=_planned,
    images=Context.test_images,
    reads=_reads,
    reads_images=lambda config: config.detect.source == "stream",
    passing=lambda context, surveys: {"detections": None} if context.config.detect.source == "stream" else {},
    foresee=_foresee,
    makers=_makers,
)
