"""Data sets from a grammar of annotations, split files and names of files: rows, ledger rows or a UsageError, nothing
else, and no object lost in silence."""

import io
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

import fsspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.config.dataset import DatasetConfig
from jobs.dataset.index import index_of, read_index, tile_shards
from jobs.errors import UsageError
from pipeline.errors import AnnotationError
from pipeline.images.voc_annotation import parse_annotation, stated_size

HEIGHT, WIDTH = 12, 16

RANDOM = st.randoms(use_true_random=True)
"""Drawing each element with hypothesis takes a hundred times as long as reading it; what is drawn is the seed."""

# --- annotations ---

_NUMBERS = ("1", "3", "9", "12", "16", " 4 ", "1e1", "7.5")
_ODD_NUMBERS = ("0", "-2", "40", "nan", "inf", "1e400", "", "x", "1_0", "\u0663", "0x1")
_WORDS = ("0", "1", "1.0", "true", "False", "Unspecified", "maybe", "", "-1", "\u200b", "é", "no", "2")
_NAMES = ("dog", "Dog", " dog", "baby  dog", "d\u200bog", "a/b", "..", "x" * 300, "é", "e\u0301")
_TEXTS = {"name": _NAMES, "difficult": _WORDS, "truncated": _WORDS, "width": ("16", "16.0", "9"), "height": ("12", "x")}
_TAGS = {
    "annotation": ("filename", "source", "size", "object", "object", "objects"),
    "annotations": ("annotation", "annotation"),
    "objects": ("object", "item"),
    "item": ("name", "bndbox"),
    "source": ("annotation", "database"),
    "size": ("width", "height", "depth"),
    "object": ("name", "difficult", "truncated", "bndbox", "part"),
    "part": ("name", "bndbox"),
    "bndbox": ("xmin", "ymin", "xmax", "ymax"),
}
_ODD = (str.upper, str.title, "v:{}".format, "{}s".format, lambda tag: "html", lambda tag: "annotation")
_INSIDE = ("<![CDATA[x]]>", "<!-- c -->", "<?p i?>", "&lt;", "text", "&x;")


def _element(random, tag, odd, depth=0):
    """An element of the grammar. ``odd``: how often a tag is another one, a child is missing or there again, or an
    attribute, a number or a text is one that does not belong there."""
    written = random.choice(_ODD)(tag) if random.random() < odd / 4 else tag
    children = [child for child in _TAGS.get(tag, ()) if random.random() > odd]
    if tag == "annotation" and depth > 1:  # VOC's <source> has one: a text
        children = [] if random.random() > odd else children
    if random.random() < odd and children:
        children += random.choices(children, k=random.randint(1, 3))
    if children and depth < 7:
        if tag == "bndbox" and random.random() > odd:
            x1, y1 = random.randint(-1, 14), random.randint(-1, 10)
            corners = {"xmin": x1, "ymin": y1, "xmax": x1 + random.randint(-1, 6), "ymax": y1 + random.randint(-1, 6)}
            inside = "".join(f"<{child}>{corners[child]}</{child}>" for child in corners)
        else:
            inside = "".join(_element(random, child, odd, depth + 1) for child in children)
    else:
        inside = escape(random.choice(_TEXTS.get(tag, _NUMBERS) if random.random() > odd else _ODD_NUMBERS))
    if random.random() < odd / 10:
        inside = random.choice(_INSIDE) + inside
    extra = random.choice((" verified='yes'", " xmlns='a:b'", " name='dog'")) if random.random() < odd / 4 else ""
    if written.startswith("v:"):
        extra += " xmlns:v='a:b'"
    return f"<{written}{extra}>{inside}</{written}>"


def annotation(random):
    """A document of the grammar: from one in order to one in which nothing is."""
    head = random.choice(("", "", "", '<?xml version="1.0" encoding="UTF-8"?>', "\ufeff", " ", "<!DOCTYPE a>"))
    root = random.choice(("annotation",) * 8 + ("annotations", "html"))
    return (head + _element(random, root, random.choice((0, 0.01, 0.05, 0.2)))).encode()


def check_message(error):
    """One line, of a bounded length."""
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def check_annotation(xml):
    """An annotation whose boxes are in the image, or an AnnotationError; without objects, only where nothing is like
    one, or a note says so."""
    try:
        stated_size(xml)
        found = parse_annotation(xml, HEIGHT, WIDTH)
    except AnnotationError as error:
        check_message(error)
        return False
    assert len({len(found.class_names), len(found.boxes), len(found.difficult), len(found.truncated)}) == 1
    assert all(name == " ".join(name.split()) != "" for name in found.class_names)
    x1, y1, x2, y2 = np.asarray(found.boxes, float).T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= WIDTH) & (y1 >= 0) & (y1 < y2) & (y2 <= HEIGHT)).all()
    tree = ElementTree.fromstring(xml)
    boxes = [box for thing in tree.iter("object") for box in thing.findall("bndbox")]
    lost = len({ElementTree.tostring(box) for box in boxes}) > len(found.boxes)
    assert not lost or any("left out" in note for note in found.notes) or has_copies(tree)
    flags = [
        flag for thing in tree.iter("object") for flag in [*thing.findall("difficult"), *thing.findall("truncated")]
    ]
    if any("maybe" in (flag.text or "") for flag in flags):
        assert any("neither 0 nor 1" in note for note in found.notes)
    return True


def has_copies(tree):
    """Whether an object has a box twice, in other words."""
    for thing in tree.iter("object"):
        written = [
            tuple(float(box.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")) for box in thing.findall("bndbox")
        ]
        if len(set(written)) < len(written):
            return True
    return False


@settings(max_examples=500, deadline=None)
@given(RANDOM)
def test_an_annotation_gives_objects_a_note_or_an_error(random):
    check_annotation(annotation(random))


# --- whole data sets ---


def _image(values, format, suffix, **options):
    out = io.BytesIO()
    Image.fromarray(values).save(out, format, **options)
    return suffix, out.getvalue()


def _exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


_RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
_RGB = np.repeat((_RAMP * 255).astype(np.uint8)[:, :, None], 3, axis=2)
FILES = [
    _image(_RGB, "PNG", "png"),
    _image(_RGB, "JPEG", "jpg", exif=_exif(6)),
    _image(_RGB, "TIFF", "tif", exif=_exif(3)),
    _image(_RAMP.astype(np.float32), "TIFF", "TIFF"),
    _image((_RAMP * 4095).astype(np.uint16), "PNG", "JPE"),
    _image((_RAMP * np.nan).astype(np.float32), "TIFF", "tiff"),
    ("jfif", b"no image"),
    ("heic", b"\0\0\0\x18ftypheic"),
    ("jpg", b""),
    ("", b"x"),
]
_IDS = ["a", "b", "a.jpg", "c d", "c", "é", "e\u0301", ".h", "x::y", "-1"]
_LINES = (*_IDS, "a 1", "b  -1", "../a", "a/b", " a ", "\ta", "a\u2028b", "\x0c", "#a", "'a'", "a,b", "a\0", "\ufeffa")
_TEXTS_OF_SPLITS = (
    *(None, b"", b"\n\n", b"a\xff", "a\nb\n".encode("utf-16"), "a\n".encode("utf-16-le"), b"\xef\xbb\xbfa\n"),
)


def split(random):
    """The bytes of a split file; None for none."""
    if random.random() < 0.1:
        return random.choice(_TEXTS_OF_SPLITS)
    ids = random.choices(_IDS if random.random() < 0.5 else _LINES, k=random.randint(0, 6))
    return random.choice(("\n", "\r\n", "\r")).join(ids).encode()


def data_set(random):
    """Files, annotations and splits of a devkit, and keys of the config."""
    return {
        "files": [(random.choice(_IDS), random.choice(FILES)) for _ in range(random.randint(1, 6))],
        "annotations": {random.choice(_IDS): annotation(random) for _ in range(random.randint(0, 5))},
        "trainval": split(random),
        "test": split(random),
        "train_splits": random.choice((["trainval"], ["trainval", "test"], ["trainval", "trainval"])),
        "classes": random.choice((None, None, None, ["dog"])),
        "digest": random.choice(("content", "listing")),
    }


def check_data_set(made):
    """Each id of a split is an image or failed; the index is the same twice; nothing is raised but a UsageError."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    kit = "/odd/VOC2007"
    for image_id, (suffix, data) in made["files"]:
        fs.pipe(f"{kit}/JPEGImages/{image_id}{'.' * bool(suffix)}{suffix}", data)
    for image_id, xml in made["annotations"].items():
        fs.pipe(f"{kit}/Annotations/{image_id}.xml", xml)
    for split in ("trainval", "test"):
        if made[split] is not None:
            fs.pipe(f"{kit}/ImageSets/Main/{split}.txt", made[split])
    keys = {key: made[key] for key in ("train_splits", "classes", "digest")}
    config = DatasetConfig(path="memory://odd", **keys)
    try:
        tiles = read_index(config, 1)
    except UsageError as error:
        check_message(error)
        return False
    index = index_of(tiles)
    used = index.images["image_id"].to_pylist()
    failed = [row.image_id for row in index.ledger if row.level == "failed"]
    assert len(used) == len(set(used))
    assert set(used).isdisjoint(failed)
    assert {row.image_id for row in index.ledger if row.level == "note"} <= set(used)
    text = (made["trainval"] + b"\n" + made["test"]).decode("utf-8-sig")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip("\ufeff").strip()]
    assert bool(lines) == bool(used or failed)
    assert [tile_shards(tile) for tile in read_index(config, 2)] == [tile_shards(tile) for tile in tiles]
    return bool(used)


@settings(max_examples=100, deadline=None)
@given(RANDOM)
def test_a_data_set_gives_rows_or_a_usage_error(random):
    check_data_set(data_set(random))
