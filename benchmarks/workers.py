"""Two extraction workers against one, of one thread each, through the real shard loop on an embedded Ray.

    python -m benchmarks.workers [--data DIR] [--images N] [--store maps|vectors] [--rounds N] [--json]

Ours: two actors. Peer: one. Both have started and are warm before anything is timed, have two shards in hand each, and
make the same shards of the same photographs, whose proposals are there. The ratio is that of images/s. Each worker is
held to one core, so that decoding and encoding beside the convolutions count as its own: without that, one worker would
use two cores, and the ratio would say what encoding costs. The limit is half the time of one worker.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks.comparison import Case, report, take_turns
from benchmarks.extract import METHOD, Prepared, prepare
from benchmarks.pooling import VOC_SUBSET
from jobs.config.execution import ExecutionConfig
from jobs.config.features import FeaturesConfig
from jobs.features.actor import FeatureActor
from jobs.features.body import load_body
from jobs.features.method import file_metadata
from jobs.features.shard import ActorSettings, ExtractShard
from jobs.shards.crews import ActorCrew
from jobs.shards.loop import ShardLoop, Work
from storage.root import open_root


class _HeldActor(FeatureActor):
    """An extraction actor on one core."""

    def __init__(self, settings: ActorSettings, state: Any, core: int) -> None:
        os.sched_setaffinity(0, {core})
        super().__init__(settings, state)


class _KeptCrew(ActorCrew):
    """A crew that outlives its loop, so that no start is timed."""

    def close(self) -> None:
        self._waiting = 0


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=VOC_SUBSET, help="folder of JPEG images")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--body", default="efficientnet_lite0")
    parser.add_argument("--scales", type=int, nargs="+", default=[480])
    parser.add_argument("--store", choices=("maps", "vectors"), default="maps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    photographs = sorted(options.data.glob("*.jpg"))[: options.images]
    if not photographs:
        parser.error(f"--data: there is no .jpg in {options.data}")
    cores = sorted(os.sched_getaffinity(0))[:2]
    config = FeaturesConfig(body=options.body, weights="default", scales=tuple(options.scales), store=options.store)
    loaded = load_body(config)
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-") as folder:
        root = open_root(folder)
        prepared = prepare(root, photographs, per_shard=2)
        settings = ActorSettings(
            root=root,
            config=config,
            device="cpu",
            threads=1,
            decode_threads=2,
            decode_ahead=4,
            max_boxes=2000,
            storage_options={},
            producer="benchmark",
        )
        state = ray.put({name: values.numpy() for name, values in loaded.state.items()})
        actor: Any = ray.remote(num_cpus=1, max_concurrency=2)(_HeldActor)

        def crew(places: list[int]) -> _KeptCrew:
            left = iter(places)
            size = len(places)
            return _KeptCrew(
                lambda: actor.remote(settings, state, next(left)),
                "extract",
                size=lambda: size,
                beside=lambda: 0,
                hands=2,
            )

        crews = {"ours": crew(cores), "peer": crew(cores[:1])}
        metadata = file_metadata(config, loaded, METHOD, "benchmark")
        for made in crews.values():
            while made.actors() < made._size():
                made.prepare(upstream_busy=False, waiting=2 * made._size())
                ray.wait(made.joining(), timeout=1.0)

        def side(name: str) -> Any:
            def run() -> None:
                for dataset in ("features", "windows", "maps"):
                    shutil.rmtree(Path(folder) / dataset, ignore_errors=True)
                loop = ShardLoop({"extract": crews[name]}, ExecutionConfig(), (), {})
                loop.run(_works(prepared, metadata, options.store))
                assert len(loop.done) == len(prepared.shards)

            return run

        samples = take_turns({name: side(name) for name in crews}, options.rounds)
        ours, peer = samples["ours"], samples["peer"]
        case = Case(
            f"{len(photographs)} images, {options.store}",
            ours.median,
            peer.median,
            limit=peer.median / 2,
            spread=ours.spread + peer.spread,
        )
        ratios = sorted(one / two for one, two in zip(peer.seconds, ours.seconds, strict=True))
        notes = [
            f"{options.body}, scales {options.scales}; rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times",
            f"images/s: {len(photographs) / ours.median:.2f} of two, {len(photographs) / peer.median:.2f} of one",
        ]
        code = report("extraction: two workers against one", notes, [case], options.json)
        ray.shutdown()
        return code


def _works(prepared: Prepared, metadata: dict[str, str], store: str) -> list[Work]:
    """The shards, as a run would give them out."""
    dataset = "windows" if store == "maps" else "features"
    return [
        Work(
            stage="extract",
            dataset=dataset,
            shard=commit.shard,
            image_ids=[file.image_id for file in part],
            make=lambda _, trial, part=part, commit=commit: ExtractShard(  # type: ignore[misc]
                dataset=dataset,
                method=METHOD,
                shard=commit.shard,
                revision=0,
                images=part,
                metadata=metadata,
                proposals=commit.name,
                proposals_method=METHOD,
                trial=trial,  # type: ignore[arg-type]
            ),
        )
        for part, commit in prepared.shards
    ]


if __name__ == "__main__":
    raise SystemExit(main())
