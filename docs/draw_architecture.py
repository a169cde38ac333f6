"""The picture ``docs/architecture.svg``, from the code itself: the floors of pyproject.toml, the imports of every room.

python -m docs.draw_architecture

Standard library only, and the same bytes every time; a test compares. An arrow says that a room imports another. One
that other arrows imply is left out; what is left goes down, floor by floor, and passes between rooms, never behind one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import tomllib

HOME = Path(__file__).resolve().parents[1]
PICTURE = HOME / "docs" / "architecture.svg"

_SWEEPS = 60
"""Rounds in which the order on the floors, and then the places, are improved."""
_BOX, _GAP, _LANE, _BETWEEN, _MARGIN = 40, 34, 16, 18, 20
"""Heights of a room and of the space below it; width of a passing arrow; space beside and around, in pixels."""
_NAME, _VERB = 8.0, 6.4
"""Pixels that a letter takes, of a name and of a verb."""


@dataclass(frozen=True)
class Room:
    """A folder or a module of a package: ``jobs.run``. ``verbs``: the commands that are done in it."""

    name: str
    summary: str
    verbs: tuple[str, ...] = ()
    folder: bool = True

    @property
    def label(self) -> str:
        """As it is on disk, without the package."""
        last = self.name.rpartition(".")[2]
        return f"{last}/" if self.folder else f"{last}.py"

    @property
    def caption(self) -> str:
        """Its verbs, as they are called."""
        return f"spp {', '.join(self.verbs)}" if self.verbs else ""

    @property
    def width(self) -> int:
        """Of its box."""
        return round(max(72, _NAME * len(self.label) + 24, _VERB * len(self.caption) + 20))


def floors_of(contracts: Sequence[Mapping], package: str) -> list[list[str]]:
    """The rooms of ``package``, roof to ground, as its layers contract has them."""
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [package])
    return [[f"{package}.{name.strip()}" for name in re.split("[|:]", layer)] for layer in layers]


def room_of(name: str) -> Room:
    """What a room says of itself."""
    path = HOME.joinpath(*name.split("."))
    folder = path.is_dir()
    tree = ast.parse((path / "__init__.py" if folder else path.with_suffix(".py")).read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    stage = path / "stage.py"
    if stage.exists():
        verbs = _stage_names(ast.parse(stage.read_text(encoding="utf-8")))
    else:
        verbs = tuple(re.findall(r"^([a-z-]+): ", summary))
    return Room(name, summary, verbs, folder)


def _stage_names(tree: ast.Module) -> tuple[str, ...]:
    """The names of the stages that a stage.py makes."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Stage"]
    named = [word.value for call in calls for word in call.keywords if word.arg == "name"]
    return tuple(value.value for value in named if isinstance(value, ast.Constant))


def imports(rooms: Sequence[str]) -> dict[str, set[str]]:
    """Room to the other rooms that it imports, anywhere in its files, but for types alone."""
    found: dict[str, set[str]] = {}
    for name in rooms:
        path = HOME.joinpath(*name.split("."))
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        modules = {module for file in files for module in _imported(ast.parse(file.read_text(encoding="utf-8")))}
        holders = {room for module in modules for room in rooms if module == room or module.startswith(f"{room}.")}
        found[name] = holders - {name}
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    """Names of all that is imported at run time; of ``from a import b`` it is a.b."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children: Sequence[ast.AST] = node.orelse
    else:
        children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in children:
        yield from _imported(child)


def reduced(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """``arrows``, which have no circle, without those that a longer way implies."""

    def behind(name: str) -> set[str]:
        return arrows[name].union(*(behind(other) for other in arrows[name]))

    return {name: direct - set().union(*(behind(other) for other in direct)) for name, direct in arrows.items()}


class Building:
    """The rooms of one package on their floors, and the arrows between them.

    A node is a room's name, or (from, to, floor): where an arrow passes a floor. ValueError for an arrow that does not
    go down.
    """

    def __init__(
        self, rooms: Mapping[str, Room], floors: Sequence[Sequence[str]], arrows: Mapping[str, set[str]]
    ) -> None:
        self._rooms = rooms
        floor_of = {name: number for number, floor in enumerate(floors) for name in floor}
        self.floors: list[list] = [list(floor) for floor in floors]
        self.ways: list[list] = []
        for name in floor_of:
            for other in sorted(arrows[name], key=list(floor_of).index):
                first, last = floor_of[name], floor_of[other]
                if last <= first:
                    raise ValueError(f"{name} imports {other}, which is not on a floor below")
                passed = [(name, other, floor) for floor in range(first + 1, last)]
                for node in passed:
                    self.floors[node[2]].append(node)
                self.ways.append([name, *passed, other])
        self._above: dict = {node: [] for floor in self.floors for node in floor}
        self._below: dict = {node: [] for floor in self.floors for node in floor}
        for way in self.ways:
            for upper, lower in pairwise(way):
                self._below[upper].append(lower)
                self._above[lower].append(upper)
        self._arrange()
        self.centre = self._placed()
        self.left = min(self.centre[node] - self._width(node) / 2 for node in self.centre)
        self.right = max(self.centre[node] + self._width(node) / 2 for node in self.centre)

    @property
    def width(self) -> int:
        """With a margin at each side."""
        return round(self.right - self.left) + 2 * _MARGIN

    @property
    def height(self) -> int:
        """With a margin above and below, and a line for its name."""
        return len(self.floors) * (_BOX + _GAP) - _GAP + 2 * _MARGIN + 16

    def _width(self, node) -> int:
        return self._rooms[node].width if node in self._rooms else _LANE

    def _arrange(self) -> None:
        """Order every floor so that few arrows cross: by the mean place of what a node is tied to."""
        best, fewest = [list(floor) for floor in self.floors], self._crossings()
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            ties = self._above if down else self._below
            for floor in self.floors if down else self.floors[::-1]:
                place = {node: i / max(1, len(other) - 1) for other in self.floors for i, node in enumerate(other)}
                mean = {n: sum(place[o] for o in ties[n]) / len(ties[n]) if ties[n] else place[n] for n in floor}
                floor.sort(key=mean.__getitem__)
            self._exchange()
            if self._crossings() < fewest:
                best, fewest = [list(floor) for floor in self.floors], self._crossings()
        self.floors = best

    def _exchange(self) -> None:
        """Exchange neighbours as long as that lets fewer arrows cross."""
        for floor in self.floors:
            for i in range(len(floor) - 1):
                before = self._crossings()
                floor[i], floor[i + 1] = floor[i + 1], floor[i]
                if self._crossings() >= before:
                    floor[i], floor[i + 1] = floor[i + 1], floor[i]

    def _crossings(self) -> int:
        count = 0
        for upper, lower in zip(self.floors, self.floors[1:], strict=False):
            place = {node: i for i, node in enumerate(lower)}
            ends = [(i, place[other]) for i, node in enumerate(upper) for other in self._below[node]]
            count += sum(a < c and b > d for a, b in ends for c, d in ends)
        return count

    def _placed(self) -> dict:
        """Node to the middle of its box: near what it is tied to, in order, and apart from its neighbours."""
        centre: dict = {}
        for floor in self.floors:
            centre.update(zip(floor, self._apart(floor, [0.0] * len(floor), [1.0] * len(floor)), strict=True))
        for sweep in range(4 * _SWEEPS):
            for floor in self.floors if sweep % 2 == 0 else self.floors[::-1]:
                wanted, weights = [], []
                for node in floor:
                    pulls = {other: self._pull(node, other) for other in self._above[node] + self._below[node]}
                    weights.append(sum(pulls.values()) or 1.0)
                    pulled = sum(pull * centre[other] for other, pull in pulls.items())
                    wanted.append(pulled / weights[-1] if pulls else centre[node])
                centre.update(zip(floor, self._apart(floor, wanted, weights), strict=True))
        return centre

    def _pull(self, node, other) -> float:
        """How much two nodes that are tied want to stand above each other: arrows that pass floors are straight."""
        return (1.0, 2.0, 8.0)[(node not in self._rooms) + (other not in self._rooms)]

    def _apart(self, floor: Sequence, wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
        """The places nearest to those ``wanted`` at which boxes keep their order and do not touch."""
        offsets = [0.0]
        for node, other in pairwise(floor):
            offsets.append(offsets[-1] + (self._width(node) + self._width(other)) / 2 + _BETWEEN)
        groups: list[list[float]] = []  # weight, mean, number of nodes that stand together
        for want, weight, offset in zip(wanted, weights, offsets, strict=True):
            groups.append([weight, want - offset, 1])
            while len(groups) > 1 and groups[-2][1] > groups[-1][1]:
                last, before = groups.pop(), groups.pop()
                weight = last[0] + before[0]
                groups.append([weight, (last[0] * last[1] + before[0] * before[1]) / weight, last[2] + before[2]])
        means = [group[1] for group in groups for _ in range(round(group[2]))]
        return [mean + offset for mean, offset in zip(means, offsets, strict=True)]

    def drawn(self, title: str, x: int, y: int, imported: Mapping[str, set[str]]) -> Iterator[str]:
        """The building with its upper left corner at (x, y)."""
        yield f'<rect class="house" x="{x}" y="{y}" width="{self.width}" height="{self.height}" rx="6"/>'
        yield f'<text class="title" x="{x + 12}" y="{y + 22}">{escape(title)}</text>'
        move = x + _MARGIN - self.left
        tops = [y + _MARGIN + 16 + number * (_BOX + _GAP) for number in range(len(self.floors))]
        for top in tops[1:]:
            yield f'<path class="floor" d="M{x} {top - _GAP / 2:.0f}h{self.width}"/>'
        yield from self._arrows(move, tops)
        for floor, top in zip(self.floors, tops, strict=True):
            for node in floor:
                if node in self._rooms:
                    yield from _box(self._rooms[node], self.centre[node] + move, top, sorted(imported[node]))

    def _arrows(self, move: float, tops: Sequence[int]) -> Iterator[str]:
        floor_of = {node: number for number, floor in enumerate(self.floors) for node in floor}
        leave = {(upper, lower): self._port(upper, self._below[upper], lower) for upper, lower in self._steps()}
        reach = {(upper, lower): self._port(lower, self._above[lower], upper) for upper, lower in self._steps()}
        for way in self.ways:
            path = ""
            for upper, lower in pairwise(way):
                start, end = tops[floor_of[upper]] + _BOX, tops[floor_of[lower]]
                a, b, middle = leave[upper, lower] + move, reach[upper, lower] + move, (start + end) / 2
                path += f"M{a:.0f} {start}" if not path else f"V{start}"
                path += f"C{a:.0f} {middle:.0f} {b:.0f} {middle:.0f} {b:.0f} {end}"
            yield f'<path class="arrow" d="{path}"/>'

    def _steps(self) -> Iterator[tuple]:
        for way in self.ways:
            yield from pairwise(way)

    def _port(self, node, ties: Sequence, tie) -> float:
        """Where on its edge a box is left or reached: arrows lie side by side, in the order of their other ends."""
        ordered = sorted(ties, key=lambda other: (self.centre[other], str(other)))
        step = min(14.0, (self._width(node) - 16) / len(ties))
        return self.centre[node] + (ordered.index(tie) - (len(ties) - 1) / 2) * step


def _box(room: Room, centre: float, top: float, imported: Sequence[str]) -> Iterator[str]:
    told = [f"{room.name}: {room.summary}", f"imports {', '.join(imported)}" if imported else "imports no other room"]
    yield f"<g><title>{escape(chr(10).join(told))}</title>"
    left = f"{centre - room.width / 2:.0f}"
    yield f'<rect class="room" x="{left}" y="{top}" width="{room.width}" height="{_BOX}" rx="4"/>'
    yield f'<text class="name" x="{centre:.0f}" y="{top + (17 if room.caption else 25)}">{escape(room.label)}</text>'
    if room.caption:
        yield f'<text class="verb" x="{centre:.0f}" y="{top + 32}">{escape(room.caption)}</text>'
    yield "</g>"


_STYLE = """\
text { font-family: Helvetica, Arial, sans-serif; fill: #1b2733; }
.paper { fill: #ffffff; }
.house { fill: #f4f6f8; stroke: #8a99a8; }
.title { font-size: 15px; font-weight: bold; fill: #51606e; }
.floor { stroke: #dde3e8; stroke-dasharray: 2 4; fill: none; }
.room { fill: #ffffff; stroke: #35536f; }
.name { font-size: 14px; font-weight: bold; text-anchor: middle; }
.verb { font-size: 11px; text-anchor: middle; fill: #51606e; }
.arrow { stroke: #35536f; stroke-opacity: 0.65; fill: none; marker-end: url(#head); }
.between { stroke: #35536f; stroke-width: 3; fill: none; marker-end: url(#head); }
.note { font-size: 12px; fill: #51606e; }
.module { font-size: 12px; }
"""
_HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
    'markerUnits="userSpaceOnUse"><path d="M0 0L8 4L0 8z" fill="#35536f"/></marker>'
)


@dataclass(frozen=True)
class Code:
    """What the picture shows: package to floors, roof to ground; its rooms by name; what each room imports."""

    floors: Mapping[str, Sequence[Sequence[str]]]
    rooms: Mapping[str, Room]
    arrows: Mapping[str, set[str]]

    def building(self, package: str) -> Building:
        """The rooms of a package, with the arrows between them. ValueError if an import does not go down."""
        own = {name for floor in self.floors[package] for name in floor}
        return Building(self.rooms, self.floors[package], reduced({name: self.arrows[name] & own for name in own}))

    def users(self, package: str) -> str:
        """How many rooms of ``jobs`` import something of another package."""
        own = [name for floor in self.floors["jobs"] for name in floor]
        using = [name for name in own if any(other.partition(".")[0] == package for other in self.arrows[name])]
        return f"{len(using)} of {len(own)} rooms import {package}"


def read_code() -> Code:
    """The code as it is now."""
    settings = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    floors = {package: floors_of(settings["contracts"], package) for package in ("jobs", "pipeline")}
    rooms = {name: room_of(name) for storeys in floors.values() for floor in storeys for name in floor}
    return Code(floors, rooms, imports([*rooms, "storage"]))


def drawing() -> str:
    """The picture of the code as it is now, an SVG. ValueError if an import does not go down."""
    code = read_code()
    upper, lower = code.building("jobs"), code.building("pipeline")
    modules = sorted(path.name for path in (HOME / "storage").glob("*.py") if path.stem != "__init__")

    side = 130
    across = max(upper.width, lower.width + _GAP + side)
    ground = _MARGIN + upper.height + 64
    right = _MARGIN + across - side
    width, height = across + 2 * _MARGIN, ground + lower.height + 2 * _MARGIN + 14
    body = [
        *upper.drawn("jobs/", _MARGIN + (across - upper.width) // 2, _MARGIN, code.arrows),
        *lower.drawn("pipeline/", _MARGIN, ground, code.arrows),
        f'<rect class="house" x="{right}" y="{ground}" width="{side}" height="{lower.height}" rx="6"/>',
        f'<text class="title" x="{right + 12}" y="{ground + 22}">storage/</text>',
    ]
    for number, module in enumerate(modules):
        body.append(f'<text class="module" x="{right + 12}" y="{ground + 48 + 21 * number}">{module}</text>')
    for package, x, aside, anchor in (
        ("pipeline", _MARGIN + lower.width // 2, 12, "start"),
        ("storage", right + side // 2, -12, "end"),
    ):
        body.append(f'<path class="between" d="M{x} {ground - 64}V{ground - 6}"/>')
        body.append(
            f'<text class="note" x="{x + aside}" y="{ground - 28}" text-anchor="{anchor}">{code.users(package)}</text>'
        )
    text = "An arrow: imports. One that others imply is not drawn. Made by docs/draw_architecture.py."
    size = f'width="{width}" height="{height}"'
    body.append(f'<text class="note" x="{_MARGIN}" y="{height - _MARGIN + 4}">{text}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
            "<title>The floors of the code, roof to ground</title>",
            f"<style>\n{_STYLE}</style>",
            f"<defs>{_HEAD}</defs>",
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
    print(PICTURE)
