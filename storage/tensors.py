"""Named float32 tensors as the rows of a dataset: a trained head, and the checkpoints of a training.

A checkpoint is a shard of the dataset ``checkpoints``, published as every other: data, then commit. Its key tells the
training's phase and iteration; the rest of its state stands in the file's metadata as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.commits import Commit, CommitName, commit_key, data_key, winners
from storage.damage import DamagedFileError
from storage.root import Root, StorageError
from storage.scan import file_metadata, scan_file
from storage.schemas import WEIGHT_COLUMN, schema
from storage.writer import ShardWriter

Tensors = Mapping[str, NDArray[np.float32]]

KEPT = 2
"""Checkpoints that stay when a new one is there: the last may be what a crash left unreadable."""


def write_tensors(
    root: Root,
    dataset: str,
    method: str,
    shard: str,
    tensors: Tensors,
    metadata: Mapping[str, str],
    *,
    seconds: Mapping[str, float],
    producer: str,
) -> Commit:
    """Commit a shard with a row, and a row group, per tensor."""
    layout = schema(dataset, metadata=metadata)
    with ShardWriter(root, dataset, method, shard, layout) as writer:
        for name in sorted(tensors):
            values = np.asarray(tensors[name], np.float32, order="C")
            weights = pa.ListArray.from_arrays(
                pa.array([0, values.size], pa.int32()),
                pa.array(values.reshape(-1)),
                type=layout.field(WEIGHT_COLUMN).type,
            )
            shape = pa.array([list(values.shape)], layout.field("shape").type)
            writer.write_image(name, pa.table([pa.array([name]), shape, weights], schema=layout))
        return writer.commit(seconds=dict(seconds), producer=producer)


def read_tensors(root: Root, key: str) -> dict[str, NDArray[np.float32]]:
    """Name to tensor of one data file; read-only arrays over what was read."""
    found = {}
    for table in scan_file(root, key):
        values = table[WEIGHT_COLUMN].combine_chunks().values.to_numpy(zero_copy_only=True)
        found[table["name"][0].as_py()] = values.reshape(table["shape"][0].as_py())
    return found


def save_checkpoint(
    root: Root, method: str, phase: int, iteration: int, tensors: Tensors, progress: Mapping[str, Any], *, producer: str
) -> None:
    """Publish a checkpoint, then drop all but the last ``KEPT``."""
    shard = f"{phase:04x}{iteration:012x}"
    metadata = {"progress": json.dumps(progress)}
    write_tensors(root, "checkpoints", method, shard, tensors, metadata, seconds={}, producer=producer)
    _drop(root, method, _newest_first(root, method)[KEPT:])


def last_checkpoint(
    root: Root, method: str, place: tuple[int, int] | None = None
) -> tuple[int, int, dict[str, NDArray[np.float32]], dict[str, Any]] | None:
    """Phase, iteration, tensors and progress of a training's newest checkpoint that can be read; None without any.

    ``place``: the one of this phase and iteration instead; StorageError if there is none.
    """
    for name in _newest_first(root, method):
        found = int(name.shard[:4], 16), int(name.shard[4:], 16)
        if place not in (None, found):
            continue
        key = data_key("checkpoints", method, name)
        try:
            return *found, read_tensors(root, key), json.loads(file_metadata(root, key)["progress"])
        except DamagedFileError:  # dropped by another driver, or damaged
            continue
    if place is not None:
        raise StorageError(f"the checkpoint of phase {place[0]}, iteration {place[1]} of {method} is gone")
    return None


def drop_checkpoints(root: Root, method: str) -> None:
    """Remove all checkpoints of a training."""
    _drop(root, method, _newest_first(root, method))


def _newest_first(root: Root, method: str) -> list[CommitName]:
    return sorted(winners(root, "checkpoints", method).values(), reverse=True)


def _drop(root: Root, method: str, names: Sequence[CommitName]) -> None:
    """The commit goes first: without it nobody looks for the data."""
    for name in names:
        for key in (commit_key("checkpoints", method, name), data_key("checkpoints", method, name)):
            root.delete_if_there(key)  # another driver may have been here
