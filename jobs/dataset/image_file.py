"""An indexed image as a worker meets it: where its bytes are, and that they are still those that were indexed."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContentError
from storage.commits import LedgerRow
from storage.identity import sha256
from storage.root import resolve_options

if TYPE_CHECKING:
    from pipeline.images.decode import RGB

TURNED, UNTURNED, SCALED = ":turned", ":unturned", ":scaled"
"""End the digest of an image whose pixels are not those that the file's bytes meant before: turned by its EXIF
orientation; a TIFF file's as they are stored, though it has an orientation; of more than 8 bits, and scaled by what
they are."""

_CHANGED = "the image has changed since it was indexed; run `spp index` again"


class MissingImage(ContentError):
    """The image was there when it was indexed, and is no more."""


class ImageChanged(ContentError):
    """The image's bytes are not those that were indexed."""


@dataclass(frozen=True)
class ImageFile:
    """An image of a shard. ``size``: its (height, width) in the index, which says whether it is turned by its EXIF
    orientation (see ``decode_image``); by default it is not."""

    image_id: str
    uri: str
    digest: str
    size: tuple[int, int] | None = None

    @property
    def height_width(self) -> tuple[int, int]:
        """The size in the index."""
        if self.size is None:
            raise ValueError(f"the size of image {self.image_id!r} is not known")
        return self.size

    def ledger_row(self, stage: str, error: ContentError) -> LedgerRow:
        """What the ledger says of a failure, naming the file."""
        return LedgerRow(image_id=self.image_id, stage=stage, type=type(error).__name__, message=f"{self.uri}: {error}")


def read_image(file: ImageFile, storage_options: dict[str, Any], least: int | None = None) -> RGB:
    """Read, check and decode an image; ContentError if it is the image's fault, OSError if it is the store's.

    ``least``: it may come smaller, its short side not below that many pixels (see ``decode_image``).
    """
    from pipeline.images.decode import decode_image  # Pillow: only who looks at pixels loads it

    fs, path = fsspec.url_to_fs(file.uri, **resolve_options(storage_options, "dataset.storage_options"))
    try:
        data = read_bytes(fs, path)
    except FileNotFoundError:
        raise MissingImage("the image is gone since it was indexed; run `spp index` again") from None
    content = content_of(file.digest)
    if content is not None and content != sha256(data):
        raise ImageChanged(_CHANGED)
    image = decode_image(data, file.size, least)
    if file.size is not None and image.shape[:2] not in _decoded_sizes(file.size, least):
        raise ImageChanged(_CHANGED)
    return image


def content_of(image_digest: str) -> str | None:
    """The sha256 of the bytes of an image, whatever is made of them; None for one that is known by its listing."""
    kind, value = image_digest.split(":")[:2]
    return value if kind == "sha256" else None


def _decoded_sizes(size: tuple[int, int], least: int | None) -> list[tuple[int, int]]:
    return [(-(-size[0] // step), -(-size[1] // step)) for step in ((1,) if least is None else (1, 2, 4, 8))]


_ROW = re.compile(r"(?P<file>.+\.parquet)#(?P<column>.+)/(?P<group>\d+)\.(?P<row>\d+)")
_GROUPS = 8
_GROUP_BYTES = 1_000_000_000
"""Row groups of images that a process keeps at hand, at most, and bytes of all but the newest. A data set is gone
through group by group; a training mixes four, and begins the next four while threads are still at the last."""

_kept: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()
_keeping = threading.Lock()


def row_uri(uri: str, column: str, group: int, row: int) -> str:
    """The URI of an image that is a row of a row group of a Parquet file."""
    return f"{uri}#{column}/{group}.{row}"


def is_row(uri: str) -> bool:
    """Whether a URI is of an image in a Parquet file."""
    return _ROW.fullmatch(uri) is not None


def block_of(uri: str) -> str | None:
    """What images have in common that are read together, a row group; None for an image in a file of its own."""
    found = _ROW.fullmatch(uri)
    return f"{found['file']}#{found['group']}" if found else None


def read_bytes(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes of an encoded image, of a file or of a row; empty for a row without any. OSError from the store."""
    found = _ROW.fullmatch(path)
    if found is None:
        return fs.cat_file(path)
    place = f"{type(fs).__name__} {sorted(fs.storage_options.items())!r}"  # each thread has a file system of its own
    key = (f"{place} {found['file']}", found["column"], int(found["group"]))
    with _keeping:  # one reader at a time: the next images are of the same group
        if key not in _kept:
            with fs.open(found["file"], "rb") as file:
                _kept[key] = _image_column(pq.ParquetFile(file), found["column"], int(found["group"]))
            while len(_kept) > _GROUPS or (len(_kept) > 1 and sum(v.nbytes for v in _kept.values()) > _GROUP_BYTES):
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        values = _kept[key]
    row = int(found["row"])
    if row >= len(values):
        raise MissingImage("the file has fewer rows than when it was indexed; run `spp index` again")
    return values[row].as_py() or b""


def _image_column(parquet: pq.ParquetFile, column: str, group: int) -> pa.ChunkedArray:
    if group >= parquet.num_row_groups:
        return pa.chunked_array([], pa.binary())
    values = parquet.read_row_group(group, columns=[column], use_threads=False)[column]
    if pa.types.is_struct(values.type):
        values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks], values.type.field("bytes").type)
    return values
