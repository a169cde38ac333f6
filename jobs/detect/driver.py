"""How a run's detections are made: the work of detect, one shard of test images after another.

With ``detect.source: stored`` tasks read the features; with ``stream`` actors that hold the body make them, and keep
none. Both give the same detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
import torch

from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index
from jobs.dataset.stored import image_files
from jobs.detect.actor import DetectActor
from jobs.detect.shard import DetectShard, detect_shard
from jobs.errors import UsageError
from jobs.execution.session import RaySession, Resources
from jobs.execution.tasks import as_task, results
from jobs.features.body import load_body
from jobs.features.crew import actor_crew
from jobs.features.method import features_method
from jobs.features.stored import feature_shards
from jobs.head.stored import StoredHead, head_classes, network_layer, read_head
from jobs.proposals.stored import failed_in
from jobs.record.invocation import Invocation
from jobs.record.lineage import stored_features
from jobs.record.stage import Assignment
from jobs.shards.attempt import ShardAttempt
from jobs.shards.crews import Crew, TaskCrew
from jobs.shards.loop import Work
from jobs.shards.make import ShardMaker, works_on
from jobs.shards.survey import Survey
from pipeline.detection.box_regression import Regressor
from pipeline.detection.detector import DetectionRules, Detector
from pipeline.detection.scoring import LinearScorer, Probabilities
from pipeline.network.head import Embedder, compressed
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord, dataset_record
from storage.scan import scan_manifest
from storage.shards import Shard


def maker_of(assignment: Assignment, found: Survey) -> ShardMaker:
    """How the missing shards of a run's detections are made."""
    invocation, record = assignment.invocation, assignment.record
    crews = {"detect": lambda: _crew(invocation, record, assignment.session)}

    def works(found: Survey) -> Iterator[Work]:
        return works_on(invocation.root, "detect", _maker(invocation, record, assignment.index), found)

    return ShardMaker(found, works, crews)


def load_detector(root: Root, record: RunRecord, config: RunConfig, embedder: Embedder | None = None) -> Detector:
    """The models of a run. StorageError, naming the verb, if they are not there.

    ``embedder``: what makes of a vector the layer that is scored, where that is not the vector itself.
    """
    names = detected_classes(root, record, config)
    scorer: LinearScorer | Probabilities
    if config.detect.classifier == "softmax":
        scorer = Probabilities(len(names))
    else:
        svms = {row["class_name"]: row for row in _rows(root, record, "svms")}
        scorer = LinearScorer(np.zeros((0, 1), np.float32), np.zeros(0), 1.0)
        if svms:
            weights = np.stack([np.asarray(svms[name]["weight"], np.float32) for name in names])
            biases = np.array([svms[name]["bias"] for name in names])
            scorer = LinearScorer(weights, biases, svms[names[0]]["feature_scale"])
    regressors, scale = {}, 1.0
    for row in _rows(root, record, "regressors") if config.detect.regress else ():
        if row["class_name"] in names:
            regressors[names.index(row["class_name"])] = _regressor(row)
            scale = row["feature_scale"]
    rules = DetectionRules(config.detect.score_above, config.detect.nms_overlap, config.detect.max_per_class)
    return Detector(scorer, dict(sorted(regressors.items())), scale, rules, embedder)


def detected_classes(root: Root, record: RunRecord, config: RunConfig) -> tuple[str, ...]:
    """The classes that a run's detector tells apart: those that have an SVM, or all that the head was trained for."""
    if config.detect.classifier == "softmax":
        return head_classes(root, record)
    return tuple(sorted(row["class_name"] for row in _rows(root, record, "svms", ["class_name"])))


def _detector(invocation: Invocation, record: RunRecord, resources: Resources, device: str) -> Detector:
    """The run's detector, with its head, if it has one, truncated as configured."""
    config, root = invocation.config, invocation.root
    embedder = None
    if config.needs_head:
        layer = "fc8" if config.detect.classifier == "softmax" else network_layer(config.svm.layer)
        stored = read_head(root, record)
        if config.head.svd_rank is not None:
            task = as_task(truncate, num_cpus=resources.node_cpus)
            (stored,) = results("detect", [task.remote(stored, config.head.svd_rank, resources.node_cpus)])
        embedder = stored.embedder(layer, device)
    return load_detector(root, record, config, embedder)


def truncate(stored: StoredHead, ranks: tuple[int, int], threads: int) -> StoredHead:
    """A head with fc6 and fc7 truncated; half a minute for the paper's sizes."""
    torch.set_num_threads(threads)
    slim = compressed(stored.head(), ranks).state_dict()
    return StoredHead({name: values.numpy() for name, values in slim.items()}, stored.class_names)


def _rows(root: Root, record: RunRecord, dataset: str, columns: Sequence[str] | None = None) -> Iterator[dict]:
    for table in scan_manifest(root, recorded_manifest(root, record, dataset), columns):
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


def _maker(invocation: Invocation, record: RunRecord, index: Index) -> Callable[[Shard, ShardAttempt], DetectShard]:
    """What a worker is told of a shard."""
    config, root = invocation.config, invocation.root
    streamed = config.detect.source == "stream"
    files = image_files(index)
    failed = failed_in(root, record, ("proposals", "features", "windows"))
    names = detected_classes(root, record, config)
    stored = [] if streamed else feature_shards(root, record)
    proposed = recorded_manifest(root, record, "proposals").files if streamed else []

    def make(shard: Shard, attempt: ShardAttempt) -> DetectShard:
        ids = shard.image_ids
        holding = tuple(one for one in stored if one.first <= ids[-1] and ids[0] <= one.last)
        boxes = tuple(file.key for file in proposed if file.may_hold(ids))
        images = tuple(files[image_id] for image_id in ids)
        failures = failed.intersection(ids)
        return DetectShard(
            **vars(attempt),
            images=images,
            features=holding,
            proposals=boxes,
            failed=failures,
            class_names=names,
        )

    return make


def _crew(invocation: Invocation, record: RunRecord, session: RaySession) -> Crew:
    config, resources = invocation.config, session.ready()
    on_gpu = resources.use_gpus(config.execution)
    detector = ray.put(_detector(invocation, record, resources, "cuda" if on_gpu else "cpu"))
    if config.detect.source == "stored":
        gpus = resources.gpu_share if on_gpu and config.needs_head else 0
        return TaskCrew(detect_shard, session.cores, detector, gpus=gpus)

    body = load_body(config.features)
    method = features_method(config.features, body.digest, dataset_record(record, "proposals").method)
    if method != stored_features(record).method:
        raise UsageError(
            "detect.source is stream, but the features section or the weights are not those that the SVMs were "
            "trained on; run `spp extract` and `spp train-svm` first, or `spp run`"
        )
    return actor_crew(invocation, session, body, DetectActor, "detect", detector)
