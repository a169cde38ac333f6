"""The floors of docs/architecture.md are kept by ``make lint``: an import that runs back up breaks a contract.

And what no linter of ours counts: arguments by position.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

PACKAGES = ("jobs", "pipeline", "storage")


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("jobs/features/pooling.py", "from jobs.detect.method import VERSION"),
        ("pipeline/spp/windows.py", "from pipeline.network.head import Head"),
        ("storage/root.py", "from jobs.errors import UsageError"),
    ],
)
def test_an_import_that_runs_up_is_found(copy, file, line):
    with (copy / file).open("a") as code:
        code.write(f"\n{line}\n")
    done = linted(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    source, target = file.removesuffix(".py").replace("/", "."), line.split()[1]
    assert f"{source} -> {target}" in done.stdout, done.stdout


def test_as_it_is_none_does(copy):
    done = linted(copy)
    assert done.returncode == 0, done.stdout


AS_TORCH_IS_CALLED = {"_conv", "_max_pool"}
"""They stand in for functions of torch, whose order of arguments is what it is."""


def positional(node: ast.AST) -> list[str]:
    """What a function, or the constructor of a dataclass, takes by position."""
    if isinstance(node, ast.FunctionDef):
        return [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
    if not isinstance(node, ast.ClassDef):
        return []
    made = [ast.unparse(one) for one in node.decorator_list]
    if not any(one.startswith("dataclass") for one in made) or any("kw_only=True" in one for one in made):
        return []
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
    names = [ast.unparse(one.target) for one in fields if "ClassVar" not in ast.unparse(one.annotation)]
    return names[: names.index("_")] if "_" in names else names  # `_: KW_ONLY`


def test_nothing_takes_more_than_six_arguments_by_position():
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if len(positional(node)) > 6 and node.name not in AS_TORCH_IS_CALLED
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f(self, a, b, /, c, *d, e=1): ...", 3),
        ("@dataclass(frozen=True)\nclass A:\n    a: int\n    b: int = 1\n    c: ClassVar[int] = 2", 2),
        ("@dataclass\nclass A:\n    a: int\n    _: KW_ONLY\n    b: int", 1),
        ("@dataclass(kw_only=True)\nclass A:\n    a: int", 0),
        ("def f(a, *, b): ...", 1),
        ("class A(BaseModel):\n    a: int", 0),
    ],
)
def test_how_arguments_are_counted(code, count):
    assert len(positional(ast.parse(code).body[0])) == count
