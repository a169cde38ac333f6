"""Boxes computed elsewhere: from Parquet, or from the .mat files of the R-CNN family.

Such files say nothing about how they count, so a ``BoxConvention`` must; it is checked against the images, never
guessed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.boxes import Boxes, as_boxes, from_inclusive
from pipeline.proposals.mat_file import MatError, read_cells

Order = Literal["xyxy", "yxyx"]
CORNERS = ("x1", "y1", "x2", "y2")
SUFFIXES = (".parquet", ".mat")
SLACK = 1.0
"""Pixels that a box may reach beyond its image, for the rounding of other programs; it is cut there."""

_OTHER_ORDER: dict[str, Order] = {"xyxy": "yxyx", "yxyx": "xyxy"}
_WRITTEN = {"xyxy": "[x1 y1 x2 y2]", "yxyx": "[y1 x1 y2 x2]"}


_Piece = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float64]]


class BoxFileError(ValueError):
    """The file cannot be used. The message says why, and what to do."""


@dataclass(frozen=True)
class BoxConvention:
    """How the four numbers of a box are meant.

    ``order``: of the corners. ``base``: number of the first pixel. ``inclusive``: whether x2 and y2 are the last
    pixels of the box, or the first ones after it.
    """

    order: Order
    base: int
    inclusive: bool

    def boxes(self, numbers: NDArray[Any]) -> Boxes:
        """Half-open boxes from 0, of ``numbers`` (N, 4) as the file has them."""
        values = as_boxes(numbers)
        if self.order == "yxyx":
            values = values[:, [1, 0, 3, 2]]
        return from_inclusive(values, self.base) if self.inclusive else values - np.float32(self.base)

    def problem(self, numbers: NDArray[Any], height: int, width: int) -> str | None:
        """What contradicts this convention in the boxes (N, 4) of a ``height`` x ``width`` image, and what they look
        like instead; None if nothing does: all have an area, and none reaches more than ``SLACK`` beyond the image."""
        bad = _misfits(self.boxes(numbers), height, width)
        if not bad.any():
            return None
        first = int(np.argmax(bad))
        shown = "[" + " ".join(f"{value:g}" for value in as_boxes(numbers)[first]) + "]"
        x1, y1, x2, y2 = self.boxes(numbers)[first]
        reason = "is reversed or empty" if x2 <= x1 or y2 <= y1 else "reaches outside the image"
        if not np.isfinite([x1, y1, x2, y2]).all():
            reason = "holds what is no number"
        return f"box {first} {shown} {reason} of {width} x {height} pixels{self._suggestion(numbers, height, width)}"

    def _suggestion(self, numbers: NDArray[Any], height: int, width: int) -> str:
        other = _OTHER_ORDER[self.order]
        corners = as_boxes(numbers).copy()
        corners[:, 2:] += corners[:, :2]
        guesses = (
            (BoxConvention(other, self.base, self.inclusive), f"{_WRITTEN[other]}: proposals.order {other}"),
            (BoxConvention(self.order, self.base, True), "boxes whose last pixels count: proposals.inclusive true"),
        )
        for convention, text in guesses:
            if not _misfits(convention.boxes(numbers), height, width).any():
                return f"; these look like {text}"
        if not _misfits(BoxConvention(self.order, self.base, False).boxes(corners), height, width).any():
            return "; these look like a corner, width and height: convert them to two corners"
        return "; these look like boxes of another image, or of another size of it"


def _misfits(boxes: Boxes, height: int, width: int) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = boxes.T
    fits: NDArray[np.bool_] = (x1 < x2) & (y1 < y2)  # nor NaN
    fits &= (x1 >= -SLACK) & (y1 >= -SLACK) & (x2 <= width + SLACK) & (y2 <= height + SLACK)
    return ~fits


def read_mat(file: IO[bytes], image_ids: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Image id to numbers (N, 4), of those of ``image_ids`` that the .mat file has.

    It holds the cell arrays ``images`` (names) and ``boxes`` (N x 4), as ``selective_search_data/voc_2007_*.mat`` of
    R-CNN and Fast R-CNN do. Raises BoxFileError.
    """
    wanted = set(image_ids)
    try:
        names, values = read_cells(file.read())
    except MatError as error:
        raise BoxFileError(str(error)) from error
    found = {name: numbers for name, numbers in zip(names, values, strict=True) if name in wanted}
    _check_found(found, wanted, names[:1])
    return found


def read_parquet(file: IO[bytes], image_ids: Collection[str], order: Order) -> dict[str, NDArray[np.float32]]:
    """Image id to numbers (N, 4), of those of ``image_ids`` that the Parquet file has, in the file's order.

    Columns: ``image_id``, and ``x1 y1 x2 y2`` or a struct of these or a list of four numbers ``box``. By ``score``,
    if there is one, an image's boxes are ranked, highest first. The file is read piece by piece. Raises BoxFileError.
    """
    try:
        parquet = pq.ParquetFile(file)
        columns, named = _columns(parquet.schema_arrow)
        if named and order != "xyxy":
            raise BoxFileError("its columns are named x1 y1 x2 y2, which is proposals.order xyxy")
        wanted = pa.array(sorted(set(image_ids)), pa.string())
        pieces: list[_Piece] = []
        first: list[str] = []
        for batch in parquet.iter_batches(columns=columns):
            table = pa.Table.from_batches([batch])
            table = table.set_column(
                table.schema.get_field_index("image_id"), "image_id", table["image_id"].cast(pa.string())
            )
            first = first or table["image_id"].slice(0, 1).to_pylist()
            pieces.append(_numbers(table.filter(pc.is_in(table["image_id"], wanted))))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of damaged names of columns
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the store, not the file
        raise BoxFileError(f"it is no Parquet file that can be read: {error}") from error
    ids = np.concatenate([piece[0] for piece in pieces]) if pieces else np.empty(0, object)
    numbers = np.concatenate([piece[1] for piece in pieces]) if pieces else as_boxes([])
    scores = np.concatenate([piece[2] for piece in pieces]) if pieces else np.empty(0)
    codes = np.searchsorted(np.array(wanted.to_pylist(), object), ids) if len(ids) else np.empty(0, int)
    ranking = np.lexsort((-scores, codes))  # stable: equal scores stay in the file's order
    codes, numbers = codes[ranking], numbers[ranking]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    parts = np.split(numbers, starts[1:])
    found = {wanted[int(codes[start])].as_py(): part for start, part in zip(starts, parts, strict=False)}
    _check_found(found, set(image_ids), first)
    return found


def _columns(schema: pa.Schema) -> tuple[list[str], bool]:
    """The columns to read, and whether the corners have names of their own."""
    there = f"it has the columns {', '.join(schema.names)}"
    if "image_id" not in schema.names:
        raise BoxFileError(f"it has no column image_id; {there}")
    kind = schema.field("image_id").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BoxFileError(f"image_id is {kind}; it must be text, as in the splits ('000005' is not 5)")
    score = ["score"] if "score" in schema.names else []
    if set(CORNERS) <= set(schema.names):
        return ["image_id", *CORNERS, *score], True
    if "box" in schema.names:
        kind = schema.field("box").type
        if pa.types.is_struct(kind) and {field.name for field in kind} >= set(CORNERS):
            return ["image_id", "box", *score], True
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return ["image_id", "box", *score], False
    raise BoxFileError(f"it needs the columns x1 y1 x2 y2, or box, a struct of these or a list of four; {there}")


def _numbers(table: pa.Table) -> _Piece:
    """Ids, numbers (N, 4) and scores of a piece."""
    if not len(table):
        return np.empty(0, object), as_boxes([]), np.empty(0)
    if "box" not in table.column_names:
        corners = [table[name].combine_chunks() for name in CORNERS]
    else:
        box = table["box"].combine_chunks()
        if box.null_count:
            raise BoxFileError("its column box has nulls")
        if pa.types.is_struct(box.type):
            corners = [pc.struct_field(box, name) for name in CORNERS]
        else:
            if not pc.all(pc.equal(pc.list_value_length(box), 4)).as_py():
                raise BoxFileError("its column box must hold four numbers each")
            corners = [pc.list_element(box, i) for i in range(4)]
    columns = [_floats(corner, "box") for corner in corners]
    score = _floats(table["score"].combine_chunks(), "score") if "score" in table.column_names else np.zeros(len(table))
    if not np.isfinite(score).all():
        raise BoxFileError("its column score holds what is no number")
    return table["image_id"].to_numpy(), np.stack(columns, axis=1).astype(np.float32), score


def _floats(values: pa.Array, name: str) -> NDArray[np.float64]:
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise BoxFileError(f"its column {name} has nulls, or is not of numbers ({values.type})")
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _check_found(found: Collection[str], wanted: Collection[str], first: list[str]) -> None:
    if wanted and not found:
        example = f"; its first is {first[0]!r}, the data set's {min(wanted)!r}" if first else ""
        raise BoxFileError(f"it has no box of any image of the data set{example}")
