"""What the shard loop is given: the work of every dataset, and the crews that do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from jobs.dataset.index import Index
from jobs.execution.session import RaySession
from jobs.features.body import LoadedBody
from jobs.features.crew import actor_crew
from jobs.features.method import file_metadata, vector_length
from jobs.features.pooling import MaterialiseShard, materialise_shard
from jobs.features.shard import ExtractShard
from jobs.proposals.box_file import given_boxes
from jobs.proposals.stored import image_files
from jobs.proposals.task import ProposeShard, propose_shard
from jobs.record.invocation import Invocation
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import Trial
from jobs.shards.crews import Crew, TaskCrew
from jobs.shards.loop import Work
from jobs.shards.survey import Survey
from storage.commits import CommitName, winners
from storage.shards import Shard

CREWS = ("propose", "materialise", "extract")
"""The crews, in the order in which they are served. ``materialise`` makes vectors of stored conv maps."""


def works_of(invocation: Invocation, index: Index, body: LoadedBody | None, found: Survey) -> Iterator[Work]:
    """The work of one dataset."""
    config, dataset, root = invocation.config, found.dataset, invocation.root
    if not found.todo:
        return
    files = image_files(index)
    given = None
    if dataset.name == "proposals" and config.proposals.method == "file":
        given = given_boxes(config.proposals, config.dataset.storage_options, list(files.values()))
    described = file_metadata(config.features, body, dataset.method, PRODUCER) if body else {}
    dim = vector_length(config.features, body.identity) if body else 0
    object_ids = index.objects["image_id"].to_numpy(zero_copy_only=False)
    companions = winners(root, dataset.companion, dataset.method) if dataset.companion else {}
    stored = {
        name: winners(root, name, dataset.method) if dataset.name == "features" else {} for name in ("windows", "maps")
    }

    def make(
        shard: Shard, revision: int, from_maps: bool, proposals: CommitName | None, trial: Trial
    ) -> ProposeShard | ExtractShard | MaterialiseShard:
        images = tuple(files[image_id] for image_id in shard.image_ids)
        if dataset.name == "proposals":
            options = config.dataset.storage_options
            boxes = None if given is None else {i: given[i] for i in shard.image_ids if i in given}
            return ProposeShard(
                root, dataset.method, shard.key, revision, images, options, config.proposals, PRODUCER, trial, boxes
            )
        objects = None
        if dataset.name == "truth_features":
            objects = _objects_of(index.objects, object_ids, shard.image_ids)
        work = ExtractShard(
            dataset=dataset.name,  # type: ignore[arg-type]
            method=dataset.method,
            shard=shard.key,
            revision=revision,
            images=images,
            metadata=described,
            proposals=proposals,
            proposals_method=dataset.upstream.method if dataset.upstream else "",
            objects=objects,
            windows=stored["windows"].get(shard.key),
            maps=stored["maps"].get(shard.key),
            dim=dim,
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


def crews_of(
    invocation: Invocation, session: RaySession, body: LoadedBody | None, stages: Sequence[str]
) -> dict[str, Crew]:
    """Who does the work of ``stages`` (some of ``CREWS``): CPU tasks propose and materialise, actors extract."""
    crews: dict[str, Crew] = {}
    if "propose" in stages:
        crews["propose"] = TaskCrew(propose_shard, session.cores)
    if "materialise" in stages:
        crews["materialise"] = TaskCrew(materialise_shard, session.cores)
    if "extract" in stages:
        from jobs.features.actor import FeatureActor

        assert body is not None
        crews["extract"] = actor_crew(invocation, session, body, FeatureActor, "extract")
    return crews
