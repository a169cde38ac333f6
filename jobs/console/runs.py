"""What commands print of a run: its data sets, failed images, quality and metrics."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.console.tables import in_bytes, in_seconds, print_table

if TYPE_CHECKING:
    from jobs.record.notes import NoteCount
    from jobs.run.timing import RunTiming
    from storage.quality import Quality, SplitQuality
    from storage.root import Root
    from storage.runs import RunRecord


def print_run(root: Root, record: RunRecord, timing: RunTiming) -> dict[str, Any]:
    """Print what a run made, and where its time went; returns the same as JSON values, the exit code among them."""
    rows = [
        (
            entry.stage,
            name,
            "complete" if entry.manifest else "not complete",
            f"{entry.images}",
            f"{entry.failed}",
            f"{entry.rows:,}",
            in_bytes(entry.bytes),
            f"{entry.passes:,}" if entry.passes else "",
            ", ".join(f"{phase} {in_seconds(s)}" for phase, s in entry.seconds.items() if s >= 0.05),
        )
        for name, entry in record.datasets.items()
    ]
    columns = "stage", "dataset", "state", "images", "failed", "rows", "bytes", "passes", "worker seconds"
    print_table(columns, rows, 3, 8)
    print_quality(record)
    print_metrics(metrics_of(record))
    failed = print_failed(root, record)
    notes = print_notes(root, record)
    if timing.sentence:
        print(timing.sentence)
    return {
        "run": record.name,
        "root": root.url,
        "exit_code": record.exit_code or 0,
        "datasets": {name: entry.model_dump() for name, entry in record.datasets.items()},
        "metrics": metrics_of(record).model_dump(),
        "failed": failed,
        "notes": notes,
        "timing": asdict(timing),
    }


def print_failed(root: Root, record: RunRecord) -> dict[str, str]:
    """A line per failed image of a run, of the first twenty; returns all, with their reasons."""
    from jobs.record.recording import failed_images

    failed = failed_images(root, record)
    list_failed(failed)
    return failed


def list_failed(failed: Mapping[str, str]) -> None:
    """A line per failed image with its reason, of the first twenty."""
    from storage.secrets import redacted  # the store's package, which the help does without

    for image_id, reason in list(failed.items())[:20]:
        print(f"failed image {image_id}: {redacted(reason)}")
    if len(failed) > 20:
        print(f"... and {len(failed) - 20} more failed images; `spp notes --failed` lists all")


def print_notes(root: Root, record: RunRecord) -> list[Mapping[str, object]]:
    """A line per kind of note of a run, and what lists them all; returns the counts as JSON values."""
    from jobs.record.notes import recorded_notes

    return tell_notes(recorded_notes(root, record), root, record)


def tell_notes(notes: Sequence[NoteCount], root: Root, record: RunRecord) -> list[Mapping[str, object]]:
    """The same of notes that are counted already."""
    from jobs.record.notes import GONE

    for note in notes:
        print(f"note: {note.sentence}")
    if any(note.type != GONE for note in notes):
        print(f"`spp notes --root {shlex.quote(root.url)} --run {record.name}` lists them, image by image")
    return [vars(note) for note in notes]


def print_quality(record: RunRecord) -> None:
    """Recall and MABO of a run's proposals, a line per split."""
    for split, values in quality_of(record).items():
        if values.recall is not None:
            told = f"recall@0.5 {values.recall:.3f}, MABO {values.mabo:.3f} ({values.objects} objects)"
            print(f"proposals on {split}: {told}")
        else:
            print(f"proposals on {split}: no objects to measure recall with")


def quality_of(record: RunRecord) -> dict[str, SplitQuality]:
    """Split to recall and MABO; empty before proposals are complete."""
    from storage.quality import ProposalsQuality

    entry = record.datasets.get("proposals")
    return entry.quality.splits if entry is not None and isinstance(entry.quality, ProposalsQuality) else {}


def metrics_of(record: RunRecord) -> Quality:
    """Mean APs, and what is measured of each class (``MetricsQuality``); empty before they are measured."""
    from storage.quality import Quality

    entry = record.datasets.get("metrics")
    return entry.quality if entry is not None and entry.manifest else Quality()


def print_metrics(measured: Quality) -> None:
    """A line per class, and the mean; nothing if nothing was measured."""
    from storage.quality import MetricsQuality

    if not isinstance(measured, MetricsQuality):
        return
    rows = [
        (
            one.class_name,
            _ap(one.ap_11),
            _ap(one.ap_area),
            f"{one.positives:,}",
            f"{one.detections:,}",
            f"{one.true_positives:,}",
        )
        for one in measured.classes
    ]
    rows.append(("mean", _ap(measured.map_11), _ap(measured.map_area), "", "", ""))
    print_table(("class", "AP (11-point)", "AP (area)", "objects", "detections", "found"), rows, 1)
    without = [one.class_name for one in measured.classes if one.ap_11 is None]
    if without:
        print(f"no object to find, and so no AP: {', '.join(without)}")


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
