"""YAML as a config may be written: PyYAML's safe loader, without what it tolerates and the format forbids.

A key that stands twice, a value that YAML 1.1 takes for something else than was meant (an octal number, a date, minutes
and seconds), numbers that are not finite, anchors that hold themselves or multiply: each is refused, with its line.
Merge keys (``<<``) and anchors work as everywhere: a mapping's own key wins over a merged one.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_DEPTH = 30
"""Levels, at most. A config has four."""
_VALUES = 100_000
"""Values, at most, those of an anchor counted wherever it is used."""
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_LARGEST = 1 << 63
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)[eE][-+]?[0-9]+$")


class YamlError(ValueError):
    """Text that is no YAML, or more than a config may hold. The message says so, as what follows after "the text"; it
    names the line, and repeats no value."""


def read_yaml(text: str) -> Any:
    """The one document in ``text``: mappings with text as keys, lists, text, finite numbers, true, false and None.

    Raises YamlError.
    """
    return _read(text)[1]


def read_value(text: str) -> Any:
    """The one value in ``text``, as after ``--set key=``, with nothing beside it. Raises YamlError.

    A comment is refused: in a command it is more often the rest of a value, which YAML would drop.
    """
    node, value = _read(text)
    before, after = ("", text) if node is None else (text[: node.start_mark.index], text[node.end_mark.index :])
    if before.strip() or after.strip():
        raise YamlError("holds more than one value, or a comment, which YAML drops; put text into quotes")
    return value


def _read(text: str) -> tuple[Node | None, Any]:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if loader.twice:
            raise YamlError(f"is not valid YAML: {'; '.join(loader.twice)}")
        return node, None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_told(error)) from None  # the error itself shows the line, and what is secret in it
    except yaml.reader.ReaderError as error:
        raise YamlError(f"is not valid YAML: the character U+{error.character:04X}: {error.reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _told(error: yaml.MarkedYAMLError) -> str:
    """The problem and its line, without the text that stands there."""
    mark = error.problem_mark or error.context_mark
    invalid = "cannot be taken" if isinstance(error, ConstructorError) else "is not valid YAML"
    where = f"{invalid}: " if mark is None else f"{invalid}: line {mark.line + 1}: "
    parts = [part for part in (error.context, error.problem) if part]
    if isinstance(error, yaml.composer.ComposerError) and error.context == "expected a single document in the stream":
        parts = ["there is a second document; a config is one"]
    elif isinstance(error, yaml.scanner.ScannerError) and "'\\t'" in str(error.problem):
        parts = ["a tab where a value or an indentation should be; YAML takes spaces only"]
    return where + ", ".join(parts)


class _Loader(yaml.SafeLoader):
    """The safe loader; what it composes is looked at before anything is constructed of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        self.twice: list[str] = []
        """What is to be said of keys that stand twice."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > _DEPTH:
            raise ConstructorError(None, None, f"more than {_DEPTH} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_sequence_node(self, anchor: Any) -> SequenceNode:
        node = super().compose_sequence_node(anchor)
        self._measure(node, node.value)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        self._measure(node, [part for pair in node.value for part in pair])
        lines: dict[str, list[int]] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise ConstructorError(None, None, "a key must be text; put it into quotes", key.start_mark)
            lines.setdefault(key.value, []).append(key.start_mark.line + 1)
        for name, places in lines.items():
            if len(places) > 1:
                often = "twice" if len(places) == 2 else f"{len(places)} times"
                named = f"{', '.join(map(str, places[:-1]))} and {places[-1]}"
                self.twice.append(f"the key {name[:60]!r} stands {often}, in lines {named}")
        return node

    def _measure(self, node: Node, parts: list[Node]) -> None:
        """Refuse anchors that hold themselves, and those whose values multiply beyond all use."""
        for part in parts:
            if not isinstance(part, ScalarNode) and id(part) not in self._sizes:
                raise ConstructorError(None, None, "an anchor that holds itself", node.start_mark)
        size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        if size > _VALUES:
            raise ConstructorError(None, None, f"more than {_VALUES} values", node.start_mark)
        self._sizes[id(node)] = size

    def number(self, node: ScalarNode) -> int | float:
        """A number that means the same to everybody."""
        text = self.construct_scalar(node)
        if _DECIMAL.fullmatch(text):
            digits = text.replace("_", "")
            if len(digits) > 20 or not -_LARGEST <= int(digits) < _LARGEST:
                raise self.refused(node, "a whole number of more than 64 bits")
            return int(digits)
        value = _float(text)
        if value is None or re.fullmatch(r"[-+]?0[0-9_]+", text):
            raise self.refused(
                node,
                "no decimal number (octal, hexadecimal, binary, sexagesimal?); write it in decimal, or in quotes if "
                "it is text",
            )
        if not math.isfinite(value):
            raise self.refused(node, "infinity, or not a number, where only finite numbers are taken")
        return value

    def truth(self, node: ScalarNode) -> bool:
        """True or false."""
        value = self.bool_values.get(self.construct_scalar(node).lower())
        if value is None:
            raise self.refused(node, "neither true nor false")
        return value

    def nothing(self, node: ScalarNode) -> None:
        """No value; the text behind an explicit ``!!null`` would be lost."""
        if self.construct_scalar(node).lower() not in ("", "~", "null"):
            raise self.refused(node, "text that is said to be nothing")

    def words(self, node: ScalarNode) -> str:
        """Text that can be written down."""
        text: str = self.construct_scalar(node)
        if "\0" in text or not _is_text(text):
            raise self.refused(node, "text with a character that no path and no name can have")
        return text

    def refused(self, node: Node, problem: str) -> ConstructorError:
        """The error that says so, with the line."""
        return ConstructorError(None, None, problem, node.start_mark)

    def date(self, node: Node) -> Any:
        """Never: a date is not known to any key."""
        raise self.refused(node, "a date to YAML; put it into quotes if it is text")

    def other(self, node: Node) -> Any:
        """Never: a kind of value that no key takes."""
        raise self.refused(node, f"a value of the kind {node.tag.removeprefix(_TAG)[:60]!r}, which no key takes")


def _float(text: str) -> float | None:
    """A number with a point or an exponent; YAML's infinities and nan too."""
    try:
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


_Loader.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))  # 1e-3, which is text in YAML 1.1
for _kind in ("int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.number)
_Loader.add_constructor(f"{_TAG}bool", _Loader.truth)
_Loader.add_constructor(f"{_TAG}null", _Loader.nothing)
_Loader.add_constructor(f"{_TAG}str", _Loader.words)
_Loader.add_constructor(f"{_TAG}timestamp", _Loader.date)
for _kind in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.other)
_Loader.add_constructor(None, _Loader.other)
