"""Image bytes to RGB arrays. Content errors are told apart from everything else."""

from __future__ import annotations

import io
import math
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import Image as PillowImage
from PIL.ImageFile import ImageFile

from pipeline.errors import ImageError

RGB = NDArray[np.uint8]

MAX_PIXELS = 160 * 1024 * 1024
"""Images of more pixels are refused before their pixels are read: they are decompression bombs, or need tiling.
Below Pillow's own limit of 179 million, so that this one is what holds."""

PillowImage.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
    if name in PillowImage.OPEN
)
"""What is read. Pillow knows more; some of those are no photographs, and one (EPS) runs an interpreter."""

# For good, since warnings cannot be silenced for one thread alone: what matters here is raised.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TURNS: dict[int, PillowImage.Transpose] = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation but 1."""

_BACK = {
    PillowImage.Transpose.ROTATE_90: PillowImage.Transpose.ROTATE_270,
    PillowImage.Transpose.ROTATE_270: PillowImage.Transpose.ROTATE_90,
}
"""What undoes a turn; all others undo themselves."""

_BROKEN_DATA = (OSError, SyntaxError, ValueError, IndexError, EOFError, OverflowError, RuntimeError)
"""What Pillow's decoders raise on it, depending on the format."""


@dataclass(frozen=True)
class Header:
    """What an encoded image says before its pixels are read.

    ``size``: (height, width) as its file stores it. ``orientation``: EXIF's, from 1 to 8, 1 if there is none.
    ``deep``: values have more than 8 bits, so that only they tell what is white (``read_scaling``). ``format``: as
    Pillow calls it.
    """

    size: tuple[int, int]
    orientation: int
    deep: bool
    format: str


def image_header(data: bytes) -> Header:
    """The header of an encoded image.

    Raises ImageError for bytes that no decoder knows or that declare more than ``MAX_PIXELS`` pixels.
    """
    with _open(data) as image:
        return Header(_stored_size(image), _orientation(image), _is_deep(image, data), image.format or "")


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header of an encoded image, as its file stores it (no EXIF rotation).

    Raises ImageError like ``image_header``.
    """
    return image_header(data).size


def is_turned(stored: tuple[int, int], orientation: int, wanted: tuple[int, int] | None) -> bool:
    """Whether an image is read turned: if its EXIF orientation exchanges height and width, and only that gives it the
    size (height, width) that is wanted. A square, and the orientations 2 to 4, are never told by a size."""
    return orientation in (5, 6, 7, 8) and wanted == stored[::-1] and wanted != stored


def may_be_turned(stored: tuple[int, int], orientation: int, wanted: tuple[int, int] | None) -> bool:
    """Whether an image that is read as stored may have been annotated turned: it has an orientation, and the size
    that is wanted, if any, does not show that it was annotated as stored."""
    if orientation == 1:
        return False
    return orientation in (2, 3, 4) or wanted != stored or stored[0] == stored[1]


def decode_image(data: bytes, size: tuple[int, int] | None = None, least: int | None = None) -> RGB:
    """An encoded image as uint8 of shape (height, width, 3), RGB.

    It is taken as its file stores it, unless it ``is_turned`` by the ``size`` (height, width) that is wanted, whatever
    its format. Grey, palette, CMYK and alpha images are converted to 8-bit RGB (alpha is dropped, of an animation the
    first frame is taken). Of 16-bit values the upper 8 bits count if they use their range; all others are scaled
    (``read_scaling``).

    ``least``: a JPEG image may come at a half, a quarter or an eighth of its size, sides rounded up, which is decoded
    several times faster; its short side stays at ``least`` pixels or more.

    Raises ImageError for an empty, truncated or unknown file, for one of more than ``MAX_PIXELS`` pixels, and for
    values that cannot be shown.
    """
    with _open(data) as opened:
        try:
            stored = _stored_size(opened)
            orientation = _orientation(opened) if size == stored[::-1] else 1
            if _is_deep(opened, data):
                scaling, values = _scaled(opened, data)
                pixels = values if scaling is None else scaling.apply(values)
                image = PillowImage.fromarray(np.ascontiguousarray(pixels))
            else:
                if least is not None and 2 * least <= min(stored):
                    short = min(stored)
                    opened.draft(None, (opened.width * least // short, opened.height * least // short))
                image = _as_stored(opened)
            if is_turned(stored, orientation, size):
                image = image.transpose(_TURNS[orientation])
            return np.array(image.convert("RGB"))
        except ImageError:
            raise
        except _BROKEN_DATA as error:
            raise ImageError(f"the image cannot be decoded: {error}; replace the file") from error


@dataclass(frozen=True)
class Scaling:
    """How values of more than 8 bits become 0 to 255: those from ``black`` to ``white``, linearly. ``low`` and
    ``high`` are the least and the largest that the image has."""

    low: float
    high: float
    black: float
    white: float

    def __str__(self) -> str:
        return (
            f"its values, from {self.low:g} to {self.high:g}, are scaled: {self.black:g} is read as black, "
            f"{self.white:g} as white"
        )

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values of any shape as uint8, rounded."""
        shades = values.astype(np.float64)
        shades -= self.black  # in place: an image has up to 160 million
        shades /= self.white - self.black
        shades *= 255
        shades += 0.5
        return shades.astype(np.uint8)


def read_scaling(data: bytes) -> Scaling | None:
    """How the values of a ``deep`` image are scaled, for which it is decoded; None where nothing is assumed: 8 bits in
    floats, or 16-bit values that use their range, of which the upper 8 bits count.

    What is white is not told by the type of a file's numbers (12 bits in 16, 0 to 1 in floats): it is the end of the
    narrowest usual range that the values use, by more than a quarter, or else the largest value.

    Raises ImageError like ``decode_image``.
    """
    with _open(data) as opened:
        try:
            return _scaled(opened, data)[0] if _is_deep(opened, data) else None
        except ImageError:
            raise
        except _BROKEN_DATA as error:
            raise ImageError(f"the image cannot be decoded: {error}; replace the file") from error


_WHITES = (1, 2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)
"""Ends of the usual ranges: fractions, and integers of so many bits."""


def _scaling_of(values: NDArray[Any]) -> Scaling | None:
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise ImageError("the image has values that are no finite numbers; replace them, or give 8 bits a value")
    if low < 0:
        return Scaling(low, high, low, high if high > low else low + 1)
    white = next((white for white in _WHITES if white / 4 < high <= white), high)
    read_as_it_is = 2**8 - 1 if values.dtype.kind == "f" else 2**16 - 1
    if high == 0 or white == read_as_it_is:
        return None
    return Scaling(low, high, 0, white)


def _scaled(opened: ImageFile, data: bytes) -> tuple[Scaling | None, NDArray[Any]]:
    """The scaling of a deep image, and its values (H, W) or (H, W, 3), uint8 if there is no scaling."""
    unsigned = opened.format == "TIFF" and _tag(opened, _SAMPLE_FORMAT) in (None, 1)
    image = _as_stored(opened)
    if opened.mode not in _GREY:
        return _scaled_colours(image, data)
    values: NDArray[Any] = np.asarray(image)
    if opened.mode == "I" and unsigned:
        values = values.astype(np.int64) & 0xFFFFFFFF  # Pillow's are signed
    scaling = _scaling_of(values)
    if scaling is not None:
        return scaling, values
    if opened.mode == "F":
        return None, np.asarray(image.convert("L"))
    return None, (values.astype(np.int64) >> 8).astype(np.uint8)


def _scaled_colours(image: PillowImage.Image, data: bytes) -> tuple[Scaling | None, NDArray[Any]]:
    """Of an image with several bands of 16 bits, of which Pillow keeps the upper 8."""
    colours = image if image.mode == "CMYK" else image.convert("RGB")
    upper: NDArray[Any] = np.asarray(colours)
    if upper.max() >= 64:
        return None, np.asarray(colours.convert("RGB"))
    import cv2  # which keeps all 16; a quarter of a second, and few images are such

    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is not None and whole.dtype == np.uint16 and whole.ndim == 3:
        values: NDArray[Any] = whole[:, :, 2::-1]
        same = values.shape == upper.shape and np.abs((values >> 8).astype(np.int64) - upper).max() <= 1
        if same:  # as it should be, but not of every kind of file: alpha multiplied in, turned
            scaling = _scaling_of(values)
            return scaling, values if scaling is not None else upper
    raise ImageError("the image has 16 bits a value and uses less than a quarter of their range; give 8 bits a value")


_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_SAMPLE_FORMAT, _WIDTH, _HEIGHT = 339, 256, 257
"""Tags of TIFF: 1 for unsigned integers, and the size as it is stored."""


def _is_deep(image: ImageFile, data: bytes) -> bool:
    """Whether values have more than 8 bits, as Pillow's decoder is told. Asked before pixels are read."""
    if image.mode in _GREY:
        return True
    for tile in image.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(word, str) and ";16" in word for word in arguments):
            return True
        if image.format == "PPM" and 2**16 - 1 in arguments:  # another largest value is one that the file states
            return True
    if image.format == "JPEG2000":
        codestream = data.find(b"\xff\x4f\xff\x51")  # its markers SOC and SIZ
        bits = data[codestream + 42 : codestream + 43] if codestream >= 0 else b""  # of the first component, less 1
        return bits in (b"\x0f", b"\x8f")
    return False


def _tag(image: PillowImage.Image, tag: int) -> object:
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _stored_size(image: PillowImage.Image) -> tuple[int, int]:
    """(height, width), as Pillow says them of all formats but TIFF, which newer ones turn."""
    if image.format == "TIFF":
        height, width = _tag(image, _HEIGHT), _tag(image, _WIDTH)
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    return image.height, image.width


def _as_stored(image: PillowImage.Image) -> PillowImage.Image:
    """The image with its pixels read, as the file stores them. Pillow itself turns a TIFF file by its orientation."""
    turn = _TURNS.get(_orientation(image)) if image.format == "TIFF" else None
    image.load()
    return image if turn is None else image.transpose(_BACK.get(turn, turn))


def _orientation(image: PillowImage.Image) -> int:
    """EXIF's, from 1 to 8. Asked before pixels are read, for Pillow forgets that of a TIFF file."""
    try:
        # Not image.getexif(), which for PNG decodes all pixels to look behind them.
        value = PillowImage.Image.getexif(image).get(ExifTags.Base.Orientation)
        return next((orientation for orientation in _TURNS if orientation == value), 1)
    except (*_BROKEN_DATA, LookupError, TypeError, struct.error):
        return 1


def _open(data: bytes) -> ImageFile:
    if not data:
        raise ImageError("the image file is empty; replace the file")
    try:
        image = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    except PillowImage.DecompressionBombError as error:
        raise ImageError(f"the image declares more than {MAX_PIXELS} pixels; shrink or tile it") from error
    except _BROKEN_DATA as error:
        raise ImageError(f"the file is no image of a kind that is read ({', '.join(FORMATS)}); replace it") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"the image declares {image.width} x {image.height} pixels, more than {MAX_PIXELS}; shrink or tile it"
        )
    return image
