"""Making the index of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from jobs.dataset.index import (
    TABLES,
    Index,
    committed_index,
    index_method,
    index_of,
    publish_tile,
    read_index,
    tile_shards,
)
from jobs.dataset.labelled import ALL
from jobs.errors import RunFailed, UsageError
from jobs.record.invocation import Invocation
from jobs.record.publish import entry_of
from storage.commits import LedgerRow
from storage.manifest import fold
from storage.runs import RunRecord, hold, write_run
from storage.scan import read_whole

_log = logging.getLogger("spp")


_TOLD = 20
"""Failed images, and notes of a type, that are told one by one."""


def make_index(invocation: Invocation, record: RunRecord) -> Index:
    """Read the data set, write what is new of ``images`` and ``objects``."""
    config, root = invocation.config, invocation.root
    method = index_method(config.dataset)
    hold(root, record, [f"{dataset}/{method}" for dataset in TABLES])
    done = committed_index(root, method)
    rows = list(read_index(config.dataset, config.execution.index_threads))
    index = index_of(rows)
    failed = [row for row in index.ledger if row.level == "failed"]
    total = len(index.images) + len(failed)
    if total >= 50 and len(failed) > config.execution.max_failed * total:
        raise RunFailed(
            f"index: {len(failed)} of {total} images failed, more than execution.max_failed "
            f"({config.execution.max_failed:g}) allows; the first: {failed[0].message}"
        )
    if not len(index.images):
        reason = f"; the first: {failed[0].message}" if failed else ""
        raise UsageError(f"dataset: the splits {', '.join(config.dataset.splits)} have no usable image{reason}")
    tell_ledger(index.ledger)
    used = {split for splits in index.images["splits"].to_pylist() for split in splits}
    for split in () if used == {ALL} else config.dataset.splits:
        if split not in used:
            _log.warning("note: split %r has no usable image", split)
    with ThreadPoolExecutor(config.execution.index_threads) as writers:
        for commits in writers.map(lambda tile: publish_tile(root, method, tile, done), rows):
            for commit in commits:
                done[commit.dataset].setdefault(commit.shard, commit.name)
    for dataset in TABLES:
        keys = [tile_shards(tile)[dataset] for tile in rows]
        manifest = fold(root, dataset, method, [done[dataset][key] for key in dict.fromkeys(keys)])
        for _ in read_whole(root, manifest, ["image_id"]):
            pass  # its files are small, and others read them: a damaged one is told here, not by one of them
        record.datasets[dataset] = entry_of("index", manifest)
    write_run(root, record)
    return index


def tell_ledger(ledger: Iterable[LedgerRow]) -> None:
    """A line for each ledger row, of the first few of every kind."""
    counts: Counter[str] = Counter()
    for row in ledger:
        kind = "failed images" if row.level == "failed" else f"notes {row.type}"
        counts[kind] += 1
        if counts[kind] <= _TOLD:
            _log.warning("%s: image %s: %s", "failed" if row.level == "failed" else "note", row.image_id, row.message)
    for kind, count in counts.items():
        if count > _TOLD:
            _log.warning("note: index: %d more %s; `spp notes --dataset images` lists all", count - _TOLD, kind)
