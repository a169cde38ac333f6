import json

import pytest

from benchmarks.comparison import Case, Sample, report, take_turns, timed_case


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
        "cases": [
            {"name": "a", "ours": 2.0, "peer": 50.0, "limit": 1.0, "ratio": 25.0, "equal": True},
            {"name": "b", "ours": 10, "peer": None, "limit": None, "ratio": None, "equal": None},
        ]
    }
    assert any("25.0x" in line for line in printed)


def test_results_that_differ_are_a_failure(capsys):
    assert report("Title", [], [Case("a", ours=1.0, peer=2.0, equal=False)], as_json=False) == 1
    assert "NO" in capsys.readouterr().out
