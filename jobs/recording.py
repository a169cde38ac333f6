"""What every command that makes something shares: the run's record from its beginning to its end, and the index."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone

from jobs.entries import ALL
from jobs.errors import RunFailed, UsageError
from jobs.index import Index, committed_index, index_method, index_of, publish_tile, read_index, tile_shards
from jobs.reduce import entry_of
from jobs.stages import DATASETS_OF, Invocation
from jobs.versions import versions
from storage.manifest import fold, read_manifest
from storage.root import Root, StorageError, store_errors
from storage.runs import RunRecord, hold, read_run, run_names, write_run


def begin(invocation: Invocation) -> RunRecord:
    """The record of this command; what an earlier one of the same name made stays in it until it is made again."""
    earlier = read_run(invocation.root, invocation.name) if invocation.name in run_names(invocation.root) else None
    record = RunRecord(
        name=invocation.name,
        config=invocation.config.model_dump(mode="json"),
        argv=list(invocation.argv),
        versions=versions(),
        host=socket.gethostname(),
        started=_now(),
        datasets=earlier.datasets if earlier else {},
        holds=earlier.holds if earlier else [],
    )
    write_run(invocation.root, record)
    return record


@contextmanager
def recorded(root: Root, record: RunRecord) -> Iterator[None]:
    """Whatever happens inside, the record says how it ended."""
    try:
        yield
        failed = len(failed_images(root, record))
        allowed = record.config["execution"]["max_failed_ok"]
        record.exit_code = 3 if failed > allowed else 0
        record.status = "done"
    except (UsageError, StorageError) as error:
        record.exit_code, record.status, record.error = 2, "failed", str(error)
        raise
    except RunFailed as error:
        record.exit_code, record.status, record.error = 1, "failed", str(error)
        raise
    except KeyboardInterrupt:
        record.exit_code, record.status, record.error = 1, "failed", "interrupted"
        raise
    except BaseException as error:
        record.exit_code, record.status = 1, "failed"
        record.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        record.finished = _now()
        try:
            write_run(root, record)
        except store_errors() as error:
            say(f"the run's record could not be written: {error}")


def failed_images(root: Root, record: RunRecord) -> dict[str, str]:
    """Image id to reason, of the images that failed in some dataset of a run."""
    reasons: dict[str, str] = {}
    for name, entry in record.datasets.items():
        if entry.manifest is not None and entry.failed:
            for row in read_manifest(root, name, entry.method, entry.manifest).ledger:
                if row.level == "failed":
                    reasons.setdefault(row.image_id, f"{row.stage}: {row.type}: {row.message}")
        for image_id, reason in entry.quality.get("failed", {}).items():  # a network in test has no ledger of its own
            reasons.setdefault(image_id, reason)
    return dict(sorted(reasons.items()))


def make_index(invocation: Invocation, record: RunRecord) -> Index:
    """Read the data set, write what is new of ``images`` and ``objects``."""
    config, root = invocation.config, invocation.root
    method = index_method(config.dataset)
    hold(root, record, [f"{dataset}/{method}" for dataset in DATASETS_OF["index"]])
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
    for row in index.ledger:
        say(f"{'failed' if row.level == 'failed' else 'note'}: image {row.image_id}: {row.message}")
    used = {split for splits in index.images["splits"].to_pylist() for split in splits}
    for split in () if used == {ALL} else config.dataset.splits:
        if split not in used:
            say(f"note: split {split!r} has no usable image")
    with ThreadPoolExecutor(config.execution.index_threads) as writers:
        for commits in writers.map(lambda tile: publish_tile(root, method, tile, done), rows):
            for commit in commits:
                done[commit.dataset].setdefault(commit.shard, commit.name)
    for dataset in DATASETS_OF["index"]:
        keys = [tile_shards(tile)[dataset] for tile in rows]
        manifest = fold(root, dataset, method, [done[dataset][key] for key in dict.fromkeys(keys)])
        record.datasets[dataset] = entry_of("index", manifest)
    write_run(root, record)
    return index


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def say(text: str) -> None:
    """A line on standard error, where progress goes."""
    print(text, file=sys.stderr, flush=True)
