"""The driver of extract: what actors, and the tasks that pool stored maps, are given of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from jobs.config.features import FeaturesConfig
from jobs.dataset.index import object_digests
from jobs.dataset.objects import objects_of
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from jobs.features.body import LoadedBody, load_body
from jobs.features.crew import actor_crew
from jobs.features.drawing import DrawnParts, parts_method
from jobs.features.method import file_metadata, truth_method, vector_length
from jobs.features.passes import Passes, is_from_maps
from jobs.features.pooling import MaterialiseShard, materialise_shard
from jobs.features.shard import ExtractShard, StoredMaps, TruthPart
from jobs.features.truth import gather_truth
from jobs.record.stage import Assignment
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import Trial
from jobs.shards.crews import ActorCrew, Crew, TaskCrew
from jobs.shards.loop import Work
from jobs.shards.make import ShardMaker
from jobs.shards.survey import ShardedDataset, Survey
from pipeline.boxes import Boxes
from pipeline.errors import ImageError
from pipeline.spp.windows import choose_scales, fitting_scales
from storage.columns import boxes_of
from storage.commits import CommitName, winners
from storage.shards import Shard, shards

if TYPE_CHECKING:
    from pipeline.bodies import BodySpec


def makers_of(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    """How the missing shards are made: by actors that hold the body, or from stored conv maps by tasks."""
    if all(found.complete for found in surveys):
        return []
    config, root = assignment.context.config.features, assignment.context.root
    body = load_body(config)
    (truth,) = (found.dataset for found in surveys if found.dataset.name == "truth_features")
    check_unchanged(config, body, truth, assignment.record.datasets["images"].method)

    def actors() -> ActorCrew:
        from jobs.features.actor import FeatureActor

        return actor_crew(assignment.invocation, assignment.session, body, FeatureActor, "extract")

    crews: dict[str, Callable[[], Crew]] = {
        "materialise": lambda: TaskCrew(materialise_shard, assignment.session.cores),
        "gather": lambda: TaskCrew(gather_truth, assignment.session.cores, root, PRODUCER),
        "extract": actors,
    }
    (pooled,) = (found for found in surveys if found.dataset.name != "truth_features")
    (truths,) = (found for found in surveys if found.dataset.name == "truth_features")
    passes = Passes.of(root, config, pooled, truths)
    return [
        ShardMaker(pooled, partial(works_of, assignment, body, passes), crews),
        ShardMaker(truths, partial(truth_works_of, assignment, body, passes), crews),
    ]


def check_unchanged(config: FeaturesConfig, body: LoadedBody, truth: ShardedDataset, images: str) -> None:
    """UsageError unless ``body`` is what ``truth`` (``truth_features``, of the method ``images``) was named after.

    Methods are named by what is known of the weights' file (``jobs.features.known_bodies``), without reading it.
    """
    if (truth_method(config, body.digest, images), body.classifier) != (truth.method, truth.classifier):
        raise UsageError(
            f"features.weights: the weights {config.weights!r} have changed since this command looked at them; run it "
            f"again"
        )


def works_of(assignment: Assignment, body: LoadedBody, passes: Passes, found: Survey) -> Iterator[Work]:
    """The work on each missing shard of features or windows, to begin when the proposals that it reads are there."""
    config, root, dataset = assignment.context.config, assignment.context.root, found.dataset
    files, objects = image_files(assignment.index), _Objects(assignment.index.objects)
    described = file_metadata(config.features, body, dataset.method, PRODUCER)
    truth_described = file_metadata(config.features, body, passes.truth_method, PRODUCER)
    drawn = drawn_parts(assignment, passes)
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
            windows=stored["windows"].get(shard.key),
            maps=stored["maps"].get(shard.key),
            dim=vector_length(config.features, body.identity),
            truth=tuple(
                TruthPart(
                    method=passes.truth_method, shard=key, metadata=truth_described, objects=objects.of(image_ids)
                )
                for key, image_ids in passes.beside(shard).items()
            ),
            drawn=drawn.of(shard.image_ids) if drawn is not None else None,
            trial=trial,
        )
        return MaterialiseShard(root, work, PRODUCER) if from_maps else work

    for shard, revision in found.todo:
        source = dataset.source(shard)
        needs = (dataset.upstream.name, source) if dataset.upstream and source else None
        from_maps = is_from_maps(found, shard, revision, stored["windows"])
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


def drawn_parts(assignment: Assignment, passes: Passes) -> DrawnParts | None:
    """What is pooled of the windows that a head will be trained on; None where none will be, or all will be stored."""
    context, index = assignment.context, assignment.index
    config = context.config
    if not (config.needs_head and config.finetunes) or config.features.source == "warp":
        return None
    if len(config.features.scales) == 1:  # at which all of an image is pooled
        return None
    assert passes.features.upstream is not None
    annotated = object_digests(index, config.dataset.train_splits)
    vector_bytes = passes.features.bytes_per_image // config.proposals.max_per_image
    cut = shards(annotated, vector_bytes * config.finetune.windows_per_image)
    return DrawnParts(
        config.finetune,
        parts_method(config.finetune, passes.features.upstream.method, passes.truth_method),
        {image_id: shard.key for shard in cut for image_id in shard.image_ids},
        objects_of(index, annotated, index.class_names()),
    )


def truth_works_of(assignment: Assignment, body: LoadedBody, passes: Passes, found: Survey) -> Iterator[Work]:
    """The work on each missing shard of ``truth_features``.

    It begins when the features of its images are there, and with them the part of it that was made beside each. What
    has stored maps, or parts of an earlier command, needs no body (if all has); what has neither passes it here.
    """
    config, dataset = assignment.context.config, found.dataset
    files, objects = image_files(assignment.index), _Objects(assignment.index.objects)
    described = file_metadata(config.features, body, dataset.method, PRODUCER)
    annotated = frozenset(assignment.index.objects["image_id"].to_pylist())

    def pooled(image_id: str) -> StoredMaps | None:
        boxes = boxes_of(objects.of([image_id])["box"])
        return stored_maps(config.features, body.spec, passes.stored[image_id], boxes, files[image_id].height_width)

    def make(shard: Shard, revision: int, _: CommitName | None, trial: Trial) -> ExtractShard:
        there = {i: pooled(i) for i in shard.image_ids if i in passes.stored}
        return ExtractShard(
            dataset="truth_features",
            method=dataset.method,
            shard=shard.key,
            revision=revision,
            images=tuple(files[image_id] for image_id in shard.image_ids),
            metadata=described,
            objects=objects.of(shard.image_ids),
            dim=vector_length(config.features, body.identity),
            pooled={image_id: maps for image_id, maps in there.items() if maps is not None},
            trial=trial,
        )

    for shard, revision in found.todo:
        made = {passes.made[image_id]: None for image_id in shard.image_ids if image_id in passes.made}
        gathered = not made and not passes.alone(shard, annotated)
        yield Work(
            stage="gather" if gathered else dataset.stage,
            dataset=dataset.name,
            shard=shard.key,
            image_ids=shard.image_ids,
            make=partial(make, shard, revision),
            after=tuple((passes.features.name, key) for key in made),
            otherwise=dataset.stage if gathered else None,
            trial=Trial(earlier={dataset.name: found.earlier[shard.key]} if shard.key in found.earlier else {}),
        )


def stored_maps(
    config: FeaturesConfig, spec: BodySpec, key: str, boxes: Boxes, height_width: tuple[int, int]
) -> StoredMaps | None:
    """What is to be pooled from the stored maps of an image; None for one that is too long and thin for any."""
    from pipeline.features.regions import windows_at

    scales = choose_scales(
        boxes,
        *height_width,
        fitting_scales(*height_width, config.scales, config.max_scaled_pixels),
        config.scale_rule,
    )
    try:
        return StoredMaps(key, scales, windows_at(spec, boxes, *height_width, scales, config.mapping))
    except ImageError:
        return None


class _Objects:
    """The rows of ``objects`` (sorted by image), image by image."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self._ids = rows["image_id"].to_numpy(zero_copy_only=False)

    def of(self, image_ids: Sequence[str]) -> pa.Table:
        """The rows of some images."""
        pieces = [self._rows.slice(*self._place(image_id)) for image_id in image_ids]
        return pa.concat_tables(pieces).combine_chunks()

    def _place(self, image_id: str) -> tuple[int, int]:
        first = np.searchsorted(self._ids, image_id, side="left")
        return int(first), int(np.searchsorted(self._ids, image_id, side="right") - first)
