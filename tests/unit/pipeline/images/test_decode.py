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
from pipeline.images.decode import (
    FORMATS,
    MAX_PIXELS,
    decode_image,
    image_header,
    image_size,
    is_turned,
    may_be_turned,
    read_scaling,
)


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


# --- what has more than 8 bits: its own range, not its container's ---


def grey(values, format="TIFF", **options):
    return encoded(PillowImage.fromarray(np.asarray(values)), format, **options)


def ramp(high, dtype, low=0):
    return np.linspace(low, high, 24 * 31).astype(dtype).reshape(24, 31)


def deep_png(values):
    """A 16-bit RGB PNG, which Pillow does not write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "white"),
    [
        (grey(ramp(0.98, np.float32)), 1),
        (grey(ramp(0.001, np.float32)), np.float32(0.001)),
        (grey(ramp(30, np.float32)), 30),
        (grey(ramp(4000, np.float32)), 4095),
        (grey(ramp(65000, np.float32)), 65535),
        (grey(ramp(1e9, np.float32)), 1e9),
        (grey(ramp(3, np.int32)), 3),
        (grey(ramp(200, np.int32)), 255),
        (grey(ramp(1_000_000, np.int32)), 1_000_000),
        (grey(ramp(1023, np.uint16)), 1023),
        (grey(ramp(1700, np.uint16)), 4095),
        (grey(ramp(16000, np.uint16)), 16383),
        (grey(ramp(4095, np.uint16), "PNG"), 4095),
        (encoded(PillowImage.frombytes("I;16B", (31, 24), ramp(4095, ">u2").tobytes()), "TIFF"), 4095),
        (grey(ramp(1, np.int32)), 1),
    ],
)
def test_values_are_scaled_by_their_own_range(data, white):
    with PillowImage.open(io.BytesIO(data)) as image:
        values = np.asarray(image).astype(np.float64)
    expected = np.floor(values * 255 / float(white) + 0.5).astype(np.uint8)
    np.testing.assert_allclose(decode_image(data), np.repeat(expected[:, :, None], 3, axis=2), atol=1)
    scaling = read_scaling(data)
    assert (scaling.black, scaling.white) == (0, white)
    assert f"{white:g} as white" in str(scaling)
    assert image_header(data).deep


@pytest.mark.parametrize(("low", "high"), [(-1024, 3000), (-32768, 32767), (-5.5, -2.5), (-0.5, 0.5)])
def test_values_below_0_are_scaled_from_their_least_to_their_largest(low, high):
    data = grey(ramp(high, np.float32 if isinstance(low, float) else np.int32, low))
    found = decode_image(data)
    assert (found.min(), found.max()) == (0, 255)
    assert (read_scaling(data).black, read_scaling(data).white) == (low, high)


@pytest.mark.parametrize(
    "data",
    [
        grey(ramp(65535, np.uint16)),
        grey(ramp(20000, np.uint16), "PNG"),
        grey(ramp(65535, np.int32)),
        grey(np.zeros((4, 5), np.uint16)),
        grey(np.zeros((4, 5), np.float32)),
        deep_png(np.stack([ramp(65535, np.uint16)] * 3, axis=2)),
    ],
)
def test_what_uses_16_bits_is_its_upper_8(data):
    with PillowImage.open(io.BytesIO(data)) as image:
        values = np.asarray(image)
    upper = values if values.dtype == np.uint8 else values.astype(np.int64) >> 8
    found = decode_image(data)
    np.testing.assert_array_equal(found if upper.ndim == 3 else found[:, :, 0], upper)
    assert read_scaling(data) is None


def test_floats_of_8_bits_are_themselves():
    values = ramp(255, np.float32)
    data = grey(values)
    assert read_scaling(data) is None
    np.testing.assert_array_equal(decode_image(data)[:, :, 0], np.asarray(PillowImage.fromarray(values).convert("L")))


def test_12_bits_a_colour_in_16_are_scaled():
    values = np.stack([ramp(4095, np.uint16), ramp(2000, np.uint16), ramp(0, np.uint16)], axis=2)
    data = deep_png(values)
    assert image_header(data).deep
    assert read_scaling(data).white == 4095
    np.testing.assert_array_equal(decode_image(data), np.floor(values * (255 / 4095) + 0.5).astype(np.uint8))
    ppm = b"P6 31 24 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(ppm), decode_image(data))
    stated = b"P6 31 24 4095\n" + values.astype(">u2").tobytes()  # this file says what is white
    assert read_scaling(stated) is None
    np.testing.assert_allclose(decode_image(stated).astype(int), decode_image(data), atol=1)


@pytest.mark.parametrize("suffix", [".jp2", ".tif", ".png"])
def test_12_bits_a_colour_in_16_are_scaled_whatever_the_format(suffix):
    values = np.kron(np.stack([ramp(4095, np.uint16), ramp(900, np.uint16), ramp(9, np.uint16)], 2), np.ones((8, 8, 1)))
    data = cv2.imencode(suffix, values.astype(np.uint16)[:, :, ::-1])[1].tobytes()
    assert read_scaling(data).white == 4095
    np.testing.assert_allclose(decode_image(data), values * (255 / 4095), atol=2)


def test_bits_that_no_reader_here_keeps_are_refused_where_they_count():
    dark = np.zeros((4, 5, 4), np.uint16) + 300
    tags = [(256, 4, 5), (257, 4, 4), (259, 3, 1), (262, 3, 5), (277, 3, 4), (278, 4, 4), (279, 4, dark.nbytes)]
    # a TIFF of 16-bit CMYK: its entries, the four numbers of bits behind them, the pixels behind those
    entries = sorted([*tags, (258, 3, None), (273, 4, None)])
    after = 8 + 2 + 12 * len(entries) + 4
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        count = 4 if tag == 258 else 1
        body += struct.pack("<HHII", tag, kind, count, {258: after, 273: after + 8}.get(tag, value))
    data = body + struct.pack("<I", 0) + struct.pack("<4H", 16, 16, 16, 16) + dark.tobytes()
    assert image_header(data).size == (4, 5)
    for read in (decode_image, read_scaling):
        with pytest.raises(ImageError, match="less than a quarter of their range; give 8 bits"):
            read(data)


def test_unsigned_values_above_a_signed_range_are_not_negative():
    data = bytearray(grey(ramp(100, np.int32)))
    high = np.array([0, 3_000_000_000], "<u4").tobytes()
    at = len(data) - 4 * 24 * 31  # Pillow writes the pixels last
    data[at : at + 8] = high
    entry = bytes(data).index(struct.pack("<HH", 339, 3))
    data[entry + 8 : entry + 10] = struct.pack("<H", 1)
    assert read_scaling(bytes(data)).high == 3_000_000_000
    assert decode_image(bytes(data))[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(odd):
    values = ramp(1, np.float32)
    values[3, 4] = odd
    for read in (decode_image, read_scaling):
        with pytest.raises(ImageError, match="no finite numbers"):
            read(grey(values))


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


@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_is_read_as_stored_like_the_others(orientation, compression):
    """Pillow turns it by itself."""
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(), "TIFF", exif=exif, compression=compression)
    assert image_header(data).orientation == orientation
    assert image_size(data) == (24, 31)
    np.testing.assert_array_equal(decode_image(data), photograph())
    np.testing.assert_array_equal(decode_image(data, (24, 31)), photograph())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_square_is_never_turned(orientation):
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(20, 20), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, (20, 20)), photograph(20, 20))
    assert not is_turned((20, 20), orientation, (20, 20))
    assert may_be_turned((20, 20), orientation, (20, 20)) == (orientation > 1)


def test_only_a_size_as_stored_tells_that_an_orientation_was_ignored():
    assert not may_be_turned((24, 31), 6, (24, 31))
    for orientation, stated in ((6, None), (6, (5, 5)), (3, (24, 31)), (2, None)):
        assert may_be_turned((24, 31), orientation, stated)


def test_a_scaled_image_can_be_turned():
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    values = ramp(4095, np.uint16)
    data = encoded(PillowImage.fromarray(values), "TIFF", exif=exif)
    whole = decode_image(data)
    np.testing.assert_array_equal(whole[:, :, 0], (values * (255 / 4095) + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(decode_image(data, (31, 24)), np.rot90(whole, -1))


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
    grey(ramp(1, np.float32)),
    grey(ramp(4095, np.uint16)),
    oriented(3, "TIFF"),
    deep_png(np.stack([ramp(4095, np.uint16)] * 3, axis=2)),
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
