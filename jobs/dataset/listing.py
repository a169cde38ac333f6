"""What a data set's listing says, whatever its layout."""

from __future__ import annotations

import fsspec

from jobs.config.dataset import DatasetConfig
from jobs.dataset.labelled import Entry, folder_entries, table_entries
from jobs.dataset.voc import devkits_in, duplicate, files_in, names_in, read_split, unusable
from jobs.errors import UsageError
from storage.root import resolve_options, store_errors


def list_entries(config: DatasetConfig) -> tuple[dict[str, Entry], fsspec.AbstractFileSystem]:
    """Every image id that a split names, with the places of its files."""
    options = resolve_options(config.storage_options, "dataset.storage_options")
    try:
        fs, path = fsspec.url_to_fs(config.path, **options)
        path = path.rstrip("/")
        if config.layout != "voc":
            return _labelled(fs, path, config), fs
        devkits = devkits_in(fs, path)
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
        pictures = files_in(fs, f"{devkit}/JPEGImages")
        annotations = f"{devkit}/Annotations"
        members: dict[str, list[str]] = {}
        cut: dict[str, str] = {}
        for split in config.splits:
            text = read_split(fs, f"{devkit}/ImageSets/Main/{split}.txt")
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
                problem = ("DuplicateImage", duplicate(image_id, devkit))
                entries[image_id] = Entry(uri="", annotation="", splits=splits, listing="", problem=problem)
            elif image_id not in pictures or "::" in image_id:
                folder = f"{devkit}/JPEGImages"
                problem = unusable(image_id, folder, splits, cut.get(image_id), image_id in pictures)
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
    for split in config.splits:
        if split not in found:
            there = sorted(
                {name.removesuffix(".txt") for kit in devkits for name in names_in(fs, f"{kit}/ImageSets/Main")}
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
