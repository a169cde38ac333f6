"""A Ray session: started, joined or refused; what it offers; and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config.execution import ExecutionConfig
from jobs.errors import RunFailed, UsageError, reason
from jobs.execution.address import cluster_address
from jobs.execution.embedded import bring_token, ray_folder
from storage.root import Root, is_local

_log = logging.getLogger("spp")

_MEMORY_PER_ACTOR = 1536 * 1024 * 1024
"""What an extraction actor on a CPU needs: torch, a body, a few buffers of 64 MB."""

_LOOK_EVERY = 10.0
"""Seconds for which what is known of the cluster's nodes is good."""

_TOKEN = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
_TASKS_PER_GPU = 8
"""One-core tasks that share a GPU: each holds a head there, and the half gigabyte that a process costs."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has for us; ``memory``, and its object ``store``, in bytes."""

    cpus: int
    gpus: int
    memory: int
    store: int = 0


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
    def store_memory(self) -> int:
        """Bytes of all object stores."""
        return sum(node.store for node in self.nodes)

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
        if config.device == "cuda" and self.gpus < 1 and config.workers == "auto":
            raise UsageError(
                "execution.device is cuda, but the cluster has no GPU; use auto or cpu, or, where GPUs come when they "
                "are asked for, say how many (execution.workers)"
            )
        return config.device == "cuda" or (config.device == "auto" and self.gpus >= 1)

    def actor_cores(self, config: ExecutionConfig, on_gpu: bool) -> int:
        """CPU cores of an extraction actor. On nodes with GPUs one core is left to proposals, if there are some."""
        if not on_gpu:
            return min(config.threads, self.node_cpus) if self.node_cpus else config.threads
        fit = [max(1, (node.cpus - 1) // node.gpus) for node in self.nodes if node.gpus]
        return min([config.cpus_per_gpu, *fit])

    def actors(self, config: ExecutionConfig, on_gpu: bool) -> int:
        """How many extraction actors run when nothing else does: of the kind that was chosen at the start."""
        if config.workers != "auto":
            return max(1, config.workers)
        if on_gpu:
            return max(1, self.gpus)
        return max(1, min(self.cpus // config.threads, self.memory // _MEMORY_PER_ACTOR))


def local_places(root: Root, path: str | None = None) -> dict[str, str]:
    """What is on this machine's disk alone: a root, and the ``path`` of a data set that workers read."""
    places = {"root": root.url} if root.is_local else {}
    return {**places, "dataset.path": path} if path is not None and is_local(path) else places


class RaySession:
    """Ray, started or joined when it is first needed (RAY_ADDRESS, a submitted job, or embedded in this process).

    A context manager: what it started ends with it; a Ray that ran already is kept. ``local``: config key to path, of
    folders on this machine's own file system that workers open.
    """

    def __init__(self, config: ExecutionConfig, local: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._local = dict(local or {})
        self._ours = False
        self._resources: Resources | None = None
        self._looked = 0.0
        self.starting = 0.0
        """Seconds that it took to start, or join, Ray."""

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import ray

            ray.shutdown()

    def resources(self) -> Resources:
        """What the cluster has, looked up anew every few seconds: nodes come and go.

        RunFailed, in one line, if it refuses or cannot be reached.
        """
        if self._resources is None or time.monotonic() > self._looked + _LOOK_EVERY:
            self._looked = time.monotonic()
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import ray

            if not ray.is_initialized():
                self._ours = True
                begun = time.monotonic()
                _connect(self._config)
                self.starting += time.monotonic() - begun
                if threading.current_thread() is threading.main_thread():
                    # Ray's own handler leaves without a word; this one is Ctrl-C's, and what it ends says so
                    signal.signal(signal.SIGTERM, signal.default_int_handler)
            alive = [node for node in ray.nodes() if node["Alive"]]
            kinds = ("CPU", "GPU", "memory", "object_store_memory")
            nodes = tuple(Node(*(int(node["Resources"].get(kind, 0)) for kind in kinds)) for node in alive)
            working = {node["NodeManagerAddress"] for node in alive if node["Resources"].get("CPU")}
            self._check_local(working | {ray.util.get_node_ip_address()})
            self._resources = Resources(nodes)
        return self._resources

    def ready(self) -> Resources:
        """The same, once there is a node on which a task can run: a cluster that shrank to nothing is asked for one."""
        found = self.resources()
        on_gpu = found.use_gpus(self._config)
        if found.node_cpus and (found.gpus or not on_gpu):
            return found
        import ray

        asked = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_retries=-1)(_nothing).remote()
        since = time.monotonic()
        while not ray.wait([asked], timeout=self._config.stall_seconds)[0]:
            wanted = "a GPU" if on_gpu else "a core"
            waited = time.monotonic() - since
            _log.warning("no node has %s; one is waited for since %.0f s", wanted, waited)
        self._looked = 0.0
        return self.resources()

    def _check_local(self, machines: set[str]) -> None:
        """UsageError if workers on other machines would be sent to folders that only this one has."""
        if self._local and len(machines) > 1 and not self._config.shared_fs:
            key, path = next(iter(self._local.items()))
            some = ", ".join(sorted(machines)[:4]) + (", ..." if len(machines) > 4 else "")
            raise UsageError(
                f"{key} {path!r} is a folder of one machine, but the cluster has {len(machines)} ({some}); give a URL "
                f"that all of them reach, such as s3://bucket/..., or, if they all see the same folder there, "
                f"--set execution.shared_fs=true"
            )

    def cores(self) -> int:
        """Cores of all nodes, as they are now."""
        return self.resources().cpus


def _nothing() -> None:
    """What a node is asked for."""


def _connect(config: ExecutionConfig) -> None:
    """Join the cluster of RAY_ADDRESS, or start an embedded Ray."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    address = cluster_address()
    options: dict[str, Any] = {"address": address}
    if address is None:
        folder = ray_folder()
        bring_token()
        options = {
            "address": "local",
            "num_cpus": config.num_cpus,
            "include_dashboard": False,
            "object_store_memory": config.object_store_mb * 1024 * 1024,
            "_temp_dir": folder,
        }
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with _Connecting(address):
        ray.init(**options, **quiet)


class _Connecting:
    """Tells in one line why Ray did not start, or let us in. ``address``: of a cluster; None for the embedded Ray."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        import ray.exceptions

        where = self._address or "the embedded Ray"
        if isinstance(error, ray.exceptions.AuthenticationError):
            raise RunFailed(f"the Ray cluster refused us: {reason(error)} {_TOKEN}") from error
        # Exception itself, not a subclass, is what Ray raises when a node does not start in time
        if error is not None and (kind is Exception or isinstance(error, (OSError, RuntimeError, ValueError))):
            # to a wrong token a cluster answers nothing at all
            listens = self._address not in (None, "auto")
            hint = f", though somebody listens there. If it is a cluster with tokens: {_TOKEN}" if listens else ""
            raise RunFailed(f"cannot start on {where}: {reason(error)}{hint}") from error
