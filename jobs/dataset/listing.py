"""What a data set's listing says, whatever its layout."""

from __future__ import annotations

import fsspec

from jobs.config.dataset import DatasetConfig
from jobs.dataset.labelled import Listing, folder_entries, table_entries
from jobs.dataset.voc import voc_entries
from jobs.errors import UsageError
from storage.root import check_chain, resolve_options, store_errors


def list_entries(config: DatasetConfig) -> tuple[Listing, fsspec.AbstractFileSystem]:
    """Every image id that a split names, with the places of its files."""
    check_chain(config.path, "dataset.path")
    options = resolve_options(config.storage_options, "dataset.storage_options")
    try:
        fs, path = fsspec.url_to_fs(config.path, **options)
        path = path.rstrip("/")
        if config.layout != "voc":
            return _labelled(fs, path, config), fs
        return voc_entries(fs, path, config), fs
    except FileNotFoundError:
        raise UsageError(f"dataset.path: {config.path!r} does not exist") from None
    except UsageError:
        raise
    except store_errors(ImportError, ValueError) as error:
        raise UsageError(f"dataset.path: {config.path!r} cannot be read: {error}") from error


def _labelled(fs: fsspec.AbstractFileSystem, path: str, config: DatasetConfig) -> Listing:
    if not fs.exists(path):
        raise FileNotFoundError(path)
    if config.layout == "folder":
        return folder_entries(fs, path, config.path, config.splits, config.classes)
    columns = config.image_column, config.label_column
    return table_entries(fs, path, config.path, config.splits, *columns, classes=config.classes)
