"""index: a data set becomes the tables ``images`` and ``objects``.

    spp index --config configs/raccoon_kangaroo.yaml --root /data/spp

Reads ``ImageSets/Main/<split>.txt``, ``JPEGImages`` and ``Annotations`` of one or several devkits (``VOC2007``,
``VOC2012``, ...), or labelled images in folders or Parquet tables (``jobs/entries.py``), on any fsspec path. It runs on
every ``spp run``, since it is what notices a change; unchanged images give the rows, and so the shards, that are there
already.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
from pydantic import Field

from jobs.entries import SUFFIXES, Entry, folder_entries, listing_token, table_entries
from jobs.errors import UsageError
from jobs.imagefile import TURNED, is_row, read_bytes
from jobs.settings import ADDED_LATER, NOT_IDENTITY, Settings
from pipeline.boxes import as_boxes
from pipeline.errors import ContentError
from pipeline.voc import NO_OBJECTS, Annotation, parse_annotation, stated_size
from storage.columns import box_column, take_rows
from storage.commits import Commit, CommitName, LedgerRow, winners
from storage.identity import canonical_json, digest, method_id, sha256
from storage.root import Root, resolve_options, store_errors
from storage.schemas import schema
from storage.shards import shard_key, tiles
from storage.writer import ShardWriter

VERSION = 1
_HEADER_BYTES = 256 * 1024


class DatasetConfig(Settings):
    """The ``dataset:`` section of the config."""

    path: str = Field(json_schema_extra=NOT_IDENTITY)
    """Folder or URL with JPEGImages/, Annotations/ and ImageSets/Main/, or with several such (VOC2007/, VOC2012/); of
    other layouts see ``layout``."""
    layout: Literal["voc", "folder", "table"] = Field("voc", json_schema_extra=ADDED_LATER)
    """voc: as above; folder: images in folders named after their classes, [split/]class/image; table: Parquet files
    with a column of encoded images and one of labels. Of the last two each image is one object that fills it."""
    image_column: str = Field("image", json_schema_extra=ADDED_LATER)
    """Of layout table: the column of encoded images."""
    label_column: str = Field("label", json_schema_extra=ADDED_LATER)
    """Of layout table: the column of class names, or of their numbers."""
    train_splits: tuple[str, ...] = Field(("trainval",), json_schema_extra=NOT_IDENTITY)
    """Splits whose ground truth models are trained on; files of ImageSets/Main without .txt."""
    test_splits: tuple[str, ...] = Field(("test",), json_schema_extra=NOT_IDENTITY)
    """Splits that are only ever tested on."""
    classes: tuple[str, ...] | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """Classes whose objects are kept, in the layouts folder and table whose images; every class by default."""
    digest: Literal["content", "listing"] = "content"
    """An image's identity: its bytes, or (for very large stores) its listing: size and time or ETag."""
    storage_options: dict[str, Any] = Field(default_factory=dict, json_schema_extra=NOT_IDENTITY)
    """For the file system of ``path``; secrets as ``env:NAME``."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that is indexed."""
        return tuple(dict.fromkeys((*self.train_splits, *self.test_splits)))


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


def index_method(config: DatasetConfig) -> str:
    """The method id of ``images`` and ``objects``."""
    return method_id("index", VERSION, config.identity())


def read_index(config: DatasetConfig, threads: int) -> Iterator[_Tile]:
    """The rows of the data set, tile by tile. Nothing is written.

    Raises UsageError: no such folder, layout or split; a class that no annotation has.
    """
    entries, fs = _list_entries(config)
    known: set[str] = set()
    with ThreadPoolExecutor(threads) as readers:
        for ids in tiles(entries):
            tile = _Tile()
            for rows in readers.map(lambda i: _read_image(fs, i, entries[i], config), ids):
                tile.images += rows.images
                tile.objects += rows.objects
                tile.ledger += rows.ledger
            known.update(row["class_name"] for row in tile.objects)
            if config.classes is not None:
                tile.objects = [row for row in tile.objects if row["class_name"] in config.classes]
            yield tile
    for name in config.classes or ():
        if name not in known:
            hint = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"dataset.classes: no object of class {name!r} in {config.path}"
                + (f"; did you mean {hint[0]!r}?" if hint else "")
                + f" (classes: {', '.join(sorted(known)) or 'none'})"
            )


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


def _list_entries(config: DatasetConfig) -> tuple[dict[str, Entry], fsspec.AbstractFileSystem]:
    """Every image id that a split names, with the places of its files."""
    options = resolve_options(config.storage_options, "dataset.storage_options")
    try:
        fs, path = fsspec.url_to_fs(config.path, **options)
        path = path.rstrip("/")
        if config.layout != "voc":
            return _labelled(fs, path, config), fs
        devkits = _devkits(fs, path)
    except FileNotFoundError:
        raise UsageError(f"dataset.path: {config.path!r} does not exist") from None
    except UsageError:
        raise
    except store_errors(ImportError, ValueError) as error:
        raise UsageError(f"dataset.path: {config.path!r} cannot be read: {error}") from error
    if not devkits:
        raise UsageError(
            f"dataset.path: no VOC layout in {config.path!r}; it, or a folder in it, must hold JPEGImages/, "
            f"Annotations/ and ImageSets/Main/"
        )
    entries: dict[str, Entry] = {}
    found: set[str] = set()
    for devkit in devkits:
        pictures = _listing(fs, f"{devkit}/JPEGImages")
        annotations = f"{devkit}/Annotations"
        members: dict[str, list[str]] = {}
        cut: dict[str, str] = {}
        for split in config.splits:
            text = _read_split(fs, f"{devkit}/ImageSets/Main/{split}.txt")
            if text is None:
                continue
            found.add(split)
            for line in text:
                image_id = line if line in pictures else line.split()[0]
                members.setdefault(image_id, []).append(split)
                if image_id != line:
                    cut[image_id] = line
        for image_id, named in members.items():
            splits = tuple(dict.fromkeys(named))
            if image_id in entries:
                problem = ("DuplicateImage", _duplicate(image_id, devkit))
                entries[image_id] = Entry("", "", splits, "", problem)
            elif image_id not in pictures or "::" in image_id:
                folder = f"{devkit}/JPEGImages"
                problem = _unusable(image_id, folder, splits, cut.get(image_id), image_id in pictures)
                entries[image_id] = Entry("", "", splits, "", problem)
            else:
                name, listing = pictures[image_id]
                uri = f"{devkit}/JPEGImages/{name}"
                uri = fs.unstrip_protocol(uri) if "://" in config.path else uri
                often = [split for split in splits if named.count(split) > 1]
                note = f"split {often[0]!r} names it {named.count(often[0])} times; it is taken once" if often else None
                entries[image_id] = Entry(uri, f"{annotations}/{image_id}.xml", splits, listing, note=note)
    for split in config.splits:
        if split not in found:
            there = sorted(
                {name.removesuffix(".txt") for kit in devkits for name in _names(fs, f"{kit}/ImageSets/Main")}
            )
            plain = [name for name in there if "_" not in name]
            raise UsageError(
                f"dataset: there is no split {split!r} in {config.path}; set dataset.train_splits and "
                f"dataset.test_splits to some of: {', '.join(plain or there) or 'none found'}"
            )
    return entries, fs


def _labelled(fs: fsspec.AbstractFileSystem, path: str, config: DatasetConfig) -> dict[str, Entry]:
    if not fs.exists(path):
        raise FileNotFoundError(path)
    if config.layout == "folder":
        return folder_entries(fs, path, config.path, config.splits, config.classes)
    columns = config.image_column, config.label_column
    return table_entries(fs, path, config.path, config.splits, *columns, config.classes)


def _duplicate(image_id: str, devkit: str) -> str:
    return f"image id {image_id!r} stands in two devkits, the second is {devkit}; rename one of the images"


def _unusable(image_id: str, folder: str, splits: Sequence[str], line: str | None, there: bool) -> tuple[str, str]:
    """Why no image is read for an id. Only what the listing of ``folder`` shows is ever opened, so no id leads out."""
    named = f"split {splits[0]!r} names it; "
    if there:
        return "BadImageId", f"{folder}: an image id must not hold '::', which separates URLs; {named}rename the image"
    if "/" in image_id:
        text = f"{image_id!r} is a path, not the name of an image in {folder}; {named}"
        return "BadImageId", f"{text}write names without folders and suffixes"
    text = f"{folder}/{image_id}.jpg does not exist (nor with another suffix), but {named}add the image or remove it"
    if line is not None:
        text += f" from the split; of its line {line!r} the first word is the id, as no image has the whole line's name"
    return "MissingImage", text


def _devkits(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Folders with JPEGImages/ at ``path``, in it, or in its VOCdevkit/."""
    if fs.isdir(f"{path}/JPEGImages"):
        return [path]
    folders = [f"{path}/{name}" for name in _names(fs, path)]
    kits = [folder for folder in folders if fs.isdir(f"{folder}/JPEGImages")]
    if not kits and fs.isdir(f"{path}/VOCdevkit"):
        return _devkits(fs, f"{path}/VOCdevkit")
    return kits


def _names(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def _listing(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, tuple[str, str]]:
    """Image id to (file name, a text that changes when the file does), from one listing."""
    pictures: dict[str, tuple[str, str]] = {}
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: info["name"]):
        name = info["name"].rstrip("/").rsplit("/", 1)[-1]
        stem, dot, suffix = name.rpartition(".")
        if stem and dot + suffix.lower() in SUFFIXES and info.get("type") != "directory":
            pictures.setdefault(stem, (name, f"{name} {listing_token(info)}"))
    return pictures


def _read_split(fs: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """The lines of a split file, without those that are blank; None if there is no such file."""
    try:
        lines = re.split(r"[\r\n]", fs.cat_file(path).decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UsageError(f"dataset: split file {path} is not UTF-8 text") from None
    return [line.strip() for line in lines if line.strip()]


def _read_image(fs: fsspec.AbstractFileSystem, image_id: str, entry: Entry, config: DatasetConfig) -> _Tile:
    """The rows of one image, or its ledger row."""

    def row(kind: str, message: str, level: Literal["failed", "note"] = "failed") -> LedgerRow:
        return LedgerRow(image_id=image_id, stage="index", type=kind, message=message, level=level)

    if entry.problem:
        return _Tile(ledger=[row(*entry.problem)])
    try:
        height, width, turned, image_digest = _measure(fs, entry, config)
    except FileNotFoundError:
        return _Tile(ledger=[row("MissingImage", f"{entry.uri} was listed and is gone; run `spp index` again")])
    except ContentError as error:
        return _Tile(ledger=[row(type(error).__name__, f"{entry.uri}: {error}")])
    notes = [row("NamedTwice", f"{entry.uri}: {entry.note}", "note")] if entry.note else []
    if entry.class_name is not None:
        annotation = Annotation((entry.class_name,), as_boxes([(0, 0, width, height)]), (False,), (False,))
    else:
        try:
            xml = fs.cat_file(entry.annotation)
            if turned is not None and stated_size(xml) == turned:
                height, width = turned
                image_digest += TURNED
                text = (
                    f"read as its EXIF orientation turns it, {width} x {height}, which is the <size> of its annotation"
                )
                notes.append(row("Turned", f"{entry.uri}: {text}", "note"))
            annotation = parse_annotation(xml, height, width)
        except (FileNotFoundError, IsADirectoryError):
            annotation = NO_OBJECTS
            text = f"{entry.annotation} does not exist; the image is taken as one without objects"
            notes.append(row("MissingAnnotation", text, "note"))
        except ContentError as error:
            return _Tile(ledger=[row(type(error).__name__, f"{entry.annotation}: {error}")])
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
    return _Tile([image], objects, notes)


def _measure(
    fs: fsspec.AbstractFileSystem, entry: Entry, config: DatasetConfig
) -> tuple[int, int, tuple[int, int] | None, str]:
    """Height and width as stored, both as an EXIF orientation exchanges them if it does, and digest of an image."""
    from pipeline.images import image_size, turned_size  # Pillow: a status reads an index, and no image

    path = fs._strip_protocol(entry.uri)
    if config.digest == "content" or is_row(entry.uri):
        data = read_bytes(fs, path)
        image_digest = f"sha256:{sha256(data)}" if config.digest == "content" else _listed(entry)
        return *image_size(data), turned_size(data), image_digest
    try:
        data = fs.cat_file(path, start=0, end=_HEADER_BYTES)
        height, width = image_size(data)
    except ContentError:
        data = fs.cat_file(path)  # a header behind a large preview
        height, width = image_size(data)
    return height, width, turned_size(data), _listed(entry)


def _listed(entry: Entry) -> str:
    return f"listing:{digest(entry.listing.encode())}"
