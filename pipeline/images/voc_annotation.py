"""Pascal VOC annotations: XML bytes to objects.

VOC counts pixels from 1 and includes both ends; ``Annotation`` holds half-open 0-based boxes (``pipeline.boxes``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

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

    Raises AnnotationError for XML that cannot be parsed, that lacks a name, a box or a number, or that has more than
    ``MAX_BYTES`` bytes or ``MAX_OBJECTS`` objects.
    """
    root = _parse(xml)
    notes = _size_notes(root, height, width)
    names, boxes, difficult, truncated = [], [], [], []
    for number, element in enumerate(root.iter("object"), start=1):
        if number > MAX_OBJECTS:
            raise AnnotationError(f"the annotation has more than {MAX_OBJECTS} objects; shorten it, or tile the image")
        name = (element.findtext("name") or "").strip()
        if not name:
            raise AnnotationError(f"object {number} has no <name>; name its class")
        corners = [_number(element, f"bndbox/{key}", number) for key in ("xmin", "ymin", "xmax", "ymax")]
        stated = from_inclusive(corners)
        kept = clip(stated, height, width)
        x1, y1, x2, y2 = kept[0]
        if x2 <= x1 or y2 <= y1:
            notes.append(f"object {number} ({name}) left out: its box {corners} is reversed, empty or outside")
            continue
        if not np.array_equal(kept, stated):
            notes.append(f"object {number} ({name}): its box {corners} was cut at the border of {width} x {height}")
        names.append(name)
        boxes.append(kept[0])
        difficult.append(_flag(element, "difficult"))
        truncated.append(_flag(element, "truncated"))
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotation(tuple(names), array, tuple(difficult), tuple(truncated), tuple(notes))


def stated_size(xml: bytes) -> tuple[int, int] | None:
    """(height, width) as ``<size>`` states them; None if it does not, in whole numbers.

    Raises AnnotationError for XML that cannot be parsed.
    """
    root = _parse(xml)
    try:
        return int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
    except ValueError:
        return None


def _parse(xml: bytes) -> Element:
    if len(xml) > MAX_BYTES:
        raise AnnotationError(f"the annotation has {len(xml)} bytes, more than {MAX_BYTES}; shorten it")
    try:
        return fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise AnnotationError(f"the annotation is not valid XML: {error}; mend or remove it") from error


def _size_notes(root: Element, height: int, width: int) -> list[str]:
    stated = (root.findtext("size/width"), root.findtext("size/height"))
    if None in stated or stated == (str(width), str(height)):
        return []
    return [f"<size> says {stated[0]} x {stated[1]}, the image is {width} x {height}; the image is believed"]


def _number(element: Element, path: str, number: int) -> float:
    text = element.findtext(path)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:  # nor NaN
        raise AnnotationError(f"object {number}: <{path}> is {text!r}; a number is needed")
    return value


def _flag(element: Element, name: str) -> bool:
    return (element.findtext(name) or "0").strip() not in ("0", "")
