"""run: every stage that is not done yet.

    spp run --config configs/raccoon_kangaroo.yaml --root /data/spp --until extract
    ray job submit --working-dir . -- python -m jobs run --config configs/voc2007.yaml --root s3://bucket/voc07

Interrupted in any way, the same command goes on: what is committed is done. The story: index the data set; survey
which shards of which datasets are missing; let the shard loop make them, proposals and features side by side; fold the
commits of every complete dataset into its manifest; say so in the run's record, beside the data.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config import RunConfig
from jobs.errors import UsageError
from jobs.execution import RaySession
from jobs.extract import identify_body, load_body
from jobs.index import Index
from jobs.known_bodies import BodyIdentity
from jobs.made import head_made_already, made_already
from jobs.quality import measure_proposals
from jobs.recording import begin, make_index, recorded
from jobs.reduce import entry_of
from jobs.shards import MapDataset, Survey, survey_after
from jobs.stages import (
    DATASETS_OF,
    FEATURE_STORES,
    REDUCE_STAGES,
    STAGES,
    Invocation,
    planned_datasets,
    recorded_datasets,
    recorded_index,
    reduce_method_of,
    run_stages,
)
from storage.commits import winners
from storage.manifest import fold
from storage.root import Root, is_local
from storage.runs import (
    DatasetRecord,
    RunRecord,
    check_run_name,
    hold,
    unsettled,
    write_run,
)


def run(invocation: Invocation, stages: Sequence[str], retry: bool = False) -> RunRecord:
    """Do ``stages`` (some of ``STAGES``, in order), and return the run's record with its exit code.

    ``retry``: shards in which an image failed are made again, as a new revision that takes over all other rows.

    Raises UsageError if a stage before them is not complete, RunFailed if it had to stop. What was committed stays.
    """
    check_run_name(invocation.name)
    invocation.root.check_writable()
    record = begin(invocation)
    config = invocation.config
    local = {"root": invocation.root.url} if invocation.root.is_local else {}
    if is_local(config.dataset.path) and _workers_read_images(config, stages):
        local["dataset.path"] = config.dataset.path
    with RaySession(config.execution, local) as session, recorded(invocation.root, record):
        index = make_index(invocation, record) if "index" in stages else recorded_index(invocation.root, record)
        if set(stages) & {"propose", "extract"}:
            _map_stages(invocation, record, index, stages, retry, session)
        if set(stages) & set(REDUCE_STAGES):
            if "extract" not in stages:
                _check_features(invocation, record)
            _reduce_stages(invocation, record, index, stages, retry, session)
        record.holds = [] if stages[-1] == STAGES[-1] else unsettled(record)
    return record


def _workers_read_images(config: RunConfig, stages: Sequence[str]) -> bool:
    return bool({"propose", "extract", "finetune"}.intersection(stages)) or (
        "detect" in stages and config.detect.source == "stream"
    )


def _map_stages(
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


def _check_features(invocation: Invocation, record: RunRecord) -> None:
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


def _reduce_stages(
    invocation: Invocation, record: RunRecord, index: Index, stages: Sequence[str], retry: bool, session: RaySession
) -> None:
    """Models, detections and metrics, one after the other. StorageError, naming the verb, if something is missing."""
    config = invocation.config
    first = next(stage for stage in REDUCE_STAGES if stage in stages)
    for stage in REDUCE_STAGES[: REDUCE_STAGES.index(first)]:
        dataset = DATASETS_OF[stage][-1]
        entry = record.datasets.get(dataset)
        if stage not in _needed(config, first) or entry is None:
            continue
        if reduce_method_of(stage, config, record, index) != entry.method:
            raise UsageError(
                f"{dataset} of run {record.name!r} are behind what they were made from, or the config has changed "
                f"since; run `spp {stage}` first, or `spp run`"
            )
    for stage in stages:
        if stage not in REDUCE_STAGES:
            continue
        before = {name: record.datasets.get(name) for name in DATASETS_OF[stage]}
        if stage == "finetune":  # which draws its windows first, and holds what it makes itself
            made = head_made_already(invocation, record, index, retry)
        else:
            method = reduce_method_of(stage, config, record, index)
            hold(invocation.root, record, [f"{name}/{method}" for name in DATASETS_OF[stage]])
            made = None
            if stage != "evaluate":  # which is light, and says the metrics as well
                made = made_already(stage, method, invocation, record, index, retry)
        record.datasets.update(made or _reduced(stage, invocation, record, index, retry, session))
        if before != {name: record.datasets.get(name) for name in DATASETS_OF[stage]}:
            write_run(invocation.root, record)


def _needed(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The stages after extraction whose results ``stage`` reads, or what it reads was made from."""
    if stage in ("finetune", "train-bbox"):
        return ()
    before = run_stages(config, stage)[:-1]
    return tuple(s for s in before if s != "train-bbox" or config.detect.regress)


def _reduced(
    stage: str, invocation: Invocation, record: RunRecord, index: Index, retry: bool, session: RaySession
) -> dict[str, DatasetRecord]:
    """Do one stage: its datasets. Its driver is imported here, with all that it takes to make something."""
    if stage == "finetune":
        from jobs.finetuning import finetune

        return finetune(invocation, record, index, session, retry)
    if stage == "embed":
        from jobs.embedding import embed

        return embed(invocation, record, index, session, retry)
    if stage == "train-svm":
        from jobs.svm_training import train_svms

        return {"svms": train_svms(invocation, record, index, session)}
    if stage == "train-bbox":
        from jobs.bbox_training import train_regressors

        return {"regressors": train_regressors(invocation, record, index, session)}
    if stage == "detect":
        from jobs.detection import detect

        return {"detections": detect(invocation, record, index, session, retry)}
    from jobs.evaluation import evaluate

    return {"metrics": evaluate(invocation, record, index, session)}


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
    from jobs.bookkeeping import Bookkeeper
    from jobs.crews import ActorCrew
    from jobs.metrics import RunMetrics
    from jobs.progress import ProgressReport
    from jobs.shardloop import ShardLoop
    from jobs.works import CREWS, crews_of, works_of

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
