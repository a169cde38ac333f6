"""How a run's detections are measured, and the result files of other detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa

from jobs.config.evaluate import EvaluateConfig
from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index, index_of, read_index
from jobs.errors import UsageError
from jobs.record.publish import publish
from jobs.record.stage import Assignment
from pipeline.phases import PhaseClock
from storage.columns import boxes_of, no_rows
from storage.manifest import read_manifest, recorded_manifest
from storage.quality import ClassMetrics, MetricsQuality
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord
from storage.scan import scan_manifest
from storage.schemas import schema

if TYPE_CHECKING:
    from pipeline.measures.average_precision import ClassResult, GroundTruth


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


def evaluate_result_files(config: RunConfig, pattern: str) -> MetricsQuality:
    """Measure the VOC result files that an fsspec path or pattern names. The data set is read; nothing is stored."""
    index = index_of(list(read_index(config.dataset, config.execution.index_threads)))
    try:
        files = fsspec.open_files(pattern, "rb")
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--detections {pattern!r}: {error}") from error
    if not files:
        raise UsageError(f"--detections {pattern!r}: there is no such file")
    texts = {}
    for file in files:
        with file as stream:
            name = file.path.rsplit("/", 1)[-1]
            if name in texts:
                raise UsageError(
                    f"--detections {pattern!r}: there are several files {name!r}; give those of one detector"
                )
            texts[name] = stream.read()
    return evaluate_files(config.evaluate, index, config.dataset.test_splits, texts)


def evaluate_files(
    config: EvaluateConfig, index: Index, splits: Sequence[str], texts: Mapping[str, bytes]
) -> MetricsQuality:
    """Measure VOC result files, name to content, against the objects of ``splits``. UsageError for a broken one."""
    from pipeline.measures.average_precision import Detections, evaluate_classes
    from pipeline.measures.result_files import ResultFileError, read_voc

    image_ids = index.images_in(splits)
    ids: list[str] = []
    names: list[str] = []
    scores, boxes = [np.zeros(0)], [np.zeros((0, 4), np.float32)]
    for name, text in texts.items():
        try:
            part = read_voc(name, text)
        except ResultFileError as error:
            raise UsageError(str(error)) from error
        if part.class_name in names:
            raise UsageError(f"{name}: there is another file of class {part.class_name!r}; give one for each class")
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
    unknown = sorted(set(names).difference(known))
    if unknown:
        raise UsageError(f"the data set has no class {unknown[0]!r}; its classes: {', '.join(known)}")
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
    return summary(metric_rows(found))


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
