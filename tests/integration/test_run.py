"""The main job, on embedded Ray: images in, committed features out, and what follows from a change."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import storage
from jobs.cli.main import main
from jobs.config.run_config import load_config
from jobs.features.body import load_body
from pipeline.bodies import Body
from pipeline.features.regions import RegionExtractor
from pipeline.images.decode import decode_image
from storage.runs import write_run
from tests.project import EXTRACT, Project, last_json, sets


def test_every_window_of_every_image_gets_its_vector(cloned):
    report = cloned.answer("run", *EXTRACT)
    assert report["failed"] == {}
    assert {name: entry["images"] for name, entry in report["datasets"].items()} == {
        "images": 14,
        "objects": 14,
        "proposals": 14,
        "features": 14,
        "truth_features": 9,
    }
    config = load_config(str(cloned.config))
    loaded = load_body(config.features)
    extractor = RegionExtractor(Body(loaded.spec, loaded.state), config.features.scales)
    proposals = cloned.table("proposals")
    seen = set()
    for table in storage.scan(str(cloned.root), "features"):
        image_id = table["image_id"][0].as_py()
        assert image_id not in seen
        seen.add(image_id)
        proposed = proposals.filter(pa.compute.field("image_id") == image_id)
        boxes = storage.boxes_of(proposed["box"])
        assert np.array_equal(storage.boxes_of(table["box"]), boxes)
        assert table["proposal_id"].to_pylist() == proposed["proposal_id"].to_pylist()
        image = decode_image((cloned.data.path / "JPEGImages" / f"{image_id}.jpg").read_bytes())
        expected = extractor(image, boxes)
        assert np.array_equal(storage.vectors_of(table["feature"]).view(np.int16), expected.vectors.view(np.int16))
        assert np.array_equal(storage.windows_of(table["window"]), expected.windows)
        assert table["scale"].to_pylist() == expected.scales.tolist()
    assert len(seen) == 14
    assert cloned.spp("verify") == 0


def test_truth_features_are_of_the_training_objects_alone(extracted):
    truth = extracted.table("truth_features")
    images = extracted.table("images").to_pylist()
    training = {row["image_id"] for row in images if "trainval" in row["splits"]}
    objects = extracted.table("objects").filter(pa.compute.field("image_id").isin(training))
    assert truth.select(["image_id", "object_id", "class_name", "box"]) == objects.select(
        ["image_id", "object_id", "class_name", "box"]
    )


def test_the_same_command_again_does_nothing(cloned):
    before = {dataset: cloned.commits(dataset) for dataset in ("images", "objects", "proposals", "features")}
    assert cloned.spp("run", *EXTRACT) == 0
    assert {dataset: cloned.commits(dataset) for dataset in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(("option", "says"), [("--quiet", False), ("--verbose", True)])
def test_a_command_says_less_or_more(cloned, capsys, option, says):
    (cloned.data.path / "JPEGImages" / "im-003.jpg").unlink()
    place = ("--config", str(cloned.config), "--root", str(cloned.root), *sets("dataset.path=" + str(cloned.data.path)))
    capsys.readouterr()
    assert main([option, "run", *place, *EXTRACT]) == 3
    told = capsys.readouterr().err
    assert "failed: image im-003" in told  # whatever was asked for
    assert ("images/s" in told) == says
    assert ("shards are there" in told) == says
    assert main(["--quiet", "--verbose", "run", *place]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_two_roots_hold_the_same_content(extracted, tmp_path):
    assert extracted.spp("run", *EXTRACT, root=tmp_path / "other") == 0
    other = Project(extracted.data, extracted.config, tmp_path / "other")
    for dataset in ("images", "objects", "proposals", "features", "truth_features"):
        assert extracted.table(dataset).equals(other.table(dataset)), dataset


@pytest.mark.slow
def test_an_actor_of_two_cores_gives_what_one_of_one_core_gives(cloned, tmp_path):
    """With a body whose maps would be others if two threads shared one."""
    body = sets("features.body=squeezenet1_1")
    other = Project(cloned.data, cloned.config, tmp_path / "other")
    assert cloned.spp("run", *EXTRACT, *body) == 0
    assert other.spp("run", *EXTRACT, *body, *sets("execution.threads=2")) == 0
    for dataset in ("features", "truth_features"):
        assert cloned.table(dataset).equals(other.table(dataset)), dataset


@pytest.mark.slow
def test_an_added_image_runs_only_the_shards_that_hold_it(cloned):
    before = {dataset: cloned.commits(dataset) for dataset in ("proposals", "features", "truth_features")}
    cloned.data.add("im-002b", "test", [("square", 11, 21, 50, 60)])
    assert cloned.spp("run", *EXTRACT) == 0
    for dataset, old in before.items():
        new = cloned.commits(dataset) - old
        holders = [name for name in new if "im-002b" in cloned.commit_file(dataset, name).read_text()]
        assert len(new) == len(holders) == (0 if dataset == "truth_features" else 1), dataset
    assert cloned.spp("verify") == 0


def test_a_changed_label_runs_only_the_truth_features_of_its_shard(cloned):
    before = {dataset: cloned.commits(dataset) for dataset in ("proposals", "features", "truth_features")}
    cloned.data.annotate("im-001", [("slab", 12, 22, 60, 70)])
    assert cloned.spp("run", *EXTRACT) == 0
    assert cloned.commits("proposals") == before["proposals"]
    assert cloned.commits("features") == before["features"]
    (new,) = cloned.commits("truth_features") - before["truth_features"]
    assert "im-001" in cloned.commit_file("truth_features", new).read_text()
    (row,) = (r for r in cloned.table("truth_features").to_pylist() if r["image_id"] == "im-001")
    assert (row["class_name"], row["box"]) == ("slab", {"x1": 11, "y1": 21, "x2": 60, "y2": 70})


@pytest.mark.slow
def test_a_changed_split_extracts_no_proposal_again(cloned):
    before = {dataset: cloned.commits(dataset) for dataset in ("proposals", "features")}
    cloned.data.move("im-003", "trainval", "test")
    assert cloned.spp("run", *EXTRACT) == 0
    assert {dataset: cloned.commits(dataset) for dataset in before} == before
    assert "im-003" not in cloned.table("truth_features")["image_id"].to_pylist()


@pytest.mark.slow
def test_a_changed_pyramid_extracts_but_does_not_propose(cloned):
    proposals, features = cloned.commits("proposals"), cloned.commits("features")
    assert cloned.spp("run", *EXTRACT, "--set", "features.pyramid=[3, 1]") == 0
    assert cloned.commits("proposals") == proposals
    assert cloned.commits("features") > features
    assert ds.dataset(storage.files(str(cloned.root), "features")).schema.field("feature").type.list_size == 256 * 10
    again = cloned.commits("features")
    assert cloned.spp("run", *EXTRACT) == 0  # the old config is complete at once
    assert cloned.commits("features") == again


def test_plan_says_what_run_does_and_writes_nothing(project):
    planned = {entry["dataset"]: entry["images_to_do"] for entry in project.answer("plan", *EXTRACT)["datasets"]}
    assert planned == {"images": 14, "objects": 14, "proposals": 14, "features": 14, "truth_features": 9}
    assert not project.root.exists()
    assert project.spp("run", "--until", "propose") == 0
    planned = {entry["dataset"]: entry["images_to_do"] for entry in project.answer("plan", *EXTRACT)["datasets"]}
    assert planned == {"images": 0, "objects": 0, "proposals": 0, "features": 14, "truth_features": 9}


def test_single_stages_need_what_comes_before(project, capsys):
    assert project.spp("propose") == 2
    assert "spp index" in capsys.readouterr().err
    assert project.spp("index") == 0
    assert project.spp("extract") == 2
    assert "run `spp propose` first" in capsys.readouterr().err
    assert project.spp("propose") == 0
    assert project.spp("extract") == 0
    assert project.spp("verify") == 0


def test_status_tells_how_far_every_stage_is(cloned):
    assert cloned.spp("run", "--until", "propose", "--run", "proposed") == 0
    states = cloned.states("--run", "proposed")
    assert states["proposals"] == "complete"
    assert states["features"] == "missing"
    commit = next(iter((cloned.root / "features").glob("*/commit/*.json")))
    commit.unlink()
    record = cloned.record()
    record.datasets["features"].manifest = None
    write_run(cloned.place(), record)
    shards = record.datasets["features"].shards
    assert cloned.states()["features"] == f"{shards - 1} of {shards} shards"


def test_notes_of_shards_that_are_not_all_there_are_listed(cloned, capsys):
    """A run that was stopped has no manifest yet; what it has committed of its own shards is listed."""
    commits = sorted((cloned.root / "proposals").glob("*/commit/*.json"))
    record = cloned.record()
    record.datasets["proposals"].manifest = None
    write_run(cloned.place(), record)
    shutil.rmtree(cloned.root / "proposals" / record.datasets["proposals"].method / "segment", ignore_errors=True)
    for number, path in enumerate(commits):
        commit = json.loads(path.read_text())
        del commit["digest"]
        image_id = next(iter(commit["images"]))
        row = {"image_id": image_id, "stage": "propose", "type": "NoProposals", "message": "none", "level": "note"}
        path.unlink()  # it has other names, in other projects
        path.write_text(json.dumps({**commit, "ledger": [row]}))
        stranger = path.with_name(path.name.replace(commit["shard"], f"{number:016x}"))
        stranger.write_text(json.dumps({**commit, "shard": f"{number:016x}", "ledger": [row]}))
    capsys.readouterr()
    answer = cloned.answer("notes")
    assert answer["rows"] == len(commits) > 1
    assert {row["dataset"] for row in answer["notes"]} == {"proposals"}
    assert cloned.answer("status")["notes"][0]["count"] == len(commits)


def test_nothing_to_learn_from_is_said_before_anything_is_made(make_project, capsys):
    project = make_project()
    for number in range(9):
        project.data.annotate(f"im-{number:03d}", [])
    assert project.spp("run") == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("spp: error: "))
    assert "train-svm: dataset.train_splits (trainval): no object to learn from on 9 images" in line
    assert set(project.all_commits()) == {"images", "objects"}
    assert project.spp("plan") == 2
    assert "no object to learn from" in capsys.readouterr().err
    assert project.spp("plan", *EXTRACT) == 0


def test_an_image_that_cannot_be_read_is_a_ledger_row_and_the_rest_goes_on(make_project, capsys):
    project = make_project()
    (project.data.path / "JPEGImages/im-004.jpg").write_bytes(b"no image")  # found while indexing
    whole = (project.data.path / "JPEGImages/im-005.jpg").read_bytes()
    (project.data.path / "JPEGImages/im-005.jpg").write_bytes(whole[: len(whole) // 2])  # found while decoding
    (project.data.path / "JPEGImages/im-006.jpg").unlink()
    assert project.spp("run", *EXTRACT, "--json") == 3
    report = last_json(capsys)
    assert set(report["failed"]) == {"im-004", "im-005", "im-006"}
    assert "truncated" in report["failed"]["im-005"]
    assert "does not exist" in report["failed"]["im-006"]
    assert report["datasets"]["features"]["images"] == 11
    assert project.spp("verify") == 0
    assert project.spp("run", *EXTRACT, "--set", "execution.max_failed_ok=3") == 0


def test_too_many_failed_images_stop_the_run_with_the_commonest_reason(make_project, capsys):
    project = make_project(train=70, test=0)
    for number in (3, 40):
        path = project.data.path / f"JPEGImages/im-{number:03d}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    (project.data.path / "ImageSets/Main/test.txt").write_text("")
    assert project.spp("run", *EXTRACT, "--until", "propose") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "max_failed" in error
    assert "truncated" in error


def test_query_and_files_serve_other_tools(extracted, capsys):
    answer = extracted.answer("query", "select image_id, count(*) n from features group by 1 order by 1")
    assert answer["columns"] == ["image_id", "n"]
    assert len(answer["rows"]) == 14
    capsys.readouterr()
    assert extracted.spp("files", "features") == 0
    paths = capsys.readouterr().out.split()
    assert sum(n for _, n in answer["rows"]) == ds.dataset(paths).count_rows()
    assert extracted.spp("query", "select nothing from features") == 2
    assert extracted.spp("files", "feature") == 2
    assert "did you mean 'features'?" in capsys.readouterr().err


def test_the_run_record_tells_what_was_asked_and_what_came_of_it(extracted):
    record = extracted.record()
    assert (record.name, record.status, record.exit_code) == ("small", "done", 0)
    assert record.config["features"]["scales"] == [96, 160]
    assert record.versions["torch"]
    assert record.finished
    seconds = record.datasets["features"].seconds
    assert {"decode", "conv", "pool", "encode", "write"} <= seconds.keys()
    assert record.datasets["proposals"].quality.splits["test"].recall is not None
