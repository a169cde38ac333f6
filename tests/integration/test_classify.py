"""classify: both protocols on small data sets, what is stored, and what bad input leads to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import precision_recall_curve

import storage
from jobs.cli.main import main
from storage.root import Root, open_root
from storage.sql import connect
from tests.voc_folder import VocFolder

pytestmark = pytest.mark.slow

FEATURES = {"body": "zf5", "weights": "random", "pyramid": [6, 2, 1]}
EXECUTION = {"progress_seconds": 1, "backoff": 0.1, "workers": 1}
COLOURS = {"blue": (30, 60, 230), "green": (20, 210, 40), "red": (230, 40, 30)}


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    size = (int(random.integers(60, 90)), int(random.integers(60, 90)))
    pixels = np.clip(np.array(colour) + random.normal(0, 25, (*size, 3)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three classes of nine images of one colour each, one of them broken."""
    path = tmp_path_factory.mktemp("colours")
    for name, colour in COLOURS.items():
        for number in range(9):
            paint(path / name / f"im{number}.jpg", colour, number)
    whole = (path / "red" / "im8.jpg").read_bytes()
    (path / "red" / "im9.jpg").write_bytes(whole[: len(whole) // 2])
    return path


def config_of(path: Path, data: Path, classify: dict, **dataset) -> Path:
    sections = {"dataset": {"path": str(data), **dataset}, "features": FEATURES, "execution": EXECUTION}
    path.write_text(yaml.safe_dump({**sections, "classify": classify}))
    return path


@pytest.fixture(scope="module")
def classified(tmp_path_factory, folder) -> tuple[Path, Path, int]:
    """Config, root and exit code of a run on random splits."""
    place = tmp_path_factory.mktemp("classified")
    protocol = {"protocol": "caltech101", "train_per_class": 5, "splits": 3, "views": ["crop", "full-100"]}
    config = config_of(place / "colours.yaml", folder, protocol, layout="folder")
    code = main(["classify", "--config", str(config), "--root", str(place / "root")])
    return config, place / "root", code


def test_every_layer_and_view_is_measured(classified):
    _, root, code = classified
    assert code == 3  # the broken image
    connection = connect(root_of(root), "colours")
    query = "SELECT view, layer, count(*), sum(positives), avg(accuracy) FROM classification GROUP BY ALL ORDER BY ALL"
    rows = connection.execute(query).fetchall()
    assert [(view, layer) for view, layer, *_ in rows] == [
        ("crop", "conv4"),
        ("crop", "conv5"),
        ("crop", "pool"),
        ("crop", "spp"),
        ("full-100", "pool"),
        ("full-100", "spp"),
    ]
    for _, _, measured, tested, accuracy in rows:
        assert (measured, tested) == (9, 36)  # 3 classes x 3 splits; 4 images of each
        assert accuracy > 0.6


def root_of(path: Path) -> Root:
    return open_root(str(path))


def test_features_are_stored_once_per_view_and_layer(classified):
    _, root, _ = classified
    rows = storage.scan(str(root), "image_features", "colours", ["image_id", "view", "layer", "height", "feature"])
    found = [row for table in rows for row in table.to_pylist()]
    assert len({row["image_id"] for row in found}) == 27
    shapes = {(row["view"], row["layer"]): len(row["feature"]) for row in found}
    assert shapes["crop", "conv5"] == 13 * 13 * 256
    assert shapes["crop", "spp"] == shapes["full-100", "spp"] == 41 * 256


def test_a_rerun_makes_nothing_and_another_C_measures_only(classified):
    config, root, _ = classified
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    assert main(["classify", "--config", str(config), "--root", str(root)]) == 3
    turned = ("--set", "classify.views=[full-100, crop]")
    assert main(["classify", "--config", str(config), "--root", str(root), *turned]) == 3
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == before
    assert main(["classify", "--config", str(config), "--root", str(root), "--set", "classify.C=2"]) == 3
    new = {path.relative_to(root).parts[0] for path in root.rglob("*.parquet") if path not in before}
    assert new == {"classification", "image_scores"}
    assert main(["classify", "--config", str(config), "--root", str(root)]) == 3


def test_both_solvers_agree(classified):
    config, root, _ = classified
    layers = ("--set", "classify.layers=[spp]")
    for run in ("gram", "sklearn"):
        solver = ("--run", run, "--set", f"classify.solver={run}", "--set", "classify.tolerance=1e-4")
        assert main(["classify", "--config", str(config), "--root", str(root), *layers, *solver]) == 3
    query = "SELECT image_id, view, split, class_name, score FROM image_scores ORDER BY ALL"
    ours, theirs = (connect(root_of(root), run).execute(query).fetchall() for run in ("gram", "sklearn"))
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs]
    np.testing.assert_allclose([row[-1] for row in ours], [row[-1] for row in theirs], atol=0.02)


def test_a_failed_image_is_tried_again(classified, folder):
    config, root, _ = classified
    before = {path.name for path in (root / "image_features").glob("*/commit/*")}
    command = ["classify", "--config", str(config), "--root", str(root)]
    assert main([*command, "--retry"]) == 3
    (new,) = {path.name for path in (root / "image_features").glob("*/commit/*")} - before
    assert ".r1." in new


def test_verify_status_and_gc_know_it(classified, capsys):
    _, root, _ = classified
    where = ("--root", str(root))
    assert main(["verify", *where, "--run", "colours"]) == 0
    assert main(["status", *where, "--run", "colours"]) == 0
    shown = capsys.readouterr().out
    assert "image_features" in shown
    assert "proposals" not in shown
    assert main(["gc", *where, "--grace-hours", "0", "--yes"]) == 0
    assert main(["verify", *where, "--run", "colours"]) == 0


def test_the_table_has_the_papers_columns(classified, tmp_path, capsys):
    config, root, _ = classified
    files = ("--csv", str(tmp_path / "t.csv"), "--markdown", str(tmp_path / "t.md"))
    views = ("--set", "classify.views=[crop, full-100, full-150]", "--set", "classify.no_spp_weights=random")
    assert main(["table", "--classification", "--config", str(config), "--root", str(root), *files, *views]) == 3
    lines = (tmp_path / "t.md").read_text().splitlines()
    titles = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert titles[:4] == ["layer", "no SPP, crop", "SPP, crop", "SPP, full, s = 100"]
    assert titles[4].endswith("(best)")
    spp = next(line for line in lines if line.startswith("| spp"))
    assert spp.split("|")[2].strip() == "-"
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 3 + 4 + 2 + 2
    assert capsys.readouterr().out.count("failed image red/im9") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_per_class": 9}, "class 'blue' has 9 images, of which 9 to train on leave none"),
        ({"layers": ["fc6"]}, "has no layer 'fc6'; it has conv4, conv5, pool, spp"),
        ({"views": ["full-100"], "layers": ["conv5"]}, "conv5 of view full-100 have no fixed length"),
        ({"views": ["side"]}, "'side' is no view"),
        ({"protocol": "voc07"}, "trainval has no image"),
        (
            {"memory_mb": 16, "solver": "sklearn"},
            "layer conv4: 28 images, 15 of them to train on, by sklearn with 64896",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(tmp_path, folder, capsys, changes, message):
    config = config_of(tmp_path / "other.yaml", folder, {"train_per_class": 5, "splits": 1, **changes}, layout="folder")
    code = main(["classify", "--config", str(config), "--root", str(tmp_path / "root")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "root").glob("image_features/*/data/*"))


def test_own_splits_give_own_results(tmp_path, folder):
    """Two splits that change sides are another experiment, not the same one."""
    for split, numbers in (("learn", range(6)), ("check", range(6, 9))):
        for name in COLOURS:
            for number in numbers:
                target = tmp_path / "data" / split / name / f"im{number}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((folder / name / f"im{number}.jpg").read_bytes())
    classify = {"protocol": "folder", "views": ["warp"], "layers": ["spp"]}
    sides = {"train_splits": ["learn"], "test_splits": ["check"]}
    config = config_of(tmp_path / "own.yaml", tmp_path / "data", classify, layout="folder", **sides)
    root = tmp_path / "root"
    swapped = ("--set", "dataset.train_splits=[check]", "--set", "dataset.test_splits=[learn]")
    for run, more in (("one", ()), ("other", swapped)):
        assert main(["classify", "--config", str(config), "--root", str(root), "--run", run, *more]) == 0
    tested = [
        connect(root_of(root), run).execute("SELECT sum(positives) FROM classification").fetchone()[0]
        for run in ("one", "other")
    ]
    assert tested == [9, 18]
    shutil.rmtree(tmp_path / "data" / "learn" / "red")
    assert main(["classify", "--config", str(config), "--root", str(root), "--run", "lacking"]) == 2


def test_voc07_ranks_the_test_images_of_each_class(tmp_path, capsys):
    data = VocFolder(tmp_path / "data")
    random = np.random.default_rng(0)
    truth: dict[str, set[str]] = {}
    for number in range(24):
        image_id, split = f"im{number:02d}", "trainval" if number % 2 else "test"
        shown = [name for name in ("box", "disc") if random.random() < 0.5]
        data.add(
            image_id, split, [(name, 10 + 50 * (name == "disc"), 10, 50 + 50 * (name == "disc"), 80) for name in shown]
        )
        truth[image_id] = set(shown)
    hard = (data.path / "Annotations/im00.xml").read_text().replace("<difficult>0", "<difficult>1")
    (data.path / "Annotations/im00.xml").write_text(hard)
    config = config_of(
        tmp_path / "voc.yaml", tmp_path / "data", {"protocol": "voc07", "views": ["warp"], "layers": ["spp"]}
    )
    root = tmp_path / "root"
    assert main(["classify", "--config", str(config), "--root", str(root), "--json"]) == 0
    quality = json.loads(capsys.readouterr().out.splitlines()[-1])["classification"]
    assert quality["measure"] == "ap_11"
    connection = connect(root_of(root), "voc")
    found = dict(connection.execute("SELECT class_name, ap_11 FROM classification").fetchall())
    assert set(found) == {"box", "disc"}
    for name, ap in found.items():
        rows = connection.execute("SELECT image_id, score FROM image_scores WHERE class_name = ?", [name]).fetchall()
        rows = [(i, s) for i, s in rows if not (i == "im00" and name in truth[i])]
        precision, recall, _ = precision_recall_curve([name in truth[i] for i, _ in rows], [s for _, s in rows])
        precision, recall = precision[:-1], recall[:-1]
        best = [max(precision[recall >= level - 1e-12], default=0.0) for level in np.arange(11) / 10]
        assert ap == pytest.approx(np.mean(best))
    assert quality["layers"][0]["mean"] == pytest.approx(np.mean(list(found.values())))
