import glob
import json
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes
from pipeline.measures.result_files import (
    ResultFileError,
    coco_categories,
    coco_category_ids,
    coco_lines,
    parse_voc_file_name,
    read_voc,
    voc_file_name,
    voc_file_names,
    voc_lines,
)

NAME = "comp4_det_test_dog.txt"
coordinates = st.floats(-100, 8000, width=32)
detections = st.lists(
    st.tuples(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12),
        st.floats(-1e6, 1e6, width=32),
        st.tuples(coordinates, coordinates, coordinates, coordinates),
    ),
    max_size=6,
)


def columns(rows):
    ids, scores = [row[0] for row in rows], np.array([row[1] for row in rows], np.float32)
    return ids, scores, as_boxes([row[2] for row in rows])


@given(detections)
def test_voc_lines_are_read_back(rows):
    ids, scores, boxes = columns(rows)
    read = read_voc(NAME, "".join(voc_lines(ids, scores, boxes)))
    assert (read.split, read.class_name, list(read.image_ids)) == ("test", "dog", ids)
    np.testing.assert_array_equal(read.scores.astype(np.float32), scores)
    assert read.boxes.dtype == np.float32
    np.testing.assert_allclose(read.boxes, boxes, rtol=0, atol=1e-3)


def test_voc_counts_from_one_and_includes_the_last_pixel():
    lines = list(voc_lines(["000012"], np.array([0.25], np.float32), as_boxes([[0, 9, 100, 20.5]])))
    assert lines == ["000012 0.25 1.0000 10.0000 100.0000 20.5000\n"]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_scores_that_differ_stay_apart(kind):
    scores = np.array([0.1, np.nextafter(kind(0.1), kind(1)), 1e-30], kind)
    read = read_voc(NAME, voc_lines(["a"] * 3, scores, as_boxes([[0, 0, 1, 1]] * 3)))
    np.testing.assert_array_equal(read.scores.astype(kind), scores)


@pytest.mark.parametrize("as_given", ["text", "bytes", "lines"])
def test_a_results_file_is_read_from_text_bytes_or_lines(as_given):
    text = "000001 0.5 1 1 10 20\n\n000002\t-1e-3 -6.39 2 3 4\r\n"
    lines = {"text": text, "bytes": text.encode(), "lines": iter(text.splitlines(keepends=True))}[as_given]
    read = read_voc(NAME, lines)
    assert read.image_ids == ("000001", "000002")
    assert read.scores.tolist() == [0.5, -0.001]
    np.testing.assert_allclose(read.boxes, [[0, 0, 10, 20], [-7.39, 1, 3, 4]], atol=1e-6)


def test_an_empty_results_file_has_no_detections():
    assert "".join(voc_lines([], np.empty(0, np.float32), as_boxes([]))) == ""
    read = read_voc(NAME, "")
    assert (read.image_ids, read.scores.shape, read.boxes.shape) == ((), (0,), (0, 4))


@pytest.mark.parametrize(
    "line", ["000002 0.5 1 1 10", "000002 0.5 1 1 10 20 30", "000002 high 1 1 10 20", "000002 nan 1 1 10 20", "000002"]
)
def test_a_malformed_line_is_named(line):
    with pytest.raises(ResultFileError, match=rf"{NAME}, line 3: .*score x1 y1 x2 y2"):
        read_voc(NAME, f"000001 0.5 1 1 10 20\n\n{line}\n")


def test_bytes_that_are_no_text_are_named():
    with pytest.raises(ResultFileError, match=f"{NAME}, line 2: not UTF-8"):
        read_voc(NAME, b"000001 0.5 1 1 10 20\n\xff 0.5 1 1 10 20\n")


@pytest.mark.parametrize(("split", "class_name"), [("test", "dog"), ("trainval", "traffic_light"), ("val", "hot dog")])
def test_file_names_are_read_back(split, class_name):
    assert parse_voc_file_name(voc_file_name(split, class_name)) == (split, class_name)


def test_the_names_of_others_are_read():
    assert parse_voc_file_name("comp3_det_val_cow.txt") == ("val", "cow")
    assert parse_voc_file_name("comp4_0e1c2e64-2f4b_det_test_potted_plant.txt") == ("test", "potted_plant")


@pytest.mark.parametrize(
    "name", ["dog.txt", "comp4_cls_test_dog.txt", "comp4_det_test_.txt", "comp4_det_test_dog.txt~"]
)
def test_a_file_of_another_name_is_refused(name):
    with pytest.raises(ResultFileError, match=r"comp4_det_<split>_<class>\.txt"):
        read_voc(name, "")


@pytest.mark.parametrize(
    ("split", "class_name"),
    [("my_test", "dog"), ("", "dog"), ("test", ""), ("te/st", "a"), ("..\\x", "a"), ("a*", "dog"), ("test", "x" * 300)],
)
def test_a_name_that_could_not_be_read_back_is_not_written(split, class_name):
    with pytest.raises(ValueError, match="rename"):
        voc_file_name(split, class_name)


@given(st.lists(st.text(min_size=1, max_size=40), unique=True, min_size=1, max_size=6))
@example(["../../x", "a/b", "a\\b", "CON", "\0", "a%2Fb", "%", "\n", ".", "..", " ", "~", "::", "\u2028"])
@example(["Dog", "dog", "DOG", "%44og"])
@example(["\u00e9", "e\u0301", "\u212b", "\u00c5", "stra\u00dfe", "strasse", "\ufb01", "fi"])
def test_any_classes_have_files_of_their_own_in_one_folder(classes):
    names = voc_file_names("test", [name for name in classes if is_text(name)])
    folded = {unicodedata.normalize("NFKC", name).casefold() for name in names.values()}
    assert len(folded) == len(names), "nor are two one file where case does not count"
    for class_name, name in names.items():
        assert parse_voc_file_name(name) == ("test", class_name)
        assert not set(name) & set('/\\:*?"<>|[]#\0\n\r')
        assert PurePosixPath("out", name).parent == PurePosixPath("out")
        assert PureWindowsPath("out", name).parent == PureWindowsPath("out")
        assert not PureWindowsPath(name).is_reserved()
        assert glob.escape(name) == name


def is_text(name: str) -> bool:
    """Whether a name has no half of a surrogate pair: no annotation can have one."""
    return name == name.encode(errors="replace").decode()


def test_a_class_keeps_its_name_where_that_can_be_a_file_s():
    classes = ["dog", "traffic_light", "hot dog", "100%", "Ä", "it's", ".x", "-"]
    assert voc_file_names("val", classes) == {name: f"comp4_det_val_{name}.txt" for name in classes}


@pytest.mark.parametrize("image_id", ["", "two words", "line\n", " 1"])
def test_an_image_id_with_white_space_is_not_written(image_id):
    with pytest.raises(ValueError, match="white space"):
        voc_lines([image_id], np.ones(1, np.float32), as_boxes([[0, 0, 1, 1]]))


@given(detections)
def test_coco_rows_are_read_back(rows):
    ids, scores, boxes = columns(rows)
    found = json.loads("".join(coco_lines(ids, ["dog"] * len(ids), scores, boxes, {"cat": 17, "dog": 18})))
    assert [row["image_id"] for row in found] == ids
    assert all(row.keys() == {"image_id", "category_id", "bbox", "score"} for row in found)
    assert all(row["category_id"] == 18 for row in found)
    np.testing.assert_array_equal(np.array([row["score"] for row in found], np.float32), scores)
    xywh = np.array([row["bbox"] for row in found]).reshape(-1, 4)
    np.testing.assert_allclose(xywh[:, :2], boxes[:, :2], atol=1e-3)
    np.testing.assert_allclose(xywh[:, 2:], boxes[:, 2:] - boxes[:, :2], atol=1e-3)


def test_coco_boxes_are_a_corner_width_and_height():
    lines = list(coco_lines(["a"], ["dog"], np.array([0.1], np.float32), as_boxes([[1, 2, 4.5, 8]]), {"dog": 3}))
    assert json.loads("".join(lines)) == [
        {"image_id": "a", "category_id": 3, "bbox": [1.0, 2.0, 3.5, 6.0], "score": 0.1}
    ]
    assert all(line.endswith("\n") for line in "".join(lines).splitlines(keepends=True))


@pytest.mark.parametrize("ids", [[397133, 7], np.array([397133, 7])])
def test_coco_image_numbers_stay_numbers(ids):
    boxes = as_boxes([[0, 0, 1, 1], [0, 0, 2, 2]])
    found = json.loads("".join(coco_lines(ids, ["dog", "dog"], np.ones(2, np.float32), boxes, {"dog": 1})))
    assert [row["image_id"] for row in found] == [397133, 7]


def test_coco_ids_of_an_array_of_strings_are_strings():
    ids = np.array(["000001"])
    found = json.loads("".join(coco_lines(ids, np.array(["dog"]), np.ones(1), as_boxes([[0, 0, 1, 1]]), {"dog": 1})))
    assert found[0]["image_id"] == "000001"


def test_no_detections_are_an_empty_list():
    assert json.loads("".join(coco_lines([], [], np.empty(0), as_boxes([]), {}))) == []


def test_categories_are_numbered_from_one():
    ids = coco_category_ids(["dog", "cat"])
    assert coco_categories(ids) == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    with pytest.raises(ValueError, match="differ"):
        coco_category_ids(["dog", "dog"])


def test_a_class_without_a_number_is_refused():
    with pytest.raises(ValueError, match="no COCO category id for emu; there are: cat, dog"):
        coco_lines(["a"], ["emu"], np.ones(1), as_boxes([[0, 0, 1, 1]]), {"cat": 1, "dog": 2})


def write_voc(scores, boxes):
    return voc_lines(["a"], scores, boxes)


def write_coco(scores, boxes):
    return coco_lines(["a"], ["dog"], scores, boxes, {"dog": 1})


@pytest.mark.parametrize("write", [write_voc, write_coco])
@pytest.mark.parametrize(
    ("scores", "box", "message"),
    [([np.nan], [0, 0, 1, 1], "finite"), ([1], [0, 0, np.inf, 1], "finite"), ([1, 2], [0, 0, 1, 1], "as many")],
)
def test_what_cannot_be_written_is_refused_before_the_first_line(write, scores, box, message):
    with pytest.raises(ValueError, match=message):
        write(np.array(scores), as_boxes([box]))
