"""Two detectors of random bodies together: pooled, suppressed, measured, and what cannot be combined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import storage
from jobs.cli.main import main
from jobs.compare.combine import combine, combine_command, compare
from jobs.errors import UsageError
from jobs.record.combination import is_behind
from pipeline.boxes import as_boxes, iou
from storage.check import check_dataset
from storage.root import Root, StorageError
from storage.runs import RunRecord, read_run, write_run
from storage.sql import connect
from tests.project import Project
from tests.voc_folder import VocFolder

pytestmark = pytest.mark.slow

ONE, TWO = ("--run", "one"), ("--run", "two", "--set", "features.seed=1")
PARTS = ["one", "two"]


@pytest.fixture(scope="module")
def pair(extracted, tmp_path_factory) -> Project:
    """Two finished runs that differ in the weights of their bodies, trained so weakly that both err much."""
    project = extracted.clone(tmp_path_factory.mktemp("pair"))
    assert project.spp("forget", "small") == 0
    project.change_config(svm={"C": 1e-6}, evaluate={"min_overlap": 0.7})
    assert project.spp("run", *ONE) == 0
    assert project.spp("run", *TWO) == 0
    return project


@pytest.fixture(scope="module")
def root(pair) -> Root:
    return pair.place()


@pytest.fixture(scope="module")
def both(root) -> RunRecord:
    return combine(root, PARTS, "both", argv=["spp", "combine"])


@pytest.fixture
def copied(root):
    """Make a run of other names with the datasets of one that is there, changed; it is gone after the test."""
    made = []

    def copy(name: str, of: str, **changes) -> RunRecord:
        record = read_run(root, of)
        record.name = name
        for key, value in changes.items():
            section, _, field = key.partition("__")
            record.config[section][field] = value
        write_run(root, record)
        made.append(name)
        return record

    yield copy
    for name in made:
        Path(root.path(f"runs/{name}.json")).unlink()


def rows_of(root: Root, run: str) -> list[tuple]:
    rows = storage.open(root, "detections", run).to_table().to_pylist()
    return [(row["image_id"], row["class_name"], -row["score"], *row["box"].values()) for row in rows]


def pooled(root: Root, runs: list[str], overlap: float) -> list[tuple]:
    """One detection of all runs after the other: it stays unless one that stayed overlaps it too much."""
    stay: list[tuple] = []
    for row in sorted(row for run in runs for row in rows_of(root, run)):
        rivals = [other[3:] for other in stay if other[:2] == row[:2]]
        if not (iou(as_boxes([row[3:]]), as_boxes(rivals)) > overlap).any():
            stay.append(row)
    return stay


def test_the_detections_are_those_of_both_runs_that_no_better_one_overlaps(root, both):
    found = rows_of(root, "both")
    assert found == pooled(root, PARTS, 0.3)
    assert [set(found) & set(rows_of(root, run)) != set() for run in PARTS] == [True, True]
    assert not any(set(found) <= set(rows_of(root, run)) for run in PARTS)


def test_a_combination_is_a_run_that_can_be_queried_verified_and_looked_at(pair, root, both, capsys):
    record = read_run(root, "both")
    assert (record.status, record.exit_code, record.argv) == ("done", 0, ["spp", "combine"])
    assert list(record.datasets) == ["images", "objects", "detections", "metrics"]
    assert [line for name in record.datasets for line in check_dataset(root, record, name)] == []
    with connect(root, "both") as connection:
        ((rows, images),) = connection.execute("select count(*), count(distinct image_id) from detections").fetchall()
    assert (rows, images) == (record.datasets["detections"].rows, 5)
    capsys.readouterr()
    for verb in (["files", "detections"], ["status"], ["verify"], ["query", "select * from metrics"]):
        assert main([*verb, "--root", root.url, "--run", "both"]) == 0
    shown = capsys.readouterr().out
    assert record.datasets["detections"].method in shown
    assert "behind" not in shown
    assert "missing" not in shown


def test_it_is_measured_as_the_runs_are(pair, root, both):
    """The stage evaluate takes the same rows, as VOC files, to the same numbers."""
    compared = compare(root, both)
    for run in PARTS:
        stored = read_run(root, run).datasets["metrics"].quality
        assert [row["ap_11"][run] for row in compared["classes"]] == [one.ap_11 for one in stored.classes]
        assert compared["map_area"][run] == stored.map_area
    stored = both.datasets["metrics"].quality
    assert compared["map_11"]["both"] == stored.map_11
    assert [row["ap_area"]["both"] for row in compared["classes"]] == [one.ap_area for one in stored.classes]
    assert 0 < stored.map_11 < 1


def test_the_difference_is_from_the_best_run_and_its_interval_is_of_the_difference(root, both):
    compared = compare(root, both)
    assert compared["map_11"][compared["best"]] == max(compared["map_11"][run] for run in PARTS)
    for mean, found in compared["difference"].items():
        assert found["value"] == compared[mean]["both"] - compared[mean][compared["best"]]
        assert -1 <= found["low"] <= found["high"] <= 1
    assert compared["difference"]["map_11"]["low"] < compared["difference"]["map_11"]["high"]
    assert compare(root, both) == compared


def test_the_same_command_again_makes_nothing_and_prints_the_same(pair, root, both, capsys):
    before = {name: pair.commits(name) for name in ("detections", "metrics")}
    printed = []
    for _ in range(2):
        capsys.readouterr()
        assert combine_command(root, PARTS, "both", as_json=True) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert {name: pair.commits(name) for name in before} == before
    made = json.loads(printed[0].splitlines()[-1])
    assert (made["run"], made["runs"], made["exit_code"], made["nms_overlap"]) == ("both", PARTS, 0, 0.3)
    header, *table = printed[0].splitlines()
    assert header.split() == ["class", "one", "two", "both"]
    assert [line.split()[0] for line in table[:2]] == ["slab", "square"]
    assert table[0].split()[1:] == [f"{made['classes'][0]['ap_11'][run]:.3f}" for run in (*PARTS, "both")]
    assert f"both minus {made['best']}" in printed[0]
    assert "95% interval" in printed[0]


def test_another_overlap_is_another_combination_under_the_same_name(root, both):
    changed = combine(root, PARTS, "changing", nms_overlap=0.6)
    assert rows_of(root, "changing") == pooled(root, PARTS, 0.6)
    again = combine(root, PARTS, "changing")
    assert again.datasets["detections"].method == both.datasets["detections"].method
    assert changed.datasets["detections"].method != again.datasets["detections"].method


def test_a_combination_can_be_combined(root, both, copied):
    copied("third", "one")
    record = combine(root, ["both", "third"], "more")
    assert rows_of(root, "more") == pooled(root, ["both", "third"], 0.3)
    assert record.exit_code == 0


def test_one_that_a_run_has_left_behind_says_so_until_it_is_combined_again(pair, root):
    later = ("--run", "later", "--set", "features.seed=1")
    assert pair.spp("run", *later) == 0
    record = combine(root, ["one", "later"], "old")
    assert not is_behind(root, record)
    assert pair.spp("run", *later, "--set", "detect.score_above=-0.5") == 0
    assert is_behind(root, record)
    with pytest.raises(UsageError, match="behind the runs that it combines; run `spp combine one later --run old`"):
        combine(root, ["old", "two"], "older")
    again = combine(root, ["one", "later"], "old")
    assert not is_behind(root, again)
    assert again.datasets["detections"].method != record.datasets["detections"].method
    assert again.datasets["metrics"].method != record.datasets["metrics"].method
    Path(root.path("runs/later.json")).unlink()
    assert not is_behind(root, again)


@pytest.mark.parametrize(
    ("names", "new_name", "says"),
    [
        (["one"], "new", "two runs or more, not 1"),
        (["one", "one"], "new", "'one' is named twice"),
        (["one", "two"], "two", "is one of the runs to combine"),
        (["both", "two"], "one", "'one' is there already and is no combination"),
        (["both", "two"], "other", "is the combination of one, two; choose another name"),
        (["one", "twoo"], "new", "has no run 'twoo'; did you mean 'two'"),
        (["one", "two"], "a/b", "run name 'a/b'"),
    ],
)
def test_names_that_cannot_be_are_refused(root, both, copied, names, new_name, says):
    copied("other", "both")
    before = read_run(root, "one")
    with pytest.raises((UsageError, StorageError), match=says):
        combine(root, names, new_name)
    assert read_run(root, "one") == before
    assert not root.exists("runs/new.json")


def test_runs_that_do_not_fit_are_refused_by_what_differs(pair, root, copied, tmp_path, capsys):
    def refused(name: str, says: str) -> None:
        with pytest.raises((UsageError, StorageError), match=says):
            combine(root, ["one", name], "new")
        assert not root.exists("runs/new.json")

    def indexed(name: str, *overrides: str) -> None:
        """A copy of the run two that says of another data set that it was made from it."""
        record = copied(name, "two")
        assert pair.spp("index", "--run", "index", *overrides) == 0
        record.datasets.update(read_run(root, "index").datasets)
        write_run(root, record)

    copied("stricter", "two", evaluate__min_overlap=0.6)
    refused("stricter", r"evaluate.min_overlap is 0.7, and 0.6; run `spp evaluate --run stricter --set")
    copied("behind", "two", detect__score_above=0.5)
    refused("behind", "detections of run 'behind' are behind .* run `spp detect --run behind`")
    copied("splits", "two", dataset__test_splits=["trainval"])
    refused("splits", "different test splits: test, and trainval")
    indexed("classes", "--set", "dataset.classes=[square]")
    refused("classes", "different objects on test image 'im-010'")
    shutil.copytree(pair.data.path, tmp_path / "data" / "VOC2007")
    VocFolder(tmp_path / "data").add("im-900", "test", [("square", 11, 21, 50, 60)])
    indexed("longer", "--set", f"dataset.path={tmp_path / 'data'}")
    refused("longer", "1 are of one alone, such as 'im-900', which 'longer' has and 'one' has not")
    refused("index", "has no complete dataset 'detections' yet")
    assert main(["combine", "one", "index", "--root", root.url, "--run", "new"]) == 2
    assert "has no complete dataset 'detections' yet; `spp detect` makes it" in capsys.readouterr().err
    with pytest.raises(UsageError, match="from 0 to 1, not 30"):
        combine(root, PARTS, "new", nms_overlap=30)


def test_an_image_that_failed_in_one_run_fails_in_the_combination(finished, tmp_path, capsys):
    project = finished.clone(tmp_path)
    loose = ("--set", "execution.max_failed=1")
    assert project.spp("run", *ONE, *loose) == 0
    picture = project.data.path / "JPEGImages" / "im-010.jpg"
    picture.write_bytes(picture.read_bytes()[:-1200])
    stream = ("--run", "two", "--set", "features.seed=1", *loose)
    assert project.spp("run", *stream) == 3
    root = project.place()
    capsys.readouterr()
    assert combine_command(root, PARTS, "both", as_json=True) == 3
    captured = capsys.readouterr().out
    assert "it failed in run 'two'; `spp retry --run two`, then combine again" in captured
    assert list(json.loads(captured.splitlines()[-1])["failed"]) == ["im-010"]
    images = {row[0] for row in rows_of(root, "both")}
    assert "im-010" in {row[0] for row in rows_of(root, "one")}
    assert images == {f"im-{number:03d}" for number in (9, 11, 12, 13)}
    record = read_run(root, "both")
    assert [line for name in record.datasets for line in check_dataset(root, record, name)] == []
    assert np.isfinite(record.datasets["metrics"].quality.map_11)
