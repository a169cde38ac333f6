"""What a stage's result hangs on: method ids of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage.identity import canonical_json, digest, method_id
from storage.runs import DatasetRecord, RunRecord, dataset_record


def reduce_method(
    stage: str, version: int, config: Mapping[str, Any], read: Sequence[DatasetRecord], also: Sequence[str] = ()
) -> str:
    """The method id of a stage that read these datasets; ``also``: digests of what else it depends on."""
    upstream = [f"{entry.method}/{entry.manifest}" for entry in read]
    return method_id(stage, version, config, upstream=[*upstream, *also])


def ids_digest(image_ids: Sequence[str]) -> str:
    """Digest of a set of images, by their ids."""
    return digest(canonical_json(sorted(image_ids)))


def stored_features(record: RunRecord) -> DatasetRecord:
    """The features of a run, however they are stored. StorageError, naming the verb, if they are not complete."""
    name = "windows" if "windows" in record.datasets and not record.complete("features") else "features"
    return dataset_record(record, name)
