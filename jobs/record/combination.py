"""What the record of a combination says, and whether it is up to date."""

from __future__ import annotations

from typing import Any

from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, read_run, run_names

COMBINE = "combine"
"""What the record of a combination's detections says that they were made by."""


def combined_runs(record: RunRecord) -> list[str] | None:
    """The runs that a run is the combination of, in their order; None if it is none."""
    entry = record.datasets.get("detections")
    return list(entry.quality["runs"]) if entry is not None and entry.stage == COMBINE else None


def is_behind(root: Root, record: RunRecord) -> bool:
    """Whether one of the runs that a combination was made from has other detections, or other objects, now.

    One that is there no more has no newer ones.
    """
    made_from = record.datasets["detections"].quality["runs"]
    there = set(run_names(root))
    for name, found in made_from.items():
        datasets = read_run(root, name).datasets if name in there else {}
        if "detections" in datasets and found != detections_identity(datasets["detections"]):
            return True
        if "objects" in datasets and datasets["objects"].manifest != record.datasets["objects"].manifest:
            return True
    return False


def detections_identity(entry: DatasetRecord) -> dict[str, Any]:
    """What tells a run's detections from later ones."""
    return {"method": entry.method, "manifest": entry.manifest}
