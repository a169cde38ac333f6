"""Result files lie in their folder and nowhere else, whatever classes are called, and are read back."""

import os
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pytest

from jobs.config.run_config import RunConfig
from jobs.dataset.driver import make_index
from jobs.errors import UsageError
from jobs.evaluate.driver import evaluate_result_files
from jobs.evaluate.export import export
from jobs.record.invocation import Invocation
from jobs.record.publish import done_already, publish
from storage.root import open_root
from storage.runs import RunRecord, write_run
from storage.schemas import schema
from tests.voc_folder import VocFolder

CLASSES = [
    "../../x",
    "/etc/passwd",
    "a/b",
    "..",
    ".hidden",
    "CON",
    "Dog",
    "dog",
    "100%",
    "a%2Fb",
    "x::y",
    "a*b?[c]#",
    "Ä",
]


def detected(folder: Path, classes: list[str]) -> Invocation:
    """A run with a detection of each class, each where its object is."""
    data = VocFolder(folder / "data")
    data.add("im-1", "trainval", [("dog", 11, 21, 50, 60)])
    data.add("im-2", "test", [(escape(name), 2 + n, 5, 40 + n, 60) for n, name in enumerate(classes)])
    config = RunConfig.model_validate({"dataset": {"path": str(data.path)}})
    root = open_root(str(folder / "root"))
    record = RunRecord(name="a")
    invocation = Invocation(config, root, "a", ())
    make_index(invocation, record)
    rows = [
        {"image_id": "im-2", "class_name": name, "score": 1.0, "box": {"x1": 1 + n, "y1": 4, "x2": 40 + n, "y2": 60}}
        for n, name in enumerate(classes)
    ]
    table = pa.Table.from_pylist(rows, schema=schema("detections"))
    counts = {"im-2": len(rows)}
    publish(root, "detections", "0" * 12, table, counts, seconds={})
    found = done_already(root, "detect", "detections", "0" * 12)
    assert found is not None
    record.datasets["detections"] = found
    write_run(root, record)
    return invocation


def everything_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_no_class_leads_out_of_the_folder(kind, tmp_path):
    invocation = detected(tmp_path, CLASSES)
    before = everything_in(tmp_path)
    target = tmp_path / "deep" / "er" / "results"
    written = export(invocation, str(target) if kind == "folder" else f"file://{target}", None)
    made = everything_in(tmp_path) - before
    assert len(made) == len(written) == len(CLASSES)
    assert {path.parent for path in made} == {target}
    assert all(path.name.startswith("comp4_det_test_") for path in made)
    assert len({path.name.casefold() for path in made}) == len(CLASSES)
    assert (target / "comp4_det_test_a%2Fb.txt").is_file()
    measured = evaluate_result_files(invocation.config, f"{target}/*.txt")
    found = {one.class_name: one.ap_area for one in measured.classes}
    assert found == dict.fromkeys(sorted(CLASSES), 1.0)


def test_a_name_that_is_written_otherwise_is_told(tmp_path, caplog):
    caplog.set_level("WARNING", "spp")
    export(detected(tmp_path, ["a/b", "cat", "Cat"]), str(tmp_path / "out"), None)
    notes = [record.getMessage() for record in caplog.records]
    assert "note: class 'a/b' cannot be the name of a file; it is written to comp4_det_test_a%2Fb.txt" in notes
    assert any("'Cat'" in note and "%43at" in note for note in notes)
    assert not any("class 'cat'" in note for note in notes)


def test_a_name_too_long_stops_before_anything_is_written(tmp_path):
    invocation = detected(tmp_path, ["cat", "x" * 240])
    with pytest.raises(UsageError, match="name too long; rename it"):
        export(invocation, str(tmp_path / "out"), None)
    assert not os.path.exists(tmp_path / "out")
