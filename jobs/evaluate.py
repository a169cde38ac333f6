"""evaluate: VOC average precision of the detections, per class, one task each.

    spp evaluate --config configs/raccoon_kangaroo.yaml --root /data/spp
    spp evaluate --config configs/raccoon_kangaroo.yaml --detections 'results/comp4_det_test_*.txt'

The second form reads the result files of any detector, and the data set itself; it stores nothing.

The work is in jobs/evaluation.py.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field

from jobs.reduce import reduce_method
from jobs.settings import Settings
from storage.identity import canonical_json, digest
from storage.runs import RunRecord, dataset_record

VERSION = 1


class EvaluateConfig(Settings):
    """The ``evaluate:`` section of the config."""

    min_overlap: float = Field(0.5, gt=0, le=1)
    """IoU from which a detection finds an object."""
    thresholds: Literal["exact", "arange"] = "exact"
    """Recalls of the 11-point measure: exact tenths, or py-faster-rcnn's floating-point ones."""


def evaluate_method(config: EvaluateConfig, record: RunRecord, objects: pa.Table) -> str:
    """The method id; ``objects`` are those of the test images."""
    annotated = digest(canonical_json(objects.to_pylist()))
    return reduce_method("evaluate", VERSION, config.identity(), [dataset_record(record, "detections")], [annotated])
