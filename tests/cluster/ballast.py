"""Fill the object store of every node of a cluster, and keep it full. A program: a driver needs a process of its own.

python -m tests.cluster.ballast ADDRESS

It says ``full`` once every store has begun to spill, and ends with its standard input.
"""

from __future__ import annotations

import sys

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.cluster.local_cluster import STORE

_PIECE = 4 * 1024 * 1024


@ray.remote(num_cpus=0)
class _Ballast:
    """Objects that somebody needs: Ray may move them to the disk, but not drop them."""

    def __init__(self) -> None:
        self._pieces = [ray.put(np.zeros(_PIECE, np.uint8)) for _ in range(5 * STORE // (4 * _PIECE))]

    def ready(self) -> int:
        return len(self._pieces)


def main() -> None:
    ray.init(address=sys.argv[1], log_to_driver=False)
    nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    kept = [_Ballast.options(scheduling_strategy=node).remote() for node in nodes]  # type: ignore[attr-defined]
    ray.get([one.ready.remote() for one in kept])
    print("full", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
