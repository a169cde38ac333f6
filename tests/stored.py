"""Small stored datasets, for the tests of storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.columns import box_column, vector_column, window_column
from storage.commits import Commit, LedgerRow, winners
from storage.manifest import Manifest, fold
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, write_run
from storage.schemas import schema
from storage.writer import ShardWriter

DIM = 24
METHOD = "0123456789ab"
FEATURES = schema("features", DIM)


def relu_like(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float16]:
    """Vectors of which about half the elements are 0, as after a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((count, dim)), 0).astype(np.float16)


def feature_rows(image_id: str, count: int, layout: pa.Schema = FEATURES) -> pa.Table:
    """Rows of ``features`` of one image; other images have others."""
    seed = sum(map(ord, image_id))
    corners = np.random.default_rng(seed).integers(0, 400, (count, 4))
    dim = layout.field("feature").type.list_size
    columns = {
        "image_id": pa.array([image_id] * count, pa.string()),
        "proposal_id": pa.array(range(count), pa.int32()),
        "box": box_column(corners.astype(np.float32)),
        "scale": pa.array([688] * count, pa.int32()),
        "window": window_column((corners // 16).astype(np.int16)),
        "feature": vector_column(relu_like(count, dim, seed)),
    }
    return pa.table(columns, schema=layout)


def image_rows(image_ids: Sequence[str]) -> pa.Table:
    """Rows of ``images``."""
    rows = [
        {"image_id": i, "uri": f"/pictures/{i}.jpg", "width": 40, "height": 30, "splits": ["test"], "digest": f"d{i}"}
        for i in image_ids
    ]
    return pa.Table.from_pylist(rows, schema=schema("images"))


def commit_features(
    root: Root,
    shard: str,
    counts: Mapping[str, int],
    *,
    method: str = METHOD,
    revision: int = 0,
    attempt: str | None = None,
    layout: pa.Schema = FEATURES,
    ledger: Sequence[LedgerRow] = (),
    skipped: Sequence[str] = (),
    passes: int = 0,
) -> Commit:
    """One shard of ``features`` with so many rows of each image."""
    with ShardWriter(root, "features", method, shard, layout, revision=revision, attempt=attempt) as writer:
        for image_id, count in sorted(counts.items()):
            writer.write_image(image_id, feature_rows(image_id, count, layout) if count else None)
        return writer.commit(ledger=ledger, skipped=skipped, passes=passes)


def commit_images(root: Root, shard: str, image_ids: Sequence[str], ledger: Sequence[LedgerRow] = ()) -> Commit:
    """One shard of ``images``."""
    with ShardWriter(root, "images", METHOD, shard, schema("images")) as writer:
        writer.write_shard(image_rows(image_ids), dict.fromkeys(image_ids, 1))
        return writer.commit(ledger=ledger)


def fold_winners(root: Root, dataset: str, method: str = METHOD) -> Manifest:
    """The manifest of all that is committed."""
    return fold(root, dataset, method, list(winners(root, dataset, method).values()))


def publish_run(root: Root, name: str = "trial", datasets: Sequence[str] = ("images", "features")) -> RunRecord:
    """A run of all that is committed of ``datasets``."""
    record = RunRecord(name=name, status="done")
    for dataset in datasets:
        manifest = fold_winners(root, dataset)
        stage = {"images": "index", "objects": "index", "proposals": "propose"}.get(dataset, "extract")
        record.datasets[dataset] = DatasetRecord(
            stage=stage,
            method=METHOD,
            manifest=manifest.digest,
            manifest_sha256=manifest.sha256,
            shards=len(manifest.table),
        )
    write_run(root, record)
    return record


def store_run(root: Root) -> RunRecord:
    """A run over eight images, one of them without rows: three shards of ``features``, one of ``images``."""
    commit_images(root, "1a", "abcdefgh")
    commit_features(root, "aa", {"a": 5, "b": 3, "c": 4})
    commit_features(root, "bb", {"d": 2, "e": 0, "f": 6})
    commit_features(root, "cc", {"g": 1, "h": 7})
    return publish_run(root)


ROWS = {"a": 5, "b": 3, "c": 4, "d": 2, "f": 6, "g": 1, "h": 7}
"""Rows of each image of ``store_run``."""
