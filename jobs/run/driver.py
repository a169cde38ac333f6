"""The driver of ``spp run``: the stages, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.run_config import RunConfig
from jobs.dataset.driver import make_index
from jobs.dataset.index import Index
from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.execution.session import RaySession
from jobs.record.invocation import Invocation
from jobs.record.recording import begin, recorded
from jobs.record.stage import DATASETS_OF, REDUCE_STAGES, STAGES
from jobs.run.made import head_made_already, made_already
from jobs.run.map_stages import check_features, run_map_stages
from jobs.run.stages import reduce_method_of, run_stages
from storage.root import is_local
from storage.runs import DatasetRecord, RunRecord, check_run_name, hold, unsettled, write_run


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
            run_map_stages(invocation, record, index, stages, retry, session)
        if set(stages) & set(REDUCE_STAGES):
            if "extract" not in stages:
                check_features(invocation, record)
            _reduce_stages(invocation, record, index, stages, retry, session)
        record.holds = [] if stages[-1] == STAGES[-1] else unsettled(record)
    return record


def _workers_read_images(config: RunConfig, stages: Sequence[str]) -> bool:
    return bool({"propose", "extract", "finetune"}.intersection(stages)) or (
        "detect" in stages and config.detect.source == "stream"
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
        from jobs.head.driver import finetune

        return finetune(invocation, record, index, session, retry)
    if stage == "embed":
        from jobs.head.embedding import embed

        return embed(invocation, record, index, session, retry)
    if stage == "train-svm":
        from jobs.svm.driver import train_svms

        return {"svms": train_svms(invocation, record, index, session)}
    if stage == "train-bbox":
        from jobs.bbox.driver import train_regressors

        return {"regressors": train_regressors(invocation, record, index, session)}
    if stage == "detect":
        from jobs.detect.driver import detect

        return {"detections": detect(invocation, record, index, session, retry)}
    from jobs.evaluate.driver import evaluate

    return {"metrics": evaluate(invocation, record, index, session)}
