"""An indexed image as a worker meets it: where its bytes are, and that they are still those that were indexed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import ContentError
from pipeline.images import RGB, decode_image
from storage.commits import LedgerRow
from storage.identity import sha256
from storage.root import resolve_options

TURNED = ":turned"
"""Ends the digest of an image that is turned by its EXIF orientation: not the same content as the file unturned."""

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


def read_image(file: ImageFile, storage_options: dict[str, Any]) -> RGB:
    """Read, check and decode an image; ContentError if it is the image's fault, OSError if it is the store's."""
    fs, path = fsspec.url_to_fs(file.uri, **resolve_options(storage_options, "dataset.storage_options"))
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise MissingImage("the image is gone since it was indexed; run `spp index` again") from None
    if file.digest.startswith("sha256:") and file.digest.removesuffix(TURNED) != f"sha256:{sha256(data)}":
        raise ImageChanged(_CHANGED)
    image = decode_image(data, file.size)
    if file.size is not None and image.shape[:2] != file.size:
        raise ImageChanged(_CHANGED)
    return image
