"""The tables ``images`` and ``objects``, read from a data set; what was committed of them before."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import numpy as np
import pyarrow as pa

from jobs.config.dataset import DatasetConfig
from jobs.dataset.image_file import SCALED, TURNED, UNTURNED, is_row, read_bytes
from jobs.dataset.labelled import Entry
from jobs.dataset.listing import list_entries
from jobs.dataset.notes import data_set_notes
from jobs.errors import UsageError
from pipeline.boxes import as_boxes
from pipeline.errors import ContentError
from pipeline.images.voc_annotation import NO_OBJECTS, Annotation, parse_annotation, stated_size
from storage.columns import box_column, take_rows
from storage.commits import Commit, CommitName, LedgerRow, winners
from storage.identity import canonical_json, digest, method_id, sha256
from storage.root import Root
from storage.schemas import schema
from storage.shards import shard_key, tiles
from storage.writer import ShardWriter

if TYPE_CHECKING:
    from pipeline.images.decode import Header, Scaling

VERSION = 1
_HEADER_BYTES = 256 * 1024


TABLES = ("images", "objects")
"""The datasets of the index."""


@dataclass(frozen=True)
class Index:
    """The two tables, sorted by image id, and what was wrong."""

    images: pa.Table
    objects: pa.Table
    ledger: tuple[LedgerRow, ...]

    def digests(self) -> dict[str, str]:
        """Image id to image digest."""
        return dict(zip(self.images["image_id"].to_pylist(), self.images["digest"].to_pylist(), strict=True))

    def images_in(self, splits: Sequence[str]) -> list[str]:
        """Ids of the images of some splits, sorted."""
        wanted = set(splits)
        rows = self.images.select(["image_id", "splits"]).to_pylist()
        return sorted(row["image_id"] for row in rows if wanted.intersection(row["splits"]))

    def objects_in(self, splits: Sequence[str]) -> pa.Table:
        """The objects on the images of some splits."""
        wanted = set(self.images_in(splits))
        ids = enumerate(self.objects["image_id"].to_pylist())
        return take_rows(self.objects, np.array([row for row, image_id in ids if image_id in wanted], np.int64))

    def class_names(self) -> list[str]:
        """The classes of all objects, sorted."""
        return sorted(set(self.objects["class_name"].to_pylist()))


@dataclass
class _Tile:
    """Rows of a run of images."""

    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    unturned: list[str] = field(default_factory=list)
    """Ids of images that no annotation tells how to turn, and that have an EXIF orientation."""


def index_method(config: DatasetConfig) -> str:
    """The method id of ``images`` and ``objects``."""
    return method_id("index", VERSION, config.identity())


def read_index(config: DatasetConfig, threads: int) -> list[_Tile]:
    """The rows of the data set, tile by tile. Nothing is written.

    What is said of the data set as a whole is said with one of the images that it is about.

    Raises UsageError: no such folder, layout or split; a class that no annotation has.
    """
    listing, fs = list_entries(config)
    entries = listing.entries
    known: dict[str, list[str]] = {}  # class to image ids, those that are not kept too
    read: list[_Tile] = []
    with ThreadPoolExecutor(threads) as readers:
        for ids in tiles(entries):
            tile = _Tile()
            for rows in readers.map(lambda i: _read_image(fs, i, entries[i], config), ids):
                tile.images += rows.images
                tile.objects += rows.objects
                tile.ledger += rows.ledger
                tile.unturned += rows.unturned
            for row in tile.objects:
                known.setdefault(row["class_name"], []).append(row["image_id"])
            if config.classes is not None:
                tile.objects = [row for row in tile.objects if row["class_name"] in config.classes]
            read.append(tile)
    for name in config.classes or ():
        if name not in known:
            hint = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"dataset.classes: no object of class {name!r} in {config.path}"
                + (f"; did you mean {hint[0]!r}?" if hint else "")
                + f" (classes: {', '.join(sorted(known)) or 'none'})"
            )
    images = [row for tile in read for row in tile.images]
    unturned = [image_id for tile in read for image_id in tile.unturned]
    tile_of = {row["image_id"]: tile for tile in read for row in tile.images}
    for note in data_set_notes(config, listing, images, known, unturned):
        tile_of[note.image_id].ledger.append(note)
    return read


def index_of(rows: Sequence[_Tile]) -> Index:
    """The tables of all tiles together."""
    return Index(
        _images_table([row for tile in rows for row in tile.images]),
        _objects_table([row for tile in rows for row in tile.objects]),
        tuple(row for tile in rows for row in tile.ledger),
    )


def publish_tile(root: Root, method: str, tile: _Tile, done: Mapping[str, Mapping[str, CommitName]]) -> list[Commit]:
    """Write the shards of ``tile`` that are not ``done`` (dataset to shard to commit); their key is their content."""
    commits = []
    ids = [row["image_id"] for row in tile.images]
    per_image = dict.fromkeys(ids, 0)
    for row in tile.objects:
        per_image[row["image_id"]] += 1
    ledger = [row.model_dump() for row in tile.ledger]
    for dataset, table, counts, key in (
        ("images", _images_table(tile.images), dict.fromkeys(ids, 1), _content_key([tile.images, ledger])),
        ("objects", _objects_table(tile.objects), per_image, _content_key([tile.objects, ids])),
    ):
        if key in done[dataset]:
            continue
        with ShardWriter(root, dataset, method, key, table.schema) as writer:
            writer.write_shard(table, counts)
            commits.append(writer.commit(ledger=tile.ledger if dataset == "images" else ()))
    return commits


def tile_shards(tile: _Tile) -> dict[str, str]:
    """Dataset to shard key of a tile."""
    ids = [row["image_id"] for row in tile.images]
    ledger = [row.model_dump() for row in tile.ledger]
    return {"images": _content_key([tile.images, ledger]), "objects": _content_key([tile.objects, ids])}


def committed_index(root: Root, method: str) -> dict[str, dict[str, CommitName]]:
    """What is there of both datasets."""
    return {dataset: winners(root, dataset, method) for dataset in ("images", "objects")}


def object_digests(index: Index, splits: Sequence[str]) -> dict[str, str]:
    """Image id to a digest of image and objects, of the images in ``splits``: what ``truth_features`` depends on."""
    wanted = set(splits)
    rows: dict[str, list[Any]] = {}
    for image in index.images.select(["image_id", "digest", "splits"]).to_pylist():
        if wanted.intersection(image["splits"]):
            rows[image["image_id"]] = [image["digest"]]
    for row in index.objects.to_pylist():
        if row["image_id"] in rows:
            rows[row["image_id"]].append(row)
    return {image_id: digest(canonical_json(values)) for image_id, values in rows.items()}


def _content_key(rows: Any) -> str:
    return shard_key([("", digest(canonical_json(rows)))])


def _images_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema("images"))


def _objects_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema("objects"))


def _read_image(fs: fsspec.AbstractFileSystem, image_id: str, entry: Entry, config: DatasetConfig) -> _Tile:
    """The rows of one image, or its ledger row."""
    from pipeline.images.decode import is_turned, may_be_turned  # Pillow: a status reads an index, and no image

    def row(kind: str, message: str, level: Literal["failed", "note"] = "failed") -> LedgerRow:
        return LedgerRow(image_id=image_id, stage="index", type=kind, message=message, level=level)

    if entry.problem:
        return _Tile(ledger=[row(*entry.problem)])
    try:
        header, scaling, image_digest = _measure(fs, entry, config)
    except FileNotFoundError:
        return _Tile(ledger=[row("MissingImage", f"{entry.uri} was listed and is gone; run `spp index` again")])
    except ContentError as error:
        return _Tile(ledger=[row(type(error).__name__, f"{entry.uri}: {error}")])
    notes = [row(kind, f"{entry.uri}: {text}", "note") for kind, text in entry.notes]
    height, width = header.size
    turned = False
    if entry.class_name is not None:
        annotation = Annotation((entry.class_name,), as_boxes([(0, 0, width, height)]), (False,), (False,))
    else:
        try:
            xml = fs.cat_file(entry.annotation)
            stated = stated_size(xml) if header.orientation > 1 else None
            turned = is_turned(header.size, header.orientation, stated)
            if turned:
                height, width = width, height
                text = (
                    f"read as its EXIF orientation turns it, {width} x {height}, which is the <size> of its annotation"
                )
                notes.append(row("Turned", f"{entry.uri}: {text}", "note"))
            annotation = parse_annotation(xml, height, width)
            if not turned and len(annotation.boxes) and may_be_turned(header.size, header.orientation, stated):
                text = (
                    f"read as it is stored: its EXIF orientation {header.orientation} is not applied, since no <size> "
                    f"tells whether its boxes were drawn on the picture as it is shown; if so, turn the file"
                )
                notes.append(row("NotTurned", f"{entry.uri}: {text}", "note"))
        except (FileNotFoundError, IsADirectoryError):
            annotation = NO_OBJECTS
            text = f"{entry.annotation} does not exist; the image is taken as one without objects"
            notes.append(row("MissingAnnotation", text, "note"))
        except ContentError as error:
            return _Tile(ledger=[row(type(error).__name__, f"{entry.annotation}: {error}")])
    if turned:
        image_digest += TURNED
    elif header.format == "TIFF" and header.orientation > 1:
        image_digest += UNTURNED
    if scaling is not None:
        image_digest += SCALED
        notes.append(row("Scaled", f"{entry.uri}: {scaling}", "note"))
    image = {
        "image_id": image_id,
        "uri": entry.uri,
        "width": width,
        "height": height,
        "splits": list(entry.splits),
        "digest": image_digest,
    }
    boxes = box_column(annotation.boxes).to_pylist()
    objects = [
        {
            "image_id": image_id,
            "object_id": number,
            "class_name": annotation.class_names[number],
            "box": boxes[number],
            "difficult": annotation.difficult[number],
            "truncated": annotation.truncated[number],
        }
        for number in range(len(boxes))
    ]
    notes += [row("Annotation", f"{entry.annotation}: {note}", "note") for note in annotation.notes]
    unseen = [image_id] if entry.class_name is not None and header.orientation > 1 else []
    return _Tile([image], objects, notes, unseen)


def _measure(fs: fsspec.AbstractFileSystem, entry: Entry, config: DatasetConfig) -> tuple[Header, Scaling | None, str]:
    """An image's header, how its values are scaled if they are, and its digest."""
    from pipeline.images.decode import image_header, read_scaling

    path = fs._strip_protocol(entry.uri)
    if config.digest == "content" or is_row(entry.uri):
        data = read_bytes(fs, path)
        image_digest = f"sha256:{sha256(data)}" if config.digest == "content" else _listed(entry)
        header = image_header(data)
        return header, read_scaling(data) if header.deep else None, image_digest
    try:
        data = fs.cat_file(path, start=0, end=_HEADER_BYTES)
        header = image_header(data)
        if header.deep:
            data = fs.cat_file(path)
    except ContentError:
        data = fs.cat_file(path)  # a header behind a large preview
        header = image_header(data)
    return header, read_scaling(data) if header.deep else None, _listed(entry)


def _listed(entry: Entry) -> str:
    return f"listing:{digest(entry.listing.encode())}"
