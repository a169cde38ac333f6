"""``proposals.method: file``: boxes computed elsewhere become proposals, and contradictions stop the run."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
from storage.manifest import read_manifest
from storage.root import open_root
from storage.runs import read_run
from tests.project import EXTRACT

INCLUSIVE = [[1, 1, 120, 90], [11, 21, 50, 60]]
"""VOC's own way of counting, in images of 120 x 90."""


def arguments(file, order="xyxy", base=1, inclusive="true"):
    values = {"min_side": 20, "method": "file", "file": file, "order": order, "base": base, "inclusive": inclusive}
    return [part for name, value in values.items() for part in ("--set", f"proposals.{name}={value}")]


@pytest.fixture
def boxes(project, tmp_path):
    """A file with two boxes of every image but im-001, in no order."""
    ids = [f"im-{number:03d}" for number in reversed(range(14)) if number != 1]
    path = tmp_path / "boxes.parquet"
    pq.write_table(pa.table({"image_id": ids * 2, "box": [INCLUSIVE[0]] * 13 + [INCLUSIVE[1]] * 13}), path)
    return path


@pytest.mark.slow
def test_the_boxes_of_a_file_are_the_proposals_of_its_images(project, boxes, tmp_path, capsys):
    assert project.spp("run", *EXTRACT, *arguments(boxes), "--json") == 0
    told = capsys.readouterr()
    line = "note: propose: 1 of 14 images have no proposals, such as im-001 ("
    assert sum(text.startswith(line) for text in told.out.splitlines()) == 1
    assert f"note: propose: 1 of 14 images have no boxes in {boxes}, such as im-001" in told.err.splitlines()
    assert "`spp notes " in told.out
    (counted,) = json.loads(told.out.splitlines()[-1])["notes"]
    assert {key: counted[key] for key in ("stage", "dataset", "type", "count", "example")} == {
        "stage": "propose",
        "dataset": "proposals",
        "type": "NoProposals",
        "count": 1,
        "example": "im-001",
    }
    assert project.spp("status", "--json") == 0
    shown = capsys.readouterr().out
    assert line in shown
    status = json.loads(shown.splitlines()[-1])
    assert status["notes"] == [counted]
    notes = {entry["dataset"]: entry["notes"] for entry in status["datasets"]}
    assert {name for name, count in notes.items() if count} == {"proposals"}
    (listed,) = project.answer("notes")["notes"]
    assert (listed["image_id"], listed["message"]) == ("im-001", counted["message"])
    table = storage.open(str(project.root), "proposals").to_table()
    assert len(table) == 2 * 13
    for image_id in ("im-000", "im-013"):
        rows = table.filter(pa.compute.equal(table["image_id"], image_id)).sort_by("rank")
        assert storage.boxes_of(rows["box"]).tolist() == [[0, 0, 120, 90], [10, 20, 50, 60]]
        assert set(rows["method"].to_pylist()) == {"file"}
    features = storage.open(str(project.root), "features").to_table(columns=["image_id"])
    assert sorted(features["image_id"].to_pylist()) == sorted(table["image_id"].to_pylist())
    root = open_root(str(project.root))
    entry = read_run(root, "small").datasets["proposals"]
    (note,) = read_manifest(root, "proposals", entry.method, entry.manifest).ledger
    assert (note.image_id, note.type, note.level) == ("im-001", "NoProposals", "note")
    assert str(boxes) in note.message
    assert table["strategy"].null_count == table["level"].null_count == len(table), "a file has no hierarchies"
    assert project.spp("verify") == 0

    before = project.commits("proposals")
    elsewhere = tmp_path / "elsewhere.parquet"
    boxes.rename(elsewhere)
    assert project.spp("run", *EXTRACT, *arguments(elsewhere)) == 0  # content counts, not the place
    assert project.commits("proposals") == before
    pq.write_table(pq.read_table(elsewhere).slice(1), elsewhere)
    assert project.spp("run", *EXTRACT, "--until", "propose", *arguments(elsewhere)) == 0
    assert {name.split("/")[0] for name in project.commits("proposals") - before}.isdisjoint(
        name.split("/")[0] for name in before
    )


def test_boxes_that_contradict_what_is_said_of_them_stop_the_run_in_one_line(project, boxes, capsys):
    numbers = np.array(INCLUSIVE)[:, [1, 0, 3, 2]].tolist()
    pq.write_table(pa.table({"image_id": ["im-003"] * 2, "box": numbers}), boxes)
    assert project.spp("run", *EXTRACT, *arguments(boxes)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("spp: error: "))
    assert f"{boxes}: image 'im-003': box 0 [1 1 90 120] reaches outside the image of 120 x 90 pixels" in line
    assert "these look like [y1 x1 y2 x2]: proposals.order yxyx" in line
    assert not project.commits("proposals")
    assert project.spp("run", *EXTRACT, "--until", "propose", *arguments(boxes, order="yxyx")) == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=file"], "method file needs file, order, base, inclusive: say how its boxes are meant"),
        (["method=file", "file=b.parquet", "order=xyxy", "base=0"], "method file needs inclusive"),
        (["order=xyxy"], "order belongs to method file, but method is fast"),
        (["method=file", "file=b.csv", "order=xyxy", "base=0", "inclusive=true"], "must end in .parquet or .mat"),
        (["method=file", "file=b.mat", "order=xy", "base=0", "inclusive=true"], "proposals.order: input should be"),
        (["method=file", "file=b.mat", "order=xyxy", "base=2", "inclusive=true"], "proposals.base: input should be"),
        (
            ["method=file", "file=b.mat", "order=xyxy", "base=0", "inclusive=true", "min_size=9"],
            "min_size belongs to method selectivesearch",
        ),
        (
            ["method=file", "file=b.mat", "order=xyxy", "base=0", "inclusive=true", "max_side=400"],
            "max_side belongs to methods that search",
        ),
        (["method=file", "file=/no/b.mat", "order=xyxy", "base=0", "inclusive=true"], "'/no/b.mat' does not exist"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(project, overrides, says, capsys):
    sets = [part for override in ("min_side=20", *overrides) for part in ("--set", f"proposals.{override}")]
    assert project.spp("plan", *sets) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("spp: error: "))
    assert says in line
