"""What metrics hang on."""

from __future__ import annotations

import pyarrow as pa

from jobs.config.evaluate import EvaluateConfig
from jobs.record.lineage import reduce_method
from storage.identity import canonical_json, digest
from storage.runs import RunRecord, dataset_record

VERSION = 1


def evaluate_method(config: EvaluateConfig, record: RunRecord, objects: pa.Table) -> str:
    """The method id; ``objects`` are those of the test images."""
    annotated = digest(canonical_json(objects.to_pylist()))
    return reduce_method("evaluate", VERSION, config.identity(), [dataset_record(record, "detections")], [annotated])
