"""What the record of a combination says, and whether it is up to date."""

from __future__ import annotations

from storage.quality import CombinationQuality, DetectionsIdentity
from storage.root import Root
from storage.runs import DatasetRecord, RunRecord, read_run, run_names

COMBINE = "combine"
"""What the record of a combination's detections says that they were made by."""


def combination_of(record: RunRecord) -> CombinationQuality | None:
    """What a run is the combination of; None if it is none."""
    entry = record.datasets.get("detections")
    return entry.quality if entry is not None and isinstance(entry.quality, CombinationQuality) else None


def combined_runs(record: RunRecord) -> list[str] | None:
    """The runs that a run is the combination of, in their order; None if it is none."""
    made = combination_of(record)
    return None if made is None else list(made.runs)


def is_behind(root: Root, record: RunRecord) -> bool:
    """Whether one of the runs that a combination was made from has other detections, or other objects, now.

    One that is there no more has no newer ones.
    """
    made = combination_of(record)
    there = set(run_names(root))
    for name, found in made.runs.items() if made is not None else ():
        datasets = read_run(root, name).datasets if name in there else {}
        if "detections" in datasets and found != detections_identity(datasets["detections"]):
            return True
        if "objects" in datasets and datasets["objects"].manifest != record.datasets["objects"].manifest:
            return True
    return False


def detections_identity(entry: DatasetRecord) -> DetectionsIdentity:
    """What tells a run's detections from later ones."""
    return DetectionsIdentity(method=entry.method, manifest=entry.manifest)
