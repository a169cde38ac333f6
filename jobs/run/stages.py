"""The list of stages, in order. A new one is a folder of its own and a line here.

Light: ``spp --help`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.bbox.stage import TRAIN_BBOX
from jobs.dataset.stage import INDEX
from jobs.detect.stage import DETECT
from jobs.errors import UsageError
from jobs.evaluate.stage import EVALUATE
from jobs.features.stage import EXTRACT
from jobs.head.stage import EMBED, FINETUNE
from jobs.proposals.stage import PROPOSE
from jobs.record.stage import WHOLE_IMAGE_STAGES, Context, Stage
from jobs.svm.stage import TRAIN_SVM

if TYPE_CHECKING:
    from jobs.config.run_config import RunConfig
    from jobs.shards.survey import ShardedDataset

STAGES: list[Stage] = [
    INDEX,
    PROPOSE,
    EXTRACT,
    FINETUNE,
    EMBED,
    TRAIN_SVM,
    TRAIN_BBOX,
    DETECT,
    EVALUATE,
]
"""Every stage, in order; ``run_stages`` of them a run goes through."""


def stage_names() -> list[str]:
    """The stages' names, in order."""
    return [stage.name for stage in STAGES]


def run_stages(config: RunConfig, until: str | None = None) -> tuple[str, ...]:
    """Names of the stages that a run of ``config`` goes through up to ``until``: those whose results it asks for."""
    names = stage_names()
    last = len(names) if until is None else names.index(until) + 1
    return tuple(stage.name for stage in STAGES[:last] if stage.name == until or stage.wanted(config))


def foreseen(names: Sequence[str], context: Context) -> Iterator[str]:
    """What the index tells of stages before anything is made: notes. UsageError if nothing would come of one."""
    for stage in STAGES:
        if stage.name in names:
            yield from (f"{stage.name}: {note}" for note in stage.foresee(context))


def stages_until(config: RunConfig, last: str | None) -> tuple[str, ...]:
    """The stages of a run up to --until ``last``, or to its end. UsageError if there is no such stage."""
    if last is not None and last not in stage_names():
        raise UsageError(f"--until {last!r}: the stages are {', '.join(stage_names())}")
    return run_stages(config, last)


def verb_that_makes(dataset: str) -> str | None:
    """The verb of the command line that makes a dataset; None if none does."""
    made = {**{stage.name: stage.datasets for stage in STAGES}, **WHOLE_IMAGE_STAGES}
    return next((verb for verb, datasets in made.items() if dataset in datasets), None)


def recorded_datasets(context: Context) -> Iterator[ShardedDataset]:
    """Features and what they are made from as the run's record has them, which takes neither weights nor images.

    Each is among ``context.sharded`` before the next is asked for.
    """
    for stage in STAGES:
        for dataset in stage.recorded(context) if stage.recorded is not None else ():
            context.sharded[dataset.name] = dataset
            yield dataset


def method_today(stage: Stage, context: Context, name: str) -> str | None:
    """The method id that a dataset of ``stage`` has after what is in the record of ``context``; None if it has none.

    StorageError, naming the dataset, if something upstream is not complete.
    """
    return next((dataset.method for dataset in stage.planned(context) if dataset.name == name), None)
