"""One table in every form."""

import json

import pytest

from jobs.console.grid import Grid, Tables
from jobs.errors import UsageError

GRID = Grid(
    corner=("column", "row"),
    columns={"cat": "cat", "row": "a dog"},
    rows={
        ("1-scale", "pool5"): {"row": "4.0", "cat": "31.0"},
        ("1-scale", "fc6"): {"cat": "32.5"},
        ("R-CNN", "fc6"): {},
    },
    caption="AP of each class",
    heading="AP of each class.",
)
LINES = [("column", "row", "run"), ("1-scale", "fc6", None), ("R-CNN", "a, b", 0.1)]


@pytest.fixture
def tables():
    return Tables(grids=[GRID, Grid(columns={}, rows={})], lines=LINES, values={"cells": [1]}, exit_code=3)


def test_cells_stand_under_their_columns_and_what_is_missing_is_a_dash(capsys):
    GRID.show()
    assert capsys.readouterr().out.splitlines() == [
        "AP of each class",
        "column   row     cat  a dog",
        "1-scale  pool5  31.0    4.0",
        "1-scale  fc6    32.5      -",
        "R-CNN    fc6       -      -",
    ]


def test_in_markdown_numbers_stand_to_the_right():
    assert GRID.markdown().splitlines() == [
        "AP of each class.",
        "",
        "| column | row | cat | a dog |",
        "| --- | ---: | ---: | ---: |",
        "| 1-scale | pool5 | 31.0 | 4.0 |",
        "| 1-scale | fc6 | 32.5 | - |",
        "| R-CNN | fc6 | - | - |",
    ]


def test_every_form_is_written_once(tables, tmp_path, capsys):
    csv_file, markdown_file = tmp_path / "table.csv", tmp_path / "table.md"
    assert tables.show(True, str(csv_file), str(markdown_file)) == 3
    assert csv_file.read_text() == 'column,row,run\n1-scale,fc6,\nR-CNN,"a, b",0.1\n'
    assert markdown_file.read_text().startswith(GRID.markdown() + "\n\n")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == GRID.caption
    assert json.loads(out[-1]) == {"cells": [1]}


def test_what_is_not_asked_for_is_not_written(tables, tmp_path, capsys):
    tables.show(False)
    assert "{" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tables, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere/table\.csv' cannot be written: No such file"):
        tables.show(False, str(tmp_path / "nowhere" / "table.csv"))
