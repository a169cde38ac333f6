"""How a run's detections are measured, and the result files of other detectors."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa

from jobs.config.evaluate import EvaluateConfig
from jobs.config.run_config import RunConfig
from jobs.dataset.driver import tell_ledger
from jobs.dataset.index import Index, index_of, read_index
from jobs.errors import UsageError
from jobs.record.publish import publish
from jobs.record.stage import Assignment
from pipeline.phases import PhaseClock
from storage.columns import boxes_of, no_rows
from storage.manifest import read_manifest, recorded_manifest
from storage.quality import ClassMetrics, MetricsQuality
from storage.root import Root, check_chain
from storage.runs import DatasetRecord, RunRecord
from storage.scan import scan_manifest
from storage.schemas import schema

if TYPE_CHECKING:
    from pipeline.measures.average_precision import ClassResult, GroundTruth
    from pipeline.measures.result_files import VocResults

_log = logging.getLogger("spp")

_MEASURES = tuple(ClassMetrics.model_fields)
"""The columns of ``metrics`` but the curves."""


def evaluate(assignment: Assignment, method: str) -> None:
    """Measure the detections of a run, and commit what is found under ``method``."""
    config, root, clock = assignment.context.config, assignment.context.root, PhaseClock()
    with clock.phase("read"):
        detections = stored_detections(root, assignment.record)
    assignment.session.resources()
    with clock.phase("match"):
        objects = assignment.index.objects_in(config.dataset.test_splits)
        found = _by_class_on_ray(config.evaluate, assignment.index, objects, detections)
    rows = metric_rows(found)
    table = pa.Table.from_pylist(rows, schema=schema("metrics", metadata={"method": method}))
    counts = {row["class_name"]: 1 for row in rows}
    publish(root, "metrics", method, table, counts, seconds=clock.seconds)


class FilesQuality(MetricsQuality):
    """Of result files: also ``notes``, what they leave out, and what in them is more likely a mistake."""

    notes: list[str]


def evaluate_result_files(config: RunConfig, pattern: str) -> FilesQuality:
    """Measure the VOC result files that an fsspec path or pattern names. The data set is read; nothing is stored."""
    index = index_of(list(read_index(config.dataset, config.execution.index_threads)))
    tell_ledger(index.ledger)
    check_chain(pattern, "--detections")
    try:
        fs, path = fsspec.url_to_fs(pattern)
        files = fsspec.open_files(pattern, "rb", expand=not fs.isfile(path))  # a name may hold "[1]" and be no pattern
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--detections {pattern!r}: {error}") from error
    if not files:
        raise UsageError(f"--detections {pattern!r}: there is no such file")
    texts: dict[str, bytes] = {}
    for file in files:
        name = file.path.rsplit("/", 1)[-1]
        if name in texts:
            raise UsageError(f"--detections {pattern!r}: there are several files {name!r}; give those of one detector")
        try:
            with file as stream:
                texts[name] = stream.read()
        except FileNotFoundError:
            raise UsageError(f"--detections {pattern!r}: there is no such file") from None
        except IsADirectoryError:
            raise UsageError(
                f"--detections {pattern!r}: {name!r} is a folder; give its files, {name}/comp4_det_*.txt"
            ) from None
    measured = evaluate_files(config.evaluate, index, config.dataset.test_splits, texts)
    for note in measured.notes:
        _log.warning("note: %s", note)
    return measured


def evaluate_files(
    config: EvaluateConfig, index: Index, splits: Sequence[str], texts: Mapping[str, bytes]
) -> FilesQuality:
    """Measure VOC result files, name to content, against the objects of ``splits``. UsageError for a broken one."""
    from pipeline.measures.average_precision import Detections, evaluate_classes
    from pipeline.measures.result_files import ResultFileError, read_voc

    image_ids = index.images_in(splits)
    ids: list[str] = []
    names: list[str] = []
    scores, boxes = [np.zeros(0)], [np.zeros((0, 4), np.float32)]
    parts: list[VocResults] = []
    for name, text in texts.items():
        try:
            part = read_voc(name, text)
        except ResultFileError as error:
            raise UsageError(str(error)) from error
        if any(part.class_name == other.class_name for other in parts):
            raise UsageError(f"{name}: there is another file of class {part.class_name!r}; give one for each class")
        parts.append(part)
        foreign = sorted(set(part.image_ids).difference(image_ids))
        if foreign:
            raise UsageError(
                f"{name}: {len(foreign)} of its images are not in the splits {', '.join(splits)}, such as "
                f"{foreign[0]!r}; set dataset.test_splits to those that the detections are of"
            )
        ids += part.image_ids
        names += [part.class_name] * len(part.image_ids)
        scores.append(part.scores)
        boxes.append(part.boxes)
    known = index.class_names()
    unknown = sorted({part.class_name for part in parts}.difference(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        raise UsageError(
            f"the data set has no class {unknown[0]!r}; "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"its classes: {', '.join(known) or 'none'}"
        )
    objects = index.objects_in(splits)
    found = evaluate_classes(
        ground_truth(objects),
        np.array(objects["class_name"].to_pylist(), object),
        Detections(np.array(ids, object), np.concatenate(scores), np.concatenate(boxes)),
        np.array(names, object),
        class_names=known,
        overlap=config.min_overlap,
        thresholds=config.thresholds,
    )
    return FilesQuality(**dict(summary(metric_rows(found))), notes=_notes(parts, known, image_ids))


def _notes(parts: Sequence[VocResults], known: Sequence[str], image_ids: Sequence[str]) -> list[str]:
    """What result files leave out, and what is odd in them."""
    notes = []
    given = {part.class_name for part in parts}
    without = [name for name in known if name not in given]
    if without:
        notes.append(
            f"{len(without)} of {len(known)} classes have no file, and so AP 0, which the mean counts: "
            f"{', '.join(without)}"
        )
    empty = [part.class_name for part in parts if not part.image_ids]
    if empty:
        notes.append(f"{len(empty)} files are empty: no detection of {', '.join(empty)}")
    splits = sorted({part.split for part in parts})
    if len(splits) > 1:
        notes.append(f"by their names, the files are of several splits: {', '.join(splits)}")
    bare = sorted(set(image_ids).difference(*(part.image_ids for part in parts)))
    if bare:
        notes.append(f"{len(bare)} of {len(image_ids)} images have no detection in any file, such as {bare[0]!r}")
    for part in parts:
        rows = zip(part.image_ids, part.scores.tolist(), part.boxes.tolist(), strict=True)
        twice = len(part.image_ids) - len({(image_id, score, *box) for image_id, score, box in rows})
        if twice:
            notes.append(f"{twice} lines of class {part.class_name!r} stand twice, and count as false positives")
        reversed_ = int(((part.boxes[:, 2:] <= part.boxes[:, :2]).any(axis=1)).sum())
        if reversed_:
            notes.append(f"{reversed_} boxes of class {part.class_name!r} are reversed or empty: are they x, y, w, h?")
    return notes


def ground_truth(objects: pa.Table) -> GroundTruth:
    """Objects as the evaluation takes them."""
    from pipeline.measures.average_precision import GroundTruth

    return GroundTruth(
        np.array(objects["image_id"].to_pylist(), object),
        boxes_of(objects["box"]),
        objects["difficult"].to_numpy(),
    )


def metric_rows(found: dict[str, ClassResult]) -> list[dict[str, Any]]:
    """The rows of ``metrics``."""
    return [
        {
            "class_name": name,
            "ap_11": result.ap_11,
            "ap_area": result.ap_area,
            "positives": result.n_positive,
            "detections": result.n_detections,
            "true_positives": result.true_positives,
            "score": np.asarray(result.scores, np.float32),
            "recall": result.recall,
            "precision": result.precision,
        }
        for name, result in sorted(found.items())
    ]


def read_metrics(root: Root, entry: DatasetRecord) -> list[dict[str, Any]]:
    """The rows of a stored ``metrics``, without the curves."""
    assert entry.manifest is not None
    manifest = read_manifest(root, "metrics", entry.method, entry.manifest)
    return [row for table in scan_manifest(root, manifest, _MEASURES) for row in table.to_pylist()]


def summary(rows: Sequence[dict[str, Any]]) -> MetricsQuality:
    """Mean APs, over the classes that have positives, and a line per class."""
    from pipeline.measures.average_precision import mean_ap

    classes = [ClassMetrics.model_validate({key: row[key] for key in _MEASURES}) for row in rows]
    return MetricsQuality(
        map_11=mean_ap(one.ap_11 for one in classes),
        map_area=mean_ap(one.ap_area for one in classes),
        classes=classes,
    )


def stored_detections(root: Root, record: RunRecord) -> pa.Table:
    """All rows of a run's ``detections``, by image."""
    manifest = recorded_manifest(root, record, "detections")
    layout = schema("detections")
    return pa.concat_tables([no_rows(layout), *(part.cast(layout) for part in scan_manifest(root, manifest))])


def _by_class_on_ray(
    config: EvaluateConfig, index: Index, objects: pa.Table, table: pa.Table
) -> dict[str, ClassResult]:
    """One task per class."""
    from jobs.execution.tasks import as_task, results
    from pipeline.measures.average_precision import Detections, GroundTruth, evaluate_class

    truth, truth_names = ground_truth(objects), np.array(objects["class_name"].to_pylist(), object)
    images, names = (np.array(table[column].to_pylist(), object) for column in ("image_id", "class_name"))
    detections = Detections(images, table["score"].to_numpy(), boxes_of(table["box"]))
    task, refs = as_task(evaluate_class), {}
    for name in index.class_names():
        own, mine = truth_names == name, names == name
        refs[name] = task.remote(
            GroundTruth(truth.images[own], truth.boxes[own], truth.difficult[own]),
            Detections(detections.images[mine], detections.scores[mine], detections.boxes[mine]),
            overlap=config.min_overlap,
            thresholds=config.thresholds,
        )
    return dict(zip(refs, results("evaluate", list(refs.values())), strict=True))
