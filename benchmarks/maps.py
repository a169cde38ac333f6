"""Two stores of the same features: what conv maps cost to make, to keep and to read, beside vectors.

    python -m benchmarks.maps DATASET_FOLDER [--images 40] [--json]

Runs index, propose and extract (efficientnet_lite0 at 480, 2,000 proposals) on the first images of a data set in VOC
layout, twice on one root: the proposals are shared. Then both are read whole with ``jobs.features.stored.scan``, in
turn. Ours: ``features.store: maps``. Peer: ``vectors``. Limits: of the bytes, the maps alone; of the scan, handing the
pooled vectors over once (a copy of as many bytes). Equal: whether every row is the same, bit for bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from benchmarks.comparison import Case, report, take_turns, timed_case
from jobs.cli.main import main as spp
from jobs.features import stored as features
from storage.columns import boxes_of, vectors_of, windows_of
from storage.root import open_root
from storage.runs import RunRecord, read_run

STORES = ("vectors", "maps")
TABLES = {"vectors": ("features",), "maps": ("maps", "windows")}


def link_images(source: Path, count: int, folder: Path) -> None:
    """A data set in ``folder`` of the first ``count`` images of ``source``'s trainval split; its files are linked."""
    ids = (source / "ImageSets/Main/trainval.txt").read_text().split()[:count]
    for name, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (folder / name).mkdir(parents=True)
        for image_id in ids:
            (folder / name / f"{image_id}{suffix}").symlink_to((source / name / f"{image_id}{suffix}").resolve())
    lists = folder / "ImageSets/Main"
    lists.mkdir(parents=True)
    for split in ("trainval", "test"):
        (lists / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


def extract(folder: Path, store: str, until: str) -> tuple[RunRecord, float]:
    """Run up to a stage; the run's record, and the seconds that the command took."""
    config = folder / "config.yaml"
    config.write_text("features: {body: efficientnet_lite0, scales: [480]}\n")
    command = ["run", f"--until={until}", f"--config={config}", f"--root={folder / 'root'}", f"--run={store}"]
    start = time.perf_counter()
    code = spp([*command, f"--set=dataset.path={folder / 'data'}", f"--set=features.store={store}"])
    if code:
        raise SystemExit(code)
    return read_run(open_root(str(folder / "root")), store), time.perf_counter() - start


def scan(folder: Path, store: str) -> int:
    """Read every vector once; how many bytes there were."""
    return sum(vectors_of(table["feature"]).nbytes for table in features.scan(str(folder / "root"), store))


def checksum(folder: Path, store: str) -> list[int]:
    """Of the image ids, boxes, windows and vectors, each in order; row groups may be cut differently."""
    sums = [0, 0, 0, 0]
    for table in features.scan(str(folder / "root"), store):
        parts = (
            "\n".join(table["image_id"].to_pylist()).encode() + b"\n",
            boxes_of(table["box"]).tobytes(),
            windows_of(table["window"]).tobytes(),
            np.ascontiguousarray(vectors_of(table["feature"])).data,
        )
        sums = [zlib.crc32(part, total) for part, total in zip(parts, sums, strict=True)]
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spp-maps-") as name:
        folder = Path(name)
        link_images(given.dataset, given.images, folder / "data")
        extract(folder, "vectors", until="propose")
        records, seconds = {}, {}
        for store in STORES:
            records[store], seconds[store] = extract(folder, store, until="extract")
        equal = checksum(folder, "maps") == checksum(folder, "vectors")
        total = scan(folder, "maps")
        source = np.ones(min(total, 2**28) // 2, np.float16)
        target = np.empty_like(source)
        times = take_turns(
            {"ours": lambda: scan(folder, "maps"), "peer": lambda: scan(folder, "vectors")}, given.rounds
        )
        copies = take_turns({"limit": lambda: np.copyto(target, source)}, given.rounds)
        limit = copies["limit"].median * total / source.nbytes
    entries = {store: [records[store].datasets[table] for table in TABLES[store]] for store in STORES}
    stored = {store: sum(entry.bytes for entry in entries[store]) for store in STORES}
    writing = {
        store: sum(entry.seconds.get(phase, 0.0) for entry in entries[store] for phase in ("encode", "write"))
        for store in STORES
    }
    scanned = timed_case("scan", times, equal)
    cases = [
        Case("bytes", stored["maps"], stored["vectors"], records["maps"].datasets["maps"].bytes, equal, "B"),
        Case("write (worker seconds)", writing["maps"], writing["vectors"]),
        Case("extract (the whole command)", seconds["maps"], seconds["vectors"]),
        Case(scanned.name, scanned.ours, scanned.peer, limit, equal, spread=scanned.spread),
    ]
    rows = entries["vectors"][0].rows
    notes = [f"{given.images} images, {rows:,} windows, {total / 1e9:.2f} GB of vectors; ours: maps, peer: vectors"]
    return report("Conv maps against vectors", notes, cases, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
