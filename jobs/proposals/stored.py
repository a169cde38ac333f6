"""What others read of a run's proposals, and which images failed before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.boxes import Boxes
from storage.columns import boxes_of
from storage.manifest import read_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import scan_file


def proposed_boxes(root: Root, keys: Sequence[str], image_ids: Sequence[str]) -> dict[str, Boxes]:
    """Image id (they are sorted) to its proposals (N, 4), from the files at ``keys``; an image may have none."""
    found: dict[str, list[Boxes]] = {image_id: [np.zeros((0, 4), np.float32)] for image_id in image_ids}
    for key in keys:
        for table in scan_file(root, key, ["image_id", "box"], image_ids):
            found[table["image_id"][0].as_py()].append(boxes_of(table["box"]))
    return {image_id: np.concatenate(parts) for image_id, parts in found.items()}


def failed_in(root: Root, record: RunRecord, datasets: Sequence[str]) -> frozenset[str]:
    """Images that failed in some of these datasets of a run."""
    ids: set[str] = set()
    for name in datasets:
        entry = record.datasets.get(name)
        if entry is not None and entry.manifest is not None and entry.failed:
            ledger = read_manifest(root, name, entry.method, entry.manifest).ledger
            ids.update(row.image_id for row in ledger if row.level == "failed")
    return frozenset(ids)
