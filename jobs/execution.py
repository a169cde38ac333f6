"""How and where the work runs: the ``execution:`` section, and Ray itself. Nothing here changes any result."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from jobs.errors import RunFailed, UsageError
from jobs.settings import Settings

_MEMORY_PER_ACTOR = 1536 * 1024 * 1024
"""What an extraction actor on a CPU needs: torch, a body, a few buffers of 64 MB."""

_TASKS_PER_GPU = 8
"""One-core tasks that share a GPU: each holds a head there, and the half gigabyte that a process costs."""


class ExecutionConfig(Settings):
    """The ``execution:`` section of the config."""

    workers: int | Literal["auto"] = Field("auto")
    """Extraction actors. auto: one per GPU; without GPUs, as many as cores and memory allow."""
    threads: int = Field(1, ge=1)
    """CPU threads of one extraction actor on a CPU."""
    cpus_per_gpu: int = Field(4, ge=1)
    """CPU cores that one extraction actor on a GPU reserves: it decodes and encodes beside the GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has some."""
    shards_per_actor: int = Field(2, ge=1, le=8)
    """Shards that an actor has in hand at once, so that one is written while the next is computed."""
    decode_threads: int = Field(2, ge=1)
    """Threads of one shard that read and decode images ahead."""
    decode_ahead: int = Field(4, ge=1)
    """Images decoded ahead, at most."""
    retries: int = Field(4, ge=0)
    """How often an attempt at a shard that failed for want of a disk, a network or memory is repeated."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the first repetition; doubled for each further one."""
    max_deaths: int = Field(3, ge=1)
    """How many workers a shard may bring down before its images are tried one by one, and an image alone before it
    goes to the ledger."""
    shard_deadline: float = Field(3600, gt=0)
    """Seconds after which a worker that still has the same shard is taken to hang, and is ended."""
    max_failed: float = Field(0.01, ge=0, le=1)
    """Share of failed images, looked at from 50 images on, above which the run stops."""
    max_failed_ok: int = Field(0, ge=0)
    """Failed images that a run may have and still exit with code 0."""
    train_workers: int = Field(1, ge=1)
    """Workers that train the head together, a GPU each (DistributedDataParallel). One part of the batch is each one's,
    and so their number changes the head as another seed would."""
    train_threads: int | Literal["auto"] = "auto"
    """CPU threads of a worker that trains the head. auto: 4 beside a GPU, else all cores."""
    checkpoint_seconds: float = Field(300, ge=0)
    """Seconds between two checkpoints of a training; the last two are kept until it is through."""
    num_cpus: int | None = Field(None, ge=1)
    """CPU cores of the embedded Ray; all of them by default."""
    object_store_mb: int = Field(256, ge=80)
    """Object store of the embedded Ray: body weights and mined negatives. What does not fit goes to the disk."""
    progress_seconds: float = Field(5.0, gt=0)
    """Seconds between two progress lines where there is no terminal."""
    index_threads: int = Field(8, ge=1)
    """Threads that read headers and annotations while indexing."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has for us; ``memory`` in bytes."""

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class Resources:
    """What the cluster has for us."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        """Cores of all nodes."""
        return max(1, sum(node.cpus for node in self.nodes))

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def memory(self) -> int:
        """Bytes of all nodes."""
        return sum(node.memory for node in self.nodes)

    @property
    def node_cpus(self) -> int:
        """Cores that one task can have."""
        return max((node.cpus for node in self.nodes), default=1)

    @property
    def node_memory(self) -> int:
        """Bytes that one task can have."""
        return max((node.memory for node in self.nodes), default=0)

    @property
    def gpu_share(self) -> float:
        """Share of a GPU for tasks of one core that need it now and then, so that as many run as there are cores."""
        return 1 / max(1, min(_TASKS_PER_GPU, self.cpus // max(1, self.gpus)))

    def room_for(self, cpus: int, gpus: int) -> int:
        """How many workers of so many cores and GPUs each fit onto the nodes together."""
        fits = (min(node.cpus // max(cpus, 1), node.gpus // gpus if gpus else node.cpus) for node in self.nodes)
        return sum(fits)

    def use_gpus(self, config: ExecutionConfig) -> bool:
        """Whether the extraction actors sit on GPUs. UsageError if they should and there are none."""
        if config.device == "cuda" and self.gpus < 1:
            raise UsageError("execution.device is cuda, but the cluster has no GPU; use auto or cpu")
        return config.device != "cpu" and self.gpus >= 1

    def actors(self, config: ExecutionConfig) -> int:
        """How many extraction actors run when nothing else does."""
        if config.workers != "auto":
            return max(1, config.workers)
        if self.use_gpus(config):
            return max(1, self.gpus)
        return max(1, min(self.cpus // config.threads, self.memory // _MEMORY_PER_ACTOR))


class RaySession:
    """Ray, started or joined when it is first needed (RAY_ADDRESS, a submitted job, or embedded in this process).

    A context manager: what it started ends with it; a Ray that ran already is kept.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self._ours = False
        self._resources: Resources | None = None

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import ray

            ray.shutdown()

    def resources(self) -> Resources:
        """What the cluster has. RunFailed, in one line, if it refuses or cannot be reached."""
        if self._resources is None:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import ray

            if not ray.is_initialized():
                self._ours = True
                _connect(self._config)
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._resources = Resources(
                tuple(Node(*(int(node.get(name, 0)) for name in ("CPU", "GPU", "memory"))) for node in alive)
            )
        return self._resources


def _connect(config: ExecutionConfig) -> None:
    import ray
    import ray.exceptions

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # A fresh local Ray switches token authentication on and keeps its token in the home folder
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                object_store_memory=config.object_store_mb * 1024 * 1024,
                **quiet,
            )
    except ray.exceptions.AuthenticationError as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(
            f"the Ray cluster refused us: {reason} Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "the embedded Ray"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFailed(f"cannot start on {where}: {reason}") from error
