"""What the stages after extraction share: they read whole datasets, and write one small dataset each.

Their method ids also hash the manifests that they read, so new content upstream gives a new result beside the old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from jobs.record.versions import PRODUCER
from storage.commits import LedgerRow, winners
from storage.manifest import Manifest, fold
from storage.root import Root
from storage.runs import DatasetRecord
from storage.writer import ShardWriter


def done_already(root: Root, stage: str, dataset: str, method: str) -> DatasetRecord | None:
    """The record of a dataset of one shard, if it is committed."""
    names = list(winners(root, dataset, method).values())
    return entry_of(stage, fold(root, dataset, method, names)) if names else None


def publish(
    root: Root,
    dataset: str,
    method: str,
    rows: pa.Table,
    counts: Mapping[str, int],
    *,
    ledger: Sequence[LedgerRow] = (),
    seconds: Mapping[str, float],
) -> None:
    """Write and commit a dataset of one shard; ``counts`` gives each class (or image, or phase), sorted, its rows."""
    with ShardWriter(root, dataset, method, method, rows.schema) as writer:
        writer.write_shard(rows, counts)
        writer.commit(ledger=ledger, seconds=dict(seconds), producer=PRODUCER)


def entry_of(stage: str, manifest: Manifest) -> DatasetRecord:
    """What a run's record says of a complete dataset."""
    return DatasetRecord(
        stage=stage,
        method=manifest.method,
        manifest=manifest.digest,
        manifest_sha256=manifest.sha256,
        shards=len(manifest.table),
        rows=manifest.rows,
        bytes=manifest.bytes,
        images=manifest.images,
        failed=manifest.failed,
        seconds=manifest.seconds,
        passes=manifest.passes,
    )
