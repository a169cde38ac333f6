"""Scanning every vector of a dataset ten times larger than the memory given to it.

    python -m benchmarks.scan [--memory MB] [--windows N] [--json]

Writes images of 2,000 windows of 12,800 float16 numbers to a temporary folder, and scans them, each time in a process
of its own. What counts is by how much resident memory at its highest exceeds what the process had after its imports.
Ours: ``storage.scan``. Peer: ``pyarrow.dataset``'s ``to_batches`` with its defaults, on the same files. Limit: the
vectors of one row group, the least that a scan by row groups can hold. Both take a checksum of all vectors in order.

A quarter of the dataset is scanned first: memory is flat if the whole takes no more. Exits with 1 if ours takes more
than the memory given, or than 0.5 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

import storage
from benchmarks.comparison import Case, report

MOST = 500 * 10**6
"""Bytes over the baseline that a scan may take, however large the dataset."""

METHOD = "0123456789ab"


@dataclass(frozen=True)
class Scanned:
    """What one process measured: peak bytes over its baseline, seconds, checksum and number of the vectors."""

    peak: int
    seconds: float
    checksum: int
    rows: int


def scan_ours(url: str, run: str) -> Iterator[pa.ChunkedArray]:
    """The vectors, row group by row group."""
    for table in storage.scan(url, "features", run, columns=["feature"]):
        yield table["feature"]


def scan_peers(url: str, run: str) -> Iterator[pa.ChunkedArray]:
    """The vectors, as pyarrow's scanner hands them out."""
    for batch in ds.dataset(storage.files(url, "features", run), format="parquet").to_batches(columns=["feature"]):
        yield batch["feature"]


SIDES: dict[str, Callable[[str, str], Iterator[pa.ChunkedArray]]] = {"ours": scan_ours, "peer": scan_peers}


def measure(side: str, url: str, run: str) -> Scanned:
    """Scan in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure_here, side, url, run).result()


def _measure_here(side: str, url: str, run: str) -> Scanned:
    baseline = _resident("VmRSS")
    _forget_peak()
    start = time.perf_counter()
    checksum = rows = 0
    for column in SIDES[side](url, run):
        vectors = storage.vectors_of(column)
        checksum = zlib.crc32(vectors.data, checksum)
        rows += len(vectors)
    return Scanned(_resident("VmHWM") - baseline, time.perf_counter() - start, checksum, rows)


def _resident(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Written:
    """A run and the vectors in it."""

    name: str
    checksum: int
    rows: int
    bytes: int


def write_runs(url: str, images: int, windows: int, parts: Sequence[float], per_shard: int = 5) -> list[Written]:
    """Write ``features`` of so many images; one run for each part of them, to whole shards, and its checksum."""
    from benchmarks.features import DIM, LAYOUT, rows_of
    from storage.commits import winners
    from storage.manifest import fold
    from storage.runs import DatasetRecord, RunRecord, write_run
    from storage.writer import ShardWriter

    root = storage.open_root(url)
    checksum = rows = 0
    runs = []
    cuts = {max(1, round(images * part)) for part in parts}
    for start in range(0, images, per_shard):
        with ShardWriter(root, "features", METHOD, f"{start:016x}", LAYOUT) as writer:
            for number in range(start, min(start + per_shard, images)):
                table = rows_of(f"{number:06d}", windows, seed=number)
                writer.write_image(f"{number:06d}", table)
                checksum = zlib.crc32(storage.vectors_of(table["feature"]).data, checksum)
                rows += windows
            writer.commit()
        done = min(start + per_shard, images)
        if any(start < cut <= done for cut in cuts):
            manifest = fold(root, "features", METHOD, list(winners(root, "features", METHOD).values()))
            entry = DatasetRecord(stage="extract", method=METHOD, manifest=manifest.digest, shards=len(manifest.table))
            write_run(root, RunRecord(name=f"images-{done}", datasets={"features": entry}))
            runs.append(Written(f"images-{done}", checksum, rows, rows * DIM * 2))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", type=int, default=256, metavar="MB", help="given to a scan; a tenth of the dataset")
    parser.add_argument("--windows", type=int, default=2000, metavar="N", help="of each image")
    parser.add_argument("--folder", help="where the dataset is written, and removed (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        raise SystemExit("benchmarks.scan reads /proc/self/status, which only Linux has")
    from benchmarks.features import DIM
    from storage.writer import ROW_GROUP_BYTES

    given = options.memory * 10**6
    image_bytes = options.windows * DIM * 2
    images = -(-10 * given // image_bytes)
    cases, seconds = [], []
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-", dir=options.folder) as folder:
        if shutil.disk_usage(folder).free < images * image_bytes:
            raise SystemExit(f"{folder}: too little space for the dataset; name another place with --folder")
        runs = write_runs(folder, images, options.windows, (0.25, 1))
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        for run in runs:
            ours, peer = (measure(side, folder, run.name) for side in SIDES)
            equal = (ours.checksum, ours.rows) == (peer.checksum, peer.rows) == (run.checksum, run.rows)
            limit = min(image_bytes, ROW_GROUP_BYTES)
            cases.append(Case(f"{run.bytes / 1e9:.2f} GB of vectors", ours.peak, peer.peak, limit, equal, "B"))
            seconds.append(f"{run.bytes / 1e9:.2f} GB in {ours.seconds:.1f} s, pyarrow {peer.seconds:.1f} s")
    most = max(case.ours for case in cases)
    notes = [
        f"{runs[-1].rows} vectors, {stored / 1e9:.2f} GB stored; memory given: {options.memory} MB over the baseline",
        f"ours at most {most / 1e6:.0f} MB; checksums included, once each: {'; '.join(seconds)}",
        f"pyarrow {pa.__version__}, {pa.cpu_count()} threads, {pa.default_memory_pool().backend_name} pool",
    ]
    differ = report("Scanning all vectors: peak memory over the baseline", notes, cases, options.json)
    return int(differ or most > min(MOST, given))


if __name__ == "__main__":
    raise SystemExit(main())
