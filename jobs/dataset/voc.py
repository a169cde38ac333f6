"""VOC's layout on disk: devkits, splits, pictures and annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence

import fsspec

from jobs.config.dataset import DatasetConfig
from jobs.dataset.labelled import SUFFIXES, Entry, listing_token
from jobs.errors import UsageError


def voc_entries(fs: fsspec.AbstractFileSystem, path: str, config: DatasetConfig) -> dict[str, Entry]:
    """Every image id that a split of one of the devkits at ``path`` names, with the places of its files.

    UsageError if there is no devkit, or one of the config's splits is in none.
    """
    devkits = _devkits_in(fs, path)
    if not devkits:
        raise UsageError(
            f"dataset.path: no VOC layout in {config.path!r}; it, or a folder in it, must hold JPEGImages/, "
            f"Annotations/ and ImageSets/Main/"
        )
    entries: dict[str, Entry] = {}
    found: set[str] = set()
    for devkit in devkits:
        pictures = _files_in(fs, f"{devkit}/JPEGImages")
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
                entries[image_id] = Entry(uri="", annotation="", splits=splits, listing="", problem=problem)
            elif image_id not in pictures or "::" in image_id:
                folder = f"{devkit}/JPEGImages"
                problem = _unusable(image_id, folder, splits, cut.get(image_id), image_id in pictures)
                entries[image_id] = Entry(uri="", annotation="", splits=splits, listing="", problem=problem)
            else:
                name, listing = pictures[image_id]
                uri = f"{devkit}/JPEGImages/{name}"
                uri = fs.unstrip_protocol(uri) if "://" in config.path else uri
                often = [split for split in splits if named.count(split) > 1]
                note = f"split {often[0]!r} names it {named.count(often[0])} times; it is taken once" if often else None
                entries[image_id] = Entry(
                    uri=uri, annotation=f"{annotations}/{image_id}.xml", splits=splits, listing=listing, note=note
                )
    missing = [split for split in config.splits if split not in found]
    if missing:
        raise UsageError(_no_split(fs, devkits, missing[0], config.path))
    return entries


def _no_split(fs: fsspec.AbstractFileSystem, devkits: Sequence[str], split: str, path: str) -> str:
    folders = [folder for folder in (f"{kit}/ImageSets/Main" for kit in devkits) if fs.isdir(folder)]
    there = sorted({name.removesuffix(".txt") for folder in folders for name in _names_in(fs, folder)})
    plain = [name for name in there if "_" not in name]
    return (
        f"dataset: there is no split {split!r} in {path}; set dataset.train_splits and "
        f"dataset.test_splits to some of: {', '.join(plain or there) or 'none found'}"
    )


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


def _devkits_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Folders with JPEGImages/ at ``path``, in it, or in its VOCdevkit/."""
    if fs.isdir(f"{path}/JPEGImages"):
        return [path]
    folders = [f"{path}/{name}" for name in _names_in(fs, path)]
    kits = [folder for folder in folders if fs.isdir(f"{folder}/JPEGImages")]
    if not kits and fs.isdir(f"{path}/VOCdevkit"):
        return _devkits_in(fs, f"{path}/VOCdevkit")
    return kits


def _names_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def _files_in(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, tuple[str, str]]:
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
