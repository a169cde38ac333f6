"""The demo: draws its data set, runs the pipeline on it, asks it a few things."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jobs.config.run_config import load_config
from jobs.console.runs import metrics_of, print_metrics, print_run
from jobs.console.tables import in_bytes, print_json, print_table
from jobs.demo.drawing import CLASSES, draw_dataset
from jobs.demo.pictures import Label, draw_boxes
from jobs.features import stored as features
from jobs.record.invocation import Invocation
from jobs.run.driver import run
from jobs.run.stages import run_stages
from pipeline.boxes import iou
from pipeline.images.decode import decode_image
from storage.columns import boxes_of, vectors_of
from storage.root import Root, open_root
from storage.runs import RunRecord
from storage.scan import scan
from storage.sql import connect

RUN = "demo"
"""The name of the demo's run."""

SHOWN_FROM = 0.0
"""Score from which a detection is drawn (paper, figure 6)."""

CONFIG = Path(__file__).with_name("demo.yaml")
"""Its config; ``dataset.path`` is replaced by where the pictures are."""

_QUERIES = (
    "select class_name, count(distinct image_id) images, count(*) objects, "
    "count(*) filter (truncated) truncated, count(*) filter (difficult) difficult from objects group by 1 order by 1",
    "select splits[1] split, count(*) images, min(n) fewest, round(avg(n), 1) mean, max(n) most from images join "
    "(select image_id, count(*) n from proposals group by 1) using (image_id) group by 1 order by 1 desc",
)


@dataclass(frozen=True)
class Match:
    """The window of the test images whose vector is nearest to that of a ground-truth box.

    ``similarity`` is the cosine; ``found`` the class of the test object that the window covers best, with that IoU.
    """

    class_name: str
    image_id: str
    nearest_image: str
    similarity: float
    found: str
    overlap: float


def demo(folder: Path, as_json: bool) -> int:
    """Draw, run and show; everything lies in ``folder`` afterwards. Returns the run's exit code."""
    started = time.monotonic()
    root = open_root(str(folder))
    root.check_writable()
    pictures, config_file = folder / "voc", folder / "demo.yaml"
    draw_dataset(pictures)
    _write_config(config_file, pictures)
    print(f"Drew 90 pictures of {', '.join(CLASSES)} into {pictures}, 60 to train and 30 to test.")
    print("Now the pipeline: propose windows, extract a vector of each, train a detector, measure it.", flush=True)
    config = load_config(str(config_file))
    record, timing = run(Invocation(config, root, RUN, tuple(sys.argv)), run_stages(config))
    print()
    made = print_run(root, record, timing)
    answers = [_ask(root, folder, sql) for sql in _QUERIES]
    matches = nearest_windows(root, RUN)
    _print_matches(matches)
    _print_places(folder, record)
    print("\nThe detector, on the 30 pictures that it has not seen:")
    print_metrics(metrics_of(record))
    picture = draw_detections(root, folder)
    print(f"\nSome of what it found, with scores: {picture}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. To do the same again redoes nothing. To go on:")
    _print_commands(folder, config_file)
    print_json(
        as_json,
        {
            **made,
            "queries": answers,
            "nearest": [asdict(match) for match in matches],
            "picture": str(picture),
        },
    )
    return int(made["exit_code"])


def draw_detections(root: Root, folder: Path) -> Path:
    """The test picture with the most kinds of objects, and what is detected on it."""
    with connect(root, RUN) as connection:
        ((image_id, uri),) = connection.execute(
            "select image_id, uri from images join objects using (image_id) where splits[1] = 'test' "
            "group by all order by count(distinct class_name) desc, count(*) desc, image_id limit 1"
        ).fetchall()
        rows = connection.execute(
            "select class_name, score, box from detections where image_id = ? and score >= ? order by score",
            [image_id, SHOWN_FROM],
        ).fetchall()
    labels = [Label(tuple(box.values()), f"{name} {score:.1f}", CLASSES.index(name)) for name, score, box in rows]
    path = folder / "detections.png"
    draw_boxes(decode_image(Path(uri).read_bytes()), labels).save(path)
    return path


def nearest_windows(root: Root, run_name: str) -> list[Match]:
    """For the largest whole ground-truth box of each class: the nearest window of the test images.

    One pass over the vectors, an image at a time.
    """
    chosen = _largest_truths(root, run_name)
    if not chosen:
        return []
    wanted = _unit(np.stack([truth["feature"] for truth in chosen]))
    tests, objects = _test_objects(root, run_name)
    best: list[tuple[float, str, np.ndarray]] = [(-1.0, "", np.zeros(4, np.float32))] * len(chosen)
    for table in features.scan(root, run_name, tests):
        image_id = table["image_id"][0].as_py()
        similarity = _unit(vectors_of(table["feature"]).astype(np.float32)) @ wanted.T  # (windows, truths)
        for number, row in enumerate(similarity.argmax(axis=0)):
            value = float(similarity[row, number])
            if value > best[number][0]:
                best[number] = (value, image_id, boxes_of(table["box"])[row])
    matches = []
    for truth, (value, image_id, box) in zip(chosen, best, strict=True):
        found, overlap = "nothing", 0.0
        for name, other in objects.get(image_id, ()):
            shared = float(iou(box[None], other[None])[0, 0])
            if shared > overlap:
                found, overlap = name, shared
        matches.append(
            Match(truth["class_name"], truth["image_id"], image_id, round(value, 4), found, round(overlap, 3))
        )
    return matches


def _largest_truths(root: Root, run_name: str) -> list[dict[str, Any]]:
    """Of each class the largest ground-truth box that is neither difficult nor cut, with its vector."""
    with connect(root, run_name) as connection:
        rows = connection.execute(
            "select class_name, arg_max((image_id, object_id), (box.x2 - box.x1) * (box.y2 - box.y1)) "
            "from objects join images using (image_id) where not truncated and not difficult "
            "and list_contains(splits, 'trainval') group by 1 order by 1"
        ).fetchall()
    keys = {tuple(key): name for name, key in rows}
    chosen = {}
    columns = ["image_id", "object_id", "feature"]
    for table in scan(root, "truth_features", run_name, columns, {image_id for image_id, _ in keys}):
        vectors = vectors_of(table["feature"])
        for row, key in enumerate(zip(table["image_id"].to_pylist(), table["object_id"].to_pylist(), strict=True)):
            if key in keys:
                chosen[keys[key]] = {
                    "class_name": keys[key],
                    "image_id": key[0],
                    "feature": vectors[row].astype(np.float32),
                }
    return [chosen[name] for name in sorted(chosen)]


def _test_objects(root: Root, run_name: str) -> tuple[set[str], dict[str, list[tuple[str, np.ndarray]]]]:
    """The test images, and the class and box of each object on them."""
    with connect(root, run_name) as connection:
        tests = {
            row[0] for row in connection.execute("select image_id from images where splits[1] = 'test'").fetchall()
        }
    objects: dict[str, list[tuple[str, np.ndarray]]] = {}
    for table in scan(root, "objects", run_name, ["image_id", "class_name", "box"], tests):
        for image_id, name, box in zip(
            table["image_id"].to_pylist(), table["class_name"].to_pylist(), boxes_of(table["box"]), strict=True
        ):
            objects.setdefault(image_id, []).append((name, box))
    return tests, objects


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _write_config(path: Path, pictures: Path) -> None:
    """The demo's config with the pictures' own place, for the commands that the user tries next."""
    values = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    values["dataset"]["path"] = str(pictures.resolve())
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _ask(root: Root, folder: Path, sql: str) -> dict[str, Any]:
    """Print a query as the command that asks it, and its answer."""
    with connect(root, RUN) as connection:
        cursor = connection.execute(sql)
        columns = [column[0] for column in cursor.description or ()]
        rows = cursor.fetchall()
    print(f'\n$ spp query --root {shlex.quote(str(folder))} "{sql}"')
    print_table(columns, [[str(value) for value in row] for row in rows], 1)
    return {"sql": sql, "columns": columns, "rows": [list(row) for row in rows]}


def _print_matches(matches: Sequence[Match]) -> None:
    print("\nThe vectors at work: an object of each kind to train on, and the test window that is nearest to it:")
    rows = [
        (m.class_name, m.image_id, m.nearest_image, m.found, f"{m.similarity:.3f}", f"{m.overlap:.2f}") for m in matches
    ]
    print_table(("object", "in picture", "nearest in", "which shows", "cosine", "IoU"), rows, 4)


def _print_places(folder: Path, record: RunRecord) -> None:
    rows = [(str(folder / "voc"), "the pictures and their annotations"), (str(folder / "demo.yaml"), "the config")]
    for name, entry in record.datasets.items():
        kind = f"{entry.rows:,} rows, {in_bytes(entry.bytes)}: Parquet in data/, a record of each file in commit/"
        rows.append((str(folder / name / entry.method), kind))
    rows.append((str(folder / "runs" / f"{RUN}.json"), "the run: config, versions, what it made"))
    print("\nWhere everything lies:")
    print_table(("place", "what"), rows, 2)


def _print_commands(folder: Path, config_file: Path) -> None:
    root, config = shlex.quote(str(folder)), shlex.quote(str(config_file))
    print(f"  spp status --root {root}")
    print(f"  spp verify --root {root}")
    print(f'  spp query --root {root} "select image_id, count(*) n from features group by 1"')
    print(f"  spp files features --root {root}")
    print(f"  spp plan --config {config} --root {root} --run finer --set features.scales=[688]")
