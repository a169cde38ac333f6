"""What commands load that make nothing: not what is slow to import, and no Ray. No time is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.project import Project

pytestmark = pytest.mark.cluster

HEAVY = {"torch", "torchvision", "ray", "numba", "llvmlite", "sklearn", "scipy", "skimage", "cv2", "selectivesearch"}

COMMAND = """
import json, sys
from jobs.cli.main import main
from tests import REPOSITORY
code = main(sys.argv[1:])
print(json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


class Shell:
    """Commands in processes of their own, which know no body at first."""

    def __init__(self, folder: Path) -> None:
        self._cache = str(folder / "cache")

    def loaded(self, project: Project | None, *arguments: str) -> set[str]:
        """The packages that a command has imported when it ends; it must end well."""
        place = ("--config", str(project.config), "--root", str(project.root)) if project else ()
        home = str(REPOSITORY)
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments, *place],
            cwd=home,
            env={**os.environ, "PYTHONPATH": home, "XDG_CACHE_HOME": self._cache},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["code"] == 0, done.stderr
        return set(found["modules"])


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def test_help_loads_the_command_line_alone(shell):
    loaded = shell.loaded(None, "--help")
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"pyarrow", "numpy", "pandas", "fsspec", "pydantic", "yaml", "PIL", "duckdb"})


def test_who_looks_at_a_run_loads_what_shows_it(shell, finished):
    assert not shell.loaded(finished, "status") & (HEAVY | {"duckdb", "PIL", "pandas"})
    assert not shell.loaded(finished, "files", "features") & (HEAVY | {"duckdb", "PIL"})
    asked = shell.loaded(finished, "query", "select count(*) from images")
    assert "duckdb" in asked
    assert not asked & (HEAVY | {"PIL", "pandas"})


@pytest.mark.slow
def test_a_plan_reads_weights_once(shell, finished, project):
    assert "torch" in shell.loaded(finished, "plan"), "nothing is known yet"
    assert not shell.loaded(finished, "plan") & HEAVY
    assert not shell.loaded(project, "plan") & HEAVY, "of a root that is empty"


@pytest.mark.parametrize("name", ["finished", pytest.param("tuned", marks=pytest.mark.slow)])
def test_a_run_with_nothing_to_do_starts_no_ray(name, shell, request, tmp_path):
    project = request.getfixturevalue(name).clone(tmp_path / "clone")
    before = project.all_commits()
    shell.loaded(project, "plan")  # and the body is known
    assert not shell.loaded(project, "run") & HEAVY
    assert project.all_commits() == before
    assert set(project.states().values()) == {"complete"}
