"""Pascal VOC annotations: XML bytes to objects.

VOC counts pixels from 1 and includes both ends; ``Annotation`` holds half-open 0-based boxes (``pipeline.boxes``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from pipeline.boxes import Boxes, as_boxes, clip, from_inclusive
from pipeline.errors import AnnotationError

MAX_BYTES = 16 * 1024 * 1024
MAX_OBJECTS = 10_000
"""Annotations beyond these are refused: each object becomes a vector, and all of an image's are in memory at once."""


@dataclass(frozen=True)
class Annotation:
    """The objects of one image. ``boxes`` is float32 (N, 4); the tuples have N entries.

    ``notes`` says what was repaired or left out, and by which rule.
    """

    class_names: tuple[str, ...]
    boxes: Boxes
    difficult: tuple[bool, ...]
    truncated: tuple[bool, ...]
    notes: tuple[str, ...] = ()


NO_OBJECTS = Annotation((), as_boxes([]), (), ())
"""The annotation of an image without objects."""


def parse_annotation(xml: bytes, height: int, width: int) -> Annotation:
    """Objects of a VOC annotation of a ``height`` x ``width`` image (the image file's own size, which is the truth).

    A box that reaches beyond the image is cut at its border; one that is reversed, empty or wholly outside is left
    out; both, and a ``<size>`` that disagrees with the file, are said in ``notes``. Fractional coordinates are kept.
    An object with several ``<bndbox>`` is one object for each, as tools mean it that write a box per instance. White
    space in a class name is made one space. ``difficult`` and ``truncated`` are set by a number other than 0, or by
    true or yes; what is no such word either way counts as not set, and is a note.

    Raises AnnotationError for XML that cannot be parsed, that is an annotation of another kind or of several images,
    that lacks a name, a box or a number or gives several where one is meant, or that has more than ``MAX_BYTES`` bytes
    or ``MAX_OBJECTS`` objects.
    """
    root = _parse(xml)
    notes = [*_kind_notes(root), *_size_notes(root, height, width)]
    names: list[str] = []
    boxes: list[NDArray[np.float32]] = []
    difficult: list[bool] = []
    truncated: list[bool] = []
    odd_flags: dict[str, list[int]] = {}
    for number, element in enumerate(root.iter("object"), start=1):
        if number > MAX_OBJECTS:
            raise AnnotationError(_TOO_MANY)
        name = _name(element, number)
        flags = []
        for tag in ("difficult", "truncated"):
            flag, odd = _flag(element, tag)
            flags.append(flag)
            if odd:
                odd_flags.setdefault(odd, []).append(number)
        all_corners = dict.fromkeys(_corners(box, number) for box in element.findall("bndbox") or [Element("bndbox")])
        if len(all_corners) > 1:
            notes.append(f"object {number} ({name}) has {len(all_corners)} <bndbox>; each is taken as an object")
        for corners in all_corners:
            stated = from_inclusive(corners)
            kept = clip(stated, height, width)
            x1, y1, x2, y2 = kept[0]
            if x2 <= x1 or y2 <= y1:
                notes.append(f"object {number} ({name}) left out: its box {[*corners]} is reversed, empty or outside")
                continue
            if not np.array_equal(kept, stated):
                notes.append(
                    f"object {number} ({name}): its box {[*corners]} was cut at the border of {width} x {height}"
                )
            if len(names) == MAX_OBJECTS:
                raise AnnotationError(_TOO_MANY)
            names.append(name)
            boxes.append(kept[0])
            difficult.append(flags[0])
            truncated.append(flags[1])
    for odd, numbers in odd_flags.items():
        notes.append(f"{odd}; so it is for {len(numbers)} of its objects, the first is object {numbers[0]}")
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotation(tuple(names), array, tuple(difficult), tuple(truncated), tuple(notes))


def stated_size(xml: bytes) -> tuple[int, int] | None:
    """(height, width) as ``<size>`` states them, also as 96.0; None if it does not, or in several ways.

    Raises AnnotationError for XML that cannot be parsed.
    """
    root = _parse(xml)
    height, width = (_whole(text) for text in (_one_of(root, "size/height"), _one_of(root, "size/width")))
    return None if height is None or width is None else (height, width)


def _parse(xml: bytes) -> Element:
    if len(xml) > MAX_BYTES:
        raise AnnotationError(f"the annotation has {len(xml)} bytes, more than {MAX_BYTES}; shorten it")
    try:
        return fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise AnnotationError(f"the annotation is not valid XML: {error}; mend or remove it") from error


def _kind_notes(root: Element) -> list[str]:
    """What is odd about the document as a whole. AnnotationError if it is no annotation of one image in VOC's form.

    Nothing found is not taken for nothing there: an image without objects is a background, and all of it is learned
    as such.
    """
    holders = [
        element
        for element in root.iter("annotation")  # VOC's <source> has an <annotation> too: a text
        if element.find("object") is not None or element.find("size") is not None
    ]
    if len(holders) > 1:
        raise AnnotationError(f"it holds {len(holders)} annotations; give each image a file of its own")
    tags = dict.fromkeys(element.tag for element in root.iter())
    for tag in tags:
        if tag != "object" and _plain(tag) == "object":
            raise AnnotationError(f"{_shown(tag)} is no <object>; {_AS_VOC}")
    notes = []
    if root.tag != "annotation":
        if "object" not in tags:
            raise AnnotationError(
                f"the root is {_shown(root.tag)} and not <annotation>, and there is no <object> in it; convert it to "
                f"VOC's form, or remove it if the image has no objects"
            )
        notes.append(f"the root is {_shown(root.tag)} and not <annotation>; its objects are taken all the same")
    alike = [_shown(tag) for tag in tags if tag not in _READ and _plain(tag) in _READ]
    if alike:
        notes.append(f"{_listed(alike)} not read; {_AS_VOC}")
    if "object" not in tags:
        others = dict.fromkeys(_shown(element.tag) for element in root.iter() if _tells(element))
        if others:
            notes.append(f"there is no <object>, but {_listed([*others])} not read; the image is one without objects")
    return notes


_READ = frozenset({"size", "width", "height", "name", "difficult", "truncated", "bndbox"})
_READ |= {"xmin", "ymin", "xmax", "ymax"}
_AROUND = frozenset(
    {"folder", "filename", "path", "source", "database", "annotation", "image", "flickrid", "url", "owner", "size"}
)
_AROUND |= {"width", "height", "depth", "segmented", "verified"}
"""What VOC, and the tools that write its form, say of an image without objects."""
_AS_VOC = "write tags in small letters and without a namespace, as VOC does"
_TOO_MANY = f"the annotation has more than {MAX_OBJECTS} objects; shorten it, or tile the image"


def _tells(element: Element) -> bool:
    """Whether an element holds something that is not known to lie outside objects."""
    holds = bool((element.text or "").strip() or element.attrib)
    return holds and _plain(element.tag) not in _AROUND and _plain(element.tag) not in _READ


def _plain(tag: str) -> str:
    """A tag without namespace, in small letters."""
    return tag.rpartition("}")[2].casefold()


def _shown(tag: str) -> str:
    return f"<{tag if len(tag) <= 60 else tag[:57] + '...'}>"


def _listed(tags: Sequence[str]) -> str:
    shown = ", ".join(tags[:5]) + (f" and {len(tags) - 5} more" if len(tags) > 5 else "")
    return f"{shown} {'is' if len(tags) == 1 else 'are'}"


def _texts(element: Element, path: str) -> list[str]:
    """The different texts of what ``path`` finds."""
    return list(dict.fromkeys((found.text or "").strip() for found in element.findall(path)))


def _one_of(element: Element, path: str) -> str | None:
    texts = _texts(element, path)
    return texts[0] if len(texts) == 1 else None


def _whole(text: str | None) -> int | None:
    """A whole number, also as 96.0; None for everything else."""
    value = _value(text)
    return int(value) if value is not None and value.is_integer() else None


def _value(text: str | None) -> float | None:
    """A number; None for what is none, or is not finite, or holds Python's underscores."""
    try:
        value = float(text) if text is not None and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _size_notes(root: Element, height: int, width: int) -> list[str]:
    stated = {tag: _texts(root, f"size/{tag}") for tag in ("width", "height")}
    if any(len(texts) > 1 for texts in stated.values()):
        said = " and ".join(f"{tag} {', '.join(texts)}" for tag, texts in stated.items() if len(texts) > 1)
        return [f"<size> says {said}, the image is {width} x {height}; the image is believed"]
    told = [texts[0] if texts else None for texts in stated.values()]
    agree = [text is None or _whole(text) == real for text, real in zip(told, (width, height), strict=True)]
    if all(agree):
        return []
    said = " x ".join("?" if text is None else text for text in told)
    return [f"<size> says {said}, the image is {width} x {height}; the image is believed"]


def _name(element: Element, number: int) -> str:
    names = dict.fromkeys(" ".join(text.split()) for text in _texts(element, "name"))
    if len(names) > 1:
        raise AnnotationError(
            f"object {number} has several <name>: {', '.join(map(repr, names))}; write an object for each"
        )
    name = next(iter(names), "")
    if not name:
        raise AnnotationError(f"object {number} has no <name>; name its class")
    return name


def _corners(box: Element, number: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (_number(box, key, number) for key in ("xmin", "ymin", "xmax", "ymax"))
    return x1, y1, x2, y2


def _number(box: Element, key: str, number: int) -> float:
    texts = [found.text or "" for found in box.findall(key)]
    values = {_value(text) for text in texts}
    if len(values) > 1:
        said = ", ".join(map(repr, texts[:5]))
        raise AnnotationError(f"object {number}: <bndbox> has several <{key}>: {said}; write a <bndbox> for each box")
    value = next(iter(values), None)
    if value is None or not abs(value) < 1e9:
        text = texts[0] if texts else None
        raise AnnotationError(f"object {number}: <bndbox/{key}> is {text!r}; a number is needed")
    return value


_SET = frozenset({"true", "yes", "t", "y", "on"})
_NOT_SET = frozenset({"", "false", "no", "f", "n", "off", "none", "unspecified"})
"""Beside numbers. Unspecified, VOC's own word for a pose, is what one popular tool writes for every object."""


def _flag(element: Element, tag: str) -> tuple[bool, str]:
    """Whether a flag is set, and what is odd about it: it is set by what says so, not by what does not say no."""
    found = element.findall(tag)
    if not found:
        return False, ""
    texts = list(dict.fromkeys("".join(flag.itertext()).strip() for flag in found))
    flags = [_set(text) for text in texts]
    if len(set(flags)) > 1 or None in flags:
        said = " and ".join(repr(text if len(text) <= 60 else text[:57] + "...") for text in texts[:5])
        flag = bool(flags[0]) and len(set(flags)) == 1
        return flag, f"<{tag}> is {said}, which is neither 0 nor 1; it is taken for {int(flag)}"
    return bool(flags[0]), ""


def _set(text: str) -> bool | None:
    """Of the text of a flag; None for what is neither yes nor no."""
    word = text.casefold()
    if word in _SET or word in _NOT_SET:
        return word in _SET
    value = _value(text)
    return None if value is None else value != 0
