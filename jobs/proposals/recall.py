"""What a run's proposals are worth: recall@0.5 and MABO per split."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from jobs.dataset.index import Index
from jobs.record.stage import Context
from pipeline.proposals.recall import best_overlaps, proposal_quality
from storage.columns import boxes_of
from storage.manifest import read_manifest
from storage.quality import ProposalsQuality, SplitQuality
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord
from storage.scan import scan_manifest


def measure(context: Context, earlier: DatasetRecord | None) -> None:
    """Recall and MABO of the run's proposals, unless ``earlier`` has them of the same and the same objects."""
    proposals, objects = context.record.datasets["proposals"], context.record.datasets["objects"].manifest
    known = earlier.quality if earlier and earlier.manifest == proposals.manifest else None
    if isinstance(known, ProposalsQuality) and known.objects == objects:
        proposals.quality = known
    else:
        splits = measure_proposals(context.root, context.record, context.index)
        proposals.quality = ProposalsQuality(objects=objects, splits=splits)


def measure_proposals(root: Root, record: RunRecord, index: Index) -> dict[str, SplitQuality]:
    """Split to objects, recall and MABO; difficult objects are left out. Reads box columns only."""
    entry = record.datasets["proposals"]
    assert entry.manifest is not None
    truth: dict[str, list[tuple[str, list[float]]]] = {}
    for row in index.objects.to_pylist():
        if not row["difficult"]:
            truth.setdefault(row["image_id"], []).append((row["class_name"], list(row["box"].values())))
    overlaps: dict[str, np.ndarray] = {i: np.zeros(len(rows), np.float32) for i, rows in truth.items()}
    manifest = read_manifest(root, "proposals", entry.method, entry.manifest)
    for table in scan_manifest(root, manifest, ["image_id", "box"], truth.keys()):
        image_id = table["image_id"][0].as_py()
        if image_id in truth:
            boxes = np.array([box for _, box in truth[image_id]], np.float32)
            overlaps[image_id] = np.maximum(overlaps[image_id], best_overlaps(boxes, boxes_of(table["box"])))
    result = {}
    rows = index.images.select(["image_id", "splits"]).to_pylist()
    for split in sorted({split for row in rows for split in row["splits"]}):
        ids = [row["image_id"] for row in rows if split in row["splits"] and row["image_id"] in truth]
        names = [name for i in ids for name, _ in truth[i]]
        best = np.concatenate([overlaps[i] for i in ids]) if ids else np.zeros(0, np.float32)
        result[split] = SplitQuality.model_validate(asdict(proposal_quality(names, best)))
    return result
