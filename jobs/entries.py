"""What a data set's listing says of its images, before any is opened: where they are, and their labels if it tells.

Two layouts of labelled images, whose class names stand in the listing itself: folders named after classes, and Parquet
tables with a column of encoded images and one of labels. VOC's layout is listed in ``jobs/index.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import UsageError
from jobs.imagefile import row_uri

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")

ALL = "all"
"""The split of every image of a data set that has no split folders."""


@dataclass(frozen=True)
class Entry:
    """Where one image and its annotation are, or why it is not used: type and message of a ledger row.

    ``class_name``: the label of an image whose listing tells it; then there is no annotation, and one object fills it.
    """

    uri: str
    annotation: str
    splits: tuple[str, ...]
    listing: str
    problem: tuple[str, str] | None = None
    note: str | None = None
    class_name: str | None = None


def listing_token(info: dict[str, Any]) -> str:
    """What changes when a listed file does: its size, and its ETag or time."""
    time = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("updated") or ""
    return f"{info.get('size')} {time}"


def folder_entries(fs: fsspec.AbstractFileSystem, path: str, url: str, splits: Sequence[str]) -> dict[str, Entry]:
    """Image id (the path below the data set without its suffix) to entry, of ``path``/[split/]class/.../image.

    Split folders are those that ``splits`` names; without any, all images are in split ``all``. UsageError if a split
    is missing or no class folder has an image.
    """
    below = {name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)}
    named = [split for split in splits if split in below and fs.isdir(f"{path}/{split}")]
    _check_splits(named, splits, url, below)
    entries: dict[str, Entry] = {}
    for split in named or [ALL]:
        folder = f"{path}/{split}" if named else path
        for name, info in sorted(fs.find(folder, detail=True).items()):
            relative = name.removeprefix(path).lstrip("/")
            stem, dot, suffix = relative.rpartition(".")
            if not stem or dot + suffix.lower() not in SUFFIXES or _hidden(relative):
                continue
            parts = name.removeprefix(folder).lstrip("/").split("/")
            uri = fs.unstrip_protocol(name) if "://" in url else name
            problem = None
            if len(parts) < 2:
                problem = ("NoClass", f"{name} lies in no class folder; move it into the folder of its class")
            elif "::" in relative:
                problem = ("BadImageId", f"{name}: an image id must not hold '::', which separates URLs; rename it")
            elif stem in entries:
                problem = ("DuplicateImage", f"{name} and {entries[stem].uri} differ in their suffix only; rename one")
                stem = relative
            listing = f"{relative} {listing_token(info)}"
            entries[stem] = Entry(uri, "", (split,), listing, problem, class_name=parts[0] if not problem else None)
    if not any(entry.problem is None for entry in entries.values()):
        raise UsageError(f"dataset.path: no folder of {url!r} has images; give a folder per class, with images in it")
    return entries


def table_entries(
    fs: fsspec.AbstractFileSystem, path: str, url: str, splits: Sequence[str], image_column: str, label_column: str
) -> dict[str, Entry]:
    """Image id (file and row) to entry, of one Parquet file or all below a folder. Only labels are read.

    The image column holds encoded images, or structs whose field ``bytes`` does; labels are texts or integers, which
    get their names where the file carries those in the Hugging Face metadata. A file belongs to the split that its
    folder or name begins with. UsageError, naming file and column, for a table of another kind.
    """
    found = {path: fs.info(path)} if fs.isfile(path) else fs.find(path, detail=True)
    files = {name: info for name, info in sorted(found.items()) if name.endswith(".parquet")}
    if not files:
        raise UsageError(f"dataset.path: there is no .parquet file in {url!r}")
    of = {name: _split_of(name.removeprefix(path).lstrip("/") or name.rsplit("/", 1)[-1], splits) for name in files}
    named = [split for split in splits if split in of.values()]
    _check_splits(named, splits, url, {name.rsplit("/", 1)[-1] for name in files})
    entries: dict[str, Entry] = {}
    for name, info in files.items():
        split = of[name] if named else ALL
        if split is None:
            continue
        stem = (name.removeprefix(path).lstrip("/") or name.rsplit("/", 1)[-1]).removesuffix(".parquet")
        uri = fs.unstrip_protocol(name) if "://" in url else name
        with fs.open(name, "rb") as file:
            try:
                parquet = pq.ParquetFile(file)
                labels = _labels(parquet, name, image_column, label_column)
            except pa.ArrowInvalid as error:
                raise UsageError(f"dataset.path: {name} is no Parquet file that can be read: {error}") from error
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        places = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
        for number, ((group, row), label) in enumerate(zip(places, labels, strict=True)):
            problem = ("NoClass", f"{name}: row {number} has no {label_column!r}; label it") if label is None else None
            listing = f"{stem} {number} {listing_token(info)}"
            place = row_uri(uri, image_column, group, row)
            entries[f"{stem}/{number:09d}"] = Entry(place, "", (split,), listing, problem, class_name=label)
    return entries


def _labels(parquet: pq.ParquetFile, name: str, image_column: str, label_column: str) -> list[str | None]:
    schema = parquet.schema_arrow
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in schema.names:
            raise UsageError(
                f"dataset.{key}: {name} has no column {column!r}; its columns are {', '.join(schema.names)}"
            )
    kind = schema.field(image_column).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UsageError(f"dataset.image_column: {image_column!r} of {name} holds {kind}, not encoded images")
    values = parquet.read(columns=[label_column], use_threads=False)[label_column].to_pylist()
    names = _names_of(schema, label_column)
    return [None if v is None else names[v] if names and isinstance(v, int) else str(v) for v in values]


def _names_of(schema: pa.Schema, label_column: str) -> list[str]:
    """The names behind integer labels, where Hugging Face's ``datasets`` wrote the table."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(text).get("info", {}).get("features", {})
    return features.get(label_column, {}).get("names", [])


def _split_of(relative: str, splits: Sequence[str]) -> str | None:
    folder, _, _ = relative.partition("/")
    for split in splits:
        if folder == split or folder.startswith((f"{split}-", f"{split}.")):
            return split
    return None


def _check_splits(named: Sequence[str], splits: Sequence[str], url: str, there: set[str]) -> None:
    """Either every split is there, or none: then all images are taken."""
    missing = [split for split in splits if split not in named]
    if named and missing:
        raise UsageError(
            f"dataset: there is no split {missing[0]!r} in {url}, but {named[0]!r} is; set dataset.train_splits and "
            f"dataset.test_splits to some of: {', '.join(sorted(there)[:20])}"
        )


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))
