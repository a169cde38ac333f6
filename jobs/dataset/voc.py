"""VOC's layout on disk: devkits, splits, pictures and annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence

import fsspec

from jobs.dataset.labelled import SUFFIXES, listing_token
from jobs.errors import UsageError


def duplicate(image_id: str, devkit: str) -> str:
    return f"image id {image_id!r} stands in two devkits, the second is {devkit}; rename one of the images"


def unusable(image_id: str, folder: str, splits: Sequence[str], line: str | None, there: bool) -> tuple[str, str]:
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


def devkits_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Folders with JPEGImages/ at ``path``, in it, or in its VOCdevkit/."""
    if fs.isdir(f"{path}/JPEGImages"):
        return [path]
    folders = [f"{path}/{name}" for name in names_in(fs, path)]
    kits = [folder for folder in folders if fs.isdir(f"{folder}/JPEGImages")]
    if not kits and fs.isdir(f"{path}/VOCdevkit"):
        return devkits_in(fs, f"{path}/VOCdevkit")
    return kits


def names_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def files_in(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, tuple[str, str]]:
    """Image id to (file name, a text that changes when the file does), from one listing."""
    pictures: dict[str, tuple[str, str]] = {}
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: info["name"]):
        name = info["name"].rstrip("/").rsplit("/", 1)[-1]
        stem, dot, suffix = name.rpartition(".")
        if stem and dot + suffix.lower() in SUFFIXES and info.get("type") != "directory":
            pictures.setdefault(stem, (name, f"{name} {listing_token(info)}"))
    return pictures


def read_split(fs: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """The lines of a split file, without those that are blank; None if there is no such file."""
    try:
        lines = re.split(r"[\r\n]", fs.cat_file(path).decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UsageError(f"dataset: split file {path} is not UTF-8 text") from None
    return [line.strip() for line in lines if line.strip()]
