"""How the head of a run is made: the driver of finetune (jobs/finetune.py tells the story)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.errors import RunFailed, UsageError
from jobs.execution import ExecutionConfig, RaySession, Resources
from jobs.extract import LoadedBody, file_metadata, load_body, truth_method, vector_length
from jobs.finetune import head_method, window_shards, windows_method
from jobs.head_training import TrainHead, initial_head, publish_head, train_head
from jobs.index import Index, object_digests
from jobs.reduce import done_already
from jobs.sharded import ShardedDataset, make_shards
from jobs.stages import Invocation
from jobs.tasks import as_task, results
from jobs.training_data import objects_of
from jobs.trial import Trial
from jobs.upstream import failed_upstream, image_files, proposal_files
from jobs.versions import PRODUCER
from jobs.works import actor_crew
from pipeline.bodies import load_classifier
from storage.manifest import read_manifest
from storage.runs import DatasetRecord, RunRecord, dataset_record
from storage.shards import Shard

_BESIDE_GPU = 4
"""Threads of a worker that trains on a GPU: they gather mini-batches."""


def finetune(
    invocation: Invocation, record: RunRecord, index: Index, session: RaySession, retry: bool = False
) -> dict[str, DatasetRecord]:
    """The head of a run, and what it was trained on, by dataset; unless they are there."""
    config, root = invocation.config, invocation.root
    body = _body(config, record)
    fine = config.finetunes
    made: dict[str, DatasetRecord] = {}
    if fine:
        made["training_windows"] = _windows(invocation, record, index, body, session, retry)
        record.datasets["training_windows"] = made["training_windows"]
    else:
        record.datasets.pop("training_windows", None)
    names = tuple(index.class_names())
    annotated = object_digests(index, config.dataset.train_splits)
    method = head_method(config.head, config.finetune if fine else None, record, names, annotated)
    if done_already(root, "finetune", "head", method) is None:
        _make_head(invocation, record, body, names, method, session.resources(), fine)
    for name in ("training_curve", "head"):
        entry = done_already(root, "finetune", name, method)
        if entry is None:
            raise RunFailed(f"finetune: {name} of method {method} was not written; run the same command again")
        made[name] = entry
    return made


def _body(config: RunConfig, record: RunRecord) -> LoadedBody:
    """The body that the run's features were made with. UsageError if the config means another one by now."""
    body = load_body(config.features)
    extracted = dataset_record(record, "truth_features")
    method = truth_method(config.features, body.digest, dataset_record(record, "images").method)
    if (method, body.classifier) != (extracted.method, extracted.classifier):
        raise UsageError(
            "the features section or the weights are not those that the run's features were made with; run "
            "`spp extract` first, or `spp run`"
        )
    return body


def _windows(
    invocation: Invocation, record: RunRecord, index: Index, body: LoadedBody, session: RaySession, retry: bool
) -> DatasetRecord:
    """Draw and pool the training windows."""
    from jobs.window_actor import WindowActor, WindowShard

    config, root = invocation.config, invocation.root
    method = windows_method(config.finetune, record)
    digests = object_digests(index, config.dataset.train_splits)
    planned = window_shards(config.finetune, vector_length(config.features, body), digests)
    names = tuple(index.class_names())
    objects = objects_of(index, digests, names)
    files, proposed = image_files(index), proposal_files(root, record)
    failed = failed_upstream(root, record)
    metadata = file_metadata(config.features, body, method, PRODUCER)

    def make(shard: Shard, revision: int, trial: Trial) -> WindowShard:
        ids = shard.image_ids
        return WindowShard(
            root,
            method,
            shard.key,
            revision,
            tuple(files[image_id] for image_id in ids),
            tuple(key for key, first, last in proposed if first <= ids[-1] and ids[0] <= last),
            {image_id: objects[image_id] for image_id in ids if image_id in objects},
            failed.intersection(ids),
            names,
            config.finetune,
            metadata,
            trial,
        )

    dataset = ShardedDataset("training_windows", method, planned, make)
    return make_shards(
        invocation,
        "finetune",
        [dataset],
        lambda: actor_crew(invocation, session.resources(), body, WindowActor, "draw"),
        retry,
    )["training_windows"]


def _make_head(
    invocation: Invocation,
    record: RunRecord,
    body: LoadedBody,
    class_names: tuple[str, ...],
    method: str,
    resources: Resources,
    fine: bool,
) -> None:
    config, root = invocation.config, invocation.root
    classifier = _classifier(config, body)
    on_gpu = resources.use_gpus(config.execution)
    keys: tuple[str, ...] = ()
    rows = 0
    if fine:
        entry = dataset_record(record, "training_windows")
        assert entry.manifest is not None
        manifest = read_manifest(root, "training_windows", entry.method, entry.manifest)
        keys, rows = tuple(manifest.keys), manifest.rows
    work = TrainHead(
        root,
        method,
        keys,
        rows,
        class_names,
        body.spec.channels,
        config.features.pyramid,
        config.head,
        config.finetune,
        "cuda" if on_gpu else "cpu",
        _threads(config.execution, resources, on_gpu),
        config.execution.checkpoint_seconds,
        {
            "method": method,
            "classes": json.dumps(class_names),
            "body": config.features.body,
            "levels": ",".join(map(str, config.features.pyramid)),
            "pretrained": str(classifier is not None).lower(),
            "finetuned": str(fine).lower(),
            "producer": PRODUCER,
        },
    )
    if not fine:
        if classifier is None:
            raise UsageError(
                f"svm.layer is {config.svm.layer}, but no fc6 and fc7 come with body {config.features.body!r} and "
                f"weights {config.features.weights!r}; use pool5, or ftfc6 or ftfc7, which are fine-tuned here"
            )
        publish_head(work, initial_head(work, classifier, 1.0), {})
        return
    _train(work, ray.put(classifier), config, resources)


def _threads(execution: ExecutionConfig, resources: Resources, on_gpu: bool) -> int:
    """CPU threads of a worker: no more than a node has, nor than leaves each of several workers its share."""
    share = min(resources.node_cpus, max(1, resources.cpus // execution.train_workers))
    if execution.train_threads == "auto":
        return min(_BESIDE_GPU, share) if on_gpu else share
    return min(execution.train_threads, share)


def _classifier(config: RunConfig, body: LoadedBody) -> dict[str, NDArray[np.float32]] | None:
    """The pretrained fully connected layers to start from; None: start from random ones."""
    wanted = config.head.initial
    if wanted == "he":
        return None
    state = load_classifier(body.spec, config.features.weights)
    if state is None and wanted == "pretrained":
        raise UsageError(
            f"head.initial is pretrained, but no fc6 and fc7 come with body {config.features.body!r} and weights "
            f"{config.features.weights!r}; use auto or he"
        )
    if state is not None and 6 not in config.features.pyramid:
        if wanted == "pretrained":
            raise UsageError("head.initial is pretrained, which needs level 6 in features.pyramid; add it, or use he")
        return None
    return None if state is None else {name: values.numpy() for name, values in state.items()}


def _train(work: TrainHead, classifier: ray.ObjectRef, config: RunConfig, resources: Resources) -> None:
    """Train on one worker, or on several together, and say how it goes."""
    workers = config.execution.train_workers
    gpus = 1 if work.device == "cuda" else 0
    if workers == 1:
        ref = as_task(train_head, num_cpus=work.threads, num_gpus=gpus).remote(work, classifier)

        def one() -> None:
            results("finetune", [ref])

        _told(work, one, config.execution.progress_seconds)
        return
    for share in (round(work.config.batch * work.config.foreground), work.config.batch):
        if share % workers:
            raise UsageError(
                f"execution.train_workers is {workers}, which does not divide the {share} windows of a mini-batch "
                f"(its foreground, and the whole); choose a number that divides both"
            )
    _told(work, lambda: _train_together(work, classifier, workers, gpus), config.execution.progress_seconds)


def _train_together(work: TrainHead, classifier: ray.ObjectRef, workers: int, gpus: int) -> None:
    """On several workers, by Ray Train (DistributedDataParallel); a worker that is lost is replaced."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        _train_as_one_of_several,
        train_loop_config={"work": work, "classifier": classifier},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(gpus), resources_per_worker={"CPU": work.threads, "GPU": gpus}
        ),
        run_config=ray.train.RunConfig(
            name="ray-train",
            storage_path=work.root.path(f"checkpoints/{work.method}"),
            storage_filesystem=work.root.arrow_fs(),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise RunFailed(
            f"finetune: {(str(error).strip().splitlines() or [''])[-1]}; run the same command again"
        ) from error


def _train_as_one_of_several(loop: Mapping[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    train_head(
        loop["work"],
        ray.get(loop["classifier"]),
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.prepare_model,
    )


def _told(work: TrainHead, training: Callable[[], None], every: float) -> None:
    """Wait for ``training``, and print each new point of its curve."""
    last = b""
    with ThreadPoolExecutor(1) as waiter:
        future = waiter.submit(training)
        while True:
            done = not wait_for([future], timeout=every).not_done
            point = work.root.read(work.progress_key) if work.root.exists(work.progress_key) else b""
            if point != last:
                print(f"finetune: {_described(json.loads(point))}", file=sys.stderr, flush=True)
                last = point
            if done:
                break
        future.result()
    if work.root.exists(work.progress_key):
        work.root.delete(work.progress_key)


def _described(point: Mapping[str, Any]) -> str:
    held_out = ""
    if point["held_out_loss"] is not None:
        held_out = f", held-out loss {point['held_out_loss']:.4f} and accuracy {point['held_out_accuracy']:.3f}"
    return (
        f"{point['phase']}, {point['iteration']:,} iterations at {point['rate']:g}: loss {point['loss']:.4f}{held_out}"
    )
