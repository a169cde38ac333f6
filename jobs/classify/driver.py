"""The driver of classify (jobs/classify/__init__.py tells the story)."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from jobs.classify.actor import ViewActor, ViewShard
from jobs.classify.method import classify_method, image_features_method
from jobs.classify.protocols import held_out_splits, protocol_splits, split_notes
from jobs.classify.stored import stored_layer
from jobs.classify.summary import class_means, measure_of, summary
from jobs.classify.task import HELD_OUT, TEST, LayerResult, LayerTask, choose_solver, measure_layer
from jobs.config.run_config import RunConfig
from jobs.dataset.driver import make_index
from jobs.dataset.labels import ImageLabels
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from jobs.execution.session import RaySession, local_places
from jobs.execution.tasks import as_task
from jobs.execution.tasks import results as gather
from jobs.features.body import LoadedBody, load_body
from jobs.features.crew import actor_crew
from jobs.features.method import engine_metadata, vector_length
from jobs.proposals.stored import failed_in
from jobs.record.invocation import Invocation
from jobs.record.publish import done_already, publish
from jobs.record.recording import recorded_run
from jobs.record.stage import Assignment, Context
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import ShardAttempt
from jobs.shards.make import make_dataset
from jobs.shards.survey import ShardedDataset
from pipeline.bodies import Body, load_classifier
from pipeline.features.whole_image import POOL_LEVEL, layers_of, whole_layers
from pipeline.images.view import View
from pipeline.measures.classification import Split
from pipeline.network.head import pretrained_head
from storage.commits import LedgerRow
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, dataset_record, hold
from storage.schemas import schema
from storage.shards import Shard, shards

_log = logging.getLogger("spp")


def classify(invocation: Invocation, retry: bool = False) -> RunRecord:
    """Do the protocol of ``classify``, but for what is there; returns the run's record.

    ``retry``: shards in which an image failed are made again. Raises UsageError for a layer that the body has not or
    images that a protocol cannot use, RunFailed if it had to stop. What was committed stays.
    """
    config = invocation.config
    body = load_body(config.features)
    layers = check_layers(config, body)
    local = local_places(invocation.root, config.dataset.path)
    with recorded_run(invocation) as record, RaySession(config.execution, local) as session:
        index = make_index(invocation, record)
        assignment = Assignment(invocation, Context(config, invocation.root, index, record), session, retry)
        # what cannot be done is said before hours of work
        lengths = _layer_lengths(config, body, layers)
        labels = ImageLabels.of(index)
        splits = protocol_splits(config, labels)
        for note in split_notes(config, labels, splits):
            _log.warning("note: %s", note)
        _solvers(config, labels, splits, layers, lengths)
        made = _image_features(assignment, body, layers, lengths)
        if made.manifest != getattr(record.datasets.get("image_features"), "manifest", None):
            for name in ("classification", "image_scores"):  # an interrupt now must not leave them beside other layers
                record.datasets.pop(name, None)
        record.datasets["image_features"] = made
        record.datasets.update(_classification(assignment, layers, lengths))
        record.holds = []
    return record


def check_layers(config: RunConfig, body: LoadedBody) -> tuple[str, ...]:
    """The layers that a config asks for, shallow to deep. UsageError for one that there is not."""
    there = layers_of(body.spec, config.features.pyramid, bool(body.classifier))
    wanted = config.classify.layers or there
    for layer in wanted:
        if layer not in there:
            raise UsageError(
                f"classify.layers: body {config.features.body!r} with weights {config.features.weights!r} and pyramid "
                f"{list(config.features.pyramid)} has no layer {layer!r}; it has {', '.join(there)}"
            )
    for view in config.classify.views:
        if not View.parse(view).fixed and not whole_layers(wanted):
            raise UsageError(
                f"classify.layers: {', '.join(wanted)} of view {view} have no fixed length; add spp, or leave the view "
                f"out of classify.views"
            )
    _head(config, body, wanted)  # refused now, if it does not fit
    return tuple(layer for layer in there if layer in wanted)


def _image_features(
    assignment: Assignment, body: LoadedBody, layers: tuple[str, ...], lengths: Mapping[str, int]
) -> DatasetRecord:
    """The layers of every image, but for the shards that are there."""
    invocation, index, session = assignment.invocation, assignment.index, assignment.session
    config, root = invocation.config, invocation.root
    views = tuple(sorted(config.classify.views))
    stored = tuple(dict.fromkeys(map(stored_layer, layers)))
    method = image_features_method(config.features, views, stored, body.digest, body.classifier)
    hold(root, assignment.record, [f"image_features/{method}"])
    files = image_files(index)
    metadata = {
        "method": method,
        "body": config.features.body,
        "weights_digest": body.weights_digest,
        **engine_metadata(config.features, body),
        "levels": ",".join(map(str, config.features.pyramid)),
        "order": "level,bin,channel",
        "views": ",".join(views),
        "dtype": "float16",
        "producer": PRODUCER,
    }

    def make(shard: Shard, attempt: ShardAttempt) -> ViewShard:
        images = tuple(files[image_id] for image_id in shard.image_ids)
        return ViewShard(**vars(attempt), images=images, views=views, layers=stored, metadata=metadata)

    def cut() -> list[Shard]:
        return list(shards(index.digests(), _image_bytes(config, stored, lengths)))

    dataset = ShardedDataset(stage="classify", name="image_features", method=method, cut=cut)

    def crew() -> Any:
        session.ready()  # before the first put, which would start a Ray of its own
        return actor_crew(invocation, session, body, ViewActor, "show", ray.put(_head(config, body, stored)))

    return make_dataset(invocation, dataset, "classify", crew, make, retry=assignment.retry)


def _image_bytes(config: RunConfig, stored: Sequence[str], lengths: Mapping[str, int]) -> int:
    """What an image's rows take."""
    return sum(
        2 * lengths[layer]
        for view in config.classify.views
        for layer in (stored if View.parse(view).fixed else whole_layers(stored))
    )


def _layer_lengths(config: RunConfig, body: LoadedBody, layers: Sequence[str]) -> dict[str, int]:
    """Layer to the length of its vectors, of views of a fixed size: from one pass of the body over nothing."""
    side = body.spec.input_size
    network = Body(body.spec, body.state)
    names = [layer for layer in (*body.spec.taps, body.spec.last) if layer in layers]
    blank = network.preprocess(np.zeros((side, side, 3), np.uint8))
    lengths = {name: values[0].numel() for name, values in network.layers_of(blank, names).items()}
    pooled = vector_length(config.features, body.identity)
    lengths |= {"spp": pooled, "pool": POOL_LEVEL**2 * body.spec.channels}
    if {"fc6", "fc7"}.intersection(layers):
        classifier = load_classifier(body.spec, config.features.weights)
        assert classifier is not None
        lengths |= {name: len(classifier.state[f"{name}.bias"]) for name in ("fc6", "fc7")}
    return lengths


def _head(config: RunConfig, body: LoadedBody, stored: Sequence[str]) -> Mapping[str, Any]:
    """The fully connected layers that came with the weights, by name; empty where none are asked for."""
    if not {"fc6", "fc7"}.intersection(stored):
        return {}
    classifier = load_classifier(body.spec, config.features.weights)
    assert classifier is not None
    try:
        head = pretrained_head(classifier, body.spec.channels, config.features.pyramid)
    except ValueError as error:
        raise UsageError(f"features.pyramid: {error}; or leave fc6 and fc7 out of classify.layers") from error
    return {name: values.numpy() for name, values in head.state_dict().items()}


def _classification(
    assignment: Assignment, layers: tuple[str, ...], lengths: Mapping[str, int]
) -> dict[str, DatasetRecord]:
    """What is measured, and the scores behind it; unless they are there."""
    config, root, record = assignment.context.config, assignment.context.root, assignment.record
    features = dataset_record(record, "image_features")
    labels = ImageLabels.of(assignment.index, failed_in(root, record, ("image_features",)))
    splits = protocol_splits(config, labels)
    named = [[[labels.image_ids[row] for row in rows] for rows in (one.train, one.test)] for _, one in splits]
    method = classify_method(config.classify, features, layers, labels.identity(), named)
    hold(root, record, [f"{name}/{method}" for name in ("classification", "image_scores")])
    if any(done_already(root, "classify", name, method) is None for name in ("classification", "image_scores")):
        results, notes = _measure(assignment, labels, layers, lengths, splits)
        _publish(root, method, results, notes)
    found = {}
    for name in ("image_scores", "classification"):
        entry = done_already(root, "classify", name, method)
        assert entry is not None
        found[name] = entry
    manifest = recorded_manifest(root, record.model_copy(update={"datasets": found}), "classification")
    found["classification"].quality = summary(root, manifest.keys, config)
    return found


Place = tuple[str, str]
"""A view and a layer."""


def _solvers(
    config: RunConfig,
    labels: ImageLabels,
    splits: Sequence[tuple[int, Split]],
    layers: Sequence[str],
    lengths: Mapping[str, int],
) -> dict[Place, tuple[Literal["gram", "sklearn"], int]]:
    """View and layer to the solver and its bytes. UsageError where none fits into the memory."""
    rows = [part for _, split in splits for part in (split.train, split.test)]
    images, train = len(np.unique(np.concatenate(rows))), max(len(split.train) for _, split in splits)
    found = {}
    for view in config.classify.views:
        for layer in layers if View.parse(view).fixed else whole_layers(layers):
            try:
                found[view, layer] = choose_solver(config.classify, images, train, lengths[layer])
            except ValueError as error:
                raise UsageError(f"classify: layer {layer}: {error}") from error
    return found


def _measure(
    assignment: Assignment,
    labels: ImageLabels,
    layers: Sequence[str],
    lengths: Mapping[str, int],
    splits: Sequence[tuple[int, Split]],
) -> tuple[list[LayerResult], list[LedgerRow]]:
    """A task for each layer of each view."""
    config, root = assignment.context.config, assignment.context.root
    keys = tuple(recorded_manifest(root, assignment.record, "image_features").keys)
    sized = [view for view in config.classify.views if not View.parse(view).fixed]
    chosen_on = held_out_splits(config, labels, splits) if len(sized) > 1 else []
    resources = assignment.session.ready()
    solvers = _solvers(config, labels, splits, layers, lengths)
    most_threads = max(1, min(resources.node_cpus, resources.cpus // len(solvers)))
    shared = ray.put(labels)
    refs = {}
    for (view, layer), (solver, needed) in solvers.items():
        tested = [(TEST, number, split) for number, split in splits]
        if view in sized:
            tested += [(HELD_OUT, number, split) for number, split in chosen_on]
        parts, threads = {"": tested}, most_threads
        if solver == "sklearn":
            _log.info("classify: %s %s: by LinearSVC on the vectors", view, layer)
            parts = {f", split {number}": [one for one in tested if one[1] == number] for number, _ in splits}
            threads = 1
        task = as_task(_measure_task, num_cpus=threads, memory=min(needed, resources.node_memory // 2))
        work = partial(
            LayerTask,
            root=root,
            keys=keys,
            view=view,
            layer=layer,
            levels=config.features.pyramid,
            config=config.classify,
            solver=solver,
            threads=threads,
        )
        for which, part in parts.items():
            refs[task.remote(partial(work, splits=tuple(part)), shared)] = (view, layer, which)
    return _gathered(config, refs)


def _measure_task(work: Callable[..., LayerTask], labels: ImageLabels) -> LayerResult:
    return measure_layer(work(labels=labels))  # the labels come once to a node, whatever its tasks


def _gathered(config: RunConfig, refs: Mapping[Any, tuple[str, str, str]]) -> tuple[list[LayerResult], list[LedgerRow]]:
    """What the tasks return, in their order; each is said as it ends."""
    results: dict[Any, LayerResult] = {}
    notes = []
    left = list(refs)
    try:
        while left:
            (ref,), left = ray.wait(left, num_returns=1)
            (results[ref],) = gather("classify", [ref])
            view, layer, which = refs[ref]
            means = class_means(results[ref].measured, measure_of(config))[view, layer, TEST]
            seconds = ", ".join(f"{name} {value:.1f} s" for name, value in results[ref].seconds.items())
            _log.info(f"classify: {view} {layer}{which}: {100 * statistics.mean(means):.2f} % ({seconds})")
            if results[ref].not_converged:
                text = f"{results[ref].not_converged} SVMs of layer {layer}, view {view}{which} did not converge"
                _log.warning("note: %s", text)
                notes.append(LedgerRow(image_id="", stage="classify", type="NotConverged", message=text, level="note"))
    except BaseException:  # an interrupt above all: the others would go on without us
        for ref in left:
            ray.cancel(ref, force=True)
        raise
    return [results[ref] for ref in refs], notes


def _publish(root: Root, method: str, results: Sequence[LayerResult], notes: Sequence[LedgerRow]) -> None:
    """Write scores, then what was measured: with it the stage is done."""
    seconds: dict[str, float] = {}
    for result in results:
        for name, value in result.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    parts = {
        "image_scores": ([result.scores for result in results], ["image_id", "view", "layer", "split", "class_name"]),
        "classification": ([r.measured for r in results], ["class_name", "view", "layer", "tested_on", "split"]),
    }
    for name, (tables, order) in parts.items():
        table = pa.concat_tables(tables).sort_by([(column, "ascending") for column in order])
        table = table.cast(schema(name, metadata={"method": method}))
        counts = {row["values"]: row["counts"] for row in table[order[0]].value_counts().to_pylist()}
        last = name == "classification"
        publish(root, name, method, table, counts, ledger=notes if last else (), seconds=seconds if last else {})
