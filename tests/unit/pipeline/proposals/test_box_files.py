import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from pipeline.boxes import to_inclusive
from pipeline.proposals.box_files import BoxConvention, BoxFileError, read_mat, read_parquet
from pipeline.proposals.methods import keep_given

HALF_OPEN = BoxConvention("xyxy", 0, False)
RCNN = BoxConvention("yxyx", 1, True)
"""As selective_search_data has it."""


def parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return io.BytesIO(file.getvalue())


def mat(images, boxes, **more):
    """Cell arrays as MATLAB writes them: (N, 1) and (1, N) of object arrays."""
    names, cells = np.empty((len(images), 1), object), np.empty((1, len(boxes)), object)
    for number, name in enumerate(images):
        names[number, 0] = name
    for number, values in enumerate(boxes):
        cells[0, number] = np.array(values, float)
    file = io.BytesIO()
    savemat(file, {"images": names, "boxes": cells, **more})
    return io.BytesIO(file.getvalue())


# --- what the numbers mean ---


@pytest.mark.parametrize(
    ("convention", "written"),
    [
        (HALF_OPEN, [2, 3, 10, 20]),
        (BoxConvention("xyxy", 0, True), [2, 3, 9, 19]),
        (BoxConvention("xyxy", 1, True), [3, 4, 10, 20]),
        (BoxConvention("xyxy", 1, False), [3, 4, 11, 21]),
        (RCNN, [4, 3, 20, 10]),
    ],
)
def test_each_convention_writes_the_same_box_its_own_way(convention, written):
    assert convention.boxes(np.array([written])).tolist() == [[2, 3, 10, 20]]
    assert convention.problem(np.array([written]), 30, 40) is None


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=5))
def test_rcnn_boxes_are_those_of_voc_with_x_and_y_exchanged(corners):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32)
    assert np.array_equal(RCNN.boxes(to_inclusive(boxes, 1)[:, [1, 0, 3, 2]]), boxes)


@pytest.mark.parametrize(
    ("convention", "numbers", "says"),
    [
        (HALF_OPEN, [[0, 0, 5, 5], [3, 2, 28, 39]], "box 1 [3 2 28 39] reaches outside the image of 40 x 30 pixels"),
        (HALF_OPEN, [[3, 2, 28, 39]], "these look like [y1 x1 y2 x2]: proposals.order yxyx"),
        (RCNN, [[3, 2, 39, 28]], "these look like [x1 y1 x2 y2]: proposals.order xyxy"),
        (HALF_OPEN, [[20, 20, 8, 9]], "is reversed or empty"),
        (HALF_OPEN, [[20, 20, 8, 9]], "these look like a corner, width and height"),
        (HALF_OPEN, [[7, 5, 7, 9]], "boxes whose last pixels count: proposals.inclusive true"),
        (HALF_OPEN, [[0, 0, 400, 300]], "these look like boxes of another image, or of another size of it"),
        (HALF_OPEN, [[0, 0, np.nan, 3]], "holds what is no number"),
        (HALF_OPEN, [[-1.5, 0, 9, 9]], "reaches outside"),
    ],
)
def test_a_contradiction_says_what_the_boxes_look_like(convention, numbers, says):
    assert says in convention.problem(np.array(numbers), 30, 40)


def test_a_pixel_beyond_the_image_is_no_contradiction_and_is_cut():
    numbers = np.array([[-1, -1, 41, 31], [40, 3, 41, 9], [2, 2, 9, 9], [2, 2, 9, 9]], np.float32)
    assert HALF_OPEN.problem(numbers, 30, 40) is None
    assert keep_given(numbers, 30, 40).tolist() == [[0, 0, 40, 30], [2, 2, 9, 9]]
    assert keep_given(numbers, 30, 40, max_boxes=1).tolist() == [[0, 0, 40, 30]]
    assert keep_given(None, 30, 40).shape == (0, 4)


def test_no_boxes_contradict_nothing():
    assert HALF_OPEN.problem(np.empty((0, 4)), 30, 40) is None


# --- Parquet ---

IDS = ["b", "a", "b", "c"]
NUMBERS = [[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2, 3], [9, 9, 10, 10]]


def forms():
    corners = dict(zip(("x1", "y1", "x2", "y2"), np.array(NUMBERS).T, strict=True))
    yield {"image_id": IDS, **corners}
    yield {"image_id": pa.array(IDS).dictionary_encode(), **{k: v.astype(np.float32) for k, v in corners.items()}}
    yield {"image_id": IDS, "box": [dict(zip(corners, row, strict=True)) for row in NUMBERS]}
    yield {"image_id": IDS, "box": NUMBERS}
    yield {"image_id": IDS, "box": pa.array(NUMBERS, pa.list_(pa.int64(), 4)), "other": ["x"] * 4}


@pytest.mark.parametrize("form", range(5))
@pytest.mark.parametrize("rows", [1, 100])
def test_every_form_of_parquet_gives_the_same_numbers(form, rows):
    found = read_parquet(parquet(list(forms())[form], row_group_size=rows), ["a", "b", "z"], "xyxy")
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [NUMBERS[1]],
        "b": [NUMBERS[0], NUMBERS[2]],
    }


def test_a_score_ranks_and_equal_scores_stay_in_order():
    columns = {"image_id": ["a"] * 4, "box": NUMBERS, "score": [0.5, 0.9, 0.5, 0.7]}
    assert read_parquet(parquet(columns), ["a"], "xyxy")["a"].tolist() == [NUMBERS[i] for i in (1, 3, 0, 2)]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": ["a"], "box": [[1, 2, 3, 4]]}, "no column image_id; it has the columns id, box"),
        ({"image_id": [5], "box": [[1, 2, 3, 4]]}, "image_id is int64; it must be text"),
        ({"image_id": ["a"], "x1": [1]}, "needs the columns x1 y1 x2 y2, or box"),
        ({"image_id": ["a"], "box": [[1, 2, 3]]}, "must hold four numbers each"),
        ({"image_id": ["a"], "box": [["1", "2", "3", "4"]]}, "is not of numbers"),
        ({"image_id": ["a"], "box": pa.array([None], pa.list_(pa.int64()))}, "box has nulls"),
        ({"image_id": ["a"], "box": [[1, 2, 3, None]]}, "has nulls"),
        ({"image_id": ["a"], "box": [[1, 2, 3, 4]], "score": [np.nan]}, "score holds what is no number"),
        ({"image_id": ["z.jpg"], "box": [[1, 2, 3, 4]]}, "no box of any image of the data set; its first is 'z.jpg'"),
    ],
)
def test_parquet_of_another_kind_is_refused_with_the_reason(columns, says):
    with pytest.raises(BoxFileError, match=says.replace("(", r"\(")):
        read_parquet(parquet(columns), ["a"], "xyxy")


def test_columns_with_names_have_one_order():
    with pytest.raises(BoxFileError, match=r"which is proposals\.order xyxy"):
        read_parquet(parquet(next(forms())), ["a"], "yxyx")


# --- .mat ---


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_the_reason_comes_through_whatever_the_streams_encode(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with pytest.raises(BoxFileError, match="image 'tést' stands in it twice"):
        read_mat(mat(["tést", "tést"], [NUMBERS, NUMBERS]), ["tést"])


def test_a_mat_of_rcnn_gives_its_numbers():
    file = mat(["000005", "000007", "000009"], [NUMBERS[:2], np.empty((0, 0)), NUMBERS[2:]])
    found = read_mat(file, ["000005", "000007", "1"])
    assert found["000005"].tolist() == NUMBERS[:2]
    assert found["000007"].shape == (0, 4)
    assert set(found) == {"000005", "000007"}


def test_a_mat_of_another_kind_is_refused_with_the_reason():
    for file, says in (
        (mat(["a"], []), "must be cell arrays of one length"),
        (mat(["a", "a"], [NUMBERS, NUMBERS]), "'a' stands in it twice"),
        (mat(["a"], [[[1, 2, 3]]]), r"shape \(1, 3\), not N x 4"),
        (mat([7.0], [NUMBERS]), "images must hold the names"),
        (mat(["z"], [NUMBERS]), "its first is 'z', the data set's 'a'"),
    ):
        with pytest.raises(BoxFileError, match=says):
            read_mat(file, ["a"])
    file = io.BytesIO()
    savemat(file, {"images": np.zeros(3)})
    with pytest.raises(BoxFileError, match="no cell array 'boxes'"):
        read_mat(io.BytesIO(file.getvalue()), ["a"])


# --- damaged files ---


@given(st.data())
def test_a_damaged_parquet_gives_numbers_or_an_error(data):
    damaged = bytearray(parquet(next(forms())).getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = io.BytesIO(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        found = read_parquet(file, ["a"], "xyxy")
    except BoxFileError:
        return
    assert all(values.shape[1] == 4 for values in found.values())


@pytest.mark.parametrize("place", [0, 126, 130, 140, 160, 200, 250, None])
def test_a_damaged_mat_gives_numbers_or_an_error(place):
    """Some of these bring scipy down."""
    damaged = bytearray(mat(IDS[1:], [NUMBERS] * 3).getvalue())
    if place is None:
        del damaged[len(damaged) // 2 :]
    else:
        damaged[place : place + 2] = b"\xff\xff"
    try:
        found = read_mat(io.BytesIO(bytes(damaged)), ["a"])
    except BoxFileError:
        return
    assert all(values.shape[1] == 4 for values in found.values())


def test_a_reader_that_dies_is_an_error(monkeypatch):
    monkeypatch.setattr("pipeline.proposals.mat_file.__file__", "/no/such/script.py")
    with pytest.raises(BoxFileError, match="its reader died"):
        read_mat(mat(["a"], [NUMBERS]), ["a"])
