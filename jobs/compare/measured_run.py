"""Runs whose detections are measured beside each other: of the same test images and objects, and up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index
from jobs.dataset.stored import recorded_index
from jobs.detect.stage import DETECT
from jobs.errors import UsageError
from jobs.evaluate.driver import ground_truth, stored_detections
from jobs.record.combination import combined_runs, is_behind
from jobs.record.recording import recorded_config
from jobs.record.stage import Context
from jobs.run.stages import method_today
from storage.columns import boxes_of
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, dataset_record, read_run

if TYPE_CHECKING:
    from pipeline.measures.average_precision import MatchedClass


@dataclass(frozen=True)
class MeasuredRun:
    """A run with complete detections."""

    record: RunRecord
    config: RunConfig
    index: Index
    detections: DatasetRecord

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name

    @property
    def image_ids(self) -> list[str]:
        """Its test images, sorted."""
        return self.index.images_in(self.config.dataset.test_splits)


def read_measured(root: Root, name: str) -> MeasuredRun:
    """A run, with complete detections."""
    record = read_run(root, name)
    entry = dataset_record(record, "detections")
    return MeasuredRun(record, recorded_config(record), recorded_index(root, record), entry)


def check_current(root: Root, part: MeasuredRun) -> None:
    """Raises UsageError unless the detections of a run are those of its data set and models as they are now."""
    combined = combined_runs(part.record)
    if combined is not None:
        if is_behind(root, part.record):
            again = f"`spp combine {' '.join(combined)} --run {part.name}`"
            raise UsageError(f"run {part.name!r} is behind the runs that it combines; run {again} first")
        return
    context = Context(part.config, root, part.index, part.record)
    if method_today(DETECT, context, "detections") != part.detections.method:
        raise UsageError(
            f"detections of run {part.name!r} are behind what they were made from, or the config has changed since; "
            f"run `spp detect --run {part.name}` first, or `spp run`"
        )


def check_same(first: MeasuredRun, other: MeasuredRun) -> None:
    """Raises UsageError, naming what differs, unless two runs are of the same test images and objects."""
    both = f"runs {first.name!r} and {other.name!r}"
    splits = [", ".join(sorted(set(part.config.dataset.test_splits))) for part in (first, other)]
    if splits[0] != splits[1]:
        raise UsageError(
            f"{both} have different test splits: {splits[0]}, and {splits[1]}; "
            f"run one of them with dataset.test_splits of the other"
        )
    only = sorted(set(first.image_ids).symmetric_difference(other.image_ids))
    if only:
        owner, lacking = (first, other) if only[0] in first.image_ids else (other, first)
        raise UsageError(
            f"{both} have different test images: {len(only)} are of one alone, such as {only[0]!r}, which "
            f"{owner.name!r} has and {lacking.name!r} has not; run both on the same data set with `spp run`"
        )
    differing = _differing_image(first, other)
    if differing is not None:
        raise UsageError(
            f"{both} have different objects on test image {differing!r}; run both with `spp run` on the same "
            f"annotations, and with the same dataset.classes"
        )
    for key, value in first.config.evaluate.model_dump().items():
        theirs = getattr(other.config.evaluate, key)
        if value != theirs:
            raise UsageError(
                f"{both} are measured differently: evaluate.{key} is {value}, and {theirs}; "
                f"run `spp evaluate --run {other.name} --set evaluate.{key}={value}`, or the other way round"
            )


def matched_detections(
    root: Root, record: RunRecord, config: RunConfig, index: Index, image_ids: Sequence[str]
) -> Mapping[str, MatchedClass]:
    """A run's detections by class, compared with the objects that ``index`` has of the test images of ``config``.

    Images are numbered by their places among ``image_ids``, the test images, as ``bootstrap_maps`` takes them. The
    classes are those of the index, as for ``spp evaluate``.
    """
    from pipeline.measures.average_precision import Detections, match_classes

    objects = index.objects_in(config.dataset.test_splits)
    table = stored_detections(root, record)
    return match_classes(
        replace(ground_truth(objects), images=places_in(objects["image_id"], image_ids)),
        np.array(objects["class_name"].to_pylist(), object),
        Detections(places_in(table["image_id"], image_ids), table["score"].to_numpy(), boxes_of(table["box"])),
        np.array(table["class_name"].to_pylist(), object),
        class_names=index.class_names(),
        overlap=config.evaluate.min_overlap,
    )


def places_in(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    """The place of each element of a column of strings among ``values``; -1 if it is none of them. int64 (N,)"""
    found = pc.index_in(column, value_set=pa.array(values, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _differing_image(first: MeasuredRun, other: MeasuredRun) -> str | None:
    """The first test image whose objects two runs have differently."""
    rows: list[list[dict[str, Any]]] = []
    for part in (first, other):
        rows.append(part.index.objects_in(part.config.dataset.test_splits).to_pylist())
    if rows[0] == rows[1]:
        return None
    grouped: list[dict[str, list[dict[str, Any]]]] = [{}, {}]
    for groups, objects in zip(grouped, rows, strict=True):
        for row in objects:
            groups.setdefault(row["image_id"], []).append(row)
    return min(
        image_id for image_id in {**grouped[0], **grouped[1]} if grouped[0].get(image_id) != grouped[1].get(image_id)
    )
