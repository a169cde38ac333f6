"""From features to mAP on embedded Ray: trained, detected and measured, on both stores, and what follows a change."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.config.run_config import load_config
from pipeline.detection.svm import DualSolver
from tests.project import Project, last_json

MODELS = ("svms", "regressors", "detections", "metrics")


@pytest.fixture(scope="module")
def trained(tuned, tmp_path_factory) -> Project:
    """A finished run over conv maps with SVMs on pool5, which tests read or add runs to."""
    project = tuned.clone(tmp_path_factory.mktemp("trained"))
    project.change_config(svm={"layer": "pool5"})
    assert project.spp("run") == 0
    return project


def beside(project: Project, root) -> Project:
    """The same data set and config with another root."""
    return Project(project.data, project.config, root)


def test_a_run_ends_with_the_average_precision_of_every_class(trained, capsys):
    assert trained.spp("run", "--json") == 0
    captured = capsys.readouterr()
    measured = json.loads(captured.out.splitlines()[-1])["metrics"]
    assert [row["class_name"] for row in measured["classes"]] == ["slab", "square"]
    assert measured["map_11"] > 0.5  # rectangles of two shapes and colours
    assert "AP (11-point)" in captured.out
    assert trained.spp("verify") == 0


def test_the_same_command_again_makes_nothing(trained):
    before = {name: trained.commits(name) for name in MODELS}
    assert trained.spp("run") == 0
    assert {name: trained.commits(name) for name in MODELS} == before


@pytest.mark.slow
@pytest.mark.parametrize("store", ["vectors", "maps"])
def test_a_second_root_gives_the_same_metrics_from_either_store(trained, tmp_path, store):
    other = beside(trained, tmp_path / "root")
    assert other.spp("run", "--set", f"features.store={store}") == 0
    for name in MODELS:
        assert other.table(name).equals(trained.table(name)), name


@pytest.mark.slow
def test_streamed_features_give_the_same_detections_and_are_not_stored(trained, tmp_path):
    other = beside(trained, tmp_path / "root")
    assert other.spp("run", "--set", "detect.source=stream") == 0
    for name in MODELS:
        assert other.table(name).equals(trained.table(name)), name
    tests = {f"im-{number:03d}" for number in range(14, 22)}
    assert not tests & set(other.table("windows")["image_id"].to_pylist())
    assert other.spp("verify") == 0


def test_no_ground_truth_box_is_ever_a_detection_candidate(trained):
    proposals = trained.table("proposals")
    plain = ("--set", "detect.regress=false", "--run", "plain")
    assert trained.spp("run", *plain) == 0
    detections = trained.table("detections", "plain")
    rows = [detections.select(["image_id", "box"]), proposals.select(["image_id", "box"])]
    found, proposed = ({(row["image_id"], *row["box"].values()) for row in part.to_pylist()} for part in rows)
    assert found
    assert found <= proposed


def test_a_change_runs_what_depends_on_it_and_nothing_before(trained, capsys):
    change = ("--set", "svm.C=0.01", "--run", "changed")
    before = {name: trained.commits(name) for name in ("proposals", "windows", "maps", "truth_features", *MODELS)}
    capsys.readouterr()
    assert trained.spp("plan", *change, "--json") == 0
    planned = {entry["dataset"]: entry["shards_done"] for entry in last_json(capsys)["datasets"]}
    assert {name for name, done in planned.items() if done == 0} == {"svms", "detections", "metrics"}
    assert trained.spp("run", *change) == 0
    changed = {name for name, names in before.items() if trained.commits(name) != names}
    assert changed == {"svms", "detections", "metrics"}
    assert trained.spp("status", "--run", "changed") == 0
    assert "behind" not in capsys.readouterr().out


def test_every_negative_is_counted_and_no_window_stands_twice_in_a_history(trained):
    for row in trained.table("svms").to_pylist():
        last = row["history"][-1]
        assert row["positives"] == last["positives"]
        assert row["negatives"] <= last["negatives"]
        assert row["all_negatives"] >= row["negatives"]
        assert row["objective"] == pytest.approx(last["loss_positive"] + last["loss_negative"] + last["regulariser"])
        assert row["objective_all"] >= row["objective"] * (1 - 1e-6)
        assert row["left_out"] == 0


@pytest.mark.slow
def test_until_stable_leaves_no_violator_and_the_objective_is_that_of_all_windows(trained):
    assert trained.spp("run", "--set", "svm.passes=until_stable", "--run", "stable") == 0
    for row in trained.table("svms", "stable").to_pylist():
        assert row["violators"] == 0
        assert row["objective_all"] == pytest.approx(row["objective"], rel=1e-3)


def test_caps_bound_the_caches_and_what_they_keep_out_is_counted(trained):
    memory = 3
    room = DualSolver().most_rows(memory * 10**6, 12_800)
    capped = ("--set", f"svm.fit_memory_mb={memory}", "--set", "svm.start_negatives=20", "--run", "capped")
    assert trained.spp("train-svm", "--run", "capped") == 2  # there is no such run yet
    assert trained.spp("run", "--until", "train-svm", *capped) == 0
    rows = trained.table("svms", "capped").to_pylist()
    for row in rows:
        assert all(fit["positives"] + fit["negatives"] <= room for fit in row["history"])
    assert sum(row["left_out"] for row in rows) > 0


def test_memory_that_cannot_hold_the_positives_is_refused_with_the_numbers(trained, capsys):
    capsys.readouterr()
    assert trained.spp("run", "--set", "svm.fit_memory_mb=1", "--set", "svm.solver=sklearn", "--run", "tiny") == 2
    assert "room for 3 examples" in capsys.readouterr().err


def test_detections_are_written_for_other_tools_and_read_back_to_the_same_ap(trained, tmp_path, capsys):
    capsys.readouterr()
    assert trained.spp("evaluate", "--json") == 0
    ours = last_json(capsys)["metrics"]
    voc, coco = tmp_path / "voc", tmp_path / "coco.json"
    assert trained.spp("detect", "--voc", str(voc), "--coco", str(coco)) == 0
    capsys.readouterr()
    assert trained.spp("evaluate", "--detections", str(voc / "comp4_det_test_*.txt"), "--json") == 0
    theirs = last_json(capsys)
    assert theirs["map_11"] == pytest.approx(ours["map_11"], abs=1e-9)
    rows = json.loads(coco.read_text())
    assert len(rows) == len(trained.table("detections"))
    assert json.loads((tmp_path / "coco.categories.json").read_text())[0] == {"id": 1, "name": "slab"}


def test_result_files_that_do_not_fit_the_data_set_are_refused(trained, tmp_path, capsys):
    capsys.readouterr()
    file = tmp_path / "comp4_det_test_square.txt"
    for text, says in (("im-000 0.5 1 1 20 20\n", "im-000"), ("im-015 high 1 1 20 20\n", "line 1")):
        file.write_text(text)
        assert trained.spp("evaluate", "--detections", str(file)) == 2
        assert says in capsys.readouterr().err
    assert trained.spp("evaluate", "--detections", str(tmp_path / "nothing*.txt")) == 2


@pytest.mark.slow
def test_shuffled_test_annotations_leave_the_detections_unchanged(finished, tmp_path):
    project = finished.clone(tmp_path)
    before = project.table("detections")
    tests = [f"im-{number:03d}" for number in range(9, 14)]
    folder = project.data.path / "Annotations"
    texts = [(folder / f"{image_id}.xml").read_text() for image_id in tests]
    for image_id, text in zip(tests, texts[1:] + texts[:1], strict=True):
        (folder / f"{image_id}.xml").write_text(text)
    made = project.commits("detections")
    assert project.spp("run") == 0
    assert project.commits("detections") == made
    assert project.table("detections").equals(before)


@pytest.mark.slow
def test_degenerate_classes_images_and_splits_are_stated_results(cloned, capsys):
    project = cloned
    project.data.add("im-900", "test", [("ring", 5, 5, 60, 60)])  # a class that no training image shows
    project.data.add("im-901", "trainval", [("blob", 5, 5, 60, 60)])  # one that no test image shows
    project.data.add("im-902", "test", [], size=(12, 12))  # too small for a proposal
    capsys.readouterr()
    assert project.spp("run", "--json") == 0
    captured = capsys.readouterr()
    measured = json.loads(captured.out.splitlines()[-1])["metrics"]
    by_name = {row["class_name"]: row for row in measured["classes"]}
    assert by_name["ring"]["ap_11"] == 0
    assert by_name["ring"]["detections"] == 0
    assert by_name["blob"]["ap_11"] is None
    assert np.isfinite(measured["map_11"])
    assert "class 'ring' has no positives" in captured.err
    early = captured.err[: captured.err.index("proposals ")]
    assert "note: train-svm: 1 of 4 classes have no positives in the training splits" in early
    assert (
        "note: evaluate: 1 of 4 classes have no object to find in dataset.test_splits (test), and so no AP: blob"
        in early
    )
    told = [line.split(", such as ")[0] for line in captured.out.splitlines() if line.startswith("note: ")]
    assert told == [
        "note: train-svm: 1 of 4 classes have nothing to learn from",
        "note: train-bbox: 1 of 4 classes have nothing to learn from",
    ]
    assert "no AP: blob" in captured.out
    # a detector that fires nowhere
    assert project.spp("run", "--set", "detect.score_above=1000", "--run", "silent", "--json") == 0
    assert last_json(capsys)["metrics"]["map_11"] == 0
    assert project.spp("verify", "--run", "silent") == 0


@pytest.mark.slow
def test_a_test_split_without_objects_has_no_ap_and_a_training_split_without_any_is_refused(finished, tmp_path, capsys):
    project = finished.clone(tmp_path)
    for number in range(9, 14):
        project.data.annotate(f"im-{number:03d}", [])
    assert project.spp("run", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["metrics"]["map_11"] is None
    assert "evaluate: dataset.test_splits (test): no object to find on 5 images, and so no AP" in captured.err
    for number in range(9):
        project.data.annotate(f"im-{number:03d}", [])
    assert project.spp("run") == 2
    assert "no object to learn from" in capsys.readouterr().err


def test_the_config_of_a_run_without_features_says_what_to_do_first(make_project, capsys):
    project = make_project()
    assert project.spp("index") == 0
    for verb, says in (("train-svm", "spp extract"), ("detect", "spp extract"), ("evaluate", "spp detect")):
        capsys.readouterr()
        assert project.spp(verb) == 2
        assert says in capsys.readouterr().err
    assert load_config(str(project.config)).svm.C == 1e-3


def test_a_single_stage_takes_nothing_that_is_behind(trained, capsys):
    behind = ("--run", "behind")
    assert trained.spp("run", *behind) == 0
    changed = ("--set", "svm.C=0.02")
    assert trained.spp("train-svm", *behind, *changed) == 0
    capsys.readouterr()
    assert trained.spp("evaluate", *behind, *changed) == 2
    assert "run `spp detect` first" in capsys.readouterr().err
    assert trained.spp("detect", *behind, *changed) == 0
    assert trained.spp("evaluate", *behind, *changed) == 0
    assert trained.spp("run", *behind) == 0
    capsys.readouterr()
    assert trained.spp("detect", *behind, "--set", "svm.C=0.5") == 2
    assert "run `spp train-svm` first" in capsys.readouterr().err
    assert trained.spp("train-svm", *behind, "--set", "dataset.train_splits=[test]") == 2
    assert "run `spp extract` first" in capsys.readouterr().err


@pytest.mark.slow
def test_features_of_older_images_do_not_stand_in_for_newer_ones_stored_the_other_way(finished, tmp_path):
    project = finished.clone(tmp_path)
    project.data.add("im-700", "test", [("square", 11, 21, 50, 60)])
    assert project.spp("run", "--set", "features.store=maps") == 0
    record = project.record()
    assert "features" not in record.datasets
    assert "im-700" in project.table("detections")["image_id"].to_pylist()


@pytest.mark.slow
def test_images_that_failed_in_streamed_detection_are_done_again_by_retry(cloned, capsys):
    project = cloned
    stream = ("--set", "detect.source=stream", "--set", "execution.max_failed=1")
    assert project.spp("run", "--until", "train-bbox", *stream) == 0
    picture = project.data.path / "JPEGImages" / "im-010.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:200])
    assert project.spp("detect", *stream) == 3
    assert "im-010" in capsys.readouterr().out
    picture.write_bytes(whole)
    assert project.spp("retry", *stream) == 0
    assert "im-010" in project.table("detections")["image_id"].to_pylist()
    assert project.spp("verify") == 0
