"""status: how far every stage of a run is. Needs neither weights nor images.

spp status --root /data/spp --run raccoon_kangaroo
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config.run_config import RunConfig
from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.head.method import windows_method
from jobs.record.combination import COMBINE, combined_runs, is_behind
from jobs.record.stage import DATASETS_OF, FEATURE_STORES, REDUCE_STAGES, WHOLE_IMAGE_STAGES
from jobs.run.stages import recorded_datasets, reduce_method_of, run_stages
from jobs.shards.survey import Survey, survey_after
from storage.commits import winners
from storage.manifest import Manifest, in_memory, read_manifest
from storage.root import Root, StorageError
from storage.runs import RunRecord


@dataclass(frozen=True)
class DatasetStatus:
    """One dataset of a run. ``state``: complete, k of n shards, missing, or behind its upstream."""

    stage: str
    dataset: str
    method: str
    state: str
    images: int
    failed: int
    rows: int
    bytes: int
    seconds: float


def status(root: Root, record: RunRecord) -> list[DatasetStatus]:
    """The state of every dataset, in the order of the stages; failed images count where they failed."""
    result = []
    indexed = all(_has_manifest(record, name) for name in DATASETS_OF["index"])
    surveys: dict[str, Survey] = {}
    asked = run_stages(RunConfig.model_validate(record.config))
    if indexed:
        for dataset in recorded_datasets(root, record):
            surveys[dataset.name] = survey_after(root, dataset, surveys)
    others = [name for name, entry in record.datasets.items() if entry.stage in WHOLE_IMAGE_STAGES]
    apart = combined_runs(record) is not None or bool(others)
    for stage, datasets in DATASETS_OF.items():
        if apart and not record.datasets.keys() & set(datasets):
            continue  # a combination has no features and models of its own, and whole images have no regions
        if stage in REDUCE_STAGES:
            if stage in asked or any(name in record.datasets for name in datasets):
                result += [_reduced(root, record, stage, name) for name in datasets]
            continue
        stored = [name for name in FEATURE_STORES if name in record.datasets] or ["features"]
        for name in datasets:
            if name in FEATURE_STORES and name not in stored:
                continue
            entry = record.datasets.get(name)
            if entry is None:
                result.append(DatasetStatus(stage, name, "", "missing", 0, 0, 0, 0, 0.0))
                continue
            found = surveys.get("windows" if name == "maps" else name)
            if entry.manifest is not None and (found is None or found.complete):
                manifest, state = read_manifest(root, name, entry.method, entry.manifest), "complete"
            elif found is not None:
                names = winners(root, name, entry.method)
                manifest = in_memory(root, name, entry.method, [names[key] for key in found.done if key in names])
                state = f"{len(found.done)} of {len(found.dataset.shards)} shards"
                if entry.manifest is not None:
                    state = f"behind its upstream: {state}"
            else:
                result.append(DatasetStatus(stage, name, entry.method, "missing", 0, 0, 0, 0, 0.0))
                continue
            result.append(_of(stage, name, entry.method, state, manifest))
    for name in others:
        entry = record.datasets[name]
        if entry.manifest is None:
            result.append(DatasetStatus(entry.stage, name, entry.method, "missing", 0, 0, 0, 0, 0.0))
        else:
            manifest = read_manifest(root, name, entry.method, entry.manifest)
            result.append(_of(entry.stage, name, entry.method, "complete", manifest))
    return result


def _reduced(root: Root, record: RunRecord, stage: str, name: str) -> DatasetStatus:
    """The state of a dataset after extraction: behind, if its stage's method id would be another one today."""
    entry = record.datasets.get(name)
    if entry is None or entry.manifest is None:
        return DatasetStatus(stage, name, entry.method if entry else "", "missing", 0, 0, 0, 0, 0.0)
    if entry.stage == COMBINE:
        state = "behind its upstream" if is_behind(root, record) else "complete"
        return _of(COMBINE, name, entry.method, state, read_manifest(root, name, entry.method, entry.manifest))
    state = "complete"
    try:
        config = RunConfig.model_validate(record.config)
        today = (
            windows_method(config.finetune, record)
            if name == "training_windows"
            else reduce_method_of(stage, config, record, recorded_index(root, record))
        )
        if today != entry.method:
            state = "behind its upstream"
    except (StorageError, UsageError):
        state = "behind its upstream"
    return _of(stage, name, entry.method, state, read_manifest(root, name, entry.method, entry.manifest))


def _of(stage: str, name: str, method: str, state: str, manifest: Manifest) -> DatasetStatus:
    seconds = sum(value for phase, value in manifest.seconds.items() if phase != "wait")
    images, failed = manifest.images, manifest.failed
    return DatasetStatus(stage, name, method, state, images, failed, manifest.rows, manifest.bytes, round(seconds, 1))


def _has_manifest(record: RunRecord, name: str) -> bool:
    entry = record.datasets.get(name)
    return entry is not None and entry.manifest is not None
