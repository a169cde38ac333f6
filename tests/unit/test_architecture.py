"""The pages for those who come after: the picture is that of the code, and what pages name is there."""

import ast
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests import REPOSITORY

DOOR = ("docs/architecture.md", "CONTRIBUTING.md")
PAGES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("tests/*.md"))
    if path.name != "CHANGELOG.md"  # which names what was
)
HOSTED = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (
        *REPOSITORY.glob(".github/**/*.yml"),
        REPOSITORY / "CITATION.cff",
        REPOSITORY / ".pre-commit-config.yaml",
    )
)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.:-])(?:jobs|pipeline|storage|tests|docs|benchmarks|configs|deploy)/[\w./*-]*[\w*/]")
MODULE = re.compile(r"(?<![\w/.-])(?:jobs|pipeline|storage)(?:\.\w+)+")


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    pytest.importorskip("tomllib", reason="the floors are read with tomllib, which Python has from 3.11 on")
    from docs import draw_architecture

    return draw_architecture


@pytest.fixture(scope="module")
def code(drawing):
    return drawing.read_code()


@pytest.fixture(scope="module")
def picture(drawing) -> str:
    return drawing.drawing()


def test_the_picture_is_that_of_the_code(drawing, picture):
    assert drawing.PICTURE.read_text() == picture, "run: python -m docs.draw_architecture"


def test_the_page_names_every_room(code):
    text = (REPOSITORY / DOOR[0]).read_text()
    assert [room.name for room in code.rooms.values() if f"`{room.label}`" not in text] == []


def test_an_arrow_that_does_not_go_down_is_refused(drawing):
    rooms = {name: drawing.Room(name, "") for name in ("a", "b")}
    with pytest.raises(ValueError, match="b imports a, which is not on a floor below"):
        drawing.Building(rooms, [["a"], ["b"]], {"a": set(), "b": {"a"}})


def test_rooms_stand_apart_and_every_arrow_is_drawn(code, picture):
    found = re.findall(r'class="room" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', picture)
    boxes = [tuple(map(int, box)) for box in found]
    assert len(boxes) == len(code.rooms)
    for (x, y, width, height), (other_x, other_y, other_width, other_height) in itertools.combinations(boxes, 2):
        aside = other_x >= x + width or x >= other_x + other_width
        assert aside or other_y >= y + height or y >= other_y + other_height
    ways = sum(len(code.building(package).ways) for package in code.floors)
    assert picture.count('class="arrow"') == ways > 0


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    text = (REPOSITORY / page).read_text()
    missing = [path for path in PATH.findall(text) if not any(REPOSITORY.glob(path))]
    missing += [name for name in MODULE.findall(text) if not _is_module(name.split("."))]
    missing += [target for _, target in LINK.findall(text) if not _leads_somewhere(REPOSITORY / page, target)]
    assert missing == []


@pytest.mark.parametrize("page", DOOR)
def test_what_a_link_promises_is_defined_where_it_leads(page):
    links = LINK.findall((REPOSITORY / page).read_text())
    promised = [(name.strip("`"), target) for name, target in links if name.startswith("`") and target.endswith(".py")]
    missing = []
    for name, target in promised:
        if "/" not in name and name.split(".")[-1] not in _defined((REPOSITORY / page).parent / target):
            missing.append((name, target))
    assert missing == []


@pytest.mark.parametrize("file", HOSTED)
def test_what_hosts_read_is_yaml_and_runs_what_the_makefile_has(file):
    text = (REPOSITORY / file).read_text()
    assert isinstance(yaml.safe_load(text), dict)
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets


def test_the_versions_that_are_told_are_one():
    version = re.search(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version[1]
    assert f"## [{version[1]}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def _is_module(parts: list[str]) -> bool:
    """Whether a dotted name begins with a module, or is a package, or something that a package has."""
    for length in range(len(parts), 1, -1):
        path = REPOSITORY.joinpath(*parts[:length])
        if path.with_suffix(".py").exists() or (path.is_dir() and length == len(parts)):
            return True
        if (path / "__init__.py").exists() and parts[length] in (path / "__init__.py").read_text():
            return True
    return False


def _leads_somewhere(page: Path, target: str) -> bool:
    if "://" in target:
        return True
    name, _, section = target.partition("#")
    path = page.parent / name if name else page
    if not path.exists():
        return False
    headings = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")] if section else []
    return not section or section in [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings]


def _defined(path: Path) -> set[str]:
    """Names that a module defines, methods included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names
