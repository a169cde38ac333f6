"""spp notes: every ledger row of a run, of complete datasets from their manifests alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli.main import main
from jobs.run.ledger import ledger_rows
from storage import files
from storage.commits import LedgerRow
from storage.quality import NetworkQuality
from storage.root import Root, open_root
from storage.runs import DatasetRecord, RunRecord, write_run
from tests.stored import commit_features, commit_images, publish_run

TURNED = LedgerRow(image_id="a", stage="index", type="Turned", message="a.jpg: turned", level="note")
BARE = LedgerRow(image_id="b", stage="extract", type="Odd", message="b.jpg: odd", level="note")
BROKEN = LedgerRow(image_id="c", stage="extract", type="ImageError", message="c.jpg: no image")


@pytest.fixture
def root(tmp_path) -> Root:
    """A run with a note of the index, and a note and a failed image of two shards of features."""
    place = open_root(str(tmp_path / "root"))
    commit_images(place, "1a", ["a", "b", "c", "d"], ledger=[TURNED])
    commit_features(place, "aa", {"a": 1, "b": 0}, ledger=[BARE])
    commit_features(place, "bb", {"d": 1}, ledger=[BROKEN])
    publish_run(place)
    return place


def asked(root: Root, capsys, *arguments: str) -> tuple[list[str], dict]:
    capsys.readouterr()
    assert main(["notes", "--root", root.url, "--json", *arguments]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_every_row_is_listed_by_dataset_and_shard(root, capsys):
    lines, answer = asked(root, capsys)
    assert answer["rows"] == 3
    assert [(row["dataset"], row["image_id"], row["level"]) for row in answer["notes"]] == [
        ("images", "a", "note"),
        ("features", "b", "note"),
        ("features", "c", "failed"),
    ]
    assert answer["notes"][0] == {
        "dataset": "images",
        "image_id": "a",
        "stage": "index",
        "type": "Turned",
        "message": "a.jpg: turned",
        "level": "note",
    }
    assert len(lines) == 4
    assert lines[3].split() == ["extract", "features", "c", "failed", "ImageError", "c.jpg:", "no", "image"]


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--failed"], "c"),
        (["--dataset", "features"], "bc"),
        (["--dataset", "images", "--failed"], ""),
        (["--limit", "2"], "ab"),
        (["--limit", "0"], "abc"),
    ],
)
def test_some_of_them(root, capsys, arguments, ids):
    lines, answer = asked(root, capsys, *arguments)
    assert "".join(row["image_id"] for row in answer["notes"]) == ids
    assert ("(the first 2 of 3 rows; --limit 0 shows all)" in lines) == (arguments == ["--limit", "2"])
    assert answer["rows"] == (3 if "--limit" in arguments else len(ids))
    assert ("no failed image" in lines) == (not ids)


def test_no_data_are_read(root, capsys):
    for name in ("images", "features"):
        for path in files(root, name):
            Path(path).write_bytes(b"")
    assert asked(root, capsys)[1]["rows"] == 3


def test_a_dataset_that_the_run_has_not_is_one_line(root, capsys):
    assert main(["notes", "--root", root.url, "--dataset", "feature"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "spp: error: --dataset 'feature': did you mean 'features'? run 'trial' has images, features"
    assert main(["notes", "--root", root.url, "--dataset", "svms"]) == 2
    assert "run 'trial' has images, features" in capsys.readouterr().err


def test_what_failed_in_the_test_of_a_network_is_listed_too(root):
    record = publish_run(root, datasets=["images"])
    failed = {"x": "pretrain: ImageError: x.jpg: cut: short"}
    record.datasets["images"].quality = NetworkQuality(identity="", tested_on="test", views={}, failed=failed)
    _, row = ledger_rows(root, record)
    assert (row["dataset"], row["image_id"], row["level"]) == ("images", "x", "failed")
    assert (row["stage"], row["type"], row["message"]) == ("pretrain", "ImageError", "x.jpg: cut: short")


def test_of_a_run_that_has_made_nothing_there_is_nothing(tmp_path, capsys):
    place = open_root(str(tmp_path / "empty"))
    record = RunRecord(name="none", datasets={"svms": DatasetRecord(stage="train-svm", method="0" * 12)})
    write_run(place, record)
    lines, answer = asked(place, capsys)
    assert lines == ["no failed image, and no note"]
    assert answer["notes"] == []
