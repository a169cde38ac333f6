"""Image bytes to RGB arrays. Content errors are told apart from everything else."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import Image as PillowImage

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

_TURNS: dict[object, PillowImage.Transpose] = {
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}
"""What undoes the EXIF orientations that exchange height and width. Those that do not, 2 to 4, cannot be told from an
annotation's size."""

_BROKEN_DATA = (OSError, SyntaxError, ValueError, IndexError, EOFError, OverflowError, RuntimeError)
"""What Pillow's decoders raise on it, depending on the format."""


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header of an encoded image, as its file stores it (no EXIF rotation).

    Raises ImageError for bytes that no decoder knows or that declare more than ``MAX_PIXELS`` pixels.
    """
    with _open(data) as image:
        return image.height, image.width


def turned_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) after the EXIF orientation, of an image that it lays on its side; None for every other.

    Raises ImageError like ``image_size``.
    """
    with _open(data) as image:
        return (image.width, image.height) if _turn(image) is not None else None


def decode_image(data: bytes, size: tuple[int, int] | None = None, least: int | None = None) -> RGB:
    """An encoded image as uint8 of shape (height, width, 3), RGB.

    It is taken as its file stores it, unless its EXIF orientation exchanges height and width and only that gives it
    the ``size`` (height, width) that is wanted: then it is turned. Grey, palette, CMYK, alpha and 16-bit images are
    converted to 8-bit RGB (alpha is dropped, of an animation the first frame is taken).

    ``least``: a JPEG image may come at a half, a quarter or an eighth of its size, sides rounded up, which is decoded
    several times faster; its short side stays at ``least`` pixels or more.

    Raises ImageError for an empty, truncated or unknown file and for one of more than ``MAX_PIXELS`` pixels.
    """
    with _open(data) as opened:
        try:
            stored = (opened.height, opened.width)
            turn = _turn(opened) if size not in (None, stored) and size == stored[::-1] else None
            if least is not None and 2 * least <= min(stored):
                short = min(stored)
                opened.draft(None, (opened.width * least // short, opened.height * least // short))
            image = opened if turn is None else opened.transpose(turn)
            if image.mode.startswith("I;16") or image.mode == "I":
                values = np.asarray(image, dtype=np.int64)
                grey = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
        except _BROKEN_DATA as error:
            raise ImageError(f"the image cannot be decoded: {error}; replace the file") from error


def _turn(image: PillowImage.Image) -> PillowImage.Transpose | None:
    """How an EXIF orientation turns the image, if that exchanges height and width. Pillow itself turns a TIFF file."""
    if image.format == "TIFF":
        return None
    try:
        # Not image.getexif(), which for PNG decodes all pixels to look behind them.
        orientation = PillowImage.Image.getexif(image).get(ExifTags.Base.Orientation)
        return _TURNS.get(orientation)
    except (*_BROKEN_DATA, LookupError, TypeError, struct.error):
        return None


def _open(data: bytes) -> PillowImage.Image:
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
