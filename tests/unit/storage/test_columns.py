from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.columns import (
    BOX,
    WINDOW,
    box_column,
    boxes_of,
    map_column,
    vector_column,
    vector_type,
    vectors_of,
    window_column,
    windows_of,
)
from storage.schemas import schema

shapes = st.tuples(st.integers(0, 6), st.integers(1, 9))
bits = hnp.arrays(np.uint16, shapes)
boxes = hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(4)))
windows = hnp.arrays(np.int16, st.tuples(st.integers(0, 6), st.just(4)))

EXTREMES = np.array([[0.0, -0.0, 65504, -65504, 6e-8, -6e-8, 6.104e-5, 1.0]], np.float16)


def memory_of(column: pa.Array) -> np.ndarray:
    """The bytes behind the vectors of a column."""
    return np.frombuffer(column.values.buffers()[1], np.uint16)


def in_chunks(column: pa.Array, cuts) -> pa.ChunkedArray:
    edges = [0, *sorted(min(cut, len(column)) for cut in cuts), len(column)]
    return pa.chunked_array([column.slice(a, b - a) for a, b in pairwise(edges)], column.type)


# --- vectors ---


def test_the_type_of_vectors_has_no_nulls():
    kind = vector_type(12800)
    assert str(kind) == "fixed_size_list<element: halffloat not null>[12800]"
    assert (kind.list_size, kind.value_type, kind.value_field.nullable) == (12800, pa.float16(), False)
    assert vector_column(EXTREMES).type == vector_type(8)


@given(bits)
def test_vectors_come_back_bit_for_bit(patterns):
    column = vector_column(patterns.view(np.float16))
    column.validate(full=True)
    assert len(column) == len(patterns)
    assert np.array_equal(vectors_of(column).view(np.uint16), patterns)


def test_extreme_numbers_come_back_bit_for_bit():
    back = vectors_of(vector_column(EXTREMES))
    assert back.dtype == np.float16
    assert np.array_equal(back.view(np.uint16), EXTREMES.view(np.uint16))


@given(bits, st.data())
def test_a_slice_holds_its_own_vectors(patterns, data):
    start = data.draw(st.integers(0, len(patterns)))
    count = data.draw(st.integers(0, len(patterns) - start))
    part = vector_column(patterns.view(np.float16)).slice(start, count)
    assert np.array_equal(vectors_of(part).view(np.uint16), patterns[start : start + count])


@given(bits, st.lists(st.integers(0, 6), max_size=3))
def test_chunks_are_joined(patterns, cuts):
    column = in_chunks(vector_column(patterns.view(np.float16)), cuts)
    assert np.array_equal(vectors_of(column).view(np.uint16), patterns)


def test_a_column_without_chunks_is_empty():
    assert vectors_of(pa.chunked_array([], vector_type(5))).shape == (0, 5)
    assert boxes_of(pa.chunked_array([], BOX)).shape == (0, 4)
    assert windows_of(pa.chunked_array([], WINDOW)).shape == (0, 4)


def test_no_vector_is_copied_on_the_way_in():
    vectors = np.arange(24, dtype=np.float16).reshape(4, 6)
    column = vector_column(vectors)
    assert np.shares_memory(memory_of(column), vectors)


def test_no_vector_is_copied_on_the_way_out():
    column = vector_column(np.arange(24, dtype=np.float16).reshape(4, 6))
    for part in (column, column.slice(1, 2), pa.chunked_array([column])):
        array = part.chunk(0) if isinstance(part, pa.ChunkedArray) else part
        assert np.shares_memory(vectors_of(part), memory_of(array))


def test_vectors_of_a_column_are_read_only():
    back = vectors_of(vector_column(EXTREMES))
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1


# --- conv maps ---


@given(st.lists(hnp.arrays(np.uint16, st.tuples(*[st.integers(1, 4)] * 3)), max_size=4))
def test_maps_of_any_size_come_back_bit_for_bit(patterns):
    column = map_column([values.view(np.float16) for values in patterns])
    column.validate(full=True)
    assert column.type == schema("maps").field("map").type
    assert len(column) == len(patterns)
    for row, values in zip(column, patterns, strict=True):
        back = row.values.to_numpy(zero_copy_only=True).reshape(values.shape)
        assert np.array_equal(back.view(np.uint16), values)


# --- boxes and windows ---


@given(boxes)
def test_boxes_come_back_bit_for_bit(values):
    column = box_column(values)
    column.validate(full=True)
    assert column.type == BOX
    assert np.array_equal(boxes_of(column).view(np.uint32), values.view(np.uint32))


@given(windows)
def test_windows_come_back(values):
    column = window_column(values)
    column.validate(full=True)
    assert column.type == WINDOW
    assert np.array_equal(windows_of(column), values)
    assert windows_of(column).dtype == np.int16


@given(boxes, st.lists(st.integers(0, 6), max_size=3))
def test_boxes_of_chunks_and_slices_are_joined(values, cuts):
    column = in_chunks(box_column(values), cuts)
    assert np.array_equal(boxes_of(column).view(np.uint32), values.view(np.uint32))


def test_corners_keep_their_names():
    (box,) = box_column(np.array([[1, 2, 3.5, 4]])).to_pylist()
    assert box == {"x1": 1, "y1": 2, "x2": 3.5, "y2": 4}
    (window,) = window_column(np.array([[1, 2, 3, 4]])).to_pylist()
    assert window == {"cx1": 1, "cy1": 2, "cx2": 3, "cy2": 4}


def test_boxes_are_float32_and_windows_int16_without_nulls():
    assert [(f.name, f.type, f.nullable) for f in BOX] == [(n, pa.float32(), False) for n in ("x1", "y1", "x2", "y2")]
    assert [(f.name, f.type, f.nullable) for f in WINDOW] == [
        (name, pa.int16(), False) for name in ("cx1", "cy1", "cx2", "cy2")
    ]
