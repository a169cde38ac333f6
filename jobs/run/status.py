"""status: how far every stage of a run is. Needs neither weights nor images.

spp status --root /data/spp --run raccoon_kangaroo
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.record.combination import COMBINE, combined_runs, is_behind
from jobs.record.notes import NoteCount, notes_in
from jobs.record.recording import recorded_config
from jobs.record.stage import FEATURE_STORES, WHOLE_IMAGE_STAGES, Context, Stage
from jobs.run.stages import STAGES, recorded_datasets
from jobs.shards.survey import Survey, survey_after
from storage.commits import winners
from storage.manifest import Manifest, in_memory, read_manifest
from storage.root import Root, StorageError
from storage.runs import RunRecord


@dataclass(frozen=True, kw_only=True)
class DatasetStatus:
    """One dataset of a run. ``state``: complete, k of n shards, missing, or behind its upstream.

    ``passes``: how often an image passed the body for it. ``notes``: by stage and type.
    """

    stage: str
    dataset: str
    method: str
    state: str
    images: int
    failed: int
    rows: int
    bytes: int
    seconds: float
    passes: int = 0
    notes: tuple[NoteCount, ...] = ()

    @property
    def note_count(self) -> int:
        """Notes of all kinds."""
        return sum(note.count for note in self.notes)


def status(root: Root, record: RunRecord) -> list[DatasetStatus]:
    """The state of every dataset, in the order of the stages; failed images count where they failed."""
    result = []
    context = _context(root, record)
    surveys = _surveys(context)
    others = [name for name, entry in record.datasets.items() if entry.stage in WHOLE_IMAGE_STAGES]
    apart = combined_runs(record) is not None or bool(others)
    config = recorded_config(record)
    for stage in STAGES:
        there = [name for name in stage.datasets if name in record.datasets]
        if apart and not there:
            continue  # a combination has no features and models of its own, and whole images have no regions
        if stage is STAGES[0] or stage.recorded is not None:
            stored = [name for name in FEATURE_STORES if name in record.datasets] or ["features"]
            for name in stage.datasets:
                if name not in FEATURE_STORES or name in stored:
                    result.append(_sharded(root, record, stage, name, surveys))
        elif there or stage.wanted(config):
            result += _reduced(root, record, stage, context)
    for name in others:
        entry = record.datasets[name]
        if entry.manifest is None:
            result.append(_missing(entry.stage, name, entry.method))
        else:
            manifest = read_manifest(root, name, entry.method, entry.manifest)
            result.append(_of(entry.stage, name, entry.method, "complete", manifest))
    return result


def manifests(root: Root, record: RunRecord, names: Collection[str]) -> Iterator[Manifest]:
    """What is committed of datasets of a run: the manifest, or before one is complete that of its shards so far.

    Of datasets that are made in one piece nothing is there before. Where all are complete, no data are read.
    """
    surveys: dict[str, Survey] | None = None
    for name in names:
        entry = record.datasets[name]
        if entry.manifest is not None:
            yield read_manifest(root, name, entry.method, entry.manifest)
            continue
        if surveys is None:
            surveys = _surveys(_context(root, record))
        found = surveys.get(_surveyed(name))
        if found is not None:
            yield _so_far(root, name, entry.method, found)


def _surveys(context: Context | None) -> dict[str, Survey]:
    """What is there of the datasets that are known by their shards."""
    surveys: dict[str, Survey] = {}
    if context is None:
        return surveys
    for dataset in recorded_datasets(context):
        surveys[dataset.name] = survey_after(context.root, dataset, surveys)
    return surveys


def _surveyed(name: str) -> str:
    return "windows" if name == "maps" else name


def _so_far(root: Root, name: str, method: str, found: Survey) -> Manifest:
    names = winners(root, name, method)
    return in_memory(root, name, method, [names[key] for key in found.done if key in names])


def _context(root: Root, record: RunRecord) -> Context | None:
    """What today's names hang on; None before there is an index."""
    if not all(record.complete(name) for name in STAGES[0].datasets):
        return None
    config = recorded_config(record)
    return Context(config, root, recorded_index(root, record), record)


def _sharded(root: Root, record: RunRecord, stage: Stage, name: str, surveys: Mapping[str, Survey]) -> DatasetStatus:
    """The state of a dataset of the index, or of one that is known by its shards."""
    entry = record.datasets.get(name)
    if entry is None:
        return _missing(stage.name, name)
    found = surveys.get(_surveyed(name))
    if entry.manifest is not None and (found is None or found.complete):
        manifest, state = read_manifest(root, name, entry.method, entry.manifest), "complete"
    elif found is not None:
        manifest = _so_far(root, name, entry.method, found)
        state = f"{len(found.done)} of {len(found.dataset.shards)} shards"
        if entry.manifest is not None:
            state = f"behind its upstream: {state}"
    else:
        return _missing(stage.name, name, entry.method)
    return _of(stage.name, name, entry.method, state, manifest)


def _reduced(root: Root, record: RunRecord, stage: Stage, context: Context | None) -> list[DatasetStatus]:
    """The states of a stage's datasets: behind, if their method ids would be others today."""
    today: dict[str, str] = {}
    with contextlib.suppress(StorageError, UsageError):
        for dataset in stage.planned(context) if context is not None else ():
            today[dataset.name] = dataset.method
    result = []
    for name in stage.datasets:
        entry = record.datasets.get(name)
        if entry is None or entry.manifest is None:
            result.append(_missing(stage.name, name, entry.method if entry else ""))
            continue
        behind = is_behind(root, record) if entry.stage == COMBINE else today.get(name) != entry.method
        state = "behind its upstream" if behind else "complete"
        manifest = read_manifest(root, name, entry.method, entry.manifest)
        result.append(_of(entry.stage, name, entry.method, state, manifest))
    return result


def _missing(stage: str, name: str, method: str = "") -> DatasetStatus:
    return DatasetStatus(
        stage=stage, dataset=name, method=method, state="missing", images=0, failed=0, rows=0, bytes=0, seconds=0.0
    )


def _of(stage: str, name: str, method: str, state: str, manifest: Manifest) -> DatasetStatus:
    seconds = sum(value for phase, value in manifest.seconds.items() if phase != "wait")
    images, failed = manifest.images, manifest.failed
    return DatasetStatus(
        stage=stage,
        dataset=name,
        method=method,
        state=state,
        images=images,
        failed=failed,
        rows=manifest.rows,
        bytes=manifest.bytes,
        seconds=round(seconds, 1),
        passes=manifest.passes,
        notes=tuple(notes_in(manifest)),
    )
