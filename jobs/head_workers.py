"""Who trains a head: one worker, or several together through Ray Train; and how the driver follows them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from jobs.errors import RunFailed, UsageError
from jobs.execution import ExecutionConfig, Resources
from jobs.head_training import TrainHead, train_head
from jobs.tasks import as_task, results
from pipeline.finetuning import TrainingError
from storage.root import store_errors

_BESIDE_GPU = 4
"""Threads of a worker that trains on a GPU: they gather mini-batches."""

_LOST_WORKERS = 3
"""How often Ray Train begins again, from the last checkpoint, after it lost a worker or found no room for all."""


def training_threads(execution: ExecutionConfig, resources: Resources, on_gpu: bool) -> int:
    """CPU threads of a worker: as many as configured, and as all workers find room for.

    UsageError if there is no room for them at all.
    """
    workers, gpus = execution.train_workers, int(on_gpu)
    wanted = execution.train_threads
    most = wanted if wanted != "auto" else _BESIDE_GPU if on_gpu else resources.node_cpus
    for threads in range(most, 0, -1):
        if resources.room_for(threads, gpus) >= workers:
            return threads
    kind = "GPUs" if on_gpu else "cores"
    raise UsageError(
        f"execution.train_workers is {workers}, but the cluster has {resources.gpus if on_gpu else resources.cpus} "
        f"{kind} for them; lower it, or use a larger cluster"
    )


def run_training(work: TrainHead, classifier: ray.ObjectRef, execution: ExecutionConfig, resources: Resources) -> None:
    """Train and publish the head, and print how it goes. RunFailed, in one line, if that is not to be."""
    workers, gpus = execution.train_workers, int(work.device == "cuda")
    if workers > 1:
        _check_shares(work, workers)
        _follow(work, _together(work, classifier, workers, gpus), execution.progress_seconds)
        return
    ref = as_task(train_head, num_cpus=work.threads, num_gpus=gpus).remote(work, classifier)
    try:
        _follow(work, lambda seconds: bool(ray.wait([ref], timeout=seconds)[0]), execution.progress_seconds)
    except BaseException:  # an interrupt above all: the worker would go on without us
        ray.cancel(ref, force=True)
        raise
    results("finetune", [ref])


def _check_shares(work: TrainHead, workers: int) -> None:
    foreground = round(work.config.batch * work.config.foreground)
    if foreground % workers or (work.config.batch - foreground) % workers:
        raise UsageError(
            f"execution.train_workers is {workers}, which does not divide the {foreground} foreground and "
            f"{work.config.batch - foreground} background windows of a mini-batch; choose a number that divides both"
        )


def _together(work: TrainHead, classifier: ray.ObjectRef, workers: int, gpus: int) -> Callable[[float], bool]:
    """Start several workers (DistributedDataParallel); what is returned waits so many seconds, and says if they are
    done. RunFailed if they failed for good."""
    import ray.train
    from ray.train.torch import TorchTrainer

    folder = f"checkpoints/{work.method}/ray-train"
    limits: dict[str, Any] = {"max_failures": _LOST_WORKERS, "controller_failure_limit": _LOST_WORKERS}
    trainer = TorchTrainer(
        _one_of_several,
        train_loop_config={"work": work, "classifier": classifier},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(gpus), resources_per_worker={"CPU": work.threads, "GPU": gpus}
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=work.root.path(folder),
            storage_filesystem=work.root.arrow_fs(),
            failure_config=ray.train.FailureConfig(**limits),
        ),
    )
    failed: list[str] = []

    def fit() -> None:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failed.append((str(error).strip().splitlines() or [type(error).__name__])[-1])

    thread = threading.Thread(target=fit, daemon=True)  # it ends with the driver, which an interrupt ends
    thread.start()

    def done(seconds: float) -> bool:
        thread.join(timeout=seconds)
        if thread.is_alive():
            return False
        if failed:
            raise RunFailed(f"finetune: {failed[0]}; run the same command again")
        work.root.delete_folder(folder)
        return True

    return done


def _one_of_several(loop: Mapping[str, Any]) -> None:
    """What each worker runs. An error that another attempt would meet again is told, not raised."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    work, rank = loop["work"], context.get_world_rank()
    try:
        train_head(work, ray.get(loop["classifier"]), rank, context.get_world_size(), ray.train.torch.prepare_model)
    except TrainingError as error:
        if rank == 0:
            work.root.write(work.progress_key, json.dumps({"error": str(error)}).encode())


def _follow(work: TrainHead, done: Callable[[float], bool], every: float) -> None:
    """Wait until ``done``, and print each new point of the curve."""
    last: Mapping[str, Any] = {}
    while True:
        finished = done(every)
        point = _last_point(work)
        if point and point != last and "error" not in point:
            print(f"finetune: {_described(point)}", file=sys.stderr, flush=True)
        last = point or last
        if finished:
            break
    work.root.delete_if_there(work.progress_key)
    if "error" in last:
        raise RunFailed(f"finetune: {last['error']}")


def _last_point(work: TrainHead) -> dict[str, Any]:
    """The last point of the curve; empty where it cannot be had, which is no reason to stop."""
    try:
        return json.loads(work.root.read(work.progress_key))
    except store_errors(ValueError):
        return {}


def _described(point: Mapping[str, Any]) -> str:
    held_out = ""
    if point["held_out_loss"] is not None:
        held_out = f", held-out loss {point['held_out_loss']:.4f} and accuracy {point['held_out_accuracy']:.3f}"
    return (
        f"{point['phase']}, {point['iteration']:,} iterations at {point['rate']:g}: loss {point['loss']:.4f}{held_out}"
    )
