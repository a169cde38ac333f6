"""What every command that makes something shares: the run's record from its beginning to its end, and the index."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from pydantic import ValidationError

from jobs.config.run_config import RunConfig
from jobs.errors import RunFailed, UsageError
from jobs.record.invocation import Invocation
from jobs.record.versions import versions
from storage.commits import LedgerRow
from storage.damage import MISSING, DamagedFileError
from storage.manifest import read_manifest
from storage.quality import NetworkQuality
from storage.root import Root, StorageError, store_errors
from storage.runs import DatasetRecord, RunRecord, check_run_name, read_run, record_key, run_names, write_run
from storage.secrets import redacted, redacted_value

_log = logging.getLogger("spp")


@contextmanager
def recorded_run(invocation: Invocation, sections: Collection[str] | None = None) -> Iterator[RunRecord]:
    """The record of a command that makes something: it is there before any work, and says at the end how that ended.

    What an earlier command of the same name made stays in it until it is made again. ``sections``: those of the config
    that are recorded, if not all. StorageError, with no record, if the run's name or the root cannot be used.
    """
    root = invocation.root
    check_run_name(invocation.name)
    root.check_writable()
    record = _begin(invocation, sections)
    with _ending(root, record):
        yield record


def _begin(invocation: Invocation, sections: Collection[str] | None) -> RunRecord:
    earlier = read_run(invocation.root, invocation.name) if invocation.name in run_names(invocation.root) else None
    record = RunRecord(
        name=invocation.name,
        config=redacted_value(_recorded(invocation.config, sections), known=False),
        # some names are no UTF-8
        argv=[part.encode(errors="backslashreplace").decode() for part in redacted_value(invocation.argv)],
        versions=versions(),
        host=socket.gethostname(),
        started=_now(),
        datasets=earlier.datasets if earlier else {},
        holds=earlier.holds if earlier else [],
    )
    write_run(invocation.root, record)
    return record


def _recorded(config: RunConfig, sections: Collection[str] | None) -> dict[str, Any]:
    return config.model_dump(mode="json", include=None if sections is None else set(sections))


@contextmanager
def _ending(root: Root, record: RunRecord) -> Iterator[None]:
    """Whatever happens inside, the record says how it ended."""
    try:
        yield
        failed = len(failed_images(root, record))
        allowed = record.config["execution"]["max_failed_ok"]
        record.exit_code = 3 if failed > allowed else 0
        record.status = "done"
    except (RunFailed, DamagedFileError) as error:
        record.exit_code, record.status, record.error = 1, "failed", redacted(str(error))
        raise
    except (UsageError, StorageError) as error:
        record.exit_code, record.status, record.error = 2, "failed", redacted(str(error))
        raise
    except KeyboardInterrupt:
        record.exit_code, record.status, record.error = 1, "failed", "interrupted"
        raise
    except BaseException as error:
        record.exit_code, record.status = 1, "failed"
        record.error = redacted(f"{type(error).__name__}: {error}")
        raise
    finally:
        record.finished = _now()
        try:
            write_run(root, record)
        except store_errors() as error:
            _log.warning("the run's record could not be written: %s", error)


def recorded_config(record: RunRecord) -> RunConfig:
    """The config that a run was made with. UsageError if this version knows no such config."""
    try:
        return RunConfig.model_validate(record.config)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{record_key(record.name)}: this version does not know its config: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}; give the run's command again, which writes it anew"
        ) from error


def failed_images(root: Root, record: RunRecord) -> dict[str, str]:
    """Image id to reason, of the images that failed in some dataset of a run.

    Of a dataset that is there no more (deleted by hand, say) they are not known: ``recorded_notes`` tells of it.
    """
    reasons: dict[str, str] = {}
    for name, entry in record.datasets.items():
        if entry.manifest is not None and entry.failed:
            for row in _ledger(root, name, entry):
                if row.level == "failed":
                    reasons.setdefault(row.image_id, f"{row.stage}: {row.type}: {row.message}")
        if isinstance(entry.quality, NetworkQuality):  # a network in test has no ledger of its own
            reasons = {**entry.quality.failed, **reasons}
    return dict(sorted(reasons.items()))


def _ledger(root: Root, dataset: str, entry: DatasetRecord) -> Sequence[LedgerRow]:
    assert entry.manifest is not None
    try:
        return read_manifest(root, dataset, entry.method, entry.manifest).ledger
    except DamagedFileError as error:
        if error.reason != MISSING:
            raise
        return ()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
