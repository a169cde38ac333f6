"""Training SVMs: seconds, memory and reading, and how they grow with the images.

    python -m benchmarks.training [--images N] [--windows N] [--dim N] [--without-peer] [--json]

Writes features of N images to a temporary folder and trains 20 classes on half of them and on all, on an embedded Ray
of two workers, as ``spp train-svm`` does.

Time: ours: ``svm.solver: gram``. Peer: the same training with LinearSVC (``sklearn``), which gets the same examples.
Limit: reading all features once, on one core. Equal: whether the sums of both solvers' objectives are within 0.1%.
Memory: ours: the most that driver, workers and object store took above their imports. Peer: the features.
Growth: ours: seconds of all images. Peer: twice those of half; below 1x it is more than linear.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from benchmarks.comparison import Case, report
from benchmarks.features import DIM
from benchmarks.mining import METHOD, PER_SHARD, peak_memory, write
from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index
from jobs.execution.session import RaySession
from jobs.record.invocation import Invocation
from jobs.record.stage import Assignment, Context
from jobs.svm.driver import train_svms
from storage.commits import data_key, winners
from storage.manifest import recorded_manifest
from storage.root import Root, open_root
from storage.runs import RunRecord
from storage.scan import scan_file, scan_manifest

STORE = 2 * 10**9
"""Bytes of the object store."""


@dataclass(frozen=True)
class Trained:
    """What one training took: seconds, bytes of memory, bytes read; and the sum of its objectives."""

    seconds: float
    memory: int
    read: int
    objective: float


def train(root: Root, record: RunRecord, index: Index, solver: str) -> Trained:
    """Train 20 classes on all images of the root."""
    config = RunConfig.model_validate({"dataset": {"path": root.url}, "svm": {"solver": solver}})
    method = solver.encode().hex()[:12].ljust(12, "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        before = _read_bytes()
        start = time.perf_counter()
        with RaySession(config.execution) as session, peak_memory() as peak:
            context = Context(config, root, index, record)
            train_svms(Assignment(Invocation(config, root, METHOD, ()), context, session), method)
        seconds, read = time.perf_counter() - start, _read_bytes() - before
    finally:
        ray.shutdown()
    (name,) = winners(root, "svms", method).values()
    rows = [row for table in scan_file(root, data_key("svms", method, name)) for row in table.to_pylist()]
    return Trained(seconds, peak[0] + STORE, read, sum(row["objective"] for row in rows))


def _read_bytes() -> int:
    """What this process and Ray's workers have read of files."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            if process.pid == psutil.Process().pid or process.name().startswith("ray::"):
                total += process.io_counters().read_chars
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100, metavar="N")
    parser.add_argument("--windows", type=int, default=2000, metavar="N", help="of each image")
    parser.add_argument("--dim", type=int, default=DIM, metavar="N", help="numbers of a vector")
    parser.add_argument("--without-peer", action="store_true", help="leave out LinearSVC")
    parser.add_argument("--folder", help="where the dataset is written, and removed (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    bytes_ = options.images * options.windows * options.dim * 2
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-", dir=options.folder) as folder:
        if shutil.disk_usage(folder).free < 1.5 * bytes_:
            raise SystemExit(f"{folder}: too little space for the dataset; name another place with --folder")
        root = open_root(str(Path(folder)))
        record, index = write(root, options.images, options.windows, options.dim)
        start = time.perf_counter()
        stored = recorded_manifest(root, record, "features")
        for _ in scan_manifest(root, stored):
            pass
        limit = time.perf_counter() - start
        first = open_root(str(Path(folder) / "first"))  # what is compiled on first use counts for none
        train(first, *write(first, PER_SHARD, 100, options.dim), "gram")
        smaller = open_root(str(Path(folder) / "half"))
        half = train(smaller, *write(smaller, options.images // 2, options.windows, options.dim), "gram")
        ours = train(root, record, index, "gram")
        peer = None if options.without_peer else train(root, record, index, "sklearn")
    equal = None if peer is None else abs(ours.objective - peer.objective) <= 1e-3 * peer.objective
    cases = [
        Case("training", ours.seconds, peer.seconds if peer else None, limit, equal),
        Case("memory of training", ours.memory, bytes_, unit="B"),
        Case("growth when images double", ours.seconds, 2 * half.seconds),
    ]
    notes = [
        f"{options.images} images x {options.windows} windows x {options.dim} numbers: {bytes_ / 1e9:.2f} GB, "
        f"{stored.bytes / 1e9:.2f} GB stored",
        f"read {ours.read / stored.bytes:.1f} times the stored features (half the images: "
        f"{2 * half.read / stored.bytes:.1f})",
    ]
    return report("Training SVMs of 20 classes", notes, cases, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
