"""What the index says of a data set in VOC's layout: its rows, and its notes."""

import io

import fsspec
import numpy as np
import pytest
from PIL import Image

from jobs.config.dataset import DatasetConfig
from jobs.dataset.image_file import content_of, read_image
from jobs.dataset.index import index_of, read_index, tile_shards
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from tests.voc_folder import VocFolder

HEIGHT, WIDTH = 40, 56
BOX = ("thing", 8, 9, 30, 31)


def pixels(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(image).save(out, format, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture
def folder(tmp_path):
    """An image in each split, with nothing to say of either."""
    data = VocFolder(tmp_path)
    data.add("good", "trainval", [BOX], (HEIGHT, WIDTH))
    data.add("plain", "test", [BOX], (HEIGHT, WIDTH))
    return data


def put(folder, image_id, data, suffix="png", size=(HEIGHT, WIDTH), objects=(BOX,), split="trainval"):
    """Adds ``data`` as an image with an annotation."""
    folder.add(image_id, split, objects, size)
    (folder.path / "JPEGImages" / f"{image_id}.jpg").unlink()
    (folder.path / "JPEGImages" / f"{image_id}.{suffix}").write_bytes(data)


def indexed(folder, **values):
    return index_of(read_index(DatasetConfig(path=str(folder.path.parent), **values), 2))


def said(index, image_id=None):
    """(type, message) of the notes, of an image or of all."""
    return [(row.type, row.message) for row in index.ledger if image_id in (None, row.image_id)]


def test_nothing_is_said_of_a_data_set_in_order(folder):
    assert indexed(folder).ledger == ()


# --- pixels and boxes agree, or a note says that they may not ---


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_orientation_that_a_size_cannot_tell_is_noted(folder, format, orientation):
    put(folder, "odd", encoded(pixels(), format, exif=exif(orientation)))
    index = indexed(folder)
    ((kind, message),) = said(index)
    assert kind == "NotTurned"
    assert f"odd.png: read as it is stored: its EXIF orientation {orientation} is not applied" in message
    if format != "JPEG":
        np.testing.assert_array_equal(read_image(image_files(index)["odd"], {}), pixels())


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_square_is_read_as_stored_and_digest_note_and_pixels_agree(folder, orientation):
    put(folder, "square", encoded(pixels(40, 40), exif=exif(orientation)), size=(40, 40))
    index = indexed(folder)
    assert [kind for kind, _ in said(index)] == ["NotTurned"]
    assert index.digests()["square"].count(":") == 1
    np.testing.assert_array_equal(read_image(image_files(index)["square"], {}), pixels(40, 40))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_what_is_annotated_turned_is_read_turned_whatever_its_format(folder, format):
    put(folder, "turned", encoded(pixels(), format, exif=exif(6)), size=(WIDTH, HEIGHT))
    text = (folder.path / "Annotations" / "turned.xml").read_text()
    (folder.path / "Annotations" / "turned.xml").write_text(text.replace("56</height>", "56.0</height>"))
    index = indexed(folder)
    assert [kind for kind, _ in said(index)] == ["Turned"]
    assert index.digests()["turned"].endswith(":turned")
    found = read_image(image_files(index)["turned"], {})
    assert found.shape == (WIDTH, HEIGHT, 3)
    if format != "JPEG":
        np.testing.assert_array_equal(found, np.rot90(pixels(), -1))


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>9</width><height>9</height></size>"])
def test_an_orientation_that_no_size_tells_is_noted(folder, size):
    put(folder, "untold", encoded(pixels(), exif=exif(6)))
    path = folder.path / "Annotations" / "untold.xml"
    before, _, after = path.read_text().partition("<size>")
    path.write_text(before + size + after.partition("</size>")[2])
    assert "NotTurned" in [kind for kind, _ in said(indexed(folder))]


def test_an_image_annotated_as_stored_or_without_a_box_needs_no_note(folder):
    put(folder, "stored", encoded(pixels(), exif=exif(6)))
    put(folder, "empty", encoded(pixels(), exif=exif(3)), objects=())
    assert said(indexed(folder)) == []


def test_a_tiff_that_pillow_would_turn_is_no_more_the_content_that_it_was(folder):
    """Features of it in an old root are of the turned picture."""
    put(folder, "tiff", encoded(pixels(), "TIFF", exif=exif(3)), "tif")
    digest = indexed(folder).digests()["tiff"]
    assert digest.endswith(":unturned")
    assert content_of(digest) == digest.split(":")[1]


# --- values of more than 8 bits ---


@pytest.mark.parametrize("identity", ["content", "listing"])
def test_scaled_values_are_noted_and_another_content(folder, identity):
    values = np.linspace(0, 4095, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    put(folder, "dark", encoded(values, "TIFF"), "tif")
    put(folder, "deep", encoded(values * 16, "PNG"), "png")
    index = indexed(folder, digest=identity)
    ((kind, message),) = said(index)
    assert kind == "Scaled"
    assert message.endswith("dark.tif: its values, from 0 to 4095, are scaled: 0 is read as black, 4095 as white")
    assert index.digests()["dark"].endswith(":scaled")
    assert not index.digests()["deep"].endswith(":scaled")
    assert read_image(image_files(index)["dark"], {}).max() == 255


def test_of_scaled_values_the_whole_file_is_read(folder):
    """Also where an image is known by its listing, and its header would do."""
    values = np.zeros((400, 500), np.uint16)
    values[-1] = 1000
    put(folder, "large", encoded(values, "TIFF"), "tif", size=(400, 500))
    assert [kind for kind, _ in said(indexed(folder, digest="listing"))] == ["Scaled"]


def test_values_that_are_no_numbers_fail_when_they_are_indexed(folder):
    put(folder, "holes", encoded(np.full((HEIGHT, WIDTH), np.nan, np.float32), "TIFF"), "tif")
    (row,) = indexed(folder).ledger
    assert (row.level, row.type) == ("failed", "ImageError")


# --- what is in the folder of images ---


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "JPEG", "TIF", "pgm", "j2k", "jp2", "apng"])
def test_content_counts_and_not_the_suffix(folder, suffix):
    put(folder, "other", encoded(pixels(), "PNG"), suffix)
    index = indexed(folder)
    assert index.ledger == ()
    assert "other" in index.digests()


def test_files_that_are_passed_over_are_counted_by_suffix(folder):
    for name in ("a.HEIC", "b.heic", "c.txt", "Makefile", ".DS_Store"):
        (folder.path / "JPEGImages" / name).write_bytes(b"x")
    (folder.path / "JPEGImages" / "more").mkdir()
    ((kind, message),) = said(indexed(folder), "good")
    assert kind == "PassedOver"
    assert message == (
        "in the data set, passed over for their names: "
        "4 files (2 with .heic, 1 with .txt, 1 with no suffix; such as Makefile)"
    )


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        ("phone", "phone.HEIC", "phone.HEIC is of a kind that is not read, but split 'trainval' names it; convert it"),
        ("bare", "bare", "JPEGImages/bare is of a kind that is not read"),
        ("two", "two.heic", "two.heic is of a kind"),
        ("good.jpg", None, "good.jpg is there, but split 'trainval' names it; write its id, which has no suffix"),
        ("gone.jpg", None, "gone.jpg.jpg does not exist (nor with another suffix)"),
    ],
)
def test_why_there_is_no_image_is_true(folder, line, name, message):
    if name:
        (folder.path / "JPEGImages" / name).write_bytes(b"x")
    with (folder.path / "ImageSets/Main/trainval.txt").open("a") as lines:
        lines.write(f"{line}\n")
    (row,) = [row for row in indexed(folder).ledger if row.level == "failed"]
    assert (row.image_id, row.type) == (line, "MissingImage")
    assert message in row.message


def test_of_two_files_of_an_id_the_first_is_read_with_a_note(folder):
    (folder.path / "JPEGImages" / "good.png").write_bytes(encoded(pixels()))
    index = indexed(folder)
    ((kind, message),) = said(index)
    assert (kind, message.endswith("good.jpg: there is also good.png; the first by name is read")) == (
        "SeveralFiles",
        True,
    )


# --- splits ---


@pytest.mark.parametrize(
    ("undo", "message"),
    [
        (lambda main: [file.unlink() for file in main.iterdir()] and main.rmdir(), "no folder ImageSets/Main in "),
        (lambda main: main.rename(main.parent / "Layout"), "no folder ImageSets/Main in "),
        (lambda main: [file.unlink() for file in main.iterdir()], "there is no split in "),
        (lambda main: (main / "trainval.txt").rename(main / "trainval"), "there is no split 'trainval' in "),
        (
            lambda main: [(main / "trainval.txt").unlink(), (main / "trainval.txt").mkdir()],
            "there is no split 'trainval' in ",
        ),
    ],
)
def test_without_split_files_it_says_what_is_wanted(folder, undo, message):
    undo(folder.path / "ImageSets/Main")
    with pytest.raises(UsageError, match=r"^dataset: ") as error:
        indexed(folder)
    assert message in str(error.value)
    assert str(error.value).endswith("write an ImageSets/Main/trainval.txt with an image id a line")


@pytest.mark.parametrize("text", ["good\n".encode("utf-16"), "good\n".encode("utf-16-le"), b"g\xffd\n"])
def test_a_split_file_of_another_encoding_is_refused(folder, text):
    (folder.path / "ImageSets/Main/trainval.txt").write_bytes(text)
    with pytest.raises(UsageError, match=r"trainval\.txt is not UTF-8 text"):
        indexed(folder)


# --- notes are stored with one image, and change no other shard ---


def test_a_note_of_the_data_set_belongs_to_the_tile_of_its_image(tmp_path):
    data = VocFolder(tmp_path)
    for number in range(60):
        data.add(f"im-{number:03d}", "test" if number % 5 == 0 else "trainval", [BOX], (HEIGHT, WIDTH + number))
    config = DatasetConfig(path=str(tmp_path))
    before = [tile_shards(tile) for tile in read_index(config, 2)]
    assert len(before) > 2
    data.annotate("im-030", [("Thing", *BOX[1:])], (HEIGHT, WIDTH + 30))
    tiles = read_index(config, 2)
    (tile,) = [tile for tile in tiles if tile.ledger]
    assert "im-030" in [row["image_id"] for row in tile.images]
    assert [row.image_id for row in tile.ledger] == ["im-030"]
    changed = [tile_shards(new) != old for new, old in zip(tiles, before, strict=True)]
    assert changed == [new is tile for new in tiles]


KEYS = {"images": "c583cd8e193f0d76", "objects": "c618604071fc4f83"}


def test_an_index_without_new_notes_has_the_shards_that_it_had():
    """Keys that were made before there were notes of data sets: the index of an old root is not made anew."""
    fs = fsspec.filesystem("memory")
    kit = "/old/VOC2007"
    for image_id, width, said in (("a", 4, 4), ("b", 5, 4), ("c", 6, 6), ("d", 7, 7), ("e", 0, 0)):
        if width:
            fs.pipe(f"{kit}/JPEGImages/{image_id}.ppm", b"P6 %d 3 255\n" % width + bytes(9 * width))
        corners = "<xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>2</ymax>"
        one = f"<object><name>{image_id}</name><difficult>1</difficult><bndbox>{corners}</bndbox></object>"
        xml = f"<annotation><size><width>{said}</width><height>3</height></size>{one}</annotation>"
        fs.pipe(f"{kit}/Annotations/{image_id}.xml", xml.encode())
    fs.pipe(f"{kit}/ImageSets/Main/trainval.txt", b"a\nb\nb\ne\n")
    fs.pipe(f"{kit}/ImageSets/Main/test.txt", b"c -1\nd\nno such\n")
    (tile,) = read_index(DatasetConfig(path="memory://old"), 1)
    assert len(tile.ledger) == 6
    assert tile_shards(tile) == KEYS
