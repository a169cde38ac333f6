"""What a stage is: one record, which ``run``, ``plan``, ``status`` and the command line walk.

The records are in ``jobs/<room>/stage.py``, their list in ``jobs.run.stages``. Both are light: ``spp --help`` reads
them, so whatever it takes to name, cut or make something is imported where it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.config.run_config import RunConfig
    from jobs.dataset.index import Index
    from jobs.execution.session import RaySession
    from jobs.record.invocation import Invocation
    from jobs.shards.make import ShardMaker
    from jobs.shards.survey import ShardedDataset, Survey
    from storage.root import Root
    from storage.runs import DatasetRecord, RunRecord

WHOLE_IMAGE_STAGES = {
    "pretrain": ("network", "pretraining_curve"),
    "classify": ("image_features", "image_scores", "classification"),
}
"""Commands of their own and what they make, which no stage of a run reads."""

FEATURE_STORES = ("maps", "windows", "features")
"""Ways to store features: vectors, or conv maps with the windows on them."""


@dataclass(frozen=True)
class Context:
    """What the names of a stage's results hang on.

    ``record`` has the datasets of the stages before it as far as they are complete, ``sharded`` how they were cut.
    """

    config: RunConfig
    root: Root
    index: Index
    record: RunRecord
    sharded: dict[str, ShardedDataset] = field(default_factory=dict)

    def train_images(self) -> list[str]:
        """Ids of the training images, sorted."""
        return self.index.images_in(self.config.dataset.train_splits)

    def test_images(self) -> list[str]:
        """Ids of the test images, sorted."""
        return self.index.images_in(self.config.dataset.test_splits)


@dataclass(frozen=True)
class Assignment:
    """What the maker of a stage is given. ``retry``: shards in which an image failed are made again."""

    invocation: Invocation
    context: Context
    session: RaySession
    retry: bool = False

    @property
    def record(self) -> RunRecord:
        """The run's record."""
        return self.context.record

    @property
    def index(self) -> Index:
        """The run's index."""
        return self.context.index


def _all_images(context: Context) -> list[str]:
    return sorted(context.index.digests())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run. The functions may raise StorageError, naming the dataset, for what is not there yet.

    Either ``makers`` says how the shards of its datasets are made, or ``make`` makes one dataset after another.
    """

    name: str
    """The verb of the command line."""
    summary: str
    """Its line in the help."""
    datasets: tuple[str, ...]
    """All that it may make, its result last."""
    planned: Callable[[Context], Iterator[ShardedDataset]]
    """Its datasets, as they are to be, in the order in which they are made. Before it is asked for the next one the
    record of ``Context`` has the last one, if that is complete."""
    images: Callable[[Context], list[str]] = _all_images
    """Those that it looks at."""
    wanted: Callable[[RunConfig], bool] = lambda config: True
    """Whether a run goes through it, without being asked to."""
    reads: Callable[[RunConfig], tuple[str, ...]] = lambda config: ()
    """The stages after extraction whose results it reads."""
    reads_images: Callable[[RunConfig], bool] = lambda config: False
    """Whether its workers open the data set's images."""
    left_out: Callable[[RunConfig], tuple[str, ...]] = lambda config: ()
    """Those of ``datasets`` that a run does not make."""
    recorded: Callable[[Context], Iterator[ShardedDataset]] | None = None
    """Its datasets as the run's record has them, which takes neither weights nor images; None: as ``planned``."""
    feeds_next: bool = False
    """The next stage reads its shards as they come, so one loop makes both."""
    check: Callable[[Assignment], None] = lambda assignment: None
    """Raises UsageError if it cannot be done, before it is looked up whether it is done."""
    foresee: Callable[[Context], Iterator[str]] = lambda context: iter(())
    """What the index alone tells of it, before anything is made: notes. UsageError if nothing would come of it."""
    passing: Callable[[Context, Mapping[str, Survey]], Mapping[str, int | None]] = lambda context, surveys: {}
    """Dataset to how many images would pass the body for it, of those whose shards are to be made; None: who knows."""
    makers: Callable[[Assignment, Sequence[Survey]], list[ShardMaker]] | None = None
    make: Callable[[Assignment, ShardedDataset], None] | None = None
    """Commits one of its ``planned`` datasets that is not there yet, or not all of it."""
    measure: Callable[[Assignment, DatasetRecord | None], None] | None = None
    """Writes into the record what is to be said of its result; given what an earlier command of the run said."""
