import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from jobs.cli.main import main
from jobs.console.tables import print_json
from storage.root import open_root
from tests.stored import store_run


def no_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def printed(capsys):
    """The last line of what was printed, read by a strict reader."""
    return json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=no_constant)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        ([1.5, -float("inf"), None], [1.5, "-Infinity", None]),
        ({"a": {"b": [float("nan")]}}, {"a": {"b": ["NaN"]}}),
        ((1, float("nan")), [1, "NaN"]),
        (b"\xff\x00", "ff00"),
        (bytearray(b"a"), "61"),
        (Decimal("1.10"), "1.10"),
        (Decimal("NaN"), "NaN"),
        (date(2020, 1, 2), "2020-01-02"),
        (datetime(2020, 1, 2, 3), "2020-01-02T03:00:00"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (2**127, 2**127),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
        ({date(2020, 1, 2): 1, (1, 2): 2, b"a": 3}, {"2020-01-02": 1, "[1, 2]": 2, "61": 3}),
        ({float("nan"): float("nan")}, {"NaN": "NaN"}),
        ("\udcff", "\udcff"),
    ],
)
def test_every_value_has_a_form_in_json(value, expected, capsys):
    print_json(True, {"value": value})
    assert printed(capsys) == {"value": expected}


def test_a_float_stays_what_it_is(capsys):
    values = [0.1, 1e300, -0.0, 5e-324]
    print_json(True, {"value": [*values, float("nan")]})
    assert printed(capsys)["value"] == [*values, "NaN"]


def test_what_nobody_asked_for_is_not_printed(capsys):
    print_json(False, {"value": float("nan")})
    assert capsys.readouterr().out == ""


@pytest.fixture
def stored(tmp_path) -> str:
    store_run(open_root(str(tmp_path / "root")))
    return str(tmp_path / "root")


SQL = {
    "select 'nan'::double": ["NaN"],
    "select 'inf'::float, '-inf'::double": ["Infinity", "-Infinity"],
    "select [1.5, 'nan'::double]": [[1.5, "NaN"]],
    "select {'a': 'nan'::float, 'b': [null]}": [{"a": "NaN", "b": [None]}],
    "select map {1: 'nan'::double}": [{"1": "NaN"}],
    "select map {date '2020-01-02': 1}": [{"2020-01-02": 1}],
    r"select '\xFF\x00'::blob": ["ff00"],
    "select 1.10::decimal(4, 2)": ["1.10"],
    "select 170141183460469231731687303715884105727::hugeint": [2**127 - 1],
    "select date '2020-01-02', timestamp '2020-01-02 03:04:05'": ["2020-01-02", "2020-01-02T03:04:05"],
    "select interval '1 day 2 seconds'": ["1 day, 0:00:02"],
    "select '00000000-0000-0000-0000-000000000001'::uuid": ["00000000-0000-0000-0000-000000000001"],
    "select '0101'::bit": ["0101"],
    "select union_value(a := 'nan'::float)": ["NaN"],
    "select 'infinity'::date, 'infinity'::timestamp": ["9999-12-31", "9999-12-31T23:59:59.999999"],
    "select array_value('nan'::double, 1)": [["NaN", 1.0]],
    "select null": [None],
}


@pytest.mark.parametrize("sql", SQL)
def test_an_answer_is_json_whatever_it_holds(sql, stored, capsys):
    assert main(["query", "--root", stored, "--json", sql]) == 0
    assert printed(capsys)["rows"] == [SQL[sql]]


@pytest.mark.parametrize(
    "sql", ["", ";", "/* x */", "copy images to 'x'", "select 1; select 2", "select '\udcff'", "selekt"]
)
def test_what_is_no_query_is_one_line_and_code_2(sql, stored, capsys):
    assert main(["query", "--root", stored, "--json", sql]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("spp: error: query: ")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "sql", "said"),
    [
        ("--seconds", "0.2", "from range(10000000000) a, range(9) b where a.range < 0", "stopped after 0.2 seconds"),
        ("--memory", "0.05", "select len(list(range)) from range(90000000)", "Out of Memory Error"),
    ],
)
def test_what_a_query_may_take_is_given_with_it(option, value, sql, said, stored, capsys):
    assert main(["query", "--root", stored, option, value, sql]) == 2
    assert said in capsys.readouterr().err


def test_unsafe_writes(stored, tmp_path):
    sql = f"copy (select 1 as one) to '{tmp_path}/one.csv'"
    assert main(["query", "--root", stored, sql]) == 2
    assert not (tmp_path / "one.csv").exists()
    assert main(["query", "--root", stored, "--unsafe", sql]) == 0
    assert (tmp_path / "one.csv").read_text() == "one\n1\n"
