"""What is printed gets out as far as the streams allow, and the exit code says what happened.

In processes of their own, for it is about their standard streams.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from jobs.cli.main import main
from jobs.console.tables import print_table
from tests import REPOSITORY
from tests.voc_folder import small_data_set

Ended = subprocess.CompletedProcess[bytes]

PRINTS = """
import sys
from jobs.console import streams

streams.prepare()
print("caf\\xe9 \\u6d63 \\udce9" * int(sys.argv[2]))
print("caf\\xe9 \\u6d63", file=sys.stderr)
raise SystemExit(streams.code_at_the_end(int(sys.argv[1])))
"""


def printed(code: int = 0, times: int = 1, redirect: str = "", **environment: str) -> Ended:
    """What a command that prints such names, and ends with ``code``, leaves behind a shell's redirections."""
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirect}', sys.executable, "-c", PRINTS, str(code), str(times)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "0", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "out"),
    [
        ("ascii", b"caf\\xe9 \\u6d63 \\udce9\n"),
        ("ascii:strict", b"caf\\xe9 \\u6d63 \\udce9\n"),
        ("latin-1", b"caf\xe9 \\u6d63 \\udce9\n"),
        ("cp437", b"caf\x82 \\u6d63 \\udce9\n"),
        ("utf-8", b"caf\xc3\xa9 \xe6\xb5\xa3 \\udce9\n"),  # the last: of a file's name that is no UTF-8
    ],
)
def test_what_an_encoding_lacks_is_printed_as_escapes(encoding, out):
    ended = printed(3, PYTHONIOENCODING=encoding)
    assert (ended.stdout, ended.returncode) == (out, 3)
    assert ended.stderr == out.replace(b" \\udce9", b"")


def test_a_locale_without_an_encoding():
    ended = printed(LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert (ended.stdout, ended.returncode) == (b"caf\\xe9 \\u6d63 \\udce9\n", 0)


@pytest.mark.parametrize("times", [1, 20000])
@pytest.mark.parametrize(("code", "ends"), [(0, 1), (3, 3), (2, 2)])
def test_a_full_disk_is_told_and_keeps_the_code_of_the_work(code, ends, times):
    ended = printed(code, times, redirect=">/dev/full")
    assert ended.returncode == ends
    _, line = ended.stderr.decode().splitlines()
    assert line.startswith("spp: error: the results could not be printed: standard output: No space left on device; ")


@pytest.mark.parametrize(("code", "ends"), [(0, 141), (1, 1), (3, 3)])
def test_a_reader_that_has_gone_is_no_error(code, ends):
    ended = printed(code, 20000, redirect="| true; exit ${PIPESTATUS[0]}")
    assert ended.returncode == ends
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "redirect", [">&-", ">&- 2>&-", ">&- 2>&- <&-", "2>&-", "2>/dev/full", "2>&1 >/dev/null | true"]
)
def test_streams_that_nobody_has_opened_or_reads(redirect):
    assert printed(3, redirect=f"{redirect}; exit ${{PIPESTATUS[0]}}").returncode == 3


def test_a_file_does_not_get_the_place_of_a_closed_stream(tmp_path):
    code = (
        "from jobs.console import streams; import os, sys; streams.prepare(); "
        f"file = open({str(tmp_path / 'data')!r}, 'w'); os.write(1, b'printed'); sys.exit(file.fileno() < 3)"
    )
    command = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_a_stream_that_does_not_wait_gets_everything():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as programs do that share a terminal or a pipe with us
    child = subprocess.Popen([sys.executable, "-c", PRINTS, "3", "20000"], cwd=REPOSITORY, stdout=writing)
    os.close(writing)
    with open(reading, "rb") as file:
        assert len(file.read()) == 20000 * len("café 浣 \\udce9".encode()) + 1
    assert child.wait() == 3


def test_the_columns_of_a_table_stand_below_each_other_with_escapes(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", errors="backslashreplace"))
    print_table(("class", "n"), [("浣熊", "1"), ("cat", "22")], 1)
    sys.stdout.flush()
    assert out.getvalue() == b"class          n\n\\u6d63\\u718a   1\ncat           22\n"


@pytest.fixture
def root(tmp_path) -> str:
    """An indexed data set with a class that ASCII lacks."""
    small_data_set(tmp_path / "data", train=2, test=1).annotate("im-000", [("浣熊", 5, 5, 40, 40)])
    config = tmp_path / "c.yaml"
    config.write_text(f"dataset: {{path: '{tmp_path / 'data'}'}}\nfeatures: {{weights: random}}\n")
    assert main(["index", "--config", str(config), "--root", str(tmp_path / "root")]) == 0
    return str(tmp_path / "root")


def test_a_query_of_names_that_the_stream_lacks(root):
    sql = "select distinct class_name from objects order by 1 desc"
    command = [sys.executable, "-m", "jobs", "query", "--root", root, sql]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.splitlines()[1] == b"\\u6d63\\u718a"
