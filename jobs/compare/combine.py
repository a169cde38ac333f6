"""combine: two or more detectors together, measured beside each of them (paper 4.4, Table 12).

    spp combine zf5 zf5-other --root /data/spp --run both

The detections of the runs, each with its own box regression, are pooled and suppressed once more per class and image
(pipeline/detection/combination.py). What comes of it is a run of its own, with the datasets images, objects, detections
and metrics, which `spp query`, `spp status`, `spp verify` and another `spp combine` take like any other. The runs must
have the same test images with the same objects, and be measured alike. Repeated, it redoes nothing; after one of the
runs has changed it makes a new combination under the same name.

The table gives the average precisions of each run and of the combination, and how far their difference from the best
single run would have moved on other test images: a 95% interval by bootstrap (pipeline/measures/bootstrap.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.compare.measured_run import (
    MeasuredRun,
    check_current,
    check_same,
    matched_detections,
    places_in,
    read_measured,
)
from jobs.config.run_config import RunConfig
from jobs.console.grid import Grid, Rows
from jobs.console.runs import print_notes
from jobs.console.tables import print_json
from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.evaluate.driver import stored_detections
from jobs.evaluate.stage import EVALUATE
from jobs.execution.session import RaySession
from jobs.record.combination import COMBINE, combination_of, combined_runs, detections_identity
from jobs.record.invocation import Invocation
from jobs.record.lineage import reduce_method
from jobs.record.publish import done_already, publish
from jobs.record.recording import failed_images, recorded_config, recorded_run
from jobs.record.stage import Assignment, Context
from jobs.run.driver import do_stages
from jobs.run.timing import RunClock
from pipeline.phases import PhaseClock
from storage.columns import box_column, boxes_of
from storage.commits import LedgerRow, read_commits
from storage.manifest import read_manifest
from storage.quality import CombinationQuality
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, check_run_name, read_run, run_names
from storage.schemas import schema

if TYPE_CHECKING:
    from pipeline.detection.combination import DetectionSet

VERSION = 1

NMS_OVERLAP = 0.3
"""Of the paper, and of ``detect.nms_overlap``."""

_SECTIONS = frozenset({"dataset", "evaluate", "execution", "storage_options"})
"""Of the first run's config, what holds for the combination too; the other sections made nothing of it."""


def combine(
    root: Root, names: Sequence[str], new_name: str, nms_overlap: float = NMS_OVERLAP, argv: Sequence[str] = ()
) -> RunRecord:
    """Combine the detections of the runs ``names`` into the run ``new_name``, and measure them; returns its record.

    A test image that failed in one of the runs fails here. What cannot be combined is refused before anything is
    recorded; of what fails later the record says so, and what was committed stays. Raises UsageError or StorageError,
    naming what differs or is missing, and what to do; RunFailed as `spp evaluate` does.
    """
    _check_names(root, names, new_name)
    if not 0 <= nms_overlap <= 1:
        raise UsageError(f"--nms-overlap is an IoU from 0 to 1, not {nms_overlap}")
    parts = [read_measured(root, name) for name in names]
    first = parts[0]
    for part in parts[1:]:
        check_same(first, part)
    for part in parts:
        check_current(root, part)
    config = RunConfig.model_validate(first.config.model_dump(mode="json", include=set(_SECTIONS)))
    invocation = Invocation(config, root, new_name, tuple(argv))
    with recorded_run(invocation, _SECTIONS) as record, RaySession(config.execution) as session:
        record.datasets = {name: first.record.datasets[name] for name in ("images", "objects")}
        record.datasets["detections"] = _planned(parts, nms_overlap)  # by which it is known as a combination
        record.datasets["detections"] = _detections(root, parts, nms_overlap)
        assignment = Assignment(invocation, Context(config, root, first.index, record), session)
        do_stages(assignment, [EVALUATE], [EVALUATE], RunClock(session))
        record.holds = []
    return record


def compare(root: Root, record: RunRecord) -> dict[str, Any]:
    """A combination beside the runs that it was made from, all measured on its objects. JSON values.

    ``runs`` and the combination's own name are the keys of ``ap_11`` and ``ap_area`` of each class, and of the means
    ``map_11`` and ``map_area``. ``best`` is the run of the highest ``map_11``; ``difference`` gives the combination
    minus that run, for each mean: value, and the ends ``low`` and ``high`` of the bootstrap interval. What cannot be
    measured, for want of objects, is None.
    """
    from pipeline.measures.average_precision import mean_ap, measure
    from pipeline.measures.bootstrap import CONFIDENCE, SAMPLES, bootstrap_maps, difference_interval

    combination = combination_of(record)
    assert combination is not None
    names = list(combination.runs)
    config = recorded_config(record)
    index = recorded_index(root, record)
    image_ids = index.images_in(config.dataset.test_splits)
    runs = [*names, record.name]
    matched = {
        run: matched_detections(root, read_run(root, run) if run in names else record, config, index, image_ids)
        for run in runs
    }
    thresholds = config.evaluate.thresholds
    results = {
        run: {name: measure(one, thresholds) for name, one in classes.items()} for run, classes in matched.items()
    }
    measures = ("ap_11", "ap_area")
    means = {
        f"m{m}": {run: mean_ap(getattr(one, m) for one in results[run].values()) for run in runs} for m in measures
    }
    best = max(names, key=lambda run: means["map_11"][run] or 0.0)
    maps = bootstrap_maps([matched[record.name], matched[best]], max(len(image_ids), 1), thresholds=thresholds)
    difference: dict[str, dict[str, float | None]] = {}
    for mean, values in means.items():
        ours, theirs = values[record.name], values[best]
        if ours is None or theirs is None:
            difference[mean] = dict.fromkeys(("value", "low", "high"))
        else:
            low, high = difference_interval(*getattr(maps, mean))
            difference[mean] = {"value": ours - theirs, "low": low, "high": high}
    return {
        "runs": names,
        "nms_overlap": combination.nms_overlap,
        "images": len(image_ids),
        "classes": [
            {"class_name": name, **{m: {run: getattr(results[run][name], m) for run in runs} for m in measures}}
            for name in index.class_names()
        ],
        **means,
        "best": best,
        "difference": difference,
        "confidence": CONFIDENCE,
        "samples": SAMPLES,
    }


def combine_command(
    root: Root,
    names: Sequence[str],
    new_name: str | None,
    nms_overlap: float = NMS_OVERLAP,
    argv: Sequence[str] = (),
    as_json: bool = False,
) -> int:
    """``spp combine``: combine, and print the table; returns the exit code. UsageError without a new name."""
    if new_name is None:
        raise UsageError("--run NAME is needed: the name of the run that the combination becomes")
    record = combine(root, names, new_name, nms_overlap, argv)
    compared = compare(root, record)
    _print_comparison(new_name, compared)
    failed = failed_images(root, record)
    if failed:
        image_id, reason = next(iter(failed.items()))
        print(f"{len(failed)} failed images, such as {image_id}: {reason}")
    notes = print_notes(root, record)
    exit_code = record.exit_code or 0
    made = {"run": new_name, "root": root.url, "exit_code": exit_code, **compared, "failed": failed, "notes": notes}
    print_json(as_json, made)
    return exit_code


def _check_names(root: Root, names: Sequence[str], new_name: str) -> None:
    """Raises UsageError if these runs cannot be combined under that name, whatever is in them."""
    check_run_name(new_name)
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise UsageError(f"run {twice[0]!r} is named twice; a detector adds nothing to itself")
    if len(names) < 2:
        raise UsageError(f"combine takes two runs or more, not {len(names)}")
    if new_name in names:
        raise UsageError(f"--run {new_name!r} is one of the runs to combine; choose a new name for the combination")
    if new_name not in run_names(root):
        return
    earlier = combined_runs(read_run(root, new_name))
    if earlier is None or set(earlier) != set(names):
        what = "no combination" if earlier is None else f"the combination of {', '.join(earlier)}"
        raise UsageError(f"run {new_name!r} is there already and is {what}; choose another name with --run")


def _planned(parts: Sequence[MeasuredRun], nms_overlap: float) -> DatasetRecord:
    """What the record says of the combined detections before they are there."""
    method = reduce_method(COMBINE, VERSION, {"nms_overlap": nms_overlap}, [part.detections for part in parts])
    runs = {part.name: detections_identity(part.detections) for part in parts}
    quality = CombinationQuality(runs=runs, nms_overlap=nms_overlap)
    return DatasetRecord(stage=COMBINE, method=method, quality=quality)


def _detections(root: Root, parts: Sequence[MeasuredRun], nms_overlap: float) -> DatasetRecord:
    """The record of the combined detections, which are made unless they are there."""
    planned = _planned(parts, nms_overlap)
    method = planned.method
    if done_already(root, COMBINE, "detections", method) is None:
        clock = PhaseClock()
        failed = _failed(root, parts)
        image_ids = [image_id for image_id in parts[0].image_ids if image_id not in failed]
        table = _pooled(root, parts, image_ids, nms_overlap, method, clock)
        rows = table["image_id"].value_counts().to_pylist()
        counts = dict.fromkeys(image_ids, 0) | {row["values"]: row["counts"] for row in rows}
        notes = [failed[image_id] for image_id in sorted(failed)]
        publish(root, "detections", method, table, counts, ledger=notes, seconds=clock.seconds)
    entry = done_already(root, COMBINE, "detections", method)
    assert entry is not None
    entry.quality = planned.quality
    return entry


def _failed(root: Root, parts: Sequence[MeasuredRun]) -> dict[str, LedgerRow]:
    """Test images of which some run has no detections, for they failed there, and a ledger row of each."""
    rows: dict[str, LedgerRow] = {}
    for part in parts:
        entry = part.detections
        assert entry.manifest is not None
        names = read_manifest(root, "detections", entry.method, entry.manifest).names
        commits = read_commits(root, "detections", entry.method, names)
        there = {image_id for commit in commits for image_id in commit.images}
        for image_id in set(part.image_ids) - there:
            text = f"it failed in run {part.name!r}; `spp retry --run {part.name}`, then combine again"
            row = LedgerRow(image_id=image_id, stage=COMBINE, type="NoDetections", message=text)
            rows.setdefault(image_id, row)
    return rows


def _pooled(
    root: Root,
    parts: Sequence[MeasuredRun],
    image_ids: Sequence[str],
    nms_overlap: float,
    method: str,
    clock: PhaseClock,
) -> pa.Table:
    """The rows of the combination, of the images ``image_ids`` (sorted)."""
    from pipeline.detection import combination

    with clock.phase("read"):
        tables = [stored_detections(root, part.record) for part in parts]
    names = sorted({name for table in tables for name in table["class_name"].unique().to_pylist()})
    with clock.phase("suppress"):
        sets = [_detection_set(table, image_ids, names) for table in tables]
        kept = combination.combine(sets, nms_overlap)
    return pa.table(
        [
            pa.array(image_ids, pa.string()).take(pa.array(kept.images)),
            pa.array(names, pa.string()).take(pa.array(kept.classes)),
            pa.array(kept.scores),
            box_column(kept.boxes),
        ],
        schema=schema("detections", metadata={"method": method}),
    )


def _detection_set(table: pa.Table, image_ids: Sequence[str], class_names: Sequence[str]) -> DetectionSet:
    """Rows of ``detections``, those of ``image_ids`` only, as numbers."""
    from pipeline.detection.combination import DetectionSet

    images = places_in(table["image_id"], image_ids)
    rows = np.flatnonzero(images >= 0)
    classes = places_in(table["class_name"], class_names)
    return DetectionSet(images[rows], classes[rows], table["score"].to_numpy()[rows], boxes_of(table["box"])[rows])


def _print_comparison(new_name: str, compared: Mapping[str, Any]) -> None:
    """AP (11-point) of each class and run, the mean, and how sure the difference is."""
    runs = [*compared["runs"], new_name]
    rows = {row["class_name"]: row["ap_11"] for row in compared["classes"]}
    rows |= {"mean AP (11-point)": compared["map_11"], "mean AP (area)": compared["map_area"]}
    cells: Rows = {
        (name,): {run: f"{ap:.3f}" for run, ap in own.items() if ap is not None} for name, own in rows.items()
    }
    Grid(corner=("class",), columns={run: run for run in runs}, rows=cells).show()
    for mean, measure in (("map_11", "11-point"), ("map_area", "area")):
        found = compared["difference"][mean]
        if found["value"] is not None:
            print(
                f"{new_name} minus {compared['best']}, the best alone: mean AP ({measure}) {found['value']:+.3f}, "
                f"{compared['confidence']:.0%} interval {found['low']:+.3f} to {found['high']:+.3f} "
                f"({compared['samples']} bootstrap samples of {compared['images']} images)"
            )
