"""What a data set's listing says of its images, before any is opened: where they are, and their labels if it tells.

Two layouts of labelled images, whose class names stand in the listing itself: folders named after classes, and Parquet
tables with a column of encoded images and one of labels. VOC's layout is listed in ``jobs/dataset/voc.py``.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from jobs.dataset.image_file import row_uri
from jobs.errors import UsageError

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".gif"),
        *(".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs"),
    )
)
"""In any case. They tell an image from other files in a listing; of what kind it is tells its content."""

ALL = "all"
"""The split of every image of a data set that has no split folders."""

_SPLIT_WORDS = frozenset(
    {"train", "training", "trn", "trainval", "val", "valid", "validation", "test", "testing", "tst", "dev"}
    | {"eval", "evaluation", "holdout"}
)
"""Folders that hold folders, and tables, with one of these words in their names are no classes."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one image and its annotation are, or why it is not used: type and message of a ledger row. ``notes`` are
    such, too, of one that is used.

    ``class_name``: the label of an image whose listing tells it; then there is no annotation, and one object fills it.
    """

    uri: str
    annotation: str
    splits: tuple[str, ...]
    listing: str
    problem: tuple[str, str] | None = None
    notes: tuple[tuple[str, str], ...] = ()
    class_name: str | None = None


def listing_token(info: dict[str, Any]) -> str:
    """What changes when a listed file does: its size, and its ETag or time."""
    time = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("updated") or ""
    return f"{info.get('size')} {time}"


@dataclass
class Listing:
    """What a listing of a data set says: image id to entry, and what no entry tells.

    ``passed_over``: files that are no images by their names. ``other_classes``: class folders that are not asked for.
    ``notes``: type and message of ledger rows about the data set.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    other_classes: set[str] = field(default_factory=set)
    notes: list[tuple[str, str]] = field(default_factory=list)


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image that is read: by its suffix, in any case."""
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and dot + suffix.lower() in SUFFIXES


def folder_entries(
    fs: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    splits: Sequence[str],
    classes: Collection[str] | None = None,
) -> Listing:
    """Image id (the path below the data set without its suffix) to entry, of ``path``/[split/]class/.../image.

    Split folders are those that ``splits`` names; without any, all images are in split ``all``. Links to folders are
    followed; names that begin with a dot are passed over. ``classes``: only images of these. UsageError if a split is
    missing, if folders look like splits that nobody named, by their names or since all of them hold only folders, or
    if no class folder has an image.
    """
    below = {name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)}
    named = [split for split in splits if split in below and fs.isdir(f"{path}/{split}")]
    likely = {name for name in below if _split_words(name) and _holds_folders(fs, f"{path}/{name}")}
    _check_splits(named, splits, url, likely)
    listing = Listing()
    for split in named or [ALL]:
        folder = f"{path}/{split}" if named else path
        files = {name: info for name, info in _files_below(fs, folder).items() if not _hidden(name.removeprefix(path))}
        images = {name: info for name, info in files.items() if is_image_name(name.rsplit("/", 1)[-1])}
        if classes is None:
            _check_shape([name.removeprefix(folder).lstrip("/") for name in images], named, split, url, listing)
        for name in sorted(files):
            parts = name.removeprefix(folder).lstrip("/").split("/")
            if classes is not None and len(parts) > 1 and parts[0] not in classes:
                if name in images:
                    listing.other_classes.add(parts[0])
                continue
            if name not in images:
                if len(parts) > 1 and parts[-1]:  # a store may list a folder itself
                    listing.passed_over.append(name)
                continue
            relative = name.removeprefix(path).lstrip("/")
            stem = relative.rpartition(".")[0]
            uri = fs.unstrip_protocol(name) if "://" in url else name
            problem = None
            if not _is_text(relative):
                problem = ("BadImageId", f"{name!a}: the name is not UTF-8; rename the file")
                uri = stem = ascii(relative)
            elif len(parts) < 2:
                problem = ("NoClass", f"{name} lies in no class folder; move it into the folder of its class")
            elif "::" in relative:
                problem = ("BadImageId", f"{name}: an image id must not hold '::', which separates URLs; rename it")
            elif stem in listing.entries:
                other = listing.entries[stem].uri
                problem = ("DuplicateImage", f"{name} and {other} differ in their suffix only; rename one")
                stem = relative
            listing.entries[stem] = Entry(
                uri=uri,
                annotation="",
                splits=(split,),
                listing=f"{relative!a} {listing_token(images[name])}",
                problem=problem,
                class_name=parts[0] if not problem else None,
            )
    if not any(entry.problem is None for entry in listing.entries.values()):
        there = f"; passed over for their names: {passed_over_text(listing.passed_over)}" if listing.passed_over else ""
        raise UsageError(
            f"dataset.path: no folder of {url!r} has images; give a folder per class, with images in it{there}"
        )
    return listing


def passed_over_text(names: Sequence[str]) -> str:
    """How many files of which suffixes, and one of them."""
    counts = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in names)
    by_suffix = ", ".join(f"{number} with {suffix}" for suffix, number in sorted(counts.items()))
    first = min(name.rsplit("/", 1)[-1] for name in names)
    shown = first if _is_text(first) else ascii(first)
    return f"{len(names)} file{'s' * (len(names) > 1)} ({by_suffix}; such as {shown})"


def _check_shape(images: Sequence[str], named: Sequence[str], split: str, url: str, listing: Listing) -> None:
    """Class folders that all hold nothing but folders are likely to be splits, or one folder too many: their images
    would be of the wrong classes. ``images``: their names below the folder of classes."""
    parts = [name.split("/") for name in images if "/" in name]
    if not parts or any(len(part) < 3 for part in parts):
        return
    folders = sorted({part[0] for part in parts})
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    if not named:
        raise UsageError(
            f"dataset.path: all folders of {url} hold only folders ({shown}), so they are hardly classes; set "
            f"dataset.train_splits and dataset.test_splits to some of them if they are splits, point dataset.path at "
            f"the folder that holds the classes, or name them in dataset.classes if they are the classes"
        )
    listing.notes.append(
        ("NestedFolders", f"all folders of split {split!r} hold only folders ({shown}); they are taken for the classes")
    )


def table_entries(
    fs: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    splits: Sequence[str],
    image_column: str,
    label_column: str,
    *,
    classes: Collection[str] | None = None,
) -> Listing:
    """Image id (file and row) to entry, of one Parquet file or all below a folder. Only labels are read.

    The image column holds encoded images, or structs whose field ``bytes`` does; labels are texts or integers, which
    get their names where the file carries those in the Hugging Face metadata. A file belongs to the split that one of
    its folders, or its name, is or begins with (``train-00000-of-00008.parquet``). ``classes``: only rows of these.
    UsageError, naming file and column, for a table of another kind.
    """
    found = {path: fs.info(path)} if fs.isfile(path) else _files_below(fs, path)
    files = {name: info for name, info in sorted(found.items()) if name.endswith(".parquet")}
    if not files:
        raise UsageError(f"dataset.path: there is no .parquet file in {url!r}")
    of = {name: _split_of(name.removeprefix(path).lstrip("/") or name.rsplit("/", 1)[-1], splits) for name in files}
    named = [split for split in splits if split in of.values()]
    parts = {part for name in files for part in name.removeprefix(path).strip("/").split("/")}
    likely = {re.split(r"[-.]", part)[0] for part in parts if _split_words(re.split(r"[^A-Za-z]", part)[0])}
    _check_splits(named, splits, url, likely)
    listing = Listing()
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
        for number, ((group, row), (label, why)) in enumerate(zip(places, labels, strict=True)):
            if classes is not None and label is not None and label not in classes:
                listing.other_classes.add(label)
                continue
            problem = ("NoClass", f"{name}: row {number} {why}; label it") if label is None else None
            listing.entries[f"{stem}/{number:09d}"] = Entry(
                uri=row_uri(uri, image_column, group, row),
                annotation="",
                splits=(split,),
                listing=f"{stem} {number} {listing_token(info)}",
                problem=problem,
                class_name=label,
            )
    return listing


def _labels(parquet: pq.ParquetFile, name: str, image_column: str, label_column: str) -> list[tuple[str | None, str]]:
    """Of each row its class, or None and why it has none."""
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
    return [_label(value, names, label_column) for value in values]


def _label(value: Any, names: Sequence[str], label_column: str) -> tuple[str | None, str]:
    """A row's class, or None and what is wrong. Hugging Face's tables say -1 where there is no label."""
    if value is None or value != value or not str(value).strip():  # null, NaN, blank
        return None, f"has no {label_column!r}"
    if not names or not isinstance(value, int):
        return str(value), ""
    if not 0 <= value < len(names):
        return None, f"has the {label_column!r} {value}, and its classes count from 0 to {len(names) - 1}"
    return names[value], ""


def _names_of(schema: pa.Schema, label_column: str) -> list[str]:
    """The names behind integer labels, where Hugging Face's ``datasets`` wrote the table."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(text).get("info", {}).get("features", {})
    return features.get(label_column, {}).get("names", [])


def _split_of(relative: str, splits: Sequence[str]) -> str | None:
    parts = relative.strip("/").split("/")
    for split in splits:
        if any(part == split or part.startswith((f"{split}-", f"{split}.")) for part in parts):
            return split
    return None


def _check_splits(named: Sequence[str], splits: Sequence[str], url: str, likely: Collection[str]) -> None:
    """Either every split is there, or none, and nothing that looks like one: then all images are taken."""
    missing = [split for split in splits if split not in named]
    if (named and missing) or (not named and likely):
        what = (
            f"there is no split {missing[0]!r} in {url}" if named else f"{url} has splits that the config does not name"
        )
        there = ", ".join(sorted({*named, *likely}))
        raise UsageError(
            f"dataset: {what}; set dataset.train_splits and dataset.test_splits to some of: {there}, or []"
        )


def _split_words(name: str) -> bool:
    """Whether a name holds a word that splits are called: train, Test, seg_train, val2017."""
    return not _SPLIT_WORDS.isdisjoint(re.findall(r"[a-z]+", name.lower()))


def _holds_folders(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    return fs.isdir(path) and any(entry.get("type") == "directory" for entry in fs.ls(path, detail=True))


def _files_below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder, with its size and time. OSError for a folder that cannot be listed.

    fsspec leaves such a folder of a local file system out, and does not follow links to folders.
    """
    if not isinstance(fs, LocalFileSystem):
        return fs.find(path, detail=True)

    def stop(error: OSError) -> None:
        raise error

    files: dict[str, dict[str, Any]] = {}
    above: dict[str, tuple[str, ...]] = {}  # folder to the real paths of those that it lies in
    for folder, below, names in os.walk(path, onerror=stop, followlinks=True):
        real, outer = os.path.realpath(folder), above.pop(folder, ())
        if real in outer:  # a link to a folder that it lies in
            below.clear()
            continue
        above |= {os.path.join(folder, name): (*outer, real) for name in below}
        for name in names:
            try:
                found = os.stat(f"{folder}/{name}")
            except FileNotFoundError:  # a link to nothing
                files[f"{folder}/{name}"] = {"size": 0}
                continue
            files[f"{folder}/{name}"] = {"size": found.st_size, "mtime": found.st_mtime}
    return files


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.split("/"))
