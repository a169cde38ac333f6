"""Mining hard negatives: what more classes cost, and what training takes of memory.

    python -m benchmarks.mining [--memory MB] [--windows N] [--timed IMAGES] [--json]

Writes features of N images (2,000 windows of 12,800 numbers each) to a temporary folder, five times larger than the
memory given.

Time: one pass of ``jobs.svm.tasks.mine``, without any training, over some shards, with SVMs of random weights that find
one window in two hundred hard. Ours: 20 classes together. Peer: one class after another, 20 times the time of one.
Limit: reading the same features once. Equal: whether both find the same windows. Exits with 1 if 20 classes together
take more than twice the time of one.

Memory: ``spp train-svm`` of all images on an embedded Ray of two workers. Ours: what driver, workers and Ray's object
store together take at their highest above what they have after their imports. Peer: the features. Limit: the memory
given. Exits with 1 if ours is more.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch

from benchmarks.comparison import Case, report, take_turns
from benchmarks.features import DIM, rows_of
from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index
from jobs.dataset.objects import ImageObjects
from jobs.execution.session import RaySession
from jobs.features.stored import FeatureShard
from jobs.features.training_data import TrainingShard
from jobs.record.invocation import Invocation
from jobs.record.stage import Assignment, Context
from jobs.svm import tasks as mining
from jobs.svm.driver import train_svms
from pipeline.detection.mining import NegativeRules
from pipeline.detection.scoring import LinearScorer
from storage.columns import boxes_of, vectors_of
from storage.manifest import fold
from storage.root import Root, open_root
from storage.runs import DatasetRecord, RunRecord
from storage.schemas import schema
from storage.writer import ShardWriter

METHOD = "0123456789ab"
CLASSES = 20
PER_SHARD = 5
OBJECTS = 2
"""Objects in an image."""


def write(root: Root, images: int, windows: int, dim: int = DIM) -> tuple[RunRecord, Index]:
    """Features of all images, and of a few of each image's windows as its objects, of classes in turn."""
    random = np.random.default_rng(0)
    rows: dict[str, list] = {"images": [], "objects": []}
    names: dict[str, list] = {"features": [], "truth_features": []}
    for start in range(0, images, PER_SHARD):
        shard = f"{start:016x}"
        truth_layout = schema("truth_features", dim, {"method": METHOD})
        with (
            ShardWriter(root, "features", METHOD, shard, schema("features", dim, {"method": METHOD})) as features,
            ShardWriter(root, "truth_features", METHOD, shard, truth_layout) as truths,
        ):
            for number in range(start, min(start + PER_SHARD, images)):
                image_id = f"{number:06d}"
                table = rows_of(image_id, windows, number, dim)
                features.write_image(image_id, table)
                chosen = np.sort(random.choice(windows, OBJECTS, replace=False))
                labels = [f"class-{(OBJECTS * number + i) % CLASSES:02d}" for i in range(OBJECTS)]
                truths.write_image(image_id, _truth(table.take(chosen), labels, truth_layout))
                rows["images"].append(
                    {"image_id": image_id, "uri": "", "width": 912, "height": 688, "splits": ["trainval"], "digest": ""}
                )
                for i, (label, box) in enumerate(zip(labels, table["box"].take(chosen).to_pylist(), strict=True)):
                    rows["objects"].append(
                        {
                            "image_id": image_id,
                            "object_id": i,
                            "class_name": label,
                            "box": box,
                            "difficult": False,
                            "truncated": False,
                        }
                    )
            names["features"].append(features.commit().name)
            names["truth_features"].append(truths.commit().name)
    record = RunRecord(name=METHOD)
    for dataset, commits in names.items():
        digest = fold(root, dataset, METHOD, commits).digest
        record.datasets[dataset] = DatasetRecord(stage="extract", method=METHOD, manifest=digest, shards=len(commits))
    tables = {name: pa.Table.from_pylist(values, schema=schema(name)) for name, values in rows.items()}
    return record, Index(tables["images"], tables["objects"], ())


def _truth(table: pa.Table, labels: Sequence[str], layout: pa.Schema) -> pa.Table:
    made = {
        "object_id": pa.array(range(len(table)), pa.int32()),
        "class_name": pa.array(labels),
        "difficult": pa.array([False] * len(table)),
    }
    return pa.table(
        [made.get(name, table[name] if name in table.column_names else None) for name in layout.names], layout
    )


def time_of_classes(root: Root, index: Index, images: int, rounds: int) -> tuple[list[Case], float]:
    """The cases of time, and how many times longer 20 classes take than one."""
    shards = [_training_shard(root, index, start) for start in range(0, images, PER_SHARD)]
    random = np.random.default_rng(1)
    sample = vectors_of(next(shards[0].features.scan())["feature"])
    weights = random.standard_normal((CLASSES, DIM))
    weights /= LinearScorer(weights, np.zeros(CLASSES), 1.0)(sample).std(axis=0)[:, None]
    scores = LinearScorer(weights, np.zeros(CLASSES), 1.0)(sample)
    biases = -1 - np.quantile(scores, 0.995, axis=0)

    def mine(classes: Sequence[int]) -> list[tuple]:
        narrowed = [_only(shard, classes) for shard in shards]
        scorer = LinearScorer(weights[list(classes)], biases[list(classes)], 1.0)
        trained, found = np.ones(len(classes), np.bool_), []
        for shard in narrowed:
            mined, _ = mining.mine(shard, scorer, NegativeRules(), trained, {}, threshold=-1.0001, most=None)
            for image_id, window, joins in zip(mined.image_ids, mined.windows, mined.classes, strict=True):
                found += [(image_id, int(window), classes[number]) for number in np.flatnonzero(joins)]
        return sorted(found)

    def read() -> int:
        return sum(len(table) for shard in shards for table in shard.features.scan())

    together = mine(range(CLASSES))
    equal = together == sorted(row for number in range(CLASSES) for row in mine([number]))
    times = take_turns({"ours": lambda: mine(range(CLASSES)), "one": lambda: mine([0]), "limit": read}, rounds)
    ours, one = times["ours"].median, times["one"].median
    limit = times["limit"].median
    spread = times["ours"].spread + times["one"].spread
    cases = [
        Case(f"{CLASSES} classes together", ours, CLASSES * one, limit, equal, spread=spread),
        Case("one class", one, limit=limit, spread=times["one"].spread),
    ]
    return cases, ours / one


def _training_shard(root: Root, index: Index, start: int) -> TrainingShard:
    from storage.commits import data_key, winners

    name = winners(root, "features", METHOD)[f"{start:016x}"]
    images = [row["image_id"] for row in index.images.to_pylist()][start : start + PER_SHARD]
    features = FeatureShard(root, name.shard, data_key("features", METHOD, name), None, images[0], images[-1])
    objects = {}
    for image_id in images:
        own = index.objects.filter(pa.compute.equal(index.objects["image_id"], image_id))
        labels = np.array([int(label.removeprefix("class-")) for label in own["class_name"].to_pylist()], np.int64)
        objects[image_id] = ImageObjects(boxes_of(own["box"]), labels, np.zeros(len(own), np.bool_))
    return TrainingShard(features, (), tuple(images), objects)


def _only(shard: TrainingShard, classes: Sequence[int]) -> TrainingShard:
    """The same shard, with the ground truth of these classes alone, numbered from 0."""
    number = {label: i for i, label in enumerate(classes)}
    objects = {}
    for image_id, every in shard.objects.items():
        rows = [row for row, label in enumerate(every.classes.tolist()) if label in number]
        labels = np.array([number[int(every.classes[row])] for row in rows], np.int64)
        objects[image_id] = ImageObjects(every.boxes[rows], labels, every.difficult[rows])
    return TrainingShard(shard.features, shard.truth, shard.images, objects)


def memory_of_training(root: Root, record: RunRecord, index: Index, given: int) -> tuple[int, float]:
    """Bytes that training takes at its highest above what its processes have before it, and its seconds."""
    store = max(80, given // 10**6 // 6)
    svm = {"fit_memory_mb": given // 10**6 // 8, "start_negatives": 200, "max_per_image": 5, "rounds": 3}
    config = RunConfig.model_validate({"dataset": {"path": root.url}, "svm": svm})
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=store * 10**6,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        warm = ray.remote(_warm)
        ray.get([warm.remote() for _ in range(2)])
        start = time.perf_counter()
        with RaySession(config.execution) as session, peak_memory() as peak:
            context = Context(config, root, index, record)
            train_svms(Assignment(Invocation(config, root, METHOD, ()), context, session), METHOD)
        return peak[0] + store * 10**6, time.perf_counter() - start
    finally:
        ray.shutdown()


def _warm() -> None:
    import jobs.svm.driver  # noqa: F401 (what the tasks import)

    time.sleep(1)


@contextmanager
def peak_memory():
    """The most that this process and its descendants had of their own, in bytes above what they have now."""
    peak, ended = [0], threading.Event()
    before = _own_memory()

    def watch() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], _own_memory() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _own_memory() -> int:
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            if process.pid == psutil.Process().pid or process.name().startswith("ray::"):
                total += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", type=int, default=768, metavar="MB", help="given to training")
    parser.add_argument("--windows", type=int, default=2000, metavar="N", help="of each image")
    parser.add_argument("--timed", type=int, default=5, metavar="N", help="images of the passes that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the dataset is written, and removed (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as a task of one core has it
    given, image_bytes = options.memory * 10**6, options.windows * DIM * 2
    images = -(-5 * given // image_bytes)
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-", dir=options.folder) as folder:
        if shutil.disk_usage(folder).free < images * image_bytes:
            raise SystemExit(f"{folder}: too little space for the dataset; name another place with --folder")
        root = open_root(str(Path(folder)))
        record, index = write(root, images, options.windows)
        cases, times = time_of_classes(root, index, min(images, options.timed), options.rounds)
        taken, seconds = memory_of_training(root, record, index, given)
    cases.append(Case("memory of training", taken, images * image_bytes, given, unit="B"))
    notes = [
        f"{images} images of {options.windows} windows: {images * image_bytes / 1e9:.2f} GB of vectors",
        f"{CLASSES} classes take {times:.2f} times the time of one; peer: one after another",
        f"training took {seconds:.0f} s; memory given: {options.memory} MB",
    ]
    differ = report("Mining hard negatives", notes, cases, options.json)
    return int(differ or times > 2 or taken > given)


if __name__ == "__main__":
    raise SystemExit(main())
