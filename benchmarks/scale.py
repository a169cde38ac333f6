"""A thousand workers and a million shards: the real driver, with workers that only say that they are done.

    python -m benchmarks.scale                                   10,000, 100,000 and 1,000,000 shards; half an hour
    python -m benchmarks.scale --shards 2000,20000 --workers 100

What is real: Ray, the shard loop, the crew and its choice among a thousand actors, the work made of an index, its
arguments, the commits that come back, the progress report; the names of a million committed shards in a real folder,
the listing and the survey of a resumed run. What is not: the workers. Each is one of hundreds within one asynchronous
Ray actor, waits as long as a shard would take (``--shard-seconds``, by default not at all: then the driver is what
limits), and returns the commit of a shard without having made it.

Shards are those of stored vectors (some 3.5 images each, the smallest that there are): a million of them are 3.5
million images. For each number of shards: seconds of the driver per 1,000 shards, by the wall and of its own CPU, and
its memory; what does not grow linearly would show. Nothing is compared: there is no peer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psutil
import pyarrow as pa
import ray

from jobs.config.execution import ExecutionConfig
from jobs.config.features import FeaturesConfig
from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index
from jobs.execution.session import RaySession
from jobs.features.body import load_body
from jobs.features.driver import works_of
from jobs.features.passes import Passes
from jobs.features.shard import ExtractShard
from jobs.record.invocation import Invocation
from jobs.record.stage import Assignment, Context
from jobs.shards.crews import ActorCrew
from jobs.shards.loop import ShardLoop
from jobs.shards.progress import ProgressReport
from jobs.shards.survey import ShardedDataset, survey
from storage.commits import Commit, new_attempt
from storage.root import open_root
from storage.runs import RunRecord
from storage.schemas import schema
from storage.shards import shards

VECTOR_BYTES = 2000 * 12800 * 2
"""What an image's vectors take: the shards are cut by it."""
METHOD = "0123456789ab"
_FLEET = 125
"""Fake workers in one process."""


@ray.remote(num_cpus=0)
class _Fleet:
    """The process that plays many workers."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def extract(self, work: ExtractShard) -> Commit:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return Commit(
            dataset=work.dataset,
            method=work.method,
            shard=work.shard,
            revision=work.revision,
            attempt=new_attempt(),
            data=f"data/{work.shard}.r0.parquet",
            rows=2000 * len(work.images),
            bytes=22_500_000 * len(work.images),
            sha256="0" * 64,
            images={image.image_id: 2000 for image in work.images},
            upstream=work.upstream(),
            seconds={"read": 0.01, "decode": 0.1, "conv": 0.2, "pool": 0.1, "encode": 1.0, "write": 1.0},
        )


class _FakeWorker:
    """One of a thousand: its own handle, a share of a process."""

    def __init__(self, fleet: ray.actor.ActorHandle) -> None:
        self.extract = fleet.extract
        self.__ray_call__ = fleet.__ray_call__


class _FakeCrew(ActorCrew):
    """The crew of the real thing; its workers need no killing."""

    def close(self) -> None:
        self._load.clear()
        self._joining.clear()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", default="10000,100000,1000000")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--hands", type=int, default=2)
    parser.add_argument("--shard-seconds", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    sizes = [int(part) for part in chosen.shards.split(",")]
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 1024 * 1024
    )
    fleets = [
        _Fleet.options(max_concurrency=2 * _FLEET * chosen.hands).remote(chosen.shard_seconds)  # type: ignore[attr-defined]
        for _ in range(-(-chosen.workers // _FLEET))
    ]
    ray.get([fleet.__ray_ready__.remote() for fleet in fleets])
    found = []
    with tempfile.TemporaryDirectory(prefix="spp-scale-") as folder:
        for size in sizes:
            found.append(_measure(size, chosen.workers, chosen.hands, fleets, Path(folder)))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    _print(found)
    if chosen.json:
        print(json.dumps({"cases": [{"name": f"{row['shards']:,} shards", **row} for row in found]}))


def _measure(size: int, workers: int, hands: int, fleets: list, folder: Path) -> dict[str, float]:
    """Everything about one number of shards."""
    row: dict[str, float] = {}
    before = _memory()
    with _timed(row, "index_s"):
        index = _index(7 * size // 2)
    with _timed(row, "cut_s"):
        digests = index.digests()
        proposals = _dataset("proposals", digests, 2000 * 20)
        features = _dataset("features", digests, VECTOR_BYTES, proposals)
        features.shards  # noqa: B018  (cut when first asked for)
    row |= {"shards": len(features.shards), "images": features.images, "workers": workers}
    root = open_root(str(folder / "root"))
    config = RunConfig.model_validate({"dataset": {"path": "s3://bucket/images"}, "proposals": {"method": "fast"}})
    invocation = Invocation(config, root, "scale", ())
    context = Context(config, root, index, RunRecord(name="scale"))
    assignment = Assignment(invocation, context, cast(RaySession, None))  # no work is done that would need it
    body = load_body(FeaturesConfig(weights="random"))
    with _timed(row, "work_s"):
        found = survey(root, features)
        works = list(works_of(assignment, body, Passes(features, METHOD), found))
        for work in works:
            work.needs = None
    row["planned_mb"] = _memory() - before
    handles = [_FakeWorker(fleets[n % len(fleets)]) for n in range(workers)]
    crew = _FakeCrew(iter(handles).__next__, "extract", size=lambda: workers, beside=lambda: workers, hands=hands)
    cpu = time.process_time()
    with (
        _timed(row, "loop_s"),
        ProgressReport({"features": features.images}, {"features": 0}, 30) as progress,
    ):
        loop = ShardLoop({"extract": crew}, ExecutionConfig(), (progress,), {})
        loop.run(works)
    row["loop_cpu_s"] = round(time.process_time() - cpu, 1)
    assert len(loop.done) == len(features.shards)
    row["looped_mb"] = _memory() - before
    del works, loop
    gc.collect()
    _commit_all(features, Path(root.path("features")) / METHOD / "commit")
    with _timed(row, "resume_s"):
        resumed = survey(root, features)
    assert resumed.complete
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    shutil.rmtree(root.path("features"))
    return row


def _index(images: int) -> Index:
    """An index of so many images, as a large data set has them."""
    numbers = range(images)
    rows = {
        "image_id": pa.array([f"{n:012d}" for n in numbers]),
        "uri": pa.array([f"s3://bucket/images/{n:012d}.jpg" for n in numbers]),
        "width": pa.array([500] * images, pa.int32()),
        "height": pa.array([375] * images, pa.int32()),
        "splits": pa.array([["trainval"]] * images),
        "digest": pa.array([f"{n * 2654435761 % 2**64:016x}" for n in numbers]),
    }
    table = pa.table(rows).cast(schema("images"))
    return Index(table, schema("objects").empty_table(), ())


def _dataset(name: str, digests: dict[str, str], size: int, upstream: ShardedDataset | None = None) -> ShardedDataset:
    """A dataset whose images take so many bytes each."""
    return ShardedDataset(
        stage="propose" if upstream is None else "extract",
        name=name,
        method=METHOD,
        cut=lambda: list(shards(digests, size)),
        bytes_per_image=size,
        upstream=upstream,
    )


def _commit_all(dataset: ShardedDataset, folder: Path) -> None:
    """The names of the commits of every shard; a survey reads nothing else."""
    folder.mkdir(parents=True)
    for shard in dataset.shards:
        os.close(os.open(folder / f"{shard.key}.r0.{new_attempt()}.json", os.O_CREAT | os.O_WRONLY))


@contextmanager
def _timed(row: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    row[name] = round(time.perf_counter() - start, 2)


def _memory() -> int:
    """Resident megabytes of this process."""
    gc.collect()
    return psutil.Process().memory_info().rss // 1024 // 1024


def _print(found: list[dict[str, float]]) -> None:
    """The table: seconds per 1,000 shards, so that a column that grows is more than linear."""
    print("shards     images      index   cut  work  | loop wall  CPU  s/1,000 shards | resume s/1,000  | driver MB")
    for row in found:
        thousands = row["shards"] / 1000
        print(
            f"{row['shards']:>9,} {row['images']:>10,} "
            + " ".join(f"{row[name] / thousands:6.4f}" for name in ("index_s", "cut_s", "work_s"))
            + f" | {row['loop_s'] / thousands:9.3f} {row['loop_cpu_s'] / thousands:6.3f}"
            + f"                | {row['resume_s'] / thousands:6.4f} ({row['resume_s']:.1f} s)"
            + f" | {row['planned_mb']:,.0f} planned, {row['looped_mb']:,.0f} done"
        )


if __name__ == "__main__":
    main()
