"""What a stage after extraction has made already. Light: a run that finds all of it loads neither Ray nor torch.

Stages are told apart by what names their results, their method and shards; how those are made is the drivers' matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index, object_digests
from jobs.detect.method import detection_shards
from jobs.features.body import identify_body
from jobs.features.method import truth_method, vector_length
from jobs.head.method import embedded_shards, window_shards, windows_method
from jobs.record.invocation import Invocation
from jobs.record.publish import done_already, entry_of
from jobs.record.stage import DATASETS_OF
from jobs.run.stages import reduce_images, reduce_method_of
from storage.commits import read_commits, winners
from storage.manifest import fold
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, dataset_record, hold
from storage.shards import Shard


def made_already(
    stage: str, method: str, invocation: Invocation, record: RunRecord, index: Index, retry: bool = False
) -> dict[str, DatasetRecord] | None:
    """The datasets of a stage, by name, if nothing of them is missing; else None, and its driver has work.

    ``method``: of ``reduce_method_of``. ``retry``: shards in which an image failed are missing as well.
    """
    config, root = invocation.config, invocation.root
    images = reduce_images(stage, config, index)
    if stage == "detect":
        planned = {"detections": detection_shards(index, images)}
    elif stage == "embed":
        planned = embedded_shards(root, record, images)
    else:
        entry = done_already(root, stage, DATASETS_OF[stage][-1], method)
        return None if entry is None else {DATASETS_OF[stage][-1]: entry}
    return _all({name: _complete(root, stage, name, method, shards, retry) for name, shards in planned.items()})


def head_made_already(
    invocation: Invocation, record: RunRecord, index: Index, retry: bool = False
) -> dict[str, DatasetRecord] | None:
    """The datasets of ``finetune``, as ``made_already``: its head is named after the windows, if those are there.

    None also where the driver has something to say: of another body, or of windows that the run no longer wants.
    """
    config, root = invocation.config, invocation.root
    found = dict(record.datasets)
    if not _is_of_this_body(config, record) or (not config.finetunes and "training_windows" in found):
        return None
    made: dict[str, DatasetRecord | None] = {}
    if config.finetunes:
        method = windows_method(config.finetune, record)
        hold(root, record, [f"training_windows/{method}"])
        length = vector_length(config.features, identify_body(config.features))
        planned = window_shards(config.finetune, length, object_digests(index, config.dataset.train_splits))
        windows = _complete(root, "finetune", "training_windows", method, planned, retry)
        if windows is None:
            return None
        made["training_windows"] = found["training_windows"] = windows
    method = reduce_method_of("finetune", config, record.model_copy(update={"datasets": found}), index)
    hold(root, record, [f"{name}/{method}" for name in ("head", "training_curve")])
    for name in ("training_curve", "head"):
        made[name] = done_already(root, "finetune", name, method)
    return _all(made)


def _is_of_this_body(config: RunConfig, record: RunRecord) -> bool:
    """Whether the run's features were made with the body and weights that the config names."""
    body = identify_body(config.features)
    extracted = dataset_record(record, "truth_features")
    method = truth_method(config.features, body.digest, dataset_record(record, "images").method)
    return (method, body.classifier) == (extracted.method, extracted.classifier)


def _complete(
    root: Root, stage: str, name: str, method: str, planned: Sequence[Shard], retry: bool
) -> DatasetRecord | None:
    """The record of a dataset if every planned shard is committed, and (``retry``) without a failed image."""
    there = winners(root, name, method)
    if any(shard.key not in there for shard in planned):
        return None
    names = [there[shard.key] for shard in planned]
    if retry and any(commit.failed for commit in read_commits(root, name, method, names)):
        return None
    return entry_of(stage, fold(root, name, method, names))


def _all(made: dict[str, DatasetRecord | None]) -> dict[str, DatasetRecord] | None:
    there = {name: entry for name, entry in made.items() if entry is not None}
    return there if len(there) == len(made) else None
