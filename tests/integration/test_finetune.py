"""Fine-tuning, layers and the softmax detector on embedded Ray: what is drawn, what follows, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.bodies import Body, body_spec, load_classifier, load_state, save_network
from pipeline.bodies.classifier import over_array
from pipeline.boxes import iou
from pipeline.features.regions import RegionExtractor
from pipeline.images.decode import decode_image
from pipeline.network.head import Embedder, head_of, pretrained_head
from storage.columns import boxes_of, vectors_of
from tests.project import Project, last_json, sets

pytestmark = pytest.mark.slow

SCALES = (128, 160)


@pytest.fixture(scope="module")
def tuned(tuned, tmp_path_factory) -> Project:
    """A finished run on ftfc7, which tests read or add runs to."""
    return tuned.clone(tmp_path_factory.mktemp("tuned"))


def test_the_training_windows_are_labelled_scaled_and_mirrored_as_configured(tuned):
    windows, objects = tuned.table("training_windows"), tuned.table("objects")
    names = windows["class_name"].to_pylist()
    ids = np.array(windows["image_id"].to_pylist())
    boxes = boxes_of(windows["box"])
    for image_id in np.unique(ids):
        own = objects.filter(pa.compute.equal(objects["image_id"], image_id))
        truth, classes = boxes_of(own["box"]), own["class_name"].to_pylist()
        for row in np.flatnonzero(ids == image_id):
            overlaps = iou(boxes[row : row + 1], truth)[0]
            if names[row] is None:
                assert 0.1 <= overlaps.max() < 0.5
            else:
                assert overlaps.max() >= 0.5
                assert classes[overlaps.argmax()] == names[row]
    foreground = np.array([name is not None for name in names])
    count = Counter(ids[foreground].tolist())
    assert set(count.values()) == {10}  # a quarter of 40
    assert (ids == ids[0]).sum() <= 40
    assert windows["flipped"].to_numpy().mean() == pytest.approx(0.5, abs=0.08)
    assert (windows["scale"].to_numpy() == SCALES[0]).mean() == pytest.approx(0.5, abs=0.08)
    # the ground truth is among what is drawn
    truths = {(row["image_id"], *row["box"].values()) for row in objects.to_pylist()}
    assert truths & {(row["image_id"], *row["box"].values()) for row in windows.to_pylist()}


def test_a_training_window_is_pooled_at_its_scale_from_its_side_of_the_image(tuned):
    windows = tuned.table("training_windows").to_pylist()
    extractor = RegionExtractor(Body(body_spec("alexnet"), load_state(body_spec("alexnet"), "random")), SCALES)
    seen = set()
    for row in windows[::9]:
        image = decode_image((tuned.data.path / "JPEGImages" / f"{row['image_id']}.jpg").read_bytes())
        x1, y1, x2, y2 = row["box"].values()
        if row["flipped"]:
            image = np.ascontiguousarray(np.fliplr(image))
            x1, x2 = image.shape[1] - x2, image.shape[1] - x1
        at = np.array([row["scale"]], np.int32)
        found = extractor(image, np.array([[x1, y1, x2, y2]], np.float32), scales=at)
        np.testing.assert_array_equal(found.windows[0], list(row["window"].values()))
        np.testing.assert_array_equal(found.vectors[0], np.array(row["feature"], np.float16))
        seen.add((row["flipped"], row["scale"]))
    assert len(seen) == 4


def test_embeddings_are_the_layers_outputs_of_the_training_windows(tuned):
    stored = {name: over_array(values) for name, values in tuned.tensors("head").items()}
    embedder = Embedder(head_of(stored), "fc7")
    truth, outputs = tuned.table("truth_features"), tuned.table("truth_embeddings")
    expected = embedder(vectors_of(truth["feature"])).astype(np.float16)
    np.testing.assert_array_equal(vectors_of(outputs["feature"]), expected)
    assert outputs.drop(["feature"]).equals(truth.drop(["feature"]))
    train = {f"im-{number:03d}" for number in range(14)}
    assert set(tuned.table("embeddings")["image_id"].to_pylist()) == train


def test_the_whole_run_finds_the_rectangles_and_is_whole(tuned, capsys):
    assert tuned.spp("run", "--json") == 0
    made = last_json(capsys)
    assert made["metrics"]["map_11"] > 0.5
    assert tuned.spp("verify") == 0
    curve = tuned.table("training_curve")
    assert curve["iteration"].to_pylist() == [100, 120]
    assert curve["learning_rate"].to_pylist() == [0.003, 0.0003]
    assert not list((tuned.root / "checkpoints").glob("*/data/*"))
    assert not list((tuned.root / "checkpoints").glob("*/*.json"))


def test_plan_and_status_know_the_head(tuned, capsys):
    capsys.readouterr()
    assert tuned.spp("plan", "--json") == 0
    planned = last_json(capsys)["datasets"]
    assert all(entry["shards_done"] == entry["shards"] for entry in planned)
    assert {"training_windows", "head", "embeddings", "truth_embeddings"} <= {entry["dataset"] for entry in planned}
    changed = ("--set", "finetune.momentum=0.8", "--json")
    assert tuned.spp("plan", *changed) == 0
    planned = last_json(capsys)["datasets"]
    todo = {entry["dataset"] for entry in planned if entry["shards_done"] < entry["shards"]}
    assert todo == {
        "training_curve",
        "head",
        "embeddings",
        "truth_embeddings",
        "svms",
        "detections",
        "metrics",
    }
    assert tuned.spp("status") == 0
    assert "behind" not in capsys.readouterr().out


def test_other_layers_and_the_softmax_share_what_they_can(tuned, capsys):
    shared = ("proposals", "truth_features", "training_windows", "head")
    before = {name: tuned.commits(name) for name in shared}
    for name, changes in {
        "ftfc6": ("svm.layer=ftfc6",),
        "softmax": ("detect.classifier=softmax", "detect.score_above=0.05", "svm.layer=pool5"),
        "stream": ("detect.source=stream",),
        "slim": ("head.svd_rank=[8,8]",),
    }.items():
        assert tuned.spp("run", "--run", name, *sets(*changes)) == 0, name
    assert {name: tuned.commits(name) for name in shared} == before
    assert tuned.table("detections", "stream").equals(tuned.table("detections"))
    assert not tuned.table("detections", "slim").equals(tuned.table("detections"))
    assert vectors_of(tuned.table("truth_embeddings", "ftfc6")["feature"]).shape[1] == 48
    scores = tuned.table("detections", "softmax")["score"].to_numpy()
    assert 0.05 < scores.min() <= scores.max() <= 1
    record = tuned.record("softmax")
    assert record.datasets["metrics"].quality.map_11 > 0.5
    assert "svms" not in record.datasets


def test_a_layer_that_is_not_there_is_refused(tuned, capsys):
    for change, says in (
        ("svm.layer=fc7", "no fc6 and fc7 come with body 'alexnet' and weights 'random'"),
        ("head.initial=pretrained", "use auto or he"),
    ):
        capsys.readouterr()
        assert tuned.spp("run", "--run", "refused", "--set", change) == 2
        assert says in capsys.readouterr().err
    assert tuned.spp("embed", "--set", "svm.layer=pool5") == 2
    assert "nothing to embed" in capsys.readouterr().err
    for changes, says in (
        (("features.source=warp",), "use store: vectors"),
        (("detect.classifier=softmax",), "use pool5"),
        (("execution.train_workers=3", "finetune.seed=9"), "lower it, or use a larger cluster"),
        (("finetune.held_out=0.001", "finetune.schedule=plateau"), "no foreground window of the images that are held"),
    ):
        words = sets(*changes)
        assert tuned.spp("run", "--run", "refused", *words) in (1, 2)
        assert says in capsys.readouterr().err


def test_a_network_of_our_own_brings_its_fc6_and_fc7(tuned, tmp_path, capsys):
    spec, path = body_spec("zf5"), tmp_path / "zf5.safetensors"
    state = load_state(spec, "random")
    for layer, shape in (("fc6", (48, 256 * 10)), ("fc7", (32, 48)), ("fc8", (5, 32))):
        state |= {f"{layer}.weight": 0.01 * torch.randn(shape), f"{layer}.bias": torch.zeros(shape[0])}
    save_network(path, spec, state, levels=(3, 1), class_names=list("abcde"))
    body = ("features.body=zf5", f"features.weights={path}")
    trained = load_classifier(spec, str(path))
    assert trained is not None
    expected = pretrained_head(trained, 256, (6, 3, 2, 1), outputs=3).state_dict()
    for name, changes in {
        "own": ("svm.layer=fc7",),
        "own-tuned": ("svm.layer=ftfc7", "finetune.schedule=[[1.0e-9,2]]"),
    }.items():
        words = sets(*body, *changes)
        assert tuned.spp("run", "--run", name, "--until", "finetune", *words) == 0, name
        found = tuned.tensors("head", name)
        for entry in ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"):
            np.testing.assert_allclose(found[entry], expected[entry].numpy(), atol=1e-6)
    for changes, says in (
        (("svm.layer=fc7", "head.sizes=[48,30]"), "use head.sizes: [48, 32], or head.initial: he"),
        (("features.body=convnet5",), "is of the body 'zf5', not 'convnet5'"),
    ):
        capsys.readouterr()
        words = sets(*body, *changes)
        assert tuned.spp("run", "--run", "refused", "--until", "finetune", *words) == 2
        assert says in capsys.readouterr().err


def test_a_stage_takes_no_head_that_is_behind(tuned, capsys):
    behind = ("--run", "behind")
    assert tuned.spp("run", *behind) == 0
    capsys.readouterr()
    for verb in ("embed", "train-svm", "detect"):
        assert tuned.spp(verb, *behind, "--set", "finetune.seed=4") == 2
        assert "spp finetune" in capsys.readouterr().err
    assert tuned.spp("train-svm", *behind, "--set", "svm.layer=ftfc6") == 2
    assert "run `spp embed` first" in capsys.readouterr().err


def test_a_rate_that_is_too_high_ends_the_run_with_what_to_do(tuned, capsys):
    assert tuned.spp("run", "--run", "wild", "--set", "finetune.schedule=[[1.0e+30, 100]]") == 1
    assert "train at a lower one" in capsys.readouterr().err


def test_schedules_are_chosen_on_held_out_images_and_a_hopeless_rate_is_passed_over(tuned, capsys):
    changes = sets(
        "finetune.schedule=plateau",
        "finetune.learning_rates=[1.0e+30, 0.003, 0.0000001]",
        "finetune.trial_iterations=30",
        "finetune.max_iterations=120",
        "finetune.measure_every=20",
    )
    assert tuned.spp("run", "--run", "chosen", *changes) == 0
    curve = tuned.table("training_curve", "chosen").to_pylist()
    phases = {row["phase"] for row in curve}
    assert phases == {"trial 0.003", "trial 1e-07", "plateau 0.003", "final"}  # the first gave no number at all
    plateau = [row for row in curve if row["phase"] == "plateau 0.003"]
    assert all(any(row["learning_rate"] == pytest.approx(0.003 / 10**k) for k in range(3)) for row in plateau)
    best = min(plateau, key=lambda row: row["held_out_loss"])
    assert max(row["iteration"] for row in curve if row["phase"] == "final") == best["iteration"]
    assert all(row["held_out_loss"] is None for row in curve if row["phase"] == "final")


def test_two_workers_train_one_head(tuned, tmp_path):
    other = tuned.clone(tmp_path, without=("training_curve", "head"))
    assert other.spp("run", *sets("execution.train_workers=2", "execution.train_threads=1")) == 0
    found = other.tensors("head")
    assert all(np.isfinite(values).all() for values in found.values())
    curve, alone = other.table("training_curve"), tuned.table("training_curve")
    assert curve["iteration"].equals(alone["iteration"])
    assert curve["loss"].to_pylist()[-1] == pytest.approx(alone["loss"].to_pylist()[-1], abs=0.25)
    assert other.record().datasets["metrics"].quality.map_11 > 0.5


def test_warped_windows_go_through_all_stages(make_project):
    project = make_project()
    small = ("proposals.max_per_image=20", "head.sizes=[32,32]", "finetune.schedule=[[0.003, 40]]")
    assert project.spp("run", *sets("features.source=warp", "svm.layer=ftfc7", *small)) == 0
    features = project.table("features")
    assert set(features["scale"].to_pylist()) == {224}
    assert project.spp("verify") == 0


@pytest.mark.parametrize("before", ["extract", "finetune"])
def test_an_image_that_failed_is_in_the_ledger_and_is_drawn_from_once_it_is_mended(extracted, tmp_path, capsys, before):
    """It breaks ahead of ``extract``, so that it has no features either, or only ahead of ``finetune``."""
    project = extracted.clone(tmp_path, without=("features", "truth_features") if before == "extract" else ())
    changes = sets("head.sizes=[32,32]", "svm.layer=ftfc7", "finetune.schedule=[[0.003, 20]]", "execution.max_failed=1")
    picture: Path = project.data.path / "JPEGImages" / "im-003.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:200])
    if before == "extract":
        assert project.spp("extract", *changes) == 3
    capsys.readouterr()
    assert project.spp("finetune", *changes) == 3
    assert "failed image im-003" in capsys.readouterr().out
    assert "im-003" not in project.table("training_windows")["image_id"].to_pylist()
    picture.write_bytes(whole)
    assert project.spp("retry", *changes) == 0
    assert "im-003" in project.table("training_windows")["image_id"].to_pylist()


def test_pool5_runs_have_no_head(tuned, capsys):
    assert tuned.spp("run", "--run", "plain", "--set", "svm.layer=pool5", "--json") == 0
    made = last_json(capsys)["datasets"]
    assert not {"head", "embeddings", "training_windows"} & set(made)


def test_the_table_runs_what_is_missing_and_shows_it_in_three_ways(tuned, tmp_path, capsys):
    csv_file, markdown_file = tmp_path / "table.csv", tmp_path / "table.md"
    asked = ("--columns", "5-scale", "--rows", "pool5,fc6,ftfc7,ftfc7 bb")
    capsys.readouterr()
    assert tuned.spp("table", *asked, "--csv", str(csv_file), "--markdown", str(markdown_file), "--json") == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out.splitlines()[-1])
    assert [cell["row"] for cell in made["cells"]] == ["pool5", "ftfc7", "ftfc7 bb"]  # no fc6 without pretrained layers
    for cell in made["cells"]:
        record = tuned.record(cell["run"])
        assert cell["run"] == f"small.5-scale.{cell['row'].replace(' ', '-')}"
        assert cell["map_11"] == record.datasets["metrics"].quality.map_11
        low, high = cell["interval"]
        assert 0 <= low <= cell["map_11"] <= high <= 1
    regressed, plain = made["cells"][2], made["cells"][1]
    (difference,) = [d for d in made["differences"] if (d["of"], d["minus"]) == ("ftfc7 bb", "ftfc7")]
    assert difference["value"] == pytest.approx(regressed["map_11"] - plain["map_11"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert {"conv", "pool", "fc", "SVM", "NMS", "bbox"} == set(made["seconds"]["5-scale"])
    assert made["seconds"]["5-scale"]["fc"] > 0
    lines = csv_file.read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("column,row,run,map_11,low,high,map_area,seconds_conv")
    assert lines[0].endswith("slab,square")
    assert "| ftfc7 bb |" in markdown_file.read_text()
    assert "5-scale (128 160)" in captured.out
    # again, nothing is made; without running, the same is shown
    before = {name: tuned.commits(name) for name in ("svms", "detections", "metrics", "head")}
    assert tuned.spp("table", *asked, "--only-print", "--json") == 0
    again = last_json(capsys)
    assert again == made
    assert {name: tuned.commits(name) for name in before} == before


def test_a_table_of_what_does_not_exist_is_refused(tuned, capsys):
    for arguments, says in (
        (("--columns", "2-scale"), "give some of 1-scale, 5-scale, R-CNN"),
        (("--rows", "pool6"), "give some of pool5"),
        (("--run", "never", "--only-print"), "no run of the table is there yet"),
    ):
        capsys.readouterr()
        assert tuned.spp("table", *arguments) == 2
        assert says in capsys.readouterr().err
