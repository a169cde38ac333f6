"""A stage that a folder and a line in the list would add: run, plan, status and the help know it."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from jobs.record.publish import publish
from jobs.record.stage import Context, Stage
from jobs.run import stages
from jobs.shards.survey import one_shard
from storage import runs, schemas
from storage.identity import method_id
from storage.schemas import schema
from tests import REPOSITORY
from tests.project import last_json

ASKED: list[str] = []
"""The method ids that were asked for."""


def planned(context):
    method = method_id("census", 1, {}, upstream=[context.record.datasets["metrics"].manifest or ""])
    ASKED.append(method)
    yield one_shard("census", "census", method, context.test_images())


def make(assignment, dataset):
    names = assignment.index.objects["class_name"].to_pylist()
    counts = {name: names.count(name) for name in sorted(set(names))}
    layout = schema("census", metadata={"method": dataset.method})
    rows = pa.table({"class_name": list(counts), "objects": list(counts.values())}).cast(layout)
    root = assignment.context.root
    ones = dict.fromkeys(counts, 1)
    publish(root, dataset.name, dataset.method, rows, ones, seconds={})


CENSUS = Stage(
    name="census",
    summary="Count the objects of each class.",
    datasets=("census",),
    planned=planned,
    images=Context.test_images,
    reads=lambda config: ("evaluate",),
    make=make,
)


@pytest.fixture
def census(monkeypatch):
    """One more stage at the end of the list, and the columns of what it makes."""
    monkeypatch.setitem(schemas._COLUMNS, "census", {"class_name": pa.string(), "objects": pa.int32()})
    monkeypatch.setitem(schemas._UNITS, "census", "class_name")
    for module in (schemas, runs):
        monkeypatch.setattr(module, "DATASETS", (*schemas.DATASETS, "census"))
    stages.STAGES.append(CENSUS)
    yield
    stages.STAGES.remove(CENSUS)


def test_it_is_planned_made_once_and_told(census, finished, tmp_path, capsys):
    project = finished.clone(tmp_path)

    def told(verb: str) -> dict:
        capsys.readouterr()
        assert project.spp(verb, "--json") == 0
        datasets = last_json(capsys)["datasets"]
        return datasets["census"] if verb == "run" else {entry["dataset"]: entry for entry in datasets}["census"]

    before = told("plan")
    assert (before["shards"], before["shards_done"]) == (1, 0)
    assert told("status")["state"] == "missing"
    ASKED.clear()
    made = told("run")
    assert [made["method"]] == ASKED == [before["method"]]
    assert project.table("census")["class_name"].to_pylist() == ["slab", "square"]
    assert told("plan")["shards_done"] == 1
    assert told("status")["state"] == "complete"
    commits = project.commits("census")
    assert told("run") == made
    assert project.commits("census") == commits


def test_the_help_has_its_summary():
    code = """
from jobs.record.stage import Stage
from jobs.run import stages
new = Stage(name="census", summary="Count the objects of each class.", datasets=("census",), planned=iter)
stages.STAGES.append(new)
from jobs.cli.main import main
main(["--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300
    )
    assert "census      Count the objects of each class." in done.stdout
