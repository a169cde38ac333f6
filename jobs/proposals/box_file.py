"""The file of ``proposals.method: file`` as the driver meets it: its digest names the method, its boxes go with the
shards. No worker opens it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import fsspec

from jobs.config.proposals import ProposalsConfig
from jobs.dataset.image_file import ImageFile
from jobs.errors import UsageError
from pipeline.boxes import Boxes
from pipeline.proposals.box_files import BoxFileError, read_mat, read_parquet
from storage.root import check_chain, resolve_options, store_errors

_CHUNK = 16 * 1024 * 1024


def boxes_digest(config: ProposalsConfig, storage_options: dict[str, object]) -> str | None:
    """SHA-256 (hex) of the file; None for a method without one. Raises UsageError if it cannot be read."""
    if config.method != "file":
        return None
    total = hashlib.sha256()
    with _opened(config, storage_options) as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def given_boxes(
    config: ProposalsConfig, storage_options: dict[str, object], images: Sequence[ImageFile]
) -> dict[str, Boxes]:
    """Image id to boxes, half-open from 0, of those of ``images`` that the file has.

    They may reach a pixel beyond their image. All are in memory, 16 bytes each. Raises UsageError: the file cannot be
    read, or its boxes contradict what the config says of them.
    """
    convention = config.convention()
    sizes = {image.image_id: image.size for image in images}
    with _opened(config, storage_options) as file:
        try:
            numbers = (
                read_mat(file, sizes)
                if str(config.file).lower().endswith(".mat")
                else read_parquet(file, sizes, convention.order)
            )
        except BoxFileError as error:
            raise UsageError(f"proposals.file: {config.file}: {error}") from error
    for image_id, values in sorted(numbers.items()):
        size = sizes[image_id]
        assert size is not None
        problem = convention.problem(values, *size)
        if problem:
            raise UsageError(f"proposals.file: {config.file}: image {image_id!r}: {problem}")
    return {image_id: convention.boxes(values) for image_id, values in numbers.items()}


@contextmanager
def _opened(config: ProposalsConfig, storage_options: dict[str, object]) -> Iterator[IO[bytes]]:
    check_chain(str(config.file), "proposals.file")
    try:
        with fsspec.open(config.file, "rb", **resolve_options(storage_options, "dataset.storage_options")) as file:
            yield file
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"proposals.file: {config.file!r} does not exist") from None
    except store_errors(ImportError, ValueError) as error:
        raise UsageError(f"proposals.file: {config.file!r} cannot be read: {error}") from error
