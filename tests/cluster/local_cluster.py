"""A cluster of several nodes on this machine, in a process of its own: real raylets under one head.

As a program (``python -m tests.cluster.local_cluster``, what ``LocalCluster`` starts) it reads lines ``add {...}`` and
answers each with the process id of the new node's raylet. It ends with its standard input. In a test's own process
Ray's ``Cluster`` would reset what the session's embedded Ray needs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import psutil

from tests import REPOSITORY

STORE = 100 * 1024 * 1024
"""Object store of a node."""

_QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
    "worker_niceness": 0,
}
"""A lost node is noticed within a second instead of a quarter of a minute; workers get their time on a busy machine."""


def new_cluster(**head: Any) -> Any:
    """A Ray ``Cluster`` with a head that computes nothing, unless told otherwise."""
    from ray.cluster_utils import Cluster

    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]  # the usual one belongs to the first cluster of a machine
    defaults = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "_system_config": _QUICK}
    return Cluster(initialize_head=True, head_node_args={**defaults, "dashboard_agent_listen_port": port, **head})


class LocalCluster:
    """A context manager. ``environment``: of all its processes; ``head``: options of the head node."""

    def __init__(self, environment: dict[str, str] | None = None, **head: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.local_cluster", json.dumps(head)],
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.nodes: list[psutil.Process] = []
        self.address, self.dashboard = self._answer().split()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        try:
            self._process.communicate("", timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for member in psutil.wait_procs(family, timeout=10)[1]:
            member.kill()

    def add(self, cpus: int = 2, **options: Any) -> psutil.Process:
        """Another node; its raylet."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"num_cpus": cpus, "object_store_memory": STORE, **options}) + "\n")
        self._process.stdin.flush()
        node = psutil.Process(int(self._answer()))
        self.nodes.append(node)
        return node

    def kill(self, node: psutil.Process) -> None:
        """SIGKILL to a node and all its workers, as when a machine is taken away."""
        self.nodes.remove(node)
        for member in [node, *node.children(recursive=True)]:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue

    def node_with(self, worker: str) -> psutil.Process | None:
        """A node on which something runs that Ray calls ``worker``."""
        return next((node for node in self.nodes if any(worker in name for name in _titles(node))), None)

    def node_of(self, process: int) -> psutil.Process | None:
        """The node that a process works for."""
        return next((node for node in self.nodes if any(child.pid == process for child in node.children())), None)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended"
        return line


def _titles(node: psutil.Process) -> list[str]:
    """What Ray calls the workers of a node: it names each after what it runs."""
    titles = []
    for child in node.children():
        try:
            titles += child.cmdline()[:1]
        except psutil.NoSuchProcess:
            continue
    return titles


def _serve() -> None:
    cluster = new_cluster(**json.loads(sys.argv[1]))
    print(cluster.address, cluster.head_node.address_info["webui_url"] or "-", flush=True)
    for line in sys.stdin:
        node = cluster.add_node(**json.loads(line))
        print(node.all_processes["raylet"][0].process.pid, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
