"""VOC's layout on disk: devkits, splits, pictures and annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence

import fsspec

from jobs.config.dataset import DatasetConfig
from jobs.dataset.labelled import Entry, Listing, is_image_name, listing_token
from jobs.errors import UsageError


def voc_entries(fs: fsspec.AbstractFileSystem, path: str, config: DatasetConfig) -> Listing:
    """Every image id that a split of one of the devkits at ``path`` names, with the places of its files.

    UsageError if there is no devkit, or one of the config's splits is in none.
    """
    devkits = _devkits_in(fs, path)
    if not devkits:
        raise UsageError(
            f"dataset.path: no VOC layout in {config.path!r}; it, or a folder in it, must hold JPEGImages/, "
            f"Annotations/ and ImageSets/Main/"
        )
    listing = Listing()
    entries = listing.entries
    found: set[str] = set()
    for devkit in devkits:
        pictures, others = _files_in(fs, f"{devkit}/JPEGImages")
        listing.passed_over += [f"{devkit}/JPEGImages/{name}" for names in others.values() for name in names]
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
                files = [name for name, _ in pictures.get(image_id.rpartition(".")[0], ())]
                problem = _unusable(
                    image_id,
                    folder,
                    splits,
                    cut.get(image_id),
                    there=image_id in pictures,
                    is_name=image_id in files,
                    others=others.get(image_id, ()),
                )
                entries[image_id] = Entry(uri="", annotation="", splits=splits, listing="", problem=problem)
            else:
                (picture, token), *more = pictures[image_id]
                uri = f"{devkit}/JPEGImages/{picture}"
                uri = fs.unstrip_protocol(uri) if "://" in config.path else uri
                often = [split for split in splits if named.count(split) > 1]
                notes = []
                if often:
                    count = named.count(often[0])
                    notes.append(("NamedTwice", f"split {often[0]!r} names it {count} times; it is taken once"))
                if more:
                    others_too = ", ".join(name for name, _ in more)
                    notes.append(("SeveralFiles", f"there is also {others_too}; the first by name is read"))
                entries[image_id] = Entry(
                    uri=uri,
                    annotation=f"{annotations}/{image_id}.xml",
                    splits=splits,
                    listing=token,
                    notes=tuple(notes),
                )
    missing = [split for split in config.splits if split not in found]
    if missing:
        raise UsageError(_no_split(fs, devkits, missing[0], config.path))
    return listing


def _no_split(fs: fsspec.AbstractFileSystem, devkits: Sequence[str], split: str, path: str) -> str:
    wanted = f"an ImageSets/Main/{split}.txt with an image id a line"
    folders = [folder for folder in (f"{kit}/ImageSets/Main" for kit in devkits) if fs.isdir(folder)]
    if not folders:
        return f"dataset: there is no folder ImageSets/Main in {', '.join(devkits)}; write {wanted}"
    there = sorted(
        {name.removesuffix(".txt") for folder in folders for name in _names_in(fs, folder) if name.endswith(".txt")}
    )
    plain = [name for name in there if "_" not in name]
    if not there:
        return f"dataset: there is no split in {', '.join(folders)}; write {wanted}"
    return (
        f"dataset: there is no split {split!r} in {path}; set dataset.train_splits and "
        f"dataset.test_splits to some of: {', '.join(plain or there)}; or write {wanted}"
    )


def _duplicate(image_id: str, devkit: str) -> str:
    return f"image id {image_id!r} stands in two devkits, the second is {devkit}; rename one of the images"


def _unusable(
    image_id: str,
    folder: str,
    splits: Sequence[str],
    line: str | None,
    *,
    there: bool,
    is_name: bool,
    others: Sequence[str],
) -> tuple[str, str]:
    """Why no image is read for an id. Only what the listing of ``folder`` shows is ever opened, so no id leads out.

    ``there``: there is an image of that id. ``is_name``: or one of that name. ``others``: other files of that id.
    """
    named = f"split {splits[0]!r} names it; "
    if there:
        return "BadImageId", f"{folder}: an image id must not hold '::', which separates URLs; {named}rename the image"
    if "/" in image_id:
        text = f"{image_id!r} is a path, not the name of an image in {folder}; {named}"
        return "BadImageId", f"{text}write names without folders and suffixes"
    if is_name:
        return "MissingImage", f"{folder}/{image_id} is there, but {named}write its id, which has no suffix"
    if others:
        kind = "is of a kind that is not read" if len(others) == 1 else "are of kinds that are not read"
        return (
            "MissingImage",
            f"{folder}/{', '.join(others)} {kind}, but {named}convert it, to JPEG or PNG, or remove it",
        )
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


def _files_in(
    fs: fsspec.AbstractFileSystem, folder: str
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[str]]]:
    """From one listing: image id to its files, each a name and a text that changes when the file does, in the order of
    names; and the names of files that are no images, by what would be their id."""
    pictures: dict[str, list[tuple[str, str]]] = {}
    others: dict[str, list[str]] = {}
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: info["name"]):
        name = info["name"].rstrip("/").rsplit("/", 1)[-1]
        if info.get("type") == "directory" or info["name"].rstrip("/") == folder:  # S3 may list a folder itself
            continue
        stem = name.rpartition(".")[0]
        if is_image_name(name):
            pictures.setdefault(stem, []).append((name, f"{name} {listing_token(info)}"))
        elif not name.startswith("."):
            others.setdefault(stem or name, []).append(name)
    return pictures, others


def _read_split(fs: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """The lines of a split file, without those that are blank; None if there is no such file."""
    try:
        text = fs.cat_file(path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except UnicodeDecodeError:
        raise UsageError(f"dataset: split file {path} is not UTF-8 text") from None
    if "\0" in text:  # as UTF-16 without its mark has
        raise UsageError(f"dataset: split file {path} is not UTF-8 text: it holds zero bytes")
    lines = re.split(r"[\r\n]", text)
    return [line.strip() for line in lines if line.strip()]
