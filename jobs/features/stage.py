"""The stage ``extract``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.record.stage import FEATURE_STORES, Assignment, Context, Stage

if TYPE_CHECKING:
    from jobs.shards.make import ShardMaker
    from jobs.shards.survey import ShardedDataset, Survey


def _truth(context: Context, method: str, bytes_per_image: int, classifier: str) -> ShardedDataset:
    from jobs.dataset.index import object_digests
    from jobs.shards.survey import ShardedDataset
    from storage.shards import shards

    digests = object_digests(context.index, context.config.dataset.train_splits)
    return ShardedDataset(
        stage="extract",
        name="truth_features",
        method=method,
        cut=lambda: list(shards(digests, bytes_per_image)),
        bytes_per_image=bytes_per_image,
        classifier=classifier,
    )


def _features(
    context: Context, name: str, method: str, bytes_per_image: int, proposals: ShardedDataset, partial: bool
) -> ShardedDataset:
    from jobs.shards.survey import ShardedDataset
    from storage.shards import shards

    digests: Mapping[str, str] = context.index.digests()
    only = context.train_images() if partial else None
    return ShardedDataset(
        stage="extract",
        name=name,
        method=method,
        cut=lambda: list(shards(digests, bytes_per_image, only)),
        bytes_per_image=bytes_per_image,
        upstream=proposals,
        companion="maps" if name == "windows" else None,
        partial=partial,
    )


def _planned(context: Context) -> Iterator[ShardedDataset]:
    from jobs.features.body import identify_body
    from jobs.features.method import TRUTH_BOXES_PER_IMAGE, features_method, truth_method, vector_length

    config, proposals = context.config, context.sharded["proposals"]
    body = identify_body(config.features)
    vector_bytes = 2 * vector_length(config.features, body)
    images = context.record.datasets["images"].method
    yield _features(
        context,
        "windows" if config.features.store == "maps" else "features",
        features_method(config.features, body.digest, proposals.method),
        config.proposals.max_per_image * vector_bytes,
        proposals,
        # those of the test splits may pass by unstored
        partial=config.detect.source == "stream",
    )
    # after the features, from whose maps they are pooled
    method = truth_method(config.features, body.digest, images)
    yield _truth(context, method, TRUTH_BOXES_PER_IMAGE * vector_bytes, body.classifier)


def _recorded(context: Context) -> Iterator[ShardedDataset]:
    datasets, proposals = context.record.datasets, context.sharded.get("proposals")
    for name in ("windows", "features"):
        if name in datasets and proposals is not None:
            entry = datasets[name]
            yield _features(context, name, entry.method, entry.bytes_per_image, proposals, entry.partial)
    if "truth_features" in datasets:
        entry = datasets["truth_features"]
        yield _truth(context, entry.method, entry.bytes_per_image, entry.classifier)


def _makers(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    from jobs.features.driver import makers_of

    return makers_of(assignment, surveys)


def _passing(context: Context, surveys: Mapping[str, Survey]) -> dict[str, int]:
    from jobs.features.passes import Passes, is_from_maps
    from storage.commits import winners

    if len(surveys) < 2:
        return {}
    pooled, truths = surveys.values()
    passes = Passes.of(context.root, context.config.features, pooled, truths)
    annotated = frozenset(context.index.objects["image_id"].to_pylist())
    windows = winners(context.root, "windows", pooled.dataset.method)
    made = (s for s, revision in pooled.todo if not is_from_maps(pooled, s, revision, windows))
    return {
        pooled.dataset.name: sum(len(shard.image_ids) for shard in made),
        "truth_features": sum(len(passes.alone(shard, annotated)) for shard, _ in truths.todo),
    }


EXTRACT = Stage(
    name="extract",
    summary="One vector per proposal, and per ground-truth box of the training splits.",
    datasets=("truth_features", *FEATURE_STORES),
    planned=_planned,
    recorded=_recorded,
    reads_images=lambda config: True,
    passing=_passing,
    makers=_makers,
)
