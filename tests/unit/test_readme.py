"""The README's Python runs, its verbs and files exist."""

import re

import pytest
from typer.main import get_command

from jobs.cli.main import app
from storage import files
from storage.root import open_root
from tests import REPOSITORY
from tests.stored import store_run

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(params=["spp", "class_name=dog/it's a [1]*"])
def stored(request, tmp_path, monkeypatch) -> str:
    root = str(tmp_path / request.param)
    store_run(open_root(root))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features.txt").write_text("\n".join(files(root, "features")) + "\n")
    return root


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_python_runs(number, stored):
    assert "/data/spp" in README
    exec(compile(BLOCKS[number].replace("/data/spp", stored), f"README.md, block {number}", "exec"), {})


def test_it_has_four_ways_to_query():
    assert len(BLOCKS) == 4


def test_its_verbs_exist():
    verbs = set(re.findall(r"\b(?:spp|python -m jobs) ([a-z][a-z-]*)", README)) - {"in", "net"}
    assert verbs
    assert verbs <= set(get_command(app).commands)


def test_the_files_that_it_names_exist():
    named = set(re.findall(r"`((?:docs|configs)/[\w.]+|[\w.-]+\.(?:yaml|txt))`", README)) - {"animals.yaml"}
    assert len(named) >= 5
    assert all((REPOSITORY / name).is_file() for name in named), named
