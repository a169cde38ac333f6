"""Actors that hold the body: how many, on which devices."""

from __future__ import annotations

import logging
from typing import Any

import ray

from jobs.config.features import FeaturesConfig
from jobs.errors import UsageError
from jobs.execution.session import RaySession
from jobs.features.body import LoadedBody, engine_note
from jobs.features.shard import ActorSettings
from jobs.record.invocation import Invocation
from jobs.record.versions import PRODUCER
from jobs.shards.crews import ActorCrew, in_words

_log = logging.getLogger("spp")


def actor_crew(
    invocation: Invocation, session: RaySession, body: LoadedBody, kind: type, method: str, *shared: Any
) -> ActorCrew:
    """Actors of a class that holds the body, one per GPU or on CPU cores; ``shared``: further arguments to make one."""
    config = invocation.config
    execution = config.execution
    on_gpu = session.resources().use_gpus(execution)
    check_engine(config.features, body, on_gpu)
    settings = ActorSettings(
        root=invocation.root,
        config=config.features.model_copy(update={"engine": body.engine}),
        device="cuda" if on_gpu else "cpu",
        threads=execution.threads,
        decode_threads=execution.decode_threads,
        decode_ahead=execution.decode_ahead,
        max_boxes=config.proposals.max_per_image,
        storage_options=config.dataset.storage_options,
        producer=PRODUCER,
    )
    # arrays, since Ray shares their memory between the actors of a node
    state = ray.put({name: values.numpy() for name, values in body.state.items()})

    hands = max(execution.shards_per_actor, settings.images_at_once)

    def size() -> int:
        return session.resources().actors(execution, on_gpu)

    def cores() -> int:
        return session.resources().actor_cores(execution, on_gpu)

    def beside() -> int:
        free = (session.resources().cpus - 1) // cores()  # proposals need a core to go on
        return min(size() if on_gpu else size() // 2, free)

    remote: Any = ray.remote(kind)

    def make() -> Any:
        return remote.options(
            num_cpus=cores(),
            num_gpus=1 if on_gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=hands,
            scheduling_strategy="SPREAD" if on_gpu else "DEFAULT",
        ).remote(settings, state, *shared)

    return ActorCrew(
        make,
        method,
        size=size,
        beside=beside,
        hands=hands,
        images_at_once=1 if on_gpu else execution.threads,
        needs=in_words(cores(), 1 if on_gpu else 0),
        max_deaths=execution.max_deaths,
    )


def check_engine(config: FeaturesConfig, body: LoadedBody, on_gpu: bool) -> None:
    """Say so where another engine runs the body than the one asked for. UsageError if it cannot run on a GPU."""
    note = engine_note(config, body.identity)
    if note is not None:
        _log.warning("note: %s", note)
    if on_gpu and body.engine != "torch":
        raise UsageError(
            f"features.engine: {body.engine} runs a body on CPUs alone, and this run has GPUs; use features.engine: "
            f"torch, or execution.device: cpu"
        )
