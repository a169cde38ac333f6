"""Result files and box files drawn from a grammar: measured, or refused in one line; no warning of a number either."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.config.evaluate import EvaluateConfig
from jobs.dataset.index import Index
from jobs.errors import UsageError
from jobs.evaluate.driver import evaluate_files
from pipeline.proposals.box_files import BoxConvention, BoxFileError, read_parquet
from storage.schemas import schema

EXAMPLES = int(os.environ.get("SPP_FUZZ", "100"))

IDS = ["im-1", "im-2", "000001", "ü", "a%2Fb"]
CLASSES = ["dog", "Dog", "a/b", "hot dog", "ü"]
numbers = st.floats(width=32).map(repr) | st.floats().map(repr) | st.integers(-50, 200).map(str)
words = numbers | st.sampled_from(
    ["", "1e999", "-inf", "NaN", "1_0", "0x1", "\u0661", "1,5", "+1", "1.", ".5", "-0", "\ufeff"]
)
separators = st.sampled_from([" ", " ", " ", " ", "\t", "  ", ",", "\u00a0", "\x1c", "\v"])
good = st.tuples(st.sampled_from(IDS), numbers, *[st.integers(-20, 200).map(str)] * 4).map(" ".join)


@st.composite
def lines(draw) -> str:
    """A line that is good, or nearly."""
    if draw(st.booleans()):
        return draw(good)
    parts = [draw(st.sampled_from(IDS) | st.text(max_size=5))]
    parts += draw(st.lists(words, min_size=3, max_size=7))
    return "".join(part + draw(separators) for part in parts)


@st.composite
def files(draw) -> tuple[str, bytes]:
    """A name and its bytes."""
    ends = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\x85", "\u2028", "\n\n", ""])
    text = "".join(draw(lines()) + draw(ends) for _ in range(draw(st.integers(0, 4)))).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(max_size=3)) + text[place:]
    class_name = draw(
        st.sampled_from(["dog", "Dog", "a%2Fb", "hot dog", "ü", "cat", "", "%FF", "..", "a%00"]) | st.text(max_size=3)
    )
    start = draw(
        st.sampled_from(["comp4_det_test_", "comp4_det_test_", "comp3_det_val_", "comp4_x_det_test_", "comp5_", ""])
    )
    return f"{start}{class_name}{draw(st.sampled_from(['.txt', '.txt', '.txt', '', '.TXT']))}", text


@st.composite
def indices(draw) -> Index:
    """A data set of a few images and objects."""
    images = [
        {"image_id": i, "uri": i, "width": 100, "height": 100, "splits": ["test"], "digest": i} for i in sorted(IDS)
    ]
    objects = [
        {
            "image_id": draw(st.sampled_from(IDS)),
            "object_id": number,
            "class_name": draw(st.sampled_from(CLASSES)),
            "box": {"x1": 10, "y1": 10, "x2": 10 + draw(st.integers(1, 50)), "y2": 60},
            "difficult": draw(st.booleans()),
            "truncated": False,
        }
        for number in range(draw(st.integers(0, 4)))
    ]
    layout = schema("objects")
    kept = [{name: row[name] for name in layout.names} for row in objects]
    return Index(pa.Table.from_pylist(images, schema=schema("images")), pa.Table.from_pylist(kept, schema=layout), ())


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(indices(), st.lists(files(), max_size=3))
def test_any_result_files_are_measured_or_refused_in_one_line(index, found):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            measured = evaluate_files(EvaluateConfig(), index, ["test"], dict(found))
        except UsageError:
            return
    assert measured.map_area is None or 0 <= measured.map_area <= 1
    assert len(measured.classes) == len(index.class_names())


kinds = st.sampled_from(
    [pa.string(), pa.large_string(), pa.int64(), pa.float64(), pa.float32(), pa.float16(), pa.bool_()]
)


@st.composite
def columns(draw, count: int) -> pa.Array:
    """A column of numbers or text, some of them missing, or of lists or structs of them."""
    kind = draw(kinds)
    cell = {
        "string": st.sampled_from(IDS),
        "large_string": st.sampled_from(IDS),
        "int64": st.integers(-5, 1 << 40),
        "bool": st.booleans(),
    }.get(str(kind), st.floats(width=16).map(np.float16 if kind == pa.float16() else float))
    cells = draw(st.lists(cell | st.none() if draw(st.booleans()) else cell, min_size=4 * count, max_size=4 * count))
    shape = draw(st.integers(0, 3))
    if shape == 1:
        sizes = draw(st.lists(st.sampled_from([4, 4, 4, 3, 0]), min_size=count, max_size=count))
        return pa.ListArray.from_arrays(np.cumsum([0, *sizes]).astype(np.int32), pa.array(cells, kind))
    if shape == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(cells, kind), 4)
    if shape == 3:
        parts = [pa.array(cells[i::4], kind) for i in range(4)]
        return pa.StructArray.from_arrays(parts, ["x1", "y1", "x2", draw(st.sampled_from(["y2", "z"]))])
    return pa.array(cells[:count], kind)


@st.composite
def box_files(draw) -> bytes:
    """A Parquet file that is nearly one of boxes, perhaps damaged."""
    count = draw(st.integers(0, 4))
    names = draw(
        st.sampled_from(
            [
                ("image_id", "x1", "y1", "x2", "y2"),
                ("image_id", "box"),
                ("image_id", "box", "score"),
                ("box",),
                ("image_id",),
            ]
        )
    )
    parts = {name: draw(columns(count)) for name in names}
    if "image_id" in parts and draw(st.integers(0, 3)):
        parts["image_id"] = pa.array(draw(st.lists(st.sampled_from(IDS), min_size=count, max_size=count)), pa.string())
    out = io.BytesIO()
    pq.write_table(pa.table(parts), out)
    data = bytearray(out.getvalue())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.sampled_from([None, None, None, -9, 4, 0]))])


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(box_files(), st.sampled_from(["xyxy", "yxyx"]), st.sampled_from([0, 1]), st.booleans())
def test_any_box_file_is_read_or_refused_in_one_line(data, order, base, inclusive):
    convention = BoxConvention(order, base, inclusive)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            found = read_parquet(io.BytesIO(data), IDS, order)
        except BoxFileError:
            return
        for numbers in found.values():
            if convention.problem(numbers, 100, 100) is None:
                assert np.isfinite(convention.boxes(numbers)).all()
