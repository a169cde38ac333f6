"""Detections in the files of others: Pascal VOC's results text and COCO's results JSON.

These functions turn arrays into lines of text and back; where the text is kept is the caller's business. Lines end
in a newline and can go to ``file.writelines`` one after the other.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, as_boxes, from_inclusive, to_inclusive

_VOC_NAME = re.compile(r"comp[34](?:_[^_/]+)?_det_(?P<split>[^_/]+)_(?P<class_name>[^/]+)\.txt", re.DOTALL)
_NO_FILE_NAME = re.compile(r"""[\x00-\x1f\x7f-\x9f/\\:*?"<>|\[\]#\u2028\u2029]|%(?=[0-9A-Fa-f]{2})""")
"""What some file system, shell pattern or URL takes for something else than a letter of a name."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789 ._-")
_FARTHEST = 10_000_000
"""Pixels from the origin. Farther away areas are no longer exact, or not finite, in float32."""
_LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""


class ResultFileError(ValueError):
    """A results file cannot be read. The message names the file, the line, what is wrong and what is allowed."""


@dataclass(frozen=True)
class VocResults:
    """What one VOC results file holds: ``image_ids`` (N), ``scores`` float64 (N,), half-open ``boxes`` (N, 4)."""

    split: str
    class_name: str
    image_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    boxes: Boxes


def voc_file_name(split: str, class_name: str, alike: bool = False) -> str:
    """``comp4_det_<split>_<class>.txt``, as the VOC devkit names the detections of one class (VOCinit.m).

    A name without folders, whatever the class is called: of the class, what cannot stand in the name of a file (``/``,
    ``\\``, control characters, ``: * ? " < > | [ ] #``, and ``%`` before two hexadecimal digits) is written as in a
    URL, ``/`` as ``%2F``; ``alike``: all but small Latin letters, digits and ``. _ -`` and the space.

    Raises ValueError for a name that could not be read back: the first underscore ends the split.
    """
    if alike:
        written = "".join(letter if letter in _PLAIN else _percent(letter) for letter in class_name)
    else:
        written = _NO_FILE_NAME.sub(lambda found: _percent(found[0]), class_name)
    name = f"comp4_det_{split}_{written}.txt"
    match = _VOC_NAME.fullmatch(name)
    if match is None or match["split"] != split or _NO_FILE_NAME.search(split):
        raise ValueError(
            f"no VOC results file can be named after split {split!r} and class {class_name!r}: neither may be empty, "
            "and the split must be the name of a file without underscores; rename it"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"class {class_name[:40]!r}...: its VOC results file would have a name too long; rename it")
    return name


def voc_file_names(split: str, class_names: Sequence[str]) -> dict[str, str]:
    """Class to the name of its file. No two are the same file where case or Unicode's forms do not count.

    Raises ValueError as ``voc_file_name``, before any is used.
    """
    folded = Counter(_fold(name) for name in class_names)
    names = {name: voc_file_name(split, name, alike=folded[_fold(name)] > 1) for name in class_names}
    if len({name.casefold() for name in names.values()}) < len(names):
        raise ValueError(f"two of the classes {', '.join(map(repr, class_names))} would have one VOC results file")
    return names


def _percent(letter: str) -> str:
    """As in a URL; unlike ``urllib.parse.quote``, capitals too."""
    return "".join(f"%{byte:02X}" for byte in letter.encode())


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def parse_voc_file_name(name: str) -> tuple[str, str]:
    """Split and class name of a results file's name (without folders); ``%2F`` in the class is ``/`` again.

    ``comp3`` and the salt of py-faster-rcnn (``comp4_<salt>_det_...``) are read too. Raises ResultFileError.
    """
    match = _VOC_NAME.fullmatch(name)
    if match is None:
        raise ResultFileError(f"{name}: a VOC results file is named comp4_det_<split>_<class>.txt; rename it")
    return match["split"], unquote(match["class_name"])


def voc_lines(image_ids: Sequence[str], scores: NDArray[np.floating], boxes: Boxes) -> Iterator[str]:
    """Lines ``image_id score x1 y1 x2 y2`` of one class, in the order given; boxes 1-based and inclusive.

    ``scores`` (N,) get all digits that they need, so that no ties arise; ``boxes`` (N, 4), half-open from 0, get four
    decimals.

    Raises ValueError, before the first line, for lengths that differ, numbers that are not finite, or an image id
    that is empty or has white space.
    """
    values, corners = _checked(image_ids, scores, boxes)
    for image_id in image_ids:
        if image_id.split() != [image_id]:
            raise ValueError(
                f"image id {image_id!r} cannot stand in a VOC results file: white space ends it; rename it"
            )
    rows = zip(image_ids, values, to_inclusive(corners).tolist(), strict=True)
    return (f"{image_id} {score} {x1:.4f} {y1:.4f} {x2:.4f} {y2:.4f}\n" for image_id, score, (x1, y1, x2, y2) in rows)


def read_voc(name: str, lines: str | bytes | Iterable[str]) -> VocResults:
    """The detections of a VOC results file called ``name`` (without folders): its whole text, or its lines.

    Empty lines are passed over. Boxes outside the image or reversed are kept, since they count as false positives.

    Raises ResultFileError for a name or a line that is not as ``voc_lines`` describes it, with the line's number.
    """
    split, class_name = parse_voc_file_name(name)
    image_ids: list[str] = []
    numbers: list[list[float]] = []
    for number, line in enumerate(_each_line(name, lines), start=1):
        words = line.split()
        if words:
            image_ids.append(words[0])
            numbers.append(_numbers(name, number, words[1:]))
    table = np.array(numbers, np.float64).reshape(-1, 5)
    return VocResults(split, class_name, tuple(image_ids), table[:, 0], from_inclusive(table[:, 1:]))


def coco_category_ids(class_names: Sequence[str]) -> dict[str, int]:
    """A number for each class, from 1 in the order given, for data sets that have none of their own.

    Raises ValueError for a repeated name.
    """
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class names must differ: {list(class_names)}")
    return {name: number for number, name in enumerate(class_names, start=1)}


def coco_categories(category_ids: Mapping[str, int]) -> list[dict[str, int | str]]:
    """``category_ids`` as the ``categories`` of an annotation file; a results file itself only has the numbers."""
    return [{"id": number, "name": name} for name, number in category_ids.items()]


def coco_lines(
    image_ids: Sequence[str] | Sequence[int],
    class_names: Sequence[str],
    scores: NDArray[np.floating],
    boxes: Boxes,
    category_ids: Mapping[str, int],
) -> Iterator[str]:
    """COCO results JSON, a line per detection: ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``.

    Image ids are written as they are, numbers as numbers and strings as strings: whoever reads the file compares them
    with those of an annotation file, and COCO's own has numbers. Categories must be numbers; ``category_ids`` gives
    the one of each class. ``boxes`` (N, 4) are half-open from 0, which is how COCO counts, in pixels.

    Raises ValueError, before the first line, for lengths that differ, numbers that are not finite, or a class without
    a number.
    """
    values, corners = _checked(image_ids, scores, boxes)
    if len(class_names) != len(corners):
        raise ValueError(f"{len(corners)} boxes need as many class names, not {len(class_names)}")
    unknown = sorted({str(name) for name in class_names} - set(category_ids))
    if unknown:
        raise ValueError(f"no COCO category id for {', '.join(unknown)}; there are: {', '.join(category_ids)}")
    bboxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64).round(4)
    ids = image_ids.tolist() if isinstance(image_ids, np.ndarray) else image_ids
    rows = zip(ids, class_names, bboxes.tolist(), values, strict=True)
    return _json_array(
        {"image_id": image_id, "category_id": category_ids[name], "bbox": bbox, "score": float(score)}
        for image_id, name, bbox, score in rows
    )


def _json_array(items: Iterable[object]) -> Iterator[str]:
    before = "["
    for item in items:
        yield f"{before}\n{json.dumps(item)}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _checked(ids: Sequence[object], scores: NDArray[np.floating], boxes: Boxes) -> tuple[list[str], Boxes]:
    """Scores in the fewest digits that tell them from all others of their type, and boxes as float32 (N, 4)."""
    corners, values = as_boxes(boxes), np.asarray(scores)
    if values.shape != (len(corners),) or len(ids) != len(corners):
        raise ValueError(f"{len(corners)} boxes need as many image ids and scores, not {len(ids)} and {values.shape}")
    if not (np.isfinite(values).all() and np.isfinite(corners).all()):
        raise ValueError("scores and boxes must be finite to be written")
    return values.astype(str).tolist(), corners


def _each_line(name: str, lines: str | bytes | Iterable[str]) -> Iterable[str]:
    if isinstance(lines, str):
        return lines.splitlines()
    if not isinstance(lines, bytes):
        return lines
    try:
        return lines.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ResultFileError(f"{name}, line {line}: not UTF-8 text; write the file as UTF-8") from error


def _numbers(name: str, number: int, words: list[str]) -> list[float]:
    try:
        # float() also takes 1_0 for 10, and digits of all alphabets
        values = [float(word) for word in words if word.isascii() and "_" not in word]
    except ValueError:
        values = []
    if len(words) != 5 or len(values) != 5 or not all(map(math.isfinite, values)):
        shown = " ".join(words)
        raise ResultFileError(
            f"{name}, line {number}: after the image id stands {shown[:100]!r}, "
            "where there must be five finite numbers: score x1 y1 x2 y2"
        )
    if max(map(abs, values[1:])) > _FARTHEST:
        raise ResultFileError(f"{name}, line {number}: a corner beyond {_FARTHEST:,} pixels is none of an image")
    return values
