"""The stages ``finetune`` and ``embed``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.record.stage import Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.make import ShardMaker
    from jobs.shards.survey import ShardedDataset, Survey


def _head(context: Context) -> Iterator[ShardedDataset]:
    from jobs.dataset.index import object_digests
    from jobs.head.method import head_method, planned_windows
    from jobs.shards.survey import one_shard

    config, record = context.config, context.record
    if config.finetunes:
        yield planned_windows(context)
    annotated = object_digests(context.index, config.dataset.train_splits)
    fine = config.finetune if config.finetunes else None
    workers, classes = config.execution.train_workers, context.index.class_names()
    method = head_method(config.head, fine, record, classes, annotated, workers)
    for name in ("training_curve", "head"):
        yield one_shard("finetune", name, method, context.train_images())


def _foresee(context: Context) -> Iterator[str]:
    from jobs.dataset.examples import to_learn_from, untrained

    counts = to_learn_from(context, "finetune") if context.config.finetunes else {}
    if context.config.detect.classifier == "softmax":
        yield from untrained(counts, "so they are never detected")


def _check_body(assignment: Assignment) -> None:
    from jobs.head.method import check_body

    check_body(assignment.context)


def _make(assignment: Assignment, planned: ShardedDataset) -> None:
    from jobs.head.driver import make_head, make_windows

    if planned.name == "training_windows":
        make_windows(assignment, planned)
    else:
        make_head(assignment, planned.method)


FINETUNE = Stage(
    name="finetune",
    summary="Train the head fc6, fc7, fc8 on windows of the training images.",
    datasets=("training_windows", "training_curve", "head"),
    planned=_head,
    images=Context.train_images,
    wanted=lambda config: config.needs_head,
    left_out=lambda config: () if config.finetunes else ("training_windows",),
    reads_images=lambda config: True,
    passing=lambda context, surveys: {"training_windows": None},  # those that are mirrored, of whatever is drawn
    check=_check_body,
    foresee=_foresee,
    make=_make,
)


def _embeddings(context: Context) -> Iterator[ShardedDataset]:
    from jobs.head.method import planned_embeddings

    yield from planned_embeddings(context)


def _embed(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    from jobs.head.embedding import makers_of

    return makers_of(assignment, surveys)


def _check_layer(assignment: Assignment) -> None:
    from jobs.errors import UsageError

    if assignment.context.config.svm.layer == "pool5":
        raise UsageError("svm.layer is pool5, of which there is nothing to embed; use fc6, fc7, ftfc6 or ftfc7")


EMBED = Stage(
    name="embed",
    summary="Store the outputs of a layer of the head (svm.layer).",
    datasets=("truth_embeddings", "embeddings"),
    planned=_embeddings,
    images=Context.train_images,
    wanted=lambda config: config.detect.classifier != "softmax" and config.svm.layer != "pool5",
    reads=lambda config: ("finetune",),
    check=_check_layer,
    makers=_embed,
)
