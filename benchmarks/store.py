"""Writing and scanning our store against pyarrow's defaults, with what the bytes alone cost as the limit.

    python -m benchmarks.store [--images N] [--windows N] [--rounds N] [--json]

The same rows on both sides, N images of 2,000 windows of 12,800 float16 numbers, in a temporary folder.

Write: ours is a ``ShardWriter``, from the rows in memory to the commit: zstd, SHA-256, fsync, rename. Peer:
``pq.write_table`` with its defaults. Limit: zstd, level 1, of the vectors' bytes, written to a file.
Scan: ours is ``storage.scan`` of the vectors. Peer: ``pyarrow.dataset``'s ``to_batches`` of the peer's own file, and of
ours. Limit: ``read_row_group`` on our file. One image: ours is ``storage.scan(image_ids=...)``, the peer's a filter.
Equal: the vectors are the same bit for bit.

Then the question how large a row group should be: ours is the size that is named, peer one group for each image.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import storage
import storage.writer
from benchmarks.comparison import Case, report, take_turns, timed_case
from benchmarks.features import DIM, LAYOUT, rows_of
from benchmarks.scan import METHOD, measure, write_runs
from storage.commits import Commit
from storage.writer import ROW_GROUP_BYTES, ShardWriter

MB = 2**20
WHOLE = 64 * MB
"""Holds any image of 2,000 windows."""


def write_ours(url: str, images: Sequence[pa.Table]) -> Commit:
    """One shard, committed; the last one is removed first."""
    root = storage.open_root(url)
    for name in root.names(f"features/{METHOD}/data"):
        root.delete(f"features/{METHOD}/data/{name}")
    with ShardWriter(root, "features", METHOD, "00", LAYOUT) as writer:
        for table in images:
            writer.write_image(table["image_id"][0].as_py(), table)
        return writer.commit()


def write_compressed(path: Path, images: Sequence[pa.Table]) -> int:
    """The vectors of each image as one zstd frame; returns the bytes."""
    codec = pa.Codec("zstd", 1)
    with path.open("wb") as file:
        return sum(file.write(codec.compress(storage.vectors_of(table["feature"]))) for table in images)


def scan_groups(path: str, groups: Iterable[int] | None = None) -> Iterable[pa.ChunkedArray]:
    """The vectors of row groups, by the reader alone."""
    with pq.ParquetFile(path, pre_buffer=False) as parquet:
        for group in range(parquet.num_row_groups) if groups is None else groups:
            yield parquet.read_row_group(group, columns=["feature"], use_threads=False)["feature"]


def scan_dataset(path: str, use_threads: bool = True) -> Iterable[pa.ChunkedArray]:
    """The vectors, by pyarrow's scanner."""
    batches = ds.dataset(path).to_batches(columns=["feature"], use_threads=use_threads)
    return (batch["feature"] for batch in batches)


def scan_store(url: str, run: str, image_ids: Sequence[str] | None = None) -> Iterable[pa.ChunkedArray]:
    """The vectors, by ours."""
    return (table["feature"] for table in storage.scan(url, "features", run, ["feature"], image_ids))


def count(columns: Iterable[pa.ChunkedArray]) -> int:
    """Vectors, every one having been an array, and none kept."""
    return sum(len(storage.vectors_of(column)) for column in columns)


def checksum(columns: Iterable[pa.ChunkedArray]) -> tuple[int, int]:
    """Number of vectors, and CRC-32 of their bytes in order."""
    rows = total = 0
    for column in columns:
        vectors = storage.vectors_of(column)
        rows, total = rows + len(vectors), zlib.crc32(vectors.data, total)
    return rows, total


def compare(name: str, rounds: int, expected: tuple[int, int] | None = None, **sides: Callable[[], Iterable]) -> Case:
    """Time sides that yield vectors."""

    def counting(run: Callable[[], Iterable]) -> Callable[[], int]:
        return lambda: count(run())

    samples = take_turns({side: counting(run) for side, run in sides.items()}, rounds)
    results = {checksum(run()) for run in sides.values()}
    return timed_case(name, samples, results == {expected or max(results)})


@dataclass(frozen=True)
class Grouped:
    """The images in a store whose row groups have at most so many bytes."""

    url: str
    run: str
    path: str
    bytes: int


def grouped(folder: Path, size: int, images: int, windows: int) -> Grouped:
    """Write such a store."""
    url = str(folder / f"groups-{size}")
    with mock.patch.object(storage.writer, "ROW_GROUP_BYTES", size):
        (run,) = write_runs(url, images, windows, [1], per_shard=images)
    (path,) = storage.files(url, "features", run.name)
    return Grouped(url, run.name, path, Path(path).stat().st_size)


def compare_formats(folder: Path, images: Sequence[pa.Table], store: Grouped, rounds: int) -> list[Case]:
    """Ours against pyarrow's defaults."""
    rows = pa.concat_tables(images)
    expected = checksum([table["feature"] for table in images])
    default = str(folder / "default.parquet")
    raw = folder / "vectors.zst"
    written = str(folder / "written")
    samples = take_turns(
        {
            "ours": lambda: write_ours(written, images),
            "peer": lambda: pq.write_table(rows, default),
            "limit": lambda: write_compressed(raw, images),
        },
        rounds,
    )
    commit = write_ours(written, images)
    ours = f"{written}/features/{METHOD}/{commit.data}"
    equal = pq.read_table(ours).equals(rows) and pq.read_table(default).equals(rows)
    middle = images[len(images) // 2]["image_id"][0].as_py()
    with pq.ParquetFile(store.path) as parquet:
        ranges = [parquet.metadata.row_group(group).column(0).statistics for group in range(parquet.num_row_groups)]
    groups = [group for group, statistics in enumerate(ranges) if statistics.min == middle]
    chosen = pc.field("image_id") == middle
    return [
        timed_case("write", samples, equal),
        Case("bytes stored", commit.bytes, Path(default).stat().st_size, raw.stat().st_size, equal, "B"),
        compare(
            "scan, peer's own file",
            rounds,
            expected,
            ours=lambda: scan_store(store.url, store.run),
            peer=lambda: scan_dataset(default),
            limit=lambda: scan_groups(store.path),
        ),
        compare(
            "scan, both on our file",
            rounds,
            expected,
            ours=lambda: scan_store(store.url, store.run),
            peer=lambda: scan_dataset(store.path),
            limit=lambda: scan_groups(store.path),
        ),
        compare(
            "the same, one thread each",
            rounds,
            expected,
            ours=lambda: scan_store(store.url, store.run),
            peer=lambda: scan_dataset(store.path, use_threads=False),
        ),
        compare(
            "one image",
            rounds,
            ours=lambda: scan_store(store.url, store.run, [middle]),
            peer=lambda: [ds.dataset(default).to_table(["feature"], chosen)["feature"]],
            limit=lambda: scan_groups(store.path, groups),
        ),
    ]


def compare_groups(folder: Path, images: Sequence[pa.Table], whole: Grouped, size: int, rounds: int) -> list[Case]:
    """Row groups of at most ``size`` bytes against one for each image."""
    small = grouped(folder, size, len(images), len(images[0]))
    expected = checksum([table["feature"] for table in images])
    middle = images[len(images) // 2]["image_id"][0].as_py()

    def write(limit: int) -> Callable[[], object]:
        def run() -> None:
            with mock.patch.object(storage.writer, "ROW_GROUP_BYTES", limit):
                write_ours(str(folder / f"written-{limit}"), images)

        return run

    label = f"groups of {size // MB} MiB"
    ours, peer = (measure("ours", store.url, store.run) for store in (small, whole))
    return [
        timed_case(f"{label}: write", take_turns({"ours": write(size), "peer": write(WHOLE)}, rounds)),
        Case(f"{label}: bytes stored", small.bytes, whole.bytes, unit="B"),
        compare(
            f"{label}: scan",
            rounds,
            expected,
            ours=lambda: scan_store(small.url, small.run),
            peer=lambda: scan_store(whole.url, whole.run),
        ),
        compare(
            f"{label}: one image",
            rounds,
            ours=lambda: scan_store(small.url, small.run, [middle]),
            peer=lambda: scan_store(whole.url, whole.run, [middle]),
        ),
        Case(f"{label}: memory of a scan", ours.peak, peer.peak, None, ours.checksum == peer.checksum, "B"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if the results differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=4, metavar="N")
    parser.add_argument("--windows", type=int, default=2000, metavar="N", help="of each image")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 8, 4], metavar="MIB", help="of row groups")
    parser.add_argument("--folder", help="where files are written, and removed (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)

    images = [rows_of(f"{number:06d}", options.windows, seed=number) for number in range(options.images)]
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        store = grouped(folder, ROW_GROUP_BYTES, options.images, options.windows)
        cases = compare_formats(folder, images, store, options.rounds)
        whole = grouped(folder, WHOLE, options.images, options.windows)
        for size in options.sizes:
            cases += compare_groups(folder, images, whole, size * MB, options.rounds)
    vectors = options.images * options.windows * DIM * 2
    zeros = sum(int((storage.vectors_of(table["feature"]) == 0).sum()) for table in images) * 2 / vectors
    notes = [
        f"{options.images} images of {options.windows} vectors, {vectors / 1e6:.0f} MB, {zeros:.0%} zeros; "
        f"our row groups: {ROW_GROUP_BYTES // MB} MiB",
        f"medians of {options.rounds} interleaved rounds; pyarrow {pa.__version__}, {pa.cpu_count()} threads",
        "ours scans on one thread, pyarrow on all unless said; groups of N MiB: peer is one row group for each image",
    ]
    return report("The store against pyarrow's defaults", notes, cases, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
