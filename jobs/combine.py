"""combine: two or more detectors together, measured beside each of them (paper 4.4, Table 12).

    spp combine zf5 zf5-other --root /data/spp --run both

The detections of the runs, each with its own box regression, are pooled and suppressed once more per class and image
(pipeline/combination.py). What comes of it is a run of its own, with the datasets images, objects, detections and
metrics, which `spp query`, `spp status`, `spp verify` and another `spp combine` take like any other. The runs must have
the same test images with the same objects, and be measured alike. Repeated, it redoes nothing; after one of the runs
has changed it makes a new combination under the same name.

The table gives the average precisions of each run and of the combination, and how far their difference from the best
single run would have moved on other test images: a 95% interval by bootstrap (pipeline/bootstrap.py).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import RunConfig
from jobs.errors import UsageError
from jobs.evaluation import evaluate, ground_truth, stored_detections
from jobs.execution import RaySession
from jobs.index import Index
from jobs.printing import print_json, print_table
from jobs.reduce import done_already, publish, reduce_method
from jobs.run import failed_images
from jobs.stages import Invocation, recorded_index, reduce_method_of
from jobs.versions import PRODUCER, versions
from pipeline.phases import PhaseClock
from storage.columns import box_column, boxes_of
from storage.commits import LedgerRow, read_commits
from storage.manifest import read_manifest
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, check_run_name, dataset_record, read_run, run_names, write_run
from storage.schemas import schema

if TYPE_CHECKING:
    from pipeline.combination import DetectionSet
    from pipeline.evaluation import MatchedClass

VERSION = 1

STAGE = "combine"
"""What the record of a combination's detections says that they were made by."""

NMS_OVERLAP = 0.3
"""Of the paper, and of ``detect.nms_overlap``."""

_SECTIONS = frozenset({"dataset", "evaluate", "execution", "storage_options"})
"""Of the first run's config, what holds for the combination too; the other sections made nothing of it."""


@dataclass(frozen=True)
class _Part:
    """One of the runs that are combined."""

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


def combine(
    root: Root, names: Sequence[str], new_name: str, nms_overlap: float = NMS_OVERLAP, argv: Sequence[str] = ()
) -> RunRecord:
    """Combine the detections of the runs ``names`` into the run ``new_name``, and measure them; returns its record.

    A test image that failed in one of the runs fails here. Nothing is recorded before all is made; what was committed
    stays. Raises UsageError or StorageError, naming what differs or is missing, and what to do; RunFailed as `spp
    evaluate` does.
    """
    started = _now()
    _check_names(root, names, new_name)
    if not 0 <= nms_overlap <= 1:
        raise UsageError(f"--nms-overlap is an IoU from 0 to 1, not {nms_overlap}")
    root.check_writable()
    parts = [_read_part(root, name) for name in names]
    first = parts[0]
    for part in parts[1:]:
        _check_same(first, part)
    for part in parts:
        _check_current(root, part)
    config = RunConfig.model_validate(first.config.model_dump(mode="json", include=set(_SECTIONS)))
    record = RunRecord(
        name=new_name,
        config=config.model_dump(mode="json", include=set(_SECTIONS)),
        argv=list(argv),
        versions=versions(),
        host=socket.gethostname(),
        started=started,
        datasets={name: first.record.datasets[name] for name in ("images", "objects")},
    )
    record.datasets["detections"] = _detections(root, parts, nms_overlap)
    with RaySession(config.execution) as session:
        invocation = Invocation(config, root, new_name, tuple(argv))
        record.datasets["metrics"] = evaluate(invocation, record, first.index, session)
    record.exit_code = 3 if len(failed_images(root, record)) > config.execution.max_failed_ok else 0
    record.status, record.finished = "done", _now()
    write_run(root, record)
    return record


def combined_runs(record: RunRecord) -> list[str] | None:
    """The runs that a run is the combination of, in their order; None if it is none."""
    entry = record.datasets.get("detections")
    return list(entry.quality["runs"]) if entry is not None and entry.stage == STAGE else None


def is_behind(root: Root, record: RunRecord) -> bool:
    """Whether one of the runs that a combination was made from has other detections now.

    One that is there no more has no newer ones.
    """
    made_from = record.datasets["detections"].quality["runs"]
    there = set(run_names(root))
    for name, found in made_from.items():
        entry = read_run(root, name).datasets.get("detections") if name in there else None
        if entry is not None and found != _identity(entry):
            return True
    return False


def compare(root: Root, record: RunRecord) -> dict[str, Any]:
    """A combination beside the runs that it was made from, all measured on its objects. JSON values.

    ``runs`` and the combination's own name are the keys of ``ap_11`` and ``ap_area`` of each class, and of the means
    ``map_11`` and ``map_area``. ``best`` is the run of the highest ``map_11``; ``difference`` gives the combination
    minus that run, for each mean: value, and the ends ``low`` and ``high`` of the bootstrap interval. What cannot be
    measured, for want of objects, is None.
    """
    from pipeline.bootstrap import CONFIDENCE, SAMPLES, bootstrap_maps, difference_interval
    from pipeline.evaluation import mean_ap, measure

    names = combined_runs(record)
    assert names is not None
    config = RunConfig.model_validate(record.config)
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
        "nms_overlap": record.datasets["detections"].quality["nms_overlap"],
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


def matched_detections(
    root: Root, record: RunRecord, config: RunConfig, index: Index, image_ids: Sequence[str]
) -> Mapping[str, MatchedClass]:
    """A run's detections by class, compared with the objects that ``index`` has of the test images of ``config``.

    Images are numbered by their places among ``image_ids``, the test images, as ``bootstrap_maps`` takes them. The
    classes are those of the index, as for ``spp evaluate``.
    """
    from pipeline.evaluation import Detections, match_classes

    objects = index.objects_in(config.dataset.test_splits)
    table = stored_detections(root, record)
    return match_classes(
        replace(ground_truth(objects), images=_places(objects["image_id"], image_ids)),
        np.array(objects["class_name"].to_pylist(), object),
        Detections(_places(table["image_id"], image_ids), table["score"].to_numpy(), boxes_of(table["box"])),
        np.array(table["class_name"].to_pylist(), object),
        class_names=index.class_names(),
        overlap=config.evaluate.min_overlap,
    )


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
    exit_code = record.exit_code or 0
    made = {"run": new_name, "root": root.url, "exit_code": exit_code, **compared, "failed": failed}
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


def _read_part(root: Root, name: str) -> _Part:
    """A run, with complete detections."""
    record = read_run(root, name)
    entry = dataset_record(record, "detections")
    return _Part(record, RunConfig.model_validate(record.config), recorded_index(root, record), entry)


def _check_current(root: Root, part: _Part) -> None:
    """Raises UsageError unless the detections of a run are those of its data set and models as they are now."""
    combined = combined_runs(part.record)
    if combined is not None:
        if is_behind(root, part.record):
            again = f"`spp combine {' '.join(combined)} --run {part.name}`"
            raise UsageError(f"run {part.name!r} is behind the runs that it combines; run {again} first")
    elif reduce_method_of("detect", part.config, part.record, part.index) != part.detections.method:
        raise UsageError(
            f"detections of run {part.name!r} are behind what they were made from, or the config has changed since; "
            f"run `spp detect --run {part.name}` first, or `spp run`"
        )


def _check_same(first: _Part, other: _Part) -> None:
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


def _differing_image(first: _Part, other: _Part) -> str | None:
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


def _detections(root: Root, parts: Sequence[_Part], nms_overlap: float) -> DatasetRecord:
    """The record of the combined detections, which are made unless they are there."""
    read = [part.detections for part in parts]
    method = reduce_method(STAGE, VERSION, {"nms_overlap": nms_overlap}, read)
    entry = done_already(root, STAGE, "detections", method)
    if entry is None:
        clock = PhaseClock()
        failed = _failed(root, parts)
        image_ids = [image_id for image_id in parts[0].image_ids if image_id not in failed]
        table = _pooled(root, parts, image_ids, nms_overlap, method, clock)
        rows = table["image_id"].value_counts().to_pylist()
        counts = dict.fromkeys(image_ids, 0) | {row["values"]: row["counts"] for row in rows}
        notes = [failed[image_id] for image_id in sorted(failed)]
        entry = publish(
            root, STAGE, "detections", method, table, counts, notes=notes, seconds=clock.seconds, producer=PRODUCER
        )
    runs = {part.name: _identity(part.detections) for part in parts}
    entry.quality = {"runs": runs, "nms_overlap": nms_overlap}
    return entry


def _identity(entry: DatasetRecord) -> dict[str, Any]:
    """What tells a run's detections from later ones."""
    return {"method": entry.method, "manifest": entry.manifest}


def _failed(root: Root, parts: Sequence[_Part]) -> dict[str, LedgerRow]:
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
            row = LedgerRow(image_id=image_id, stage=STAGE, type="NoDetections", message=text)
            rows.setdefault(image_id, row)
    return rows


def _pooled(
    root: Root, parts: Sequence[_Part], image_ids: Sequence[str], nms_overlap: float, method: str, clock: PhaseClock
) -> pa.Table:
    """The rows of the combination, of the images ``image_ids`` (sorted)."""
    from pipeline import combination

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
    from pipeline.combination import DetectionSet

    images = _places(table["image_id"], image_ids)
    rows = np.flatnonzero(images >= 0)
    classes = _places(table["class_name"], class_names)
    return DetectionSet(images[rows], classes[rows], table["score"].to_numpy()[rows], boxes_of(table["box"])[rows])


def _places(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    """The place of each element of a column of strings among ``values``; -1 if it is none of them. int64 (N,)"""
    found = pc.index_in(column, value_set=pa.array(values, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _print_comparison(new_name: str, compared: Mapping[str, Any]) -> None:
    """AP (11-point) of each class and run, the mean, and how sure the difference is."""
    runs = [*compared["runs"], new_name]
    rows = [(row["class_name"], *(_shown(row["ap_11"][run]) for run in runs)) for row in compared["classes"]]
    rows.append(("mean AP (11-point)", *(_shown(compared["map_11"][run]) for run in runs)))
    rows.append(("mean AP (area)", *(_shown(compared["map_area"][run]) for run in runs)))
    print_table(("class", *runs), rows, 1)
    for mean, measure in (("map_11", "11-point"), ("map_area", "area")):
        found = compared["difference"][mean]
        if found["value"] is not None:
            print(
                f"{new_name} minus {compared['best']}, the best alone: mean AP ({measure}) {found['value']:+.3f}, "
                f"{compared['confidence']:.0%} interval {found['low']:+.3f} to {found['high']:+.3f} "
                f"({compared['samples']} bootstrap samples of {compared['images']} images)"
            )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
