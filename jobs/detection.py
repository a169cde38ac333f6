"""How a run's detections are made: the work of detect, one shard of test images after another.

With ``detect.source: stored`` tasks read the features; with ``stream`` actors that hold the body make them, and keep
none. Both give the same detections.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from jobs.crews import Crew, TaskCrew
from jobs.detect import DetectConfig, detect_method, detection_shards
from jobs.errors import UsageError
from jobs.execution import RaySession, Resources
from jobs.extract import features_method, load_body
from jobs.features import FeatureShard, feature_shards
from jobs.imagefile import ImageFile
from jobs.index import Index
from jobs.progress import ProgressReport
from jobs.reduce import entry_of, publish_shard, stored_features
from jobs.shardloop import ShardLoop, Work
from jobs.stages import Invocation
from jobs.trial import Trial
from jobs.versions import PRODUCER
from jobs.works import actor_crew
from pipeline.box_regression import Regressor
from pipeline.detection import DetectionRules, Detector, Found
from pipeline.phases import PhaseClock
from pipeline.scoring import LinearScorer
from storage.columns import box_column, boxes_of, vectors_of
from storage.commits import Commit, CommitName, LedgerRow, read_commits, winners
from storage.manifest import fold, read_manifest
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, dataset_record
from storage.scan import scan_manifest
from storage.schemas import VECTOR_COLUMN, schema
from storage.shards import Shard


@dataclass(frozen=True)
class DetectShard:
    """The test images of one shard, and the shards of features, or files of proposals, that hold them.

    ``failed``: those images that have none, for a failure.
    """

    root: Root
    method: str
    shard: str
    revision: int
    images: tuple[ImageFile, ...]
    features: tuple[FeatureShard, ...]
    proposals: tuple[str, ...]
    failed: frozenset[str]
    class_names: tuple[str, ...]
    trial: Trial = field(default_factory=Trial)

    def present(self) -> list[ImageFile]:
        """The images to look at, sorted."""
        return [file for file in self.trial.images(self.images) if file.image_id not in self.failed]


def detect(
    invocation: Invocation, record: RunRecord, index: Index, session: RaySession, retry: bool = False
) -> DatasetRecord:
    """Detect in the test images of a run; shards that are committed are not done again.

    ``retry``: but those in which an image failed, as a new revision.
    """
    config, root = invocation.config, invocation.root
    image_ids = index.images_in(config.dataset.test_splits)
    method = detect_method(config.detect, record, image_ids)
    planned = detection_shards(index, image_ids)
    done = {("detections", key): name for key, name in winners(root, "detections", method).items()}
    revisions = {shard.key: 0 for shard in planned}
    if retry:
        there = [name for (_, key), name in done.items() if key in revisions]
        for commit in read_commits(root, "detections", method, there):
            if commit.failed:
                revisions[commit.shard] = done.pop(("detections", commit.shard)).revision + 1
    todo = [(shard, revisions[shard.key]) for shard in planned if ("detections", shard.key) not in done]
    if todo:
        _make(invocation, record, index, session.resources(), method, todo, done)
    commits: list[CommitName] = [done["detections", shard.key] for shard in planned]
    return entry_of("detect", fold(root, "detections", method, commits))


def detect_shard(work: DetectShard, detector: Detector) -> Commit | None:
    """Detections of one shard from stored features, committed (in a trial of one image alone: made, and dropped)."""
    clock = PhaseClock()
    files = {file.image_id: file for file in work.present()}
    found: dict[str, Found] = {}
    for part in work.features:
        with clock.phase("read"):
            boxes = {image_id: boxes_of(table["box"]) for image_id, table in part.windows(list(files)).items()}
        for image_id, parts in _vectors(part, list(files), clock):
            height, width = files[image_id].height_width
            with clock.phase("score"):
                found[image_id] = detector(boxes[image_id], parts, height, width)
    return commit_found(work, list(files), found, work.trial.ledger("detect"), clock)


def commit_found(
    work: DetectShard,
    present: Sequence[str],
    found: Mapping[str, Found],
    ledger: Sequence[LedgerRow],
    clock: PhaseClock,
) -> Commit | None:
    """Write what was found in the images that are ``present``; one without windows has no detections."""
    if work.trial.alone is not None:
        return None
    ids = [image_id for image_id in present for _ in range(len(found[image_id].scores) if image_id in found else 0)]
    parts = [found[image_id] for image_id in present if image_id in found]
    classes = np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)])
    table = pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([work.class_names[number] for number in classes], pa.string()),
            pa.array(np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)])),
            box_column(np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)])),
        ],
        schema=schema("detections", metadata={"method": work.method}),
    )
    return publish_shard(
        work.root,
        "detections",
        work.method,
        work.shard,
        table,
        {image_id: len(found[image_id].scores) if image_id in found else 0 for image_id in present},
        revision=work.revision,
        ledger=ledger,
        skipped=sorted(work.failed),
        seconds=clock.seconds,
        producer=PRODUCER,
    )


def load_detector(root: Root, record: RunRecord, config: DetectConfig) -> Detector:
    """The models of a run. StorageError, naming the verb, if they are not there."""
    names = svm_classes(root, record)
    svms = {row["class_name"]: row for row in _rows(root, record, "svms")}
    if svms:
        weights = np.stack([np.asarray(svms[name]["weight"], np.float32) for name in names])
        biases = np.array([svms[name]["bias"] for name in names])
        scorer = LinearScorer(weights, biases, svms[names[0]]["feature_scale"])
    else:
        scorer = LinearScorer(np.zeros((0, 1), np.float32), np.zeros(0), 1.0)
    regressors, scale = {}, 1.0
    for row in _rows(root, record, "regressors") if config.regress else ():
        if row["class_name"] in svms:
            regressors[names.index(row["class_name"])] = _regressor(row)
            scale = row["feature_scale"]
    rules = DetectionRules(config.score_above, config.nms_overlap, config.max_per_class)
    return Detector(scorer, dict(sorted(regressors.items())), scale, rules)


def svm_classes(root: Root, record: RunRecord) -> tuple[str, ...]:
    """The classes that a run has SVMs of."""
    return tuple(sorted(row["class_name"] for row in _rows(root, record, "svms", ["class_name"])))


def _rows(root: Root, record: RunRecord, dataset: str, columns: Sequence[str] | None = None) -> Iterator[dict]:
    entry = dataset_record(record, dataset)
    assert entry.manifest is not None
    for table in scan_manifest(root, read_manifest(root, dataset, entry.method, entry.manifest), columns):
        yield from table.to_pylist()


def _regressor(row: dict) -> Regressor:
    whitening = np.array(row["whitening"]).reshape(4, 4)
    return Regressor(
        np.asarray(row["weight"], np.float32).reshape(4, -1),
        np.array(row["bias"]),
        np.array(row["mean"]),
        whitening,
        np.linalg.inv(whitening),
    )


def _vectors(
    part: FeatureShard, image_ids: Sequence[str], clock: PhaseClock
) -> Iterator[tuple[str, list[NDArray[np.float16]]]]:
    """Every image and its vectors, in the row groups that they are read in."""
    tables = part.scan(image_ids)
    grouped = itertools.groupby(_timed(tables, clock), key=lambda table: table["image_id"][0].as_py())
    for image_id, group in grouped:
        yield image_id, [vectors_of(table[VECTOR_COLUMN]) for table in group]


def _timed(tables: Iterator[pa.Table], clock: PhaseClock) -> Iterator[pa.Table]:
    while True:
        with clock.phase("read"):
            table = next(tables, None)
        if table is None:
            return
        yield table


def _make(
    invocation: Invocation,
    record: RunRecord,
    index: Index,
    resources: Resources,
    method: str,
    todo: Sequence[tuple[Shard, int]],
    done: dict[tuple[str, str], CommitName],
) -> None:
    config, root = invocation.config, invocation.root
    rows = index.images.select(["image_id", "height", "width", "uri", "digest"]).to_pylist()
    files = {r["image_id"]: ImageFile(r["image_id"], r["uri"], r["digest"], (r["height"], r["width"])) for r in rows}
    streamed = config.detect.source == "stream"
    failed, names = _failed(root, record), svm_classes(root, record)
    stored = [] if streamed else feature_shards(root, record)
    proposed = _proposal_files(root, record) if streamed else []

    def make(shard: Shard, revision: int, _: CommitName | None, trial: Trial) -> DetectShard:
        ids = shard.image_ids
        holding = tuple(one for one in stored if one.first <= ids[-1] and ids[0] <= one.last)
        boxes = tuple(key for key, first, last in proposed if first <= ids[-1] and ids[0] <= last)
        images = tuple(files[image_id] for image_id in ids)
        failures = failed.intersection(ids)
        return DetectShard(root, method, shard.key, revision, images, holding, boxes, failures, names, trial)

    works = [
        Work("detect", "detections", shard.key, shard.image_ids, partial(make, shard, revision))
        for shard, revision in todo
    ]
    detector = ray.put(load_detector(root, record, config.detect))
    crew: Crew
    if streamed:
        from jobs.detect_actor import DetectActor

        body = load_body(config.features)
        method_now = features_method(config.features, body.digest, dataset_record(record, "proposals").method)
        if method_now != stored_features(record).method:
            raise UsageError(
                "detect.source is stream, but the features section or the weights are not those that the SVMs were "
                "trained on; run `spp extract` and `spp train-svm` first, or `spp run`"
            )
        crew = actor_crew(invocation, resources, body, DetectActor, "detect", detector)
    else:
        crew = TaskCrew(detect_shard, 2 * resources.cpus, detector)
    total = sum(work.images for work in works)
    with ProgressReport({"detections": total}, {"detections": 0}, config.execution.progress_seconds) as progress:
        ShardLoop({"detect": crew}, config.execution, progress, done).run(works)


def _proposal_files(root: Root, record: RunRecord) -> list[tuple[str, str, str]]:
    """The files of a run's proposals, with their first and last image id."""
    entry = dataset_record(record, "proposals")
    assert entry.manifest is not None
    manifest = read_manifest(root, "proposals", entry.method, entry.manifest)
    rows = manifest.table.select(["first_image", "last_image"]).to_pylist()
    return [(key, row["first_image"], row["last_image"]) for row, key in zip(rows, manifest.keys, strict=True)]


def _failed(root: Root, record: RunRecord) -> frozenset[str]:
    """Images without features, for they failed there or before."""
    ids: set[str] = set()
    for name in ("proposals", "features", "windows"):
        entry = record.datasets.get(name)
        if entry is not None and entry.manifest is not None and entry.failed:
            ledger = read_manifest(root, name, entry.method, entry.manifest).ledger
            ids.update(row.image_id for row in ledger if row.level == "failed")
    return frozenset(ids)
