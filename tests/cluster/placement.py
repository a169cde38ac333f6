"""Where the workers of a crew run, on a cluster with pretended GPUs. A program: a driver needs a process of its own.

python -m tests.cluster.placement growing|"from zero"
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

from jobs.config.run_config import RunConfig
from jobs.execution.session import RaySession
from jobs.features.body import LoadedBody
from jobs.features.crew import actor_crew
from jobs.record.invocation import Invocation
from jobs.shards.crews import ActorCrew, TaskCrew
from pipeline.bodies import body_spec
from storage.root import open_root
from tests.cluster.commands import wait_until
from tests.cluster.local_cluster import STORE, new_cluster

Place = tuple[str, list[str]]
"""Node and GPUs."""


class _Reporter:
    """In the place of an extraction actor: it says what it was given."""

    def __init__(self, *_: object) -> None:
        pass

    def extract(self, _: object) -> Place:
        return ray.get_runtime_context().get_node_id(), _gpus()


def _gpus(_: object = None) -> list[str]:
    return list(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def _crew(**execution: Any) -> tuple[ActorCrew, RaySession]:
    config = RunConfig.model_validate({"dataset": {"path": "memory://data"}, "execution": execution})
    session = RaySession(config.execution)
    invocation = Invocation(config, open_root("memory://root"), "placement", ())
    body = LoadedBody(body_spec("alexnet"), {}, "")
    return actor_crew(invocation, session, body, _Reporter, "extract"), session


def _settle(crew: ActorCrew, actors: int) -> list[Place]:
    """Let a crew grow to so many actors, and give each one piece of work."""

    def grown() -> bool:
        crew.prepare(upstream_busy=False, waiting=2 * actors)
        return crew.actors() == actors

    wait_until(grown)
    refs = [crew.start(number) for number in range(actors)]
    places = ray.get(refs, timeout=60)
    for ref in refs:
        crew.finished(ref, died=False)
    return places


def growing() -> dict[str, Any]:
    """Two nodes of two GPUs, then a third of one."""
    cluster = new_cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=6, num_gpus=2, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False)
    crew, session = _crew()
    found: dict[str, Any] = {"first": _settle(crew, 4)}
    tasks = TaskCrew(_gpus, session.cores)  # type: ignore[arg-type]
    found["tasks"] = ray.get([tasks.start(number) for number in range(4)], timeout=60)
    cluster.add_node(num_cpus=3, num_gpus=1, object_store_memory=STORE)
    found["later"] = _settle(crew, 5)
    return _ended(found, crew, cluster)


def from_zero() -> dict[str, Any]:
    """No GPU at first, then a node with one; two are asked for."""
    cluster = new_cluster()
    cluster.add_node(num_cpus=2, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False)
    crew, _ = _crew(device="cuda", workers=2)
    crew.prepare(upstream_busy=False, waiting=9)
    found = {"joining": len(crew.joining()), "described": crew.describe(), "room": crew.has_room()}
    cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=STORE)
    return _ended({**found, "later": _settle(crew, 1)}, crew, cluster)


def _ended(found: dict[str, Any], crew: ActorCrew, cluster: Any) -> dict[str, Any]:
    crew.close()
    ray.shutdown()
    cluster.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps({"growing": growing, "from zero": from_zero}[sys.argv[1]]()))
