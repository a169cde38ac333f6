import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import AnnotationError
from pipeline.images.voc_annotation import MAX_BYTES, MAX_OBJECTS, parse_annotation, stated_size


def an_object(name="dog", box=(1, 2, 30, 40), difficult=None, truncated=None):
    tags = {"xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]}
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags.items() if value is not None)
    flags = {"difficult": difficult, "truncated": truncated}
    flags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in flags.items() if value is not None)
    return f"<object><name>{name}</name>{flags}<bndbox>{corners}</bndbox></object>"


def annotation(*objects, size=(50, 60), head=""):
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"{head}<annotation><folder>VOC</folder>{stated}{''.join(objects)}</annotation>".encode()


def parse(*objects, **options):
    """Of an image of 50 x 60 pixels (width x height)."""
    return parse_annotation(annotation(*objects, **options), height=60, width=50)


# --- boxes ---


def test_a_box_becomes_half_open_from_0():
    found = parse(an_object(box=(1, 2, 30, 40)))
    assert found.boxes.tolist() == [[0, 1, 30, 40]]
    assert found.boxes.dtype == np.float32
    assert found.notes == ()


def test_a_box_of_the_whole_image_is_not_cut():
    found = parse(an_object(box=(1, 1, 50, 60)))
    assert found.boxes.tolist() == [[0, 0, 50, 60]]
    assert found.notes == ()


def test_a_box_of_one_pixel_stays():
    assert parse(an_object(box=(7, 8, 7, 8))).boxes.tolist() == [[6, 7, 7, 8]]


def test_fractions_are_kept():
    # VOC2011 has some
    assert parse(an_object(box=("45.70", "3.25", " 49.5 ", "1e1"))).boxes.tolist() == [
        [np.float32(44.7), 2.25, 49.5, 10]
    ]


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((0, 0, 30, 40), (0, 0, 30, 40)),
        ((-5, 2, 30, 40), (0, 1, 30, 40)),
        ((10, 20, 51, 61), (9, 19, 50, 60)),
        ((10, 20, "1e8", 40), (9, 19, 50, 40)),
    ],
)
def test_a_box_beyond_the_image_is_cut_and_noted(box, cut):
    found = parse(an_object(box=box))
    assert found.boxes.tolist() == [list(cut)]
    assert len(found.notes) == 1
    assert "object 1 (dog)" in found.notes[0]
    assert "cut at the border of 50 x 60" in found.notes[0]


@pytest.mark.parametrize("box", [(30, 2, 10, 40), (1, 40, 30, 2), (51, 2, 60, 40), (1, 61, 30, 70), (-9, 2, 0, 40)])
def test_a_box_without_area_in_the_image_is_left_out_and_noted(box):
    found = parse(an_object("cat", box), an_object("dog"))
    assert found.class_names == ("dog",)
    assert found.boxes.shape == (1, 4)
    assert found.difficult == found.truncated == (False,)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("object 1 (cat) left out")


def test_no_objects_have_the_shape_of_boxes():
    found = parse()
    assert found.boxes.shape == (0, 4)
    assert found.class_names == found.difficult == found.truncated == found.notes == ()


# --- everything else ---


def test_objects_stay_in_order_with_their_flags():
    found = parse(
        an_object("dog", difficult=1, truncated=0), an_object("cat", difficult=0, truncated=1), an_object(" cow\n")
    )
    assert found.class_names == ("dog", "cat", "cow")
    assert found.difficult == (True, False, False)
    assert found.truncated == (False, True, False)


@pytest.mark.parametrize(
    ("text", "flag"), [("0", False), ("1", True), ("", False), (" ", False), (" 0 ", False), ("\n1\n", True)]
)
def test_a_flag_is_what_its_text_says(text, flag):
    assert parse(an_object(difficult=text, truncated=text)).difficult == (flag,)
    assert parse(an_object(difficult=text, truncated=text)).truncated == (flag,)


@pytest.mark.parametrize(
    ("texts", "flag"),
    [
        (("1.0", "01", "2", "-1", "0.35", "true", "Yes", "T", "<value>1</value>"), True),
        (("0.0", "00", "-0", "False", "no", "N", "none", "Unspecified", "unspecified"), False),
    ],
)
def test_a_flag_is_set_by_what_says_so(texts, flag):
    found = parse(*(an_object(difficult=text, truncated=text) for text in texts))
    assert (found.difficult, found.truncated, found.notes) == ((flag,) * len(texts), (flag,) * len(texts), ())


@pytest.mark.parametrize("text", ["maybe", "nan", "inf", "?", "0,5", "1_0", "0x1"])
@pytest.mark.parametrize("tag", ["difficult", "truncated"])
def test_a_flag_that_is_neither_yes_nor_no_is_not_set_and_noted(text, tag):
    found = parse(an_object(), *[an_object(**{tag: text})] * 3)
    assert getattr(found, tag) == (False,) * 4
    (note,) = found.notes
    assert note.startswith(f"<{tag}> is ")
    assert note.endswith("it is taken for 0; so it is for 3 of its objects, the first is object 2")


def test_flags_that_contradict_each_other_are_noted():
    twice = an_object(difficult="1").replace("<bndbox>", "<difficult>0</difficult><bndbox>")
    found = parse(twice)
    assert found.difficult == (False,)
    assert "<difficult> is '1' and '0', which is neither 0 nor 1" in found.notes[0]
    agreeing = an_object(difficult="1").replace("<bndbox>", "<difficult>true</difficult><bndbox>")
    assert (parse(agreeing).difficult, parse(agreeing).notes) == ((True,), ())


# --- more than one where one is meant ---


def bndbox(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def test_each_box_of_an_object_is_an_object():
    several = an_object(difficult=1).replace("</object>", bndbox(5, 5, 9, 9) + bndbox(11, 12, 13, 14) + "</object>")
    found = parse(an_object("cat"), several)
    assert found.class_names == ("cat", "dog", "dog", "dog")
    assert found.boxes[1:].tolist() == [[0, 1, 30, 40], [4, 4, 9, 9], [10, 11, 13, 14]]
    assert found.difficult == (False, True, True, True)
    assert found.notes == ("object 2 (dog) has 3 <bndbox>; each is taken as an object",)


def test_a_box_that_is_written_twice_is_one_object():
    found = parse(an_object().replace("</object>", bndbox("1.0", 2, 30, 40) + "</object>"))
    assert (len(found.boxes), found.notes) == (1, ())


def test_boxes_count_as_objects():
    many = "".join(bndbox(1, 1, 2 + n % 40, 2 + n // 40 / 10) for n in range(MAX_OBJECTS + 1))
    with pytest.raises(AnnotationError, match=f"more than {MAX_OBJECTS} objects"):
        parse(an_object().replace("</object>", many + "</object>"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "<name>dog</name>",
            "<name>dog</name><name>cat</name>",
            "several <name>: 'dog', 'cat'; write an object for each",
        ),
        ("<xmin>1</xmin>", "<xmin>1</xmin><xmin>7</xmin>", "several <xmin>: '1', '7'; write a <bndbox> for each"),
        ("<ymax>40</ymax>", "<ymax>40</ymax><ymax/>", "several <ymax>: '40', ''; write a <bndbox> for each"),
    ],
)
def test_several_names_or_corners_are_refused(old, new, message):
    with pytest.raises(AnnotationError, match=message):
        parse(an_object().replace(old, new))
    same = old + old.replace(">", " a='b'>", 1)
    assert parse(an_object().replace(old, same)).boxes.tolist() == parse(an_object()).boxes.tolist()


def test_several_sizes_that_differ_are_noted_and_none_is_believed():
    other = "<size><width>60</width><height>50</height></size>"
    xml = annotation(an_object()).replace(b"<object>", f"{other}<object>".encode())
    assert stated_size(xml) is None
    (note,) = parse_annotation(xml, 60, 50).notes
    assert note == "<size> says width 50, 60 and height 60, 50, the image is 50 x 60; the image is believed"


def test_annotations_of_several_images_in_one_file_are_refused():
    xml = b"<annotations>" + annotation(an_object()) * 2 + b"</annotations>"
    with pytest.raises(AnnotationError, match="holds 2 annotations; give each image a file of its own"):
        parse_annotation(xml, 60, 50)


# --- nothing found is not nothing there ---


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"<html><head><title>404</title></head></html>", "the root is <html> and not <annotation>"),
        (b"<dataset><images><image file='a'><box top='1'/></image></images></dataset>", "the root is <dataset>"),
        (b"<annotations><image id='0'><box label='a'/></image></annotations>", "the root is <annotations>"),
        (b"<Error><Code>AccessDenied</Code></Error>", "the root is <Error>"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the root is <{http://www.w3.org/2000/svg}svg>"),
        (b"<Annotation/>", "the root is <Annotation>"),
        (annotation(an_object()).replace(b"object>", b"Object>"), "<Object> is no <object>"),
        (annotation(an_object(), an_object()).replace(b"object>", b"OBJECT>", 2), "<OBJECT> is no <object>"),
        (annotation(an_object()).replace(b"<annotation>", b"<annotation xmlns='a:b'>"), "<{a:b}object> is no <object>"),
        (annotation(an_object()).decode().upper().encode(), "<OBJECT> is no <object>"),
    ],
)
def test_a_document_of_another_kind_is_refused(xml, message):
    with pytest.raises(AnnotationError, match=message):
        parse_annotation(xml, 60, 50)


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ("<objects><item><label>dog</label></item></objects>", "<label> is not read"),
        ("<box label='dog' xtl='1'/>", "<box> is not read"),
        ("<polygon>1 2 3 4</polygon><tag>dog</tag>", "<polygon>, <tag> are not read"),
        ("".join(f"<t{n}>1</t{n}>" for n in range(9)), "<t0>, <t1>, <t2>, <t3>, <t4> and 4 more are not read"),
    ],
)
def test_without_an_object_what_else_is_there_is_noted(inside, told):
    found = parse(inside)
    assert found.class_names == ()
    assert found.notes == (f"there is no <object>, but {told}; the image is one without objects",)


def test_what_voc_says_around_objects_is_no_object():
    around = "<filename>a.jpg</filename><path>/a/a.jpg</path><source><database>VOC</database><annotation>P</annotation>"
    around += "<image>flickr</image></source><owner><name>Me</name></owner><segmented>0</segmented><objects/>"
    assert parse(around).notes == ()


def test_another_root_around_objects_is_noted():
    found = parse_annotation(annotation(an_object()).replace(b"annotation>", b"doc>"), 60, 50)
    assert found.class_names == ("dog",)
    assert found.notes == ("the root is <doc> and not <annotation>; its objects are taken all the same",)


@pytest.mark.parametrize(("old", "new"), [("difficult", "Difficult"), ("truncated", "TRUNCATED"), ("size", "Size")])
def test_tags_that_are_only_like_those_that_are_read_are_noted(old, new):
    xml = annotation(an_object(difficult=1, truncated=1)).replace(f"{old}>".encode(), f"{new}>".encode())
    assert parse_annotation(xml, 60, 50).notes == (
        f"<{new}> is not read; write tags in small letters and without a namespace, as VOC does",
    )


@pytest.mark.parametrize(
    "name", ["baby  raccoon", "baby\n    raccoon", "\tbaby raccoon ", "baby\u00a0raccoon", "baby\u3000raccoon"]
)
def test_white_space_in_a_class_name_is_one_space(name):
    assert parse(an_object(name)).class_names == ("baby raccoon",)


@pytest.mark.parametrize(("width", "height"), [("50.0", "60.0"), (" 50 ", "60."), ("5e1", "060")])
def test_a_size_may_be_written_as_a_fraction(width, height):
    found = parse(an_object(), size=(width, height))
    assert found.notes == ()
    assert stated_size(annotation(size=(width, height))) == (60, 50)


def test_half_a_size_counts_as_far_as_it_goes():
    xml = b"<annotation><size><width>25</width></size></annotation>"
    assert stated_size(xml) is None
    assert parse_annotation(xml, 60, 50).notes == ("<size> says 25 x ?, the image is 50 x 60; the image is believed",)
    assert parse_annotation(xml, 60, 25).notes == ()


def test_parts_of_an_object_are_not_objects():
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    found = parse(an_object("person").replace("</object>", f"{part}</object>"))
    assert found.class_names == ("person",)
    assert found.boxes.tolist() == [[0, 1, 30, 40]]


def test_a_part_before_the_box_does_not_take_its_place():
    part = "<part><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    assert parse(an_object("person").replace("<bndbox>", f"{part}<bndbox>", 1)).boxes.tolist() == [[0, 1, 30, 40]]


def test_any_class_name_is_kept_as_it_is():
    found = parse(an_object("Hörnchen &amp; Nüsse"), head='<?xml version="1.0" encoding="UTF-8"?>')
    assert found.class_names == ("Hörnchen & Nüsse",)


def test_a_stated_encoding_is_followed():
    head = '<?xml version="1.0" encoding="iso-8859-1"?>'
    xml = annotation(an_object("Hörnchen"), head=head).decode().encode("iso-8859-1")
    assert parse_annotation(xml, 60, 50).class_names == ("Hörnchen",)


def test_the_image_is_believed_and_not_the_stated_size():
    found = parse(an_object(box=(1, 1, 50, 60)), size=(25, 30))
    assert found.boxes.tolist() == [[0, 0, 50, 60]]
    assert found.notes == ("<size> says 25 x 30, the image is 50 x 60; the image is believed",)


def test_an_annotation_need_not_state_a_size():
    assert parse(an_object(), size=None).notes == ()


# --- what is refused ---


@pytest.mark.parametrize("xml", [b"", b"not xml", b"<annotation>", b"<a></b>", b"\xff\xfe\x00", b"<annotation/>junk"])
def test_broken_xml_is_an_annotation_error(xml):
    with pytest.raises(AnnotationError, match="not valid XML"):
        parse_annotation(xml, 60, 50)


@pytest.mark.parametrize("encoding", ["foo", "base64", "utf-7", "utf-16", "big5"])
def test_an_encoding_that_cannot_be_read_is_an_annotation_error(encoding):
    with pytest.raises(AnnotationError, match="not valid XML"):
        parse(an_object(), head=f'<?xml version="1.0" encoding="{encoding}"?>')


def test_entity_bombs_are_refused_before_they_go_off():
    lols = "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE lolz [<!ENTITY lol0 "lol">{lols}]>'
    with pytest.raises(AnnotationError, match="not valid XML"):
        parse(an_object("&lol11;"), head=bomb)


def test_an_entity_of_its_own_is_refused_however_small():
    with pytest.raises(AnnotationError, match="not valid XML"):
        parse(an_object("&x;"), head='<!DOCTYPE a [<!ENTITY x "dog">]>')


def test_external_entities_are_refused_unread(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("word")
    with pytest.raises(AnnotationError, match="not valid XML") as error:
        parse(an_object("&x;"), head=f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]>')
    assert "word" not in str(error.value)


def test_an_object_without_a_name_is_an_annotation_error():
    for nameless in (an_object("  "), an_object().replace("<name>dog</name>", "")):
        with pytest.raises(AnnotationError, match="object 2 has no <name>"):
            parse(an_object(), nameless)


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "-inf", "1e400", "1,5", "1_0", None])
@pytest.mark.parametrize("corner", range(4))
def test_a_corner_that_is_no_number_is_an_annotation_error(corner, value):
    box = [1, 2, 30, 40]
    box[corner] = value
    tag = ("xmin", "ymin", "xmax", "ymax")[corner]
    with pytest.raises(AnnotationError, match=f"object 1: <bndbox/{tag}> is .*; a number is needed"):
        parse(an_object(box=box))


def test_an_annotation_of_too_many_bytes_or_objects_is_refused():
    with pytest.raises(AnnotationError, match=f"more than {MAX_BYTES}; shorten it"):
        parse_annotation(annotation() + b" " * MAX_BYTES, 60, 50)
    assert len(parse(an_object() * MAX_OBJECTS).boxes) == MAX_OBJECTS
    with pytest.raises(AnnotationError, match=f"more than {MAX_OBJECTS} objects"):
        parse(an_object() * (MAX_OBJECTS + 1))


@pytest.mark.parametrize(("size", "found"), [((50, 60), (60, 50)), (("5.5", 60), None), (("", ""), None), (None, None)])
def test_the_stated_size_is_height_and_width_or_nothing(size, found):
    assert stated_size(annotation(size=size)) == found


def test_deep_nesting_is_no_stack_overflow():
    deep = b"<a>" * 100_000 + b"</a>" * 100_000
    assert parse(deep.decode()).class_names == ()


# --- fuzz: an annotation or an AnnotationError, nothing else ---

_WHOLE = annotation(an_object(), an_object("cat", difficult=1), head='<?xml version="1.0" encoding="UTF-8"?>')
_PIECES = [
    b"<object>",
    b"</object>",
    b"<!DOCTYPE a>",
    b"&x;",
    b"&#0;",
    b"nan",
    b"1e39",
    b"-1e400",
    b"\xff\xfe",
    b"\x00",
]
_PIECES += [b'encoding="x"', b"<![CDATA[", b"<!--", b"<?pi?>", b"9" * 5000, b"<a:b/>", b'xmlns="a"', b"/", b"<", b'"']


def assert_annotation_or_error(xml):
    try:
        found = parse_annotation(xml, 60, 50)
    except AnnotationError:
        return
    counts = {len(found.class_names), len(found.boxes), len(found.difficult), len(found.truncated)}
    assert len(counts) == 1
    x1, y1, x2, y2 = found.boxes.T
    assert (x1 >= 0).all()
    assert (x1 < x2).all()
    assert (x2 <= 50).all()
    assert (y1 >= 0).all()
    assert (y1 < y2).all()
    assert (y2 <= 60).all()


@given(st.binary(max_size=200))
def test_any_bytes_give_an_annotation_or_an_error(xml):
    assert_annotation_or_error(xml)
    assert_annotation_or_error(b"<annotation>" + xml + b"</annotation>")


@given(
    st.lists(
        st.tuples(st.integers(0, len(_WHOLE)), st.integers(0, 9), st.binary(max_size=3) | st.sampled_from(_PIECES))
    )
)
def test_a_damaged_annotation_gives_an_annotation_or_an_error(edits):
    xml = _WHOLE
    for place, removed, put in edits:
        xml = xml[:place] + put + xml[place + removed :]
    assert_annotation_or_error(xml)


@given(st.lists(st.tuples(*[st.integers(-20, 90) | st.floats(-20, 90).map(lambda v: round(v, 2))] * 4), max_size=5))
def test_any_numbers_give_boxes_inside_the_image(boxes):
    assert_annotation_or_error(annotation(*(an_object(box=box) for box in boxes)))


# --- real annotations ---


def test_the_genuine_voc_2007_annotations_are_all_read(shared):
    """Every tenth of the 9,963 files: nothing to repair, no object left out."""
    objects = difficult = files = 0
    with tarfile.open(shared / "data/voc2007_annotations.tar.xz") as archive:
        for member in archive:
            if not member.name.endswith(".xml"):
                continue
            files += 1
            if files % 10:
                continue
            xml = archive.extractfile(member).read()
            width, height = (int(xml.split(f"<{tag}>".encode())[1].split(b"<")[0]) for tag in ("width", "height"))
            found = parse_annotation(xml, height, width)
            assert found.notes == ()
            assert len(found.class_names) == xml.count(b"<object>")
            objects += len(found.class_names)
            difficult += sum(found.difficult)
    assert files == 9963
    assert objects > 2500
    assert difficult > 0
