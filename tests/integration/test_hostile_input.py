"""What a data set must never do: crash a run, or lose an image in silence. One run over all of it.

Each case is a row of the table in ``docs/input.md``: the image is used, perhaps with a note, or its ledger row names
the file and the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image as PillowImage

import storage
from pipeline.images.decode import MAX_PIXELS
from pipeline.images.voc_annotation import MAX_BYTES
from storage.manifest import read_manifest
from storage.root import open_root
from storage.runs import read_run
from tests import REPOSITORY
from tests.project import EXTRACT, Project, config_with
from tests.voc_folder import VocFolder

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 40, 56
PAGE = REPOSITORY / "docs" / "input.md"


@dataclass(frozen=True)
class Case:
    """``title``: its row in the page. ``make``: writes its files. ``size`` and ``objects``: its rows, if it is used.

    ``kind`` and ``says``: type and message (a regular expression) of its ledger row, if it has one.
    """

    title: str
    image_id: str
    make: Callable[[VocFolder, str], object]
    size: tuple[int, int] | None = None
    objects: int = 1
    kind: str | None = None
    says: str = ""


def pixels(height: int = HEIGHT, width: int = WIDTH) -> PillowImage.Image:
    values = np.full((height, width, 3), 90, np.uint8)
    values[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = (230, 30, 60)
    return PillowImage.fromarray(values)


def encoded(image: PillowImage.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, scanlines: bytes) -> bytes:
    """A grey PNG of any declared size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", scanlines),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def image(data: bytes, suffix: str = "jpg", box=(8, 9, 30, 31), size=(HEIGHT, WIDTH)):
    """Writes ``data`` as an annotated image."""

    def make(folder: VocFolder, image_id: str) -> None:
        folder.add(image_id, "trainval", [("thing", *box)], size)
        (folder.path / "JPEGImages" / f"{image_id}.jpg").unlink()
        (folder.path / "JPEGImages" / f"{image_id}.{suffix}").write_bytes(data)

    return make


def annotated(xml: bytes | str):
    """A good image with ``xml`` as its annotation."""

    def make(folder: VocFolder, image_id: str) -> None:
        folder.add(image_id, "trainval", [], (HEIGHT, WIDTH))
        text = xml.encode() if isinstance(xml, str) else xml
        (folder.path / "Annotations" / f"{image_id}.xml").write_bytes(text)

    return make


def boxed(*corners: int):
    """A good image with a good box and this one."""
    return lambda folder, i: folder.add(i, "trainval", [("thing", 8, 9, 30, 31), ("odd", *corners)], (HEIGHT, WIDTH))


def named(line: str, split: str = "trainval"):
    """No image, only a line of a split."""

    def make(folder: VocFolder, image_id: str) -> None:
        with (folder.path / "ImageSets/Main" / f"{split}.txt").open("a") as lines:
            lines.write(f"{line}\n")

    return make


def good(folder: VocFolder, image_id: str) -> None:
    folder.add(image_id, "trainval", [("thing", 8, 9, 30, 31)], (HEIGHT, WIDTH))


def twice(folder: VocFolder, image_id: str) -> None:
    good(folder, image_id)
    named(image_id)(folder, image_id)


def in_two_devkits(folder: VocFolder, image_id: str) -> None:
    good(folder, image_id)
    other = VocFolder(folder.path.parent)
    other.path = folder.path.parent / "VOC2012"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (other.path / part).mkdir(parents=True, exist_ok=True)
    good(other, image_id)


def without_annotation(folder: VocFolder, image_id: str) -> None:
    good(folder, image_id)
    (folder.path / "Annotations" / f"{image_id}.xml").unlink()


def flat(folder: VocFolder, image_id: str) -> None:
    """Too low for a proposal of 10 pixels."""
    folder.add(image_id, "trainval", [("thing", 8, 2, 30, 5)], (8, WIDTH))


def decoy(folder: VocFolder, image_id: str) -> None:
    """What the path ``../decoy`` would lead to is there, and must not be read."""
    (folder.path / "decoy.jpg").write_bytes(PHOTOGRAPH)
    (folder.path / "decoy.xml").write_text("<annotation/>")
    named(image_id)(folder, image_id)


def nested(folder: VocFolder, image_id: str) -> None:
    for part, suffix, data in (("JPEGImages", "jpg", PHOTOGRAPH), ("Annotations", "xml", b"<annotation/>")):
        (folder.path / part / "a").mkdir()
        (folder.path / part / f"{image_id}.{suffix}").write_bytes(data)
    named(image_id)(folder, image_id)


PHOTOGRAPH = encoded(pixels(), "JPEG", quality=95)
ON_ITS_SIDE, UPSIDE_DOWN = PillowImage.Exif(), PillowImage.Exif()
ON_ITS_SIDE[0x0112], UPSIDE_DOWN[0x0112] = 6, 3
RAMP = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><annotation><x>&b;</x></annotation>'
FRAMES = [pixels(), pixels().transpose(PillowImage.Transpose.ROTATE_180)]
AN_OBJECT = (
    "<object><name>thing</name><bndbox><xmin>8</xmin><ymin>9</ymin><xmax>30</xmax><ymax>31</ymax></bndbox>{}</object>"
)
A_BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>21</ymax></bndbox>"
ANY = (HEIGHT, WIDTH)

ELSEWHERE = (
    "empty split",
    "no ImageSets/Main",
    "id of a file of another kind",
    "files of other kinds beside images",
    "class names written in several ways",
    "image in a training and a test split",
    "copies of an image with other classes",
    "folders that hold only folders",
    "labelled images with an EXIF orientation",
)
"""Rows of the page that are no images of this data set: tests/unit/jobs/dataset has them, but for the first."""

CASES = [
    # files
    Case("missing image", "missing", named("missing"), kind="MissingImage", says=r"missing\.jpg does not exist"),
    Case("truncated image", "cut", image(PHOTOGRAPH[:-90]), kind="ImageError", says=r"cut\.jpg: .*truncated"),
    Case("empty image file", "empty", image(b""), kind="ImageError", says=r"empty\.jpg: the image file is empty"),
    Case(
        "a file that is no image", "text", image(b"hello"), kind="ImageError", says=r"text\.jpg: the file is no image"
    ),
    # colours
    Case("grey", "grey", image(encoded(pixels().convert("L"), "JPEG")), ANY),
    Case("palette", "palette", image(encoded(pixels().convert("P"), "PNG"), "png"), ANY),
    Case("CMYK", "cmyk", image(encoded(pixels().convert("CMYK"), "JPEG")), ANY),
    Case("16-bit grey", "deep", image(encoded(PillowImage.new("I;16", (WIDTH, HEIGHT), 40000), "PNG"), "png"), ANY),
    Case(
        "12 bits in 16",
        "bits12",
        image(encoded(PillowImage.fromarray((RAMP * 4095).astype(np.uint16)), "PNG"), "png"),
        ANY,
        kind="Scaled",
        says=r"bits12\.png: its values, from 0 to 4095, are scaled: 0 is read as black, 4095 as white",
    ),
    Case(
        "float, or integers of 32 bits",
        "float",
        image(encoded(PillowImage.fromarray(RAMP), "TIFF"), "tif"),
        ANY,
        kind="Scaled",
        says=r"float\.tif: its values, from 0 to 1, are scaled: 0 is read as black, 1 as white",
    ),
    Case(
        "float with NaN",
        "holes",
        image(encoded(PillowImage.fromarray(RAMP * np.float32(np.nan)), "TIFF"), "tif"),
        kind="ImageError",
        says=r"holes\.tif: the image has values that are no finite numbers",
    ),
    Case("alpha", "alpha", image(encoded(pixels().convert("RGBA"), "PNG"), "png"), ANY),
    Case("animation", "moving", image(encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "gif"), ANY),
    # sizes
    Case(
        "EXIF orientation, annotated turned",
        "turned",
        image(encoded(pixels(), "JPEG", exif=ON_ITS_SIDE), size=(WIDTH, HEIGHT)),
        (WIDTH, HEIGHT),
        kind="Turned",
        says=r"turned\.jpg: read as its EXIF orientation turns it, 40 x 56",
    ),
    Case("EXIF orientation, annotated as stored", "stored", image(encoded(pixels(), "JPEG", exif=ON_ITS_SIDE)), ANY),
    Case(
        "EXIF orientation that no size tells",
        "down",
        image(encoded(pixels(), "JPEG", exif=UPSIDE_DOWN)),
        ANY,
        kind="NotTurned",
        says=r"down\.jpg: read as it is stored: its EXIF orientation 3 is not applied",
    ),
    Case(
        "EXIF orientation of a TIFF file",
        "tiff",
        image(encoded(pixels(), "TIFF", exif=ON_ITS_SIDE), "tif", size=(WIDTH, HEIGHT)),
        (WIDTH, HEIGHT),
        kind="Turned",
        says=r"tiff\.tif: read as its EXIF orientation turns it, 40 x 56",
    ),
    Case("suffix of another kind", "kind", image(encoded(pixels(), "PNG"), "JFIF"), ANY),
    Case(
        "several images of an id",
        "pair",
        lambda folder, i: (good(folder, i), (folder.path / "JPEGImages" / "pair.png").write_bytes(b"not read")),
        ANY,
        kind="SeveralFiles",
        says=r"pair\.jpg: there is also pair\.png; the first by name is read",
    ),
    Case(
        "decompression bomb",
        "bomb",
        image(png(2**31 - 1, 2**31 - 1, 8, zlib.compress(b""))),
        kind="ImageError",
        says=rf"bomb\.jpg: the image declares .*more than {MAX_PIXELS}",
    ),
    Case(
        "20,000 x 20,000",
        "vast",
        image(png(20_000, 20_000, 1, zlib.compress(bytes(2501 * 20_000))), "png"),
        kind="ImageError",
        says=rf"vast\.png: the image declares .*more than {MAX_PIXELS}",
    ),
    Case("1 x 1", "dot", image(encoded(pixels(1, 1), "PNG"), "png", (1, 1, 1, 1), (1, 1)), (1, 1), 1, "NoProposals"),
    Case(
        "1 x 5,000",
        "line",
        image(encoded(pixels(1, 5000), "PNG"), "png", (1, 1, 5000, 1), (1, 5000)),
        (1, 5000),
        kind="NoProposals",
        says=r"line\.png: no proposals",
    ),
    Case("no proposals", "flat", flat, (8, WIDTH), 1, "NoProposals", r"flat\.jpg: no proposals, and so no features"),
    Case(
        "`<size>` disagrees",
        "sized",
        image(PHOTOGRAPH, size=(10, 20)),
        ANY,
        kind="Annotation",
        says=r"sized\.xml: <size> says 20 x 10, the image is 56 x 40; the image is believed",
    ),
    Case(
        "`<size>` of 56.0",
        "fraction",
        annotated(
            f"<annotation><size><width>56.0</width><height>40.</height></size>{AN_OBJECT.format('')}</annotation>"
        ),
        ANY,
    ),
    # annotations
    Case("missing annotation", "bare", without_annotation, ANY, 0, "MissingAnnotation", r"bare\.xml does not exist"),
    Case("box beyond the image", "beyond", boxed(30, 20, 90, 39), ANY, 2, "Annotation", r"beyond\.xml: .* was cut"),
    Case("box outside the image", "outside", boxed(60, 50, 70, 60), ANY, 1, "Annotation", r"outside\.xml: .*left out"),
    Case("empty box", "nobox", boxed(20, 20, 19, 30), ANY, 1, "Annotation", r"nobox\.xml: .*left out: .* empty"),
    Case("reversed box", "reversed", boxed(30, 30, 10, 10), ANY, 1, "Annotation", r"reversed\.xml: .*is reversed"),
    Case("XML without objects", "none", annotated("<annotation></annotation>"), ANY, 0),
    Case(
        "broken XML", "broken", annotated("<annotation><obj"), None, 0, "AnnotationError", r"broken\.xml: .*not valid"
    ),
    Case(
        "large XML",
        "large",
        annotated(f"<annotation>{AN_OBJECT.format(' ' * (MAX_BYTES // 2))}</annotation>"),
        ANY,
    ),
    Case(
        "huge XML",
        "huge",
        annotated(f"<annotation>{AN_OBJECT.format(' ' * MAX_BYTES)}</annotation>"),
        kind="AnnotationError",
        says=rf"huge\.xml: the annotation has \d+ bytes, more than {MAX_BYTES}",
    ),
    Case("XML bomb", "lol", annotated(BOMB), kind="AnnotationError", says=r"lol\.xml: the annotation is not valid XML"),
    Case(
        "XML of another kind",
        "page",
        annotated("<html><head><title>404</title></head></html>"),
        kind="AnnotationError",
        says=r"page\.xml: the root is <html> and not <annotation>, and there is no <object> in it",
    ),
    Case(
        "tags in capitals, or in a namespace",
        "capitals",
        annotated(f"<annotation>{AN_OBJECT.format('').replace('object>', 'Object>')}</annotation>"),
        kind="AnnotationError",
        says=r"capitals\.xml: <Object> is no <object>; write tags in small letters",
    ),
    Case(
        "annotations of several images in one XML",
        "all",
        annotated(f"<all>{f'<annotation>{AN_OBJECT}</annotation>' * 2}</all>"),
        kind="AnnotationError",
        says=r"all\.xml: it holds 2 annotations; give each image a file of its own",
    ),
    Case(
        "XML without objects that has something else",
        "polygons",
        annotated("<annotation><shape><polygon>1 2 3 4 5 6</polygon></shape></annotation>"),
        ANY,
        0,
        "Annotation",
        r"polygons\.xml: there is no <object>, but <polygon> is not read; the image is one without objects",
    ),
    Case(
        "several boxes in an object",
        "boxes",
        annotated(f"<annotation>{AN_OBJECT.format(A_BOX)}</annotation>"),
        ANY,
        2,
        "Annotation",
        r"boxes\.xml: object 1 \(thing\) has 2 <bndbox>; each is taken as an object",
    ),
    Case(
        "several names, or corners, in an object",
        "names",
        annotated(f"<annotation>{AN_OBJECT.format('<name>odd</name>')}</annotation>"),
        kind="AnnotationError",
        says=r"names\.xml: object 1 has several <name>: 'thing', 'odd'; write an object for each",
    ),
    Case(
        "`<difficult>` that says neither",
        "perhaps",
        annotated(f"<annotation>{AN_OBJECT.format('<difficult>perhaps</difficult>')}</annotation>"),
        ANY,
        kind="Annotation",
        says=r"perhaps\.xml: <difficult> is 'perhaps', which is neither 0 nor 1; it is taken for 0",
    ),
    Case(
        "`<difficult>` of Unspecified",
        "unspecified",
        annotated(f"<annotation>{AN_OBJECT.format('<difficult>Unspecified</difficult>')}</annotation>"),
        ANY,
    ),
    # ids
    Case("id twice in a split", "twice", twice, ANY, 1, "NamedTwice", r"twice\.jpg: split 'trainval' names it 2 times"),
    Case("id in two devkits", "both", in_two_devkits, None, 0, "DuplicateImage", r"'both' stands in two devkits"),
    Case("id that leads out", "../decoy", decoy, None, 0, "BadImageId", r"'../decoy' is a path, not the name"),
    Case("id with a folder", "a/b", nested, None, 0, "BadImageId", r"'a/b' is a path, not the name of an image"),
    Case("id with `::`", "a::b", good, None, 0, "BadImageId", r"must not hold '::'"),
    Case("id with spaces", "my  dog 1", good, ANY),
    Case("a word after the id", "voc", lambda f, i: (good(f, i), named("voc  -1")(f, i)), ANY, 1, "NamedTwice"),
    Case(
        "id with spaces, no such image", "her", named("her cat"), kind="MissingImage", says=r"line 'her cat' the first"
    ),
    Case("id in another alphabet", "собака-犬-كلب", good, ANY),
    Case("id with signs", "50%#1?&=*[x]{y}~'\"", good, ANY),
    # splits
    Case(
        "split naming absent ids", "ghost", named("ghost", "ghosts"), kind="MissingImage", says=r"split 'ghosts' names"
    ),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory):
    """A project whose data set is all cases."""
    folder = tmp_path_factory.mktemp("hostile")
    data = VocFolder(folder / "data")
    for case in CASES:
        case.make(data, case.image_id)
    data.add("plain", "test", [("thing", 8, 9, 30, 31)], (HEIGHT, WIDTH))
    (data.path / "ImageSets/Main/nobody.txt").write_text("\n")
    config = folder / "hostile.yaml"
    config.write_text(
        json.dumps(
            {
                "dataset": {"path": str(folder / "data"), "test_splits": ["test", "nobody", "ghosts"]},
                **config_with(features={"scales": [96]}, execution={"max_failed": 1}),
            }
        )
    )
    return Project(data, config, folder / "root")


@pytest.fixture(scope="module")
def found(hostile):
    """The tables, the ledger and what was printed, of one run."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert hostile.spp("run", *EXTRACT) == 3
    root = open_root(str(hostile.root))
    record = read_run(root, "hostile")
    ledger = [
        row
        for name, entry in record.datasets.items()
        for row in read_manifest(root, name, entry.method, entry.manifest).ledger
    ]
    tables = {name: storage.open(str(hostile.root), name).to_table().to_pylist() for name in record.datasets}
    return tables, ledger, errors.getvalue()


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_each_is_used_or_has_a_ledger_row(case, found):
    tables, ledger, shown = found
    rows = [row for row in ledger if row.image_id == case.image_id]
    failed = [row for row in rows if row.level == "failed"]
    image = [row for row in tables["images"] if row["image_id"] == case.image_id]
    if case.size is None:
        assert {row.type for row in failed} == {case.kind}
        assert all(re.search(case.says, row.message) for row in failed), failed
    else:
        assert not failed, failed
        assert [(row["height"], row["width"]) for row in image] == [case.size]
        assert sum(row["image_id"] == case.image_id for row in tables["objects"]) == case.objects
        assert sum(row["image_id"] == case.image_id for row in tables["truth_features"]) == case.objects
        proposals = sum(row["image_id"] == case.image_id for row in tables["proposals"])
        assert proposals == sum(row["image_id"] == case.image_id for row in tables["features"])
        assert (proposals == 0) == (case.kind == "NoProposals")
        notes = [row for row in rows if row.type == case.kind]
        assert len(notes) == (case.kind is not None), rows
        assert len(rows) == len(notes)
        assert all(re.search(case.says, row.message) for row in notes), notes
    if case.kind is not None:
        assert any(f"image {case.image_id}: {row.message}" in shown or row.stage != "index" for row in rows)


def test_what_was_made_is_good_and_nothing_lies_elsewhere(found, hostile):
    assert hostile.spp("verify") == 0
    decoy = hostile.data.path / "decoy.jpg"
    assert decoy.read_bytes() == PHOTOGRAPH
    assert {path.name for path in hostile.root.parent.iterdir()} == {"data", "root", "hostile.yaml"}


def test_splits_without_a_usable_image_are_said(found):
    _, _, shown = found
    assert "note: split 'nobody' has no usable image" in shown
    assert "note: split 'ghosts' has no usable image" in shown


def test_the_page_has_every_case():
    page = PAGE.read_text().partition("\n## A config")[0]  # what follows has tables, and tests, of its own
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert sorted(rows[1:]) == sorted([*(case.title for case in CASES), *ELSEWHERE])
