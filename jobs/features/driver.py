"""The driver of extract: what actors, and the tasks that pool stored maps, are given of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from jobs.config.features import FeaturesConfig
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from jobs.features.body import LoadedBody, load_body
from jobs.features.crew import actor_crew
from jobs.features.method import file_metadata, truth_method, vector_length
from jobs.features.pooling import MaterialiseShard, materialise_shard
from jobs.features.shard import ExtractShard
from jobs.record.stage import Assignment
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import Trial
from jobs.shards.crews import ActorCrew, Crew, TaskCrew
from jobs.shards.loop import Work
from jobs.shards.make import ShardMaker
from jobs.shards.survey import ShardedDataset, Survey
from storage.commits import CommitName, winners
from storage.shards import Shard


def makers_of(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    """How the missing shards are made: by actors that hold the body, or from stored conv maps by tasks."""
    if all(found.complete for found in surveys):
        return []
    config = assignment.context.config.features
    body = load_body(config)
    (truth,) = (found.dataset for found in surveys if found.dataset.name == "truth_features")
    check_unchanged(config, body, truth, assignment.record.datasets["images"].method)

    def actors() -> ActorCrew:
        from jobs.features.actor import FeatureActor

        return actor_crew(assignment.invocation, assignment.session, body, FeatureActor, "extract")

    crews: dict[str, Callable[[], Crew]] = {
        "materialise": lambda: TaskCrew(materialise_shard, assignment.session.cores),
        "extract": actors,
    }
    return [ShardMaker(found, partial(works_of, assignment, body), crews) for found in surveys]


def check_unchanged(config: FeaturesConfig, body: LoadedBody, truth: ShardedDataset, images: str) -> None:
    """UsageError unless ``body`` is what ``truth`` (``truth_features``, of the method ``images``) was named after.

    Methods are named by what is known of the weights' file (``jobs.features.known_bodies``), without reading it.
    """
    if (truth_method(config, body.digest, images), body.classifier) != (truth.method, truth.classifier):
        raise UsageError(
            f"features.weights: the weights {config.weights!r} have changed since this command looked at them; run it "
            f"again"
        )


def works_of(assignment: Assignment, body: LoadedBody, found: Survey) -> Iterator[Work]:
    """The work on each missing shard of one dataset, each to begin when the proposals that it reads are there."""
    config, root, dataset = assignment.context.config, assignment.context.root, found.dataset
    files, objects = image_files(assignment.index), assignment.index.objects
    object_ids = objects["image_id"].to_numpy(zero_copy_only=False)
    described = file_metadata(config.features, body, dataset.method, PRODUCER)
    companions = winners(root, dataset.companion, dataset.method) if dataset.companion else {}
    stored = {
        name: winners(root, name, dataset.method) if dataset.name == "features" else {} for name in ("windows", "maps")
    }

    def make(
        shard: Shard, revision: int, from_maps: bool, proposals: CommitName | None, trial: Trial
    ) -> ExtractShard | MaterialiseShard:
        work = ExtractShard(
            dataset=dataset.name,  # type: ignore[arg-type]
            method=dataset.method,
            shard=shard.key,
            revision=revision,
            images=tuple(files[image_id] for image_id in shard.image_ids),
            metadata=described,
            proposals=proposals,
            proposals_method=dataset.upstream.method if dataset.upstream else "",
            objects=_objects_of(objects, object_ids, shard.image_ids) if dataset.name == "truth_features" else None,
            windows=stored["windows"].get(shard.key),
            maps=stored["maps"].get(shard.key),
            dim=vector_length(config.features, body.identity),
            trial=trial,
        )
        return MaterialiseShard(root, work, PRODUCER) if from_maps else work

    for shard, revision in found.todo:
        source = dataset.source(shard)
        needs = (dataset.upstream.name, source) if dataset.upstream and source else None
        from_maps = revision == 0 and shard.key in stored["windows"]
        earlier = {}
        if shard.key in found.earlier:
            earlier[dataset.name] = found.earlier[shard.key]
            if dataset.companion:
                earlier[dataset.companion] = companions[shard.key]
        yield Work(
            stage="materialise" if from_maps else dataset.stage,
            dataset=dataset.name,
            shard=shard.key,
            image_ids=shard.image_ids,
            make=partial(make, shard, revision, from_maps),
            needs=None if from_maps else needs,
            trial=Trial(earlier=earlier),
        )


def _objects_of(objects: pa.Table, ids: np.ndarray, image_ids: Sequence[str]) -> pa.Table:
    """The rows of some images; ``objects`` is sorted by image."""
    pieces = [
        objects.slice(int(first), int(np.searchsorted(ids, i, side="right") - first))
        for i in image_ids
        for first in [np.searchsorted(ids, i, side="left")]
    ]
    return pa.concat_tables(pieces).combine_chunks()
