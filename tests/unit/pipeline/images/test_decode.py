import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps

from pipeline.errors import ImageError
from pipeline.images.decode import FORMATS, MAX_PIXELS, decode_image, image_header, image_size, is_turned, read_scaling


def photograph(height=24, width=31):
    """A smooth RGB image, so that JPEG keeps it nearly as it is, and unlike in its channels and directions."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, 128 + 0 * x], axis=2).astype(np.uint8)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, PillowImage.Image) else PillowImage.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def oriented(orientation, format="JPEG"):
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    return encoded(photograph(), format, exif=exif, **options)


def png_header(width, height):
    """A PNG that declares a size and has no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}:PIL") for kind in ("UserWarning", "RuntimeWarning")]


# --- what is read ---


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_image_is_itself(format):
    rgb = photograph()
    data = encoded(rgb, format)
    np.testing.assert_array_equal(decode_image(data), rgb)
    assert image_size(data) == (24, 31)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_what_opencv_reads(options):
    data = encoded(photograph(), "JPEG", quality=95, **options)
    peer = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_allclose(decode_image(data).astype(int), peer.astype(int), atol=4)
    np.testing.assert_allclose(decode_image(data).astype(int), photograph().astype(int), atol=12)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(format):
    grey = photograph()[:, :, 0]
    found = decode_image(encoded(grey, format, **({"quality": 95} if format == "JPEG" else {})))
    assert found.shape == (24, 31, 3)
    assert (found == found[:, :, :1]).all()
    np.testing.assert_allclose(found[:, :, 0].astype(int), grey.astype(int), atol=0 if format == "PNG" else 4)


def test_black_and_white_becomes_0_and_255():
    bits = photograph()[:, :, 0] > 100
    found = decode_image(encoded(PillowImage.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(found, np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2))


def test_a_palette_image_has_its_palettes_colours():
    indexed = PillowImage.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    colours = [(10 * i, 255 - i, 7) for i in range(6)]
    indexed.putpalette([value for colour in colours for value in colour])
    assert decode_image(encoded(indexed, "PNG")).reshape(-1, 3).tolist() == [list(c) for c in colours]


def test_a_palette_image_with_a_transparent_colour_keeps_its_colour():
    indexed = PillowImage.fromarray(np.zeros((2, 3), np.uint8), "P")
    indexed.putpalette([200, 100, 50])
    assert (decode_image(encoded(indexed, "PNG", transparency=0)) == [200, 100, 50]).all()


def test_cmyk_becomes_rgb():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :8] = [0, 255, 255, 0]  # magenta and yellow: red
    inks[:, 8:] = [0, 0, 0, 255]  # black
    found = decode_image(encoded(PillowImage.fromarray(inks, "CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(found[:, :6].astype(int), np.broadcast_to([255, 0, 0], (16, 6, 3)), atol=6)
    assert (found[:, 10:] < 6).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_8(format):
    values = (np.arange(24 * 31, dtype=np.uint16) * 88).reshape(24, 31)
    found = decode_image(encoded(PillowImage.fromarray(values), format))
    np.testing.assert_array_equal(found, np.repeat((values // 256).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_hides_nothing(mode):
    channels = photograph() if mode == "RGBA" else photograph()[:, :, :1]
    alpha = np.zeros((24, 31, 1), np.uint8)
    found = decode_image(encoded(PillowImage.fromarray(np.concatenate([channels, alpha], axis=2), mode), "PNG"))
    np.testing.assert_array_equal(found, np.broadcast_to(channels, (24, 31, 3)))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [PillowImage.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 130, 250)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert PillowImage.open(io.BytesIO(data)).n_frames == 3
    assert (decode_image(data) == 10).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_not_applied_unasked(orientation):
    data = oriented(orientation)
    assert PillowImage.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    assert image_size(data) == (24, 31)
    np.testing.assert_array_equal(decode_image(data), decode_image(encoded(photograph(), "JPEG", quality=95)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_orientation_is_applied_where_only_that_gives_the_wanted_size(orientation, format):
    data = oriented(orientation, format)
    assert image_header(data).orientation == orientation
    assert is_turned((24, 31), orientation, (31, 24))
    peer = ImageOps.exif_transpose(PillowImage.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode_image(data, (31, 24)), np.asarray(peer))
    for size in (None, (24, 31), (12, 40)):
        np.testing.assert_array_equal(decode_image(data, size), decode_image(oriented(1, format)))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 9])
def test_an_orientation_that_keeps_the_sides_is_not_applied(orientation):
    data = oriented(orientation)
    assert not is_turned((24, 31), orientation, (31, 24))
    np.testing.assert_array_equal(decode_image(data, (31, 24)), decode_image(oriented(1)))


def test_broken_exif_is_no_orientation():
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0" + b"\xff" * 40):
        assert image_header(encoded(photograph(), "JPEG", exif=exif)).orientation == 1


def test_the_array_is_the_callers_to_write_to():
    for mode in ("RGB", "L", "I;16"):
        image = PillowImage.new(mode, (5, 4))
        decode_image(encoded(image, "PNG"))[:] = 3


def test_real_photographs_have_the_size_that_is_announced(shared):
    paths = sorted((shared / "data/voc_subset/VOCdevkit/VOC2012/JPEGImages").iterdir())[:5]
    assert paths
    for path in paths:
        data = path.read_bytes()
        assert decode_image(data).shape == (*image_size(data), 3)


# --- what is refused ---


def test_an_empty_file_is_an_image_error():
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match="is empty"):
            read(b"")


@pytest.mark.parametrize(
    "data", [b"just some text\n", b"<html></html>", b"\x00" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_bytes_that_are_no_photograph_are_an_image_error(data):
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match="no image of a kind that is read"):
            read(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", *({"AVIF"} & {*FORMATS})])
def test_a_truncated_file_is_an_image_error(format):
    data = encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), format)
    for share in (0.5, 0.9):
        with pytest.raises(ImageError, match="replace"):
            decode_image(data[: int(len(data) * share)])


def test_a_header_of_too_many_pixels_is_refused_unread():
    for width, height in ((65_000, 65_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)):
        for read in (decode_image, image_size):
            with pytest.raises(ImageError, match=rf"more than {MAX_PIXELS}.*shrink or tile it"):
                read(png_header(width, height))


def test_a_header_of_just_enough_pixels_is_read():
    assert image_size(png_header(MAX_PIXELS // 1024, 1024)) == (1024, MAX_PIXELS // 1024)


# --- fuzz: an array or an ImageError, nothing else ---

_RGB = PillowImage.fromarray(photograph())
_SEEDS = [
    encoded(_RGB, "PNG"),
    encoded(_RGB.convert("P"), "PNG"),
    encoded(_RGB, "JPEG"),
    oriented(6),
    encoded(_RGB.convert("CMYK"), "JPEG", progressive=True),
    encoded(_RGB, "GIF", save_all=True, append_images=[_RGB.transpose(PillowImage.Transpose.ROTATE_180)]),
    encoded(_RGB, "BMP"),
    encoded(_RGB, "TIFF"),
    encoded(_RGB, "TIFF", compression="tiff_deflate"),
    encoded(_RGB, "WEBP"),
    encoded(_RGB, "PPM"),
    *([encoded(_RGB, "AVIF")] if "AVIF" in FORMATS else []),
]


def assert_array_or_image_error(data):
    try:
        image = decode_image(data)
    except ImageError:
        return
    assert image.dtype == np.uint8
    header = image_header(data)
    assert image.shape == (*header.size, 3)
    read_scaling(data)
    wanted = header.size[::-1]
    if is_turned(header.size, header.orientation, wanted):
        assert decode_image(data, wanted).shape == (*wanted, 3)


@given(st.binary(max_size=300), st.sampled_from([b"", *(seed[:12] for seed in _SEEDS)]))
def test_any_bytes_give_an_array_or_an_image_error(data, beginning):
    assert_array_or_image_error(beginning + data)


@settings(max_examples=400)
@given(st.sampled_from(_SEEDS), st.data())
def test_a_damaged_image_gives_an_array_or_an_image_error(seed, data):
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 4))):
        # not among the leading bytes, where the size stands: a large one takes long and is no other case
        damaged[data.draw(st.integers(30, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    assert_array_or_image_error(bytes(damaged[:end]))


@pytest.mark.parametrize("seed", _SEEDS, ids=lambda seed: seed[:4].hex())
def test_one_damaged_byte_and_a_cut_anywhere_give_an_array_or_an_image_error(seed):
    for place in range(30, len(seed), max(1, len(seed) // 100)):
        assert_array_or_image_error(seed[:place] + bytes([seed[place] ^ 255]) + seed[place + 1 :])
        assert_array_or_image_error(seed[:place])


@pytest.mark.parametrize("size", [(511, 700), (512, 700), (1023, 515), (1300, 1024), (3001, 512), (90, 120)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller_where_that_is_enough(size, mode):
    height, width = size
    data = io.BytesIO()
    PillowImage.linear_gradient("L").resize((width, height)).convert(mode).save(data, "JPEG", quality=95)
    found, whole = decode_image(data.getvalue(), least=256), decode_image(data.getvalue())
    assert whole.shape == (height, width, 3)
    step = max(s for s in (1, 2, 4, 8) if s == 1 or min(size) >= 256 * s)
    assert found.shape == (-(-height // step), -(-width // step), 3)
    small = cv2.resize(whole, found.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - small).max() <= 6


def test_only_a_jpeg_is():
    image = np.zeros((1024, 1024, 3), np.uint8)
    data = io.BytesIO()
    PillowImage.fromarray(image).save(data, "PNG")
    assert decode_image(data.getvalue(), least=256).shape == image.shape
