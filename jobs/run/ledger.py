"""notes: every row of the ledgers of a run, of what failed and of what was accepted under some rule.

spp notes --root /data/spp --run raccoon_kangaroo
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from jobs.errors import UsageError
from jobs.run.status import manifests
from storage.manifest import LEDGER_KEYS
from storage.quality import NetworkQuality
from storage.root import Root
from storage.runs import RunRecord


def ledger_rows(root: Root, record: RunRecord, dataset: str | None = None) -> Iterator[dict[str, str]]:
    """The ledger rows, one after another, of all datasets of a run or of one; of incomplete ones what is committed.

    Each has its dataset, stage, image_id (or a class), level, type and message. UsageError if there is no such dataset.
    """
    names = list(record.datasets)
    if dataset is not None and dataset not in names:
        close = difflib.get_close_matches(dataset, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"--dataset {dataset!r}: {hint}run {record.name!r} has {', '.join(names) or 'nothing yet'}")
    for manifest in manifests(root, record, names if dataset is None else [dataset]):
        for rows in manifest.ledgers():
            yield from ({"dataset": manifest.dataset, **{key: row[key] for key in LEDGER_KEYS}} for row in rows)
        quality = record.datasets[manifest.dataset].quality  # a network in test has no ledger of its own
        for image_id, reason in quality.failed.items() if isinstance(quality, NetworkQuality) else ():
            stage, _, rest = reason.partition(": ")
            kind, _, message = rest.partition(": ")
            told = {"stage": stage, "image_id": image_id, "level": "failed", "type": kind, "message": message}
            yield {"dataset": manifest.dataset, **told}
