import importlib.util
import json

import pytest

from benchmarks.comparison import Case, Sample, report, take_turns, timed_case
from benchmarks.suite import CLAIMS, Found, main, render


def test_sides_take_turns_and_the_first_round_is_not_counted():
    order = []
    samples = take_turns({"ours": lambda: order.append("A"), "peer": lambda: order.append("B")}, rounds=3)
    assert order == ["A", "B"] * 4
    assert {name: len(sample.seconds) for name, sample in samples.items()} == {"ours": 3, "peer": 3}


def test_a_sample_is_told_by_its_median_and_quartiles():
    sample = Sample((9.0, 1.0, 2.0, 3.0, 2.0))
    assert sample.median == 2
    assert sample.spread == pytest.approx((3 - 2) / 2 / 2)
    assert Sample((4.0,)).spread == 0


def test_the_last_line_is_one_json_object(capsys):
    cases = [
        timed_case("a", {"ours": Sample((2.0,)), "peer": Sample((50.0,)), "limit": Sample((1.0,))}, equal=True),
        Case("b", ours=10, peer=None, unit="B"),
    ]
    assert report("Title", ["note"], cases, as_json=True) == 0
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == {
        "title": "Title",
        "notes": ["note"],
        "cases": [
            {"name": "a", "ours": 2.0, "peer": 50.0, "limit": 1.0, "ratio": 25.0, "equal": True, "unit": "s"},
            {"name": "b", "ours": 10, "peer": None, "limit": None, "ratio": None, "equal": None, "unit": "B"},
        ],
    }
    assert any("25.0x" in line for line in printed)


def test_results_that_differ_are_a_failure(capsys):
    assert report("Title", [], [Case("a", ours=1.0, peer=2.0, equal=False)], as_json=False) == 1
    assert "NO" in capsys.readouterr().out


def test_the_page_has_what_was_printed_and_what_failed(tmp_path):
    first, second, third = CLAIMS[:3]
    cases = [{"name": "a", "ours": 2.0, "peer": 50.0, "limit": None, "ratio": 25.0, "equal": True, "unit": "s"}]
    found = [
        Found(first, {"notes": ["two cores"], "cases": cases}, 61.4),
        Found(second, None, 3.0, "FAILED with exit code 2"),
        Found(third, {"cases": [{"name": "b", "bytes": 1234567, "error": 0.0123456}]}, 9.0),
    ]
    page = render(found)
    assert f"## {first.text}" in page
    assert "| name | ours | peer | ratio | equal |" in page
    assert "| a | 2.00 s | 50.00 s | 25.0 | yes |" in page
    assert "- two cores" in page
    assert "3 s. FAILED with exit code 2" in page
    assert "| b | 1,234,567 | 0.0123 |" in page
    assert str(tmp_path) not in page


def test_every_claim_has_its_program_and_says_which_data_it_lacks(tmp_path):
    for claim in CLAIMS:
        assert importlib.util.find_spec(f"benchmarks.{claim.name}") is not None
        needs_data = any("{data}" in part for part in claim.arguments)
        assert (claim.lacks(tmp_path) is not None) == needs_data
    assert main(["--only", "pooling", "--data", str(tmp_path), "--write", str(tmp_path / "page.md")]) == 0
    assert "left out: JPEGImages is not there" in (tmp_path / "page.md").read_text()
