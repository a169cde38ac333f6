"""The driver of pretrain (jobs/pretrain/__init__.py tells the story)."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from jobs.config.run_config import RunConfig
from jobs.console.tables import print_table
from jobs.dataset.driver import make_index
from jobs.dataset.index import Index, object_digests
from jobs.dataset.labelled import ALL
from jobs.dataset.objects import is_held_out
from jobs.errors import RunFailed, UsageError
from jobs.execution.session import RaySession, Resources, local_places
from jobs.execution.tasks import as_task, results
from jobs.execution.training import Training, run_training, training_threads
from jobs.pretrain.method import examples_digests, pretrain_method
from jobs.pretrain.worker import (
    LabelledFiles,
    ScoreNetwork,
    TrainNetwork,
    described,
    score_network,
    stored_network,
    train_network,
)
from jobs.record.invocation import Invocation
from jobs.record.publish import done_already
from jobs.record.recording import recorded_run
from jobs.record.versions import PRODUCER
from pipeline.bodies import BodySpec, UnsuitableBodyError, body_spec
from pipeline.bodies.weights import save_network
from pipeline.network.spp_network import pooling_levels
from storage.identity import canonical_json, digest
from storage.manifest import recorded_manifest
from storage.quality import NetworkQuality, Quality, ViewQuality
from storage.root import Root
from storage.runs import RunRecord, dataset_record, hold
from storage.scan import file_metadata

_log = logging.getLogger("spp")

_DATASETS = ("pretraining_curve", "network")
_MOST_THREADS = 512
"""That a network of an earlier command may have been trained with."""


@dataclass(frozen=True)
class _Data:
    """The images to train on, to choose the rate by, and to test on, which are of the test splits or held out."""

    class_names: tuple[str, ...]
    train: LabelledFiles
    held_out: LabelledFiles
    tested: LabelledFiles
    tested_on: str
    digests: dict[str, str]


def pretrain(invocation: Invocation) -> RunRecord:
    """Train and test the network of a config, but for what is there; returns the run's record.

    Raises UsageError for images that are not of one class each, RunFailed if it had to stop; the same command goes on.
    """
    root, config = invocation.root, invocation.config
    spec = _body(config)
    _check_shares(config)
    local = local_places(root, config.dataset.path)
    with recorded_run(invocation) as record, RaySession(config.execution, local) as session:
        data = _data(config, make_index(invocation, record))
        if not len(data.tested):
            _log.warning("note: pretrain: no image is left to test on; give test splits, or pretrain.held_out")
        method = _method(config, record, data, session)
        hold(root, record, [f"{name}/{method}" for name in (*_DATASETS, "checkpoints")])
        if done_already(root, "pretrain", "network", method) is None:
            _train(invocation, spec, data, method, session.ready())
        earlier = record.datasets.get("network")
        for name in _DATASETS:
            entry = done_already(root, "pretrain", name, method)
            if entry is None:
                raise RunFailed(f"pretrain: {name} of method {method} was not written; run the same command again")
            record.datasets[name] = entry
        same = earlier is not None and earlier.manifest == record.datasets["network"].manifest
        known = earlier.quality if same and earlier is not None else Quality()
        record.datasets["network"].quality = _tested(invocation, record, data, known, session)
        record.holds = []
    return record


def _body(config: RunConfig) -> BodySpec:
    try:
        return body_spec(config.features.body)
    except UnsuitableBodyError as error:
        raise UsageError(f"features.body: {error}") from error


def _method(config: RunConfig, record: RunRecord, data: _Data, session: RaySession) -> str:
    """The method id of the network. ``execution.train_threads: auto`` takes the one that the run has, however many
    threads of a CPU trained it, before it trains one with as many as there are now."""
    execution = config.execution
    examples = examples_digests(data.class_names, data.digests)

    def method(threads: int) -> str:
        return pretrain_method(config.pretrain, config.features, examples, execution.train_workers, threads)

    if execution.train_threads == "auto" and "network" in record.datasets:
        there = record.datasets["network"].method
        if there in map(method, range(1, _MOST_THREADS + 1)):
            return there
    resources = session.ready()
    on_gpu = resources.use_gpus(execution)
    return method(1 if on_gpu else training_threads(execution, resources, on_gpu))


def _check_shares(config: RunConfig) -> None:
    batch, workers = config.pretrain.batch, config.execution.train_workers
    if batch % workers:
        raise UsageError(
            f"execution.train_workers is {workers}, which does not divide the {batch} images of a mini-batch; choose a "
            f"number that does, or change pretrain.batch"
        )


def _data(config: RunConfig, index: Index) -> _Data:
    """The images by what they are for. UsageError for one that has not exactly one class, or too few of either."""
    dataset, pretrain = config.dataset, config.pretrain
    there = {split for splits in index.images["splits"].to_pylist() for split in splits}
    without_splits = ALL in there and not there.intersection(dataset.splits)
    train_splits = (ALL,) if without_splits else dataset.train_splits
    class_of = _classes(index)
    train = index.images_in(train_splits)
    tested = sorted(set(index.images_in(dataset.test_splits)).difference(train))
    class_names = sorted({class_of[image_id] for image_id in train})
    if len(class_names) < 2:
        raise UsageError(
            f"dataset: the training images ({', '.join(train_splits)}) are of {len(class_names)} classes; a network "
            f"tells two or more apart"
        )
    unknown = next((i for i in tested if class_of[i] not in class_names), None)
    if unknown is not None:
        raise UsageError(
            f"dataset: test image {unknown!r} is of class {class_of[unknown]!r}, of which there is no training image; "
            f"see dataset.train_splits and dataset.test_splits"
        )
    held_out = [i for i in train if is_held_out(pretrain.held_out, pretrain.seed, i)]
    kept = sorted(set(train).difference(held_out))
    if len(kept) < config.execution.train_workers:
        raise UsageError(
            f"dataset: {len(kept)} images are left to train on; give more, lower pretrain.held_out, or take fewer "
            f"execution.train_workers"
        )
    place = {image_id: row for row, image_id in enumerate(index.images["image_id"].to_pylist())}
    number = {name: label for label, name in enumerate(class_names)}

    def files(image_ids: list[str]) -> LabelledFiles:
        table = index.images.select(["image_id", "uri", "digest", "height", "width"])
        labels = np.array([number[class_of[i]] for i in image_ids], np.int64)
        rows = np.array([place[i] for i in image_ids], np.int64)
        return LabelledFiles(table.take(rows).combine_chunks(), labels, dict(dataset.storage_options))

    return _Data(
        tuple(class_names),
        files(kept),
        files(held_out),
        files(tested or held_out),
        f"splits {', '.join(dataset.test_splits)}" if tested else "held-out images",
        object_digests(index, train_splits),
    )


def _classes(index: Index) -> dict[str, str]:
    """Image to its class."""
    found: dict[str, str] = {}
    several = None
    for image_id, name in zip(*index.objects.select(["image_id", "class_name"]).to_pydict().values(), strict=True):
        if found.setdefault(image_id, name) != name:
            several = image_id
    missing = next((i for i in index.images["image_id"].to_pylist() if i not in found), None)
    if several is not None or missing is not None:
        what = f"{several!r} shows several classes" if several is not None else f"{missing!r} shows none"
        raise UsageError(
            f"dataset: image {what}; pretrain needs images of one class each: dataset.layout folder or table"
        )
    return found


def _train(invocation: Invocation, spec: BodySpec, data: _Data, method: str, resources: Resources) -> None:
    """Train the network and publish it."""
    config, execution = invocation.config, invocation.config.execution
    on_gpu = resources.use_gpus(execution)
    threads = training_threads(execution, resources, on_gpu)
    levels = pooling_levels(config.pretrain.pooling, config.features.pyramid)
    work = TrainNetwork(
        root=invocation.root,
        method=method,
        body=spec.name,
        levels=levels,
        classes=len(data.class_names),
        config=config.pretrain,
        device="cuda" if on_gpu else "cpu",
        threads=threads,
        decode_threads=max(threads, execution.decode_threads) if on_gpu else execution.decode_threads,
        checkpoint_seconds=execution.checkpoint_seconds,
        most_failed=execution.max_failed,
        metadata={
            "method": method,
            "body": spec.name,
            "levels": ",".join(map(str, levels)),
            "pooling": config.pretrain.pooling,
            "order": "level,bin,channel",
            "classes": json.dumps(data.class_names),
            "producer": PRODUCER,
        },
    )
    _log.info(
        f"pretrain: {spec.name} on {len(data.train):,} images of {len(data.class_names):,} classes, "
        f"{len(data.held_out):,} held out"
    )
    training = Training("pretrain", train_network, work, ray.put((data.train, data.held_out)), described)
    run_training(training, execution, resources)


def _tested(
    invocation: Invocation, record: RunRecord, data: _Data, known: Quality, session: RaySession
) -> NetworkQuality:
    """What the network says of the tested images, view by view; views that are ``known`` are not looked at again."""
    config, root = invocation.config, invocation.root
    images = data.tested.table.select(["image_id", "digest"]).to_pydict()
    identity = digest(canonical_json([images, data.tested.labels.tolist(), config.features.mapping]))
    views = config.pretrain.tested_views
    made = NetworkQuality(identity=identity, tested_on=data.tested_on, views={})
    if isinstance(known, NetworkQuality) and known.identity == identity:
        made.views, made.failed = dict(known.views), dict(known.failed)
    missing = tuple(view for view in views if view not in made.views)
    if missing and len(data.tested):
        resources = session.ready()
        on_gpu = resources.use_gpus(config.execution)
        threads = training_threads(config.execution, resources, on_gpu)
        (key,) = recorded_manifest(root, record, "network").keys
        work = ScoreNetwork(
            root=root,
            key=key,
            body=config.features.body,
            levels=config.features.pyramid,
            fixed=config.pretrain.pooling == "fixed",
            mapping=config.features.mapping,
            views=missing,
            device="cuda" if on_gpu else "cpu",
            threads=threads,
            decode_threads=max(threads, config.execution.decode_threads) if on_gpu else config.execution.decode_threads,
        )
        task = as_task(score_network, num_cpus=threads, num_gpus=int(on_gpu))
        parts = np.array_split(np.arange(len(data.tested)), min(config.execution.train_workers, len(data.tested)))
        found = results("pretrain", [task.remote(work, data.tested.part(rows)) for rows in parts])
        failed = [row for _, ledger in found for row in ledger]
        made.failed |= {row.image_id: f"{row.stage}: {row.type}: {row.message}" for row in failed}
        count = len(data.tested) - len(failed)
        for view in missing if count else ():
            first, five = (sum(counts[view][place] for counts, _ in found) for place in (0, 1))
            made.views[view] = ViewQuality(top1=first / count, top5=five / count, images=count)
    return made


def print_pretraining(record: RunRecord) -> NetworkQuality:
    """Print what a run's network was tested on, and return it."""
    quality = dataset_record(record, "network").quality
    assert isinstance(quality, NetworkQuality)
    if not quality.views:
        print("no image was left to test on; give test splits, or pretrain.held_out")
        return quality
    rows = [
        (view, f"{values.images:,}", f"{100 * values.top1:.2f}", f"{100 * values.top5:.2f}")
        for view, values in quality.views.items()
    ]
    print(f"tested on {quality.tested_on}:")
    print_table(("view", "images", "top-1 %", "top-5 %"), rows, 1)
    return quality


def check_export(path: str) -> None:
    """UsageError unless a network can be written there."""
    if Path(path).suffix != ".safetensors" or not Path(path).resolve().parent.is_dir():
        raise UsageError(f"--export {path!r}: give a file that ends in .safetensors, in a folder that exists")


def export(root: Root, record: RunRecord, path: str) -> None:
    """Write a run's network as a file that ``features.weights`` takes."""
    (key,) = recorded_manifest(root, record, "network").keys
    about = file_metadata(root, key)
    levels = [int(level) for level in about["levels"].split(",")]
    network = stored_network(root, key, about["body"], levels, fixed=about["pooling"] == "fixed")
    target = Path(path)
    staged = target.with_name(f".{target.stem}.{os.getpid()}.safetensors")
    try:
        save_network(staged, network.spec, network.exported(), levels, json.loads(about["classes"]))
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
