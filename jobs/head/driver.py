"""How the head of a run is made: the driver of finetune (jobs/head/__init__.py tells the story)."""

from __future__ import annotations

import json

import ray

from jobs.config.run_config import RunConfig
from jobs.dataset.index import object_digests
from jobs.dataset.objects import objects_of
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from jobs.execution.training import Training, run_training, training_threads
from jobs.features.body import LoadedBody, load_body
from jobs.features.crew import actor_crew
from jobs.features.drawing import parts_method
from jobs.features.method import file_metadata
from jobs.features.stored import feature_shards
from jobs.head.worker import TrainHead, described, initial_head, publish_head, train_head
from jobs.proposals.stored import failed_in
from jobs.record.stage import Assignment
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import ShardAttempt
from jobs.shards.crews import ActorCrew
from jobs.shards.make import make_dataset
from jobs.shards.survey import ShardedDataset
from pipeline.bodies import load_classifier
from pipeline.bodies.classifier import Classifier
from storage.manifest import recorded_manifest
from storage.parts import parts_of
from storage.runs import dataset_record, hold
from storage.shards import Shard


def make_windows(assignment: Assignment, planned: ShardedDataset) -> None:
    """Draw and pool the training windows."""
    from jobs.head.actor import WindowActor, WindowShard

    invocation, record, index = assignment.invocation, assignment.record, assignment.index
    config, root, body = invocation.config, invocation.root, load_body(invocation.config.features)
    names = tuple(index.class_names())
    objects = objects_of(index, object_digests(index, config.dataset.train_splits), names)
    files, proposed = image_files(index), recorded_manifest(root, record, "proposals").files
    failed = failed_in(root, record, ("proposals",))  # whose manifest the method id hashes; others are tried here
    metadata = file_metadata(config.features, body, planned.method, PRODUCER)
    warped = config.features.source == "warp"  # whose windows share no map, and are made as they always were
    pooled = [] if warped else feature_shards(root, record)
    truths = recorded_manifest(root, record, "truth_features")
    truth = [] if warped else truths.files
    drawn = parts_method(config.finetune, dataset_record(record, "proposals").method, truths.method)
    parts = parts_of(root, planned.name, drawn)

    def make(shard: Shard, attempt: ShardAttempt) -> WindowShard:
        ids = shard.image_ids
        return WindowShard(
            **vars(attempt),
            images=tuple(files[image_id] for image_id in ids),
            proposals=tuple(file.key for file in proposed if file.may_hold(ids)),
            objects={image_id: objects[image_id] for image_id in ids if image_id in objects},
            failed=failed.intersection(ids),
            class_names=names,
            config=config.finetune,
            metadata=metadata,
            features=tuple(part for part in pooled if part.holds_any(ids)),
            truth=tuple(file.key for file in truth if file.may_hold(ids)),
            parts=tuple(parts.get(shard.key, ())),
        )

    def crew() -> ActorCrew:
        return actor_crew(invocation, assignment.session, body, WindowActor, "draw")

    make_dataset(invocation, planned, "finetune", crew, make, retry=assignment.retry)


def make_head(assignment: Assignment, method: str) -> None:
    """Train the head, or take the one that comes with the weights; commit it, after its curve, under ``method``."""
    config, root, record = assignment.context.config, assignment.context.root, assignment.record
    hold(root, record, [f"{name}/{method}" for name in ("head", "training_curve", "checkpoints")])
    resources, body, fine = assignment.session.ready(), load_body(config.features), config.finetunes
    class_names = tuple(assignment.index.class_names())
    classifier = pretrained_classifier(config, body, fine)
    on_gpu = resources.use_gpus(config.execution)
    keys: tuple[str, ...] = ()
    rows = 0
    if fine:
        manifest = recorded_manifest(root, record, "training_windows")
        keys, rows = tuple(manifest.keys), manifest.rows
    work = TrainHead(
        root=root,
        method=method,
        keys=keys,
        rows=rows,
        class_names=class_names,
        channels=body.spec.channels,
        levels=config.features.pyramid,
        head=config.head,
        config=config.finetune,
        device="cuda" if on_gpu else "cpu",
        threads=training_threads(config.execution, resources, on_gpu) if fine else 1,
        checkpoint_seconds=config.execution.checkpoint_seconds,
        pretrained=classifier is not None,
        metadata={
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
    _check_shares(config)
    training = Training("finetune", train_head, work, ray.put(classifier), described)
    run_training(training, config.execution, resources)


def _check_shares(config: RunConfig) -> None:
    """UsageError unless every worker gets an equal part of both kinds of windows."""
    fine, workers = config.finetune, config.execution.train_workers
    foreground = round(fine.batch * fine.foreground)
    if foreground % workers or (fine.batch - foreground) % workers:
        raise UsageError(
            f"execution.train_workers is {workers}, which does not divide the {foreground} foreground and "
            f"{fine.batch - foreground} background windows of a mini-batch; choose a number that divides both"
        )


def pretrained_classifier(config: RunConfig, body: LoadedBody, fine: bool) -> Classifier | None:
    """The fully connected layers that a head starts from; None: from random ones, if it is fine-tuned (``fine``).

    Raises UsageError where the config asks for layers that did not come with the weights, or do not fit.
    """
    wanted = config.head.initial
    if wanted == "he":
        return None
    classifier = load_classifier(body.spec, config.features.weights)
    if classifier is None:
        if wanted == "pretrained":
            raise UsageError(
                f"head.initial is pretrained, but no fc6 and fc7 come with body {config.features.body!r} and weights "
                f"{config.features.weights!r}; use auto or he"
            )
        return None
    if not set(classifier.levels) <= set(config.features.pyramid):
        if wanted == "pretrained" or not fine:
            raise UsageError(
                f"the fc6 that comes with the weights was trained on levels {list(classifier.levels)}, which "
                f"features.pyramid {list(config.features.pyramid)} has not all; add them, or fine-tune a head from "
                f"random weights: head.initial: he, with svm.layer ftfc6 or ftfc7"
            )
        return None
    sizes = (len(classifier.state["fc6.bias"]), len(classifier.state["fc7.bias"]))
    if config.head.sizes != sizes:
        raise UsageError(
            f"head.sizes is {list(config.head.sizes)}, but the fc6 and fc7 that come with the weights have "
            f"{list(sizes)} outputs; use head.sizes: {list(sizes)}, or head.initial: he"
        )
    return classifier
