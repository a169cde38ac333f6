"""The stages that make features shard by shard, over one loop."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.dataset.index import Index
from jobs.errors import UsageError
from jobs.execution.session import RaySession
from jobs.features.body import identify_body, load_body
from jobs.features.known_bodies import BodyIdentity
from jobs.proposals.recall import measure_proposals
from jobs.record.invocation import Invocation
from jobs.record.publish import entry_of
from jobs.record.stage import FEATURE_STORES
from jobs.run.stages import planned_datasets, recorded_datasets
from jobs.shards.survey import MapDataset, Survey, survey_after
from storage.commits import winners
from storage.manifest import fold
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, hold, write_run


def run_map_stages(
    invocation: Invocation,
    record: RunRecord,
    index: Index,
    stages: Sequence[str],
    retry: bool,
    session: RaySession,
) -> None:
    """Make what is missing of proposals and features."""
    config, root = invocation.config, invocation.root
    body = identify_body(config.features) if "extract" in stages else None
    datasets = planned_datasets(config, index, record.datasets["images"].method, body)
    hold(root, record, [f"{name}/{dataset.method}" for dataset in datasets for name in dataset.names])
    earlier = record.datasets.get("proposals")
    surveys: dict[str, Survey] = {}
    for dataset in datasets:
        surveys[dataset.name] = survey_after(root, dataset, surveys, retry)
    for dataset in datasets:
        found = surveys[dataset.name]
        if dataset.stage not in stages and not found.complete:
            raise UsageError(
                f"{dataset.name} has {len(found.done)} of {len(dataset.shards)} shards; "
                f"run `spp {dataset.stage}` first, or `spp run --until {stages[-1]}`"
            )
        if dataset.stage in stages:
            for name in dataset.names:
                record.datasets[name] = DatasetRecord(
                    stage=dataset.stage,
                    method=dataset.method,
                    shards=len(dataset.shards),
                    bytes_per_image=dataset.bytes_per_image,
                    partial=dataset.partial,
                )
            if dataset.upstream is not None:  # what an earlier command stored by another method is not this run's
                for name in FEATURE_STORES:
                    if name in record.datasets and record.datasets[name].method != dataset.method:
                        del record.datasets[name]
    write_run(root, record)
    chosen = [surveys[dataset.name] for dataset in datasets if dataset.stage in stages]
    interrupted = False
    try:
        if not all(found.complete for found in chosen):
            _make(invocation, index, body, chosen, surveys, session)
    except KeyboardInterrupt:
        interrupted = True  # the record is written at once: there may be seconds before SIGKILL
        raise
    finally:
        for found in () if interrupted else chosen:
            _settle(root, record, found.dataset)
        if body is not None and "truth_features" in record.datasets:
            record.datasets["truth_features"].classifier = body.classifier
        _drop_older_store(record, chosen)
        write_run(root, record)
    if "propose" in stages:
        _measure(root, record, index, earlier)


def _drop_older_store(record: RunRecord, chosen: Sequence[Survey]) -> None:
    """Features stored the other way stay a run's own only while they are of the same images."""
    made = next((f.dataset.name for f in chosen if f.dataset.name in FEATURE_STORES), None)
    manifest = record.datasets[made].manifest if made in record.datasets else None
    for name in FEATURE_STORES:
        if manifest and name in record.datasets and record.datasets[name].manifest not in (None, manifest):
            del record.datasets[name]


def check_features(invocation: Invocation, record: RunRecord) -> None:
    """Raises UsageError unless the recorded features are those of the images and labels that this config names."""
    surveys: dict[str, Survey] = {}
    for dataset in recorded_datasets(invocation.root, record):
        found = surveys[dataset.name] = survey_after(invocation.root, dataset, surveys)
        entry = record.datasets[dataset.name]
        if not found.complete or entry.shards != len(dataset.shards):
            raise UsageError(
                f"{dataset.name} of run {record.name!r} are not those of the data set and splits as they are now; "
                f"run `spp {dataset.stage}` first, or `spp run`"
            )
        if entry.partial and invocation.config.detect.source == "stored":
            raise UsageError(
                f"run {record.name!r} has no stored features of its test images (it was made with detect.source: "
                f"stream); run `spp extract` first, or `spp run`"
            )


def _measure(root: Root, record: RunRecord, index: Index, earlier: DatasetRecord | None) -> None:
    """Recall and MABO of the proposals, unless the same were measured against the same objects before."""
    proposals, objects = record.datasets.get("proposals"), record.datasets["objects"].manifest
    if proposals is None or proposals.manifest is None:
        return
    if earlier and earlier.manifest == proposals.manifest and earlier.quality.get("objects") == objects:
        proposals.quality = earlier.quality
    else:
        proposals.quality = {"objects": objects, "splits": measure_proposals(root, record, index)}
    write_run(root, record)


def _make(
    invocation: Invocation,
    index: Index,
    body: BodyIdentity | None,
    chosen: list[Survey],
    surveys: dict[str, Survey],
    session: RaySession,
) -> None:
    """Run the shard loop over what is to do."""
    from jobs.run.shard_work import CREWS, crews_of, works_of
    from jobs.shards.crews import ActorCrew
    from jobs.shards.loop import ShardLoop
    from jobs.shards.progress import ProgressReport
    from jobs.shards.prometheus import RunMetrics
    from jobs.shards.segments import Bookkeeper

    config, execution = invocation.config, invocation.config.execution
    extracts = any(found.todo and found.dataset.stage == "extract" for found in chosen)
    loaded = load_body(config.features, body) if extracts else None
    done = {(found.dataset.name, key): name for found in surveys.values() for key, name in found.done.items()}
    works = [work for found in chosen for work in works_of(invocation, index, loaded, found)]
    totals = {found.dataset.name: found.dataset.images for found in chosen}
    before = {name: totals[name] - sum(work.images for work in works if work.dataset == name) for name in totals}
    stages = [stage for stage in CREWS if any(work.stage == stage for work in works)]
    with ProgressReport(totals, before, execution.progress_seconds) as progress:
        crews = crews_of(invocation, session, loaded, stages)
        extractors = crews.get("extract")
        if isinstance(extractors, ActorCrew):
            at_once = 1 if session.resources().use_gpus(execution) else execution.threads
            progress.devices = lambda: at_once * extractors.actors()
        metrics = RunMetrics(invocation.name)
        ShardLoop(crews, execution, (progress, metrics, Bookkeeper(invocation.root)), done).run(works)


def _settle(root: Root, record: RunRecord, dataset: MapDataset) -> None:
    """Fold the commits of a dataset into its manifest if every shard is there."""
    for name in dataset.names:
        there = winners(root, name, dataset.method)
        names = [there[shard.key] for shard in dataset.shards if shard.key in there]
        if len(names) == len(dataset.shards):
            manifest = fold(root, name, dataset.method, names)
            record.datasets[name] = entry_of(dataset.stage, manifest, dataset.bytes_per_image, dataset.partial)
