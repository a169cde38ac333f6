"""notes: every row of the ledgers of a run, of what failed and of what was accepted under some rule.

spp notes --root /data/spp --run raccoon_kangaroo
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from jobs.errors import UsageError
from jobs.run.status import manifests
from storage.commits import LedgerRow
from storage.root import Root
from storage.runs import RunRecord


def ledger_rows(root: Root, record: RunRecord, dataset: str | None = None) -> Iterator[tuple[str, LedgerRow]]:
    """Dataset and row, one after another, of all datasets of a run or of one; of incomplete ones what is committed.

    UsageError if the run has no such dataset.
    """
    names = list(record.datasets)
    if dataset is not None and dataset not in names:
        close = difflib.get_close_matches(dataset, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"--dataset {dataset!r}: {hint}run {record.name!r} has {', '.join(names) or 'nothing yet'}")
    for manifest in manifests(root, record, names if dataset is None else [dataset]):
        for rows in manifest.ledgers():
            yield from ((manifest.dataset, row) for row in rows)
        # a network in test has no ledger of its own
        for image_id, reason in record.datasets[manifest.dataset].quality.get("failed", {}).items():
            stage, kind, message = reason.split(": ", 2)
            yield manifest.dataset, LedgerRow(image_id=image_id, stage=stage, type=kind, message=message)
