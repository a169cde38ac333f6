"""Who trains: one worker, or several together through Ray Train; and how the driver follows them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from jobs.config.execution import ExecutionConfig
from jobs.errors import RunFailed, UsageError
from jobs.execution.session import Resources
from jobs.execution.tasks import as_task, results
from pipeline.training.descent import TrainingError
from storage.root import Root, store_errors

_log = logging.getLogger("spp")

_BESIDE_GPU = 4
"""Threads of a worker that trains on a GPU: they gather mini-batches."""

_LOST_WORKERS = 3
"""How often Ray Train begins again, from the last checkpoint, after it lost a worker or found no room for all."""


class TrainingWork(Protocol):
    """What every training tells its workers and the driver. ``device``: cpu or cuda; ``threads``: of a worker."""

    @property
    def root(self) -> Root: ...

    @property
    def method(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Training:
    """A training: the verb that asks for it, and what each worker calls.

    ``train`` is given ``work``, what ``given`` refers to, its rank, the number of workers, and what wraps its network;
    rank 0 tells ``tell_driver`` how it goes. ``described``: such a point in words.
    """

    stage: str
    train: Callable[..., None]
    work: TrainingWork
    given: ray.ObjectRef
    described: Callable[[Mapping[str, Any]], str]


def progress_key(work: TrainingWork) -> str:
    """Where the driver looks for the last point of the curve."""
    return f"checkpoints/{work.method}/progress.json"


def tell_driver(work: TrainingWork, point: Mapping[str, Any]) -> None:
    """Leave a point of the curve for the driver to print."""
    work.root.write(progress_key(work), json.dumps(point).encode())


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


def run_training(training: Training, execution: ExecutionConfig, resources: Resources) -> None:
    """Train, and print how it goes. RunFailed, in one line, if that is not to be.

    The number of workers is to divide the mini-batch: that is for the caller to see.
    """
    work, workers = training.work, execution.train_workers
    gpus = int(work.device == "cuda")
    if workers > 1:
        _follow(training, _together(training, workers, gpus), execution.progress_seconds)
        return
    ref = as_task(training.train, num_cpus=work.threads, num_gpus=gpus).remote(work, training.given)
    try:
        _follow(training, lambda seconds: bool(ray.wait([ref], timeout=seconds)[0]), execution.progress_seconds)
    except BaseException:  # an interrupt above all: the worker would go on without us
        ray.cancel(ref, force=True)
        raise
    results(training.stage, [ref])


def _together(training: Training, workers: int, gpus: int) -> Callable[[float], bool]:
    """Start several workers (DistributedDataParallel); what is returned waits so many seconds, and says if they are
    done. RunFailed if they failed for good."""
    import ray.train
    from ray.train.torch import TorchTrainer

    work = training.work
    folder = f"checkpoints/{work.method}/ray-train"
    limits: dict[str, Any] = {"max_failures": _LOST_WORKERS, "controller_failure_limit": _LOST_WORKERS}
    trainer = TorchTrainer(
        _one_of_several,
        train_loop_config={"train": training.train, "work": work, "given": training.given},
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
            raise RunFailed(f"{training.stage}: {failed[0]}; run the same command again")
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
        given, workers = ray.get(loop["given"]), context.get_world_size()
        loop["train"](work, given, rank, workers, ray.train.torch.prepare_model)
    except TrainingError as error:
        if rank == 0:
            tell_driver(work, {"error": str(error)})


def _follow(training: Training, done: Callable[[float], bool], every: float) -> None:
    """Wait until ``done``, and print each new point of the curve."""
    work = training.work
    last: Mapping[str, Any] = {}
    while True:
        finished = done(every)
        point = _last_point(work)
        if point and point != last and "error" not in point:
            _log.info("%s: %s", training.stage, training.described(point))
        last = point or last
        if finished:
            break
    work.root.delete_if_there(progress_key(work))
    if "error" in last:
        raise RunFailed(f"{training.stage}: {last['error']}")


def _last_point(work: TrainingWork) -> dict[str, Any]:
    """The last point of the curve; empty where it cannot be had, which is no reason to stop."""
    try:
        return json.loads(work.root.read(progress_key(work)))
    except store_errors(ValueError):
        return {}
