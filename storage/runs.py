"""Runs: names for results. ``runs/<name>.json`` says which manifests a name stands for, and how they came to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from storage.damage import DamagedFileError, read_file
from storage.identity import METHOD_PATTERN
from storage.quality import AnyQuality, Quality
from storage.records import dump_record, read_record
from storage.root import Root, StorageError, store_errors
from storage.schemas import DATASETS, SCHEMA_VERSION

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_Ident = Annotated[str, StringConstraints(pattern=METHOD_PATTERN)]


class MissingDatasetError(StorageError):
    """A run has not made a dataset yet, or not all of it."""

    def __init__(self, run: str, dataset: str) -> None:
        super().__init__(run, dataset)  # both, as it may come from another process
        self.run = run
        self.dataset = dataset

    def __str__(self) -> str:
        return f"run {self.run!r} has no complete dataset {self.dataset!r} yet"


class DatasetRecord(BaseModel):
    """One dataset of a run. Without ``manifest`` it is not complete.

    ``manifest_sha256`` is that of the manifest's file; version 0.1.0 did not write it down.
    ``bytes_per_image`` is what its shards were cut by; with the images dataset it tells which shards there should be.
    ``partial``: it leaves out images on purpose (``detect.source: stream``). ``classifier``, of truth_features: digest
    of the fully connected layers that came with the body's weights. ``passes``: how often an image passed the body for
    it; version 0.1.0 did not count.
    """

    stage: str
    method: _Ident
    manifest: _Ident | None = None
    manifest_sha256: str = ""
    shards: int = 0
    bytes_per_image: int = 0
    rows: int = 0
    bytes: int = 0
    images: int = 0
    failed: int = 0
    partial: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    passes: int = 0
    quality: AnyQuality = Field(default_factory=Quality)
    classifier: str = ""


class RunRecord(BaseModel):
    """A run: what was asked for, with what, and what came of it.

    ``holds``: ``dataset/method`` of what it is making or about to adopt; all of that is kept for it by
    ``storage.garbage``, also after a failure, until what comes of it stands in ``datasets``.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    argv: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    host: str = ""
    started: str = ""
    finished: str | None = None
    status: Literal["running", "done", "failed"] = "running"
    exit_code: int | None = None
    error: str | None = None
    datasets: dict[str, DatasetRecord] = Field(default_factory=dict)
    holds: list[str] = Field(default_factory=list)

    @field_validator("datasets", mode="before")
    @classmethod
    def _known(cls, datasets: Any) -> Any:
        """Names of datasets become folders, views and words of SQL: they are ours, whoever wrote the record."""
        for name in datasets if isinstance(datasets, dict) else ():
            _check_dataset(name)
        return datasets

    @field_validator("holds")
    @classmethod
    def _held(cls, holds: list[str]) -> list[str]:
        for hold in holds:
            dataset, _, method = hold.partition("/")
            _check_dataset(dataset)
            if not re.fullmatch(METHOD_PATTERN, method):
                raise PydanticCustomError("method", "{held} is no DATASET/METHOD", {"held": repr(hold[:80])})
        return holds

    def complete(self, dataset: str) -> bool:
        """Whether the run has all of a dataset."""
        entry = self.datasets.get(dataset)
        return entry is not None and entry.manifest is not None


def _check_dataset(name: Any) -> None:
    if name not in DATASETS:
        reason = "{name} is no dataset of this version of spp-pipeline: update it if a newer one wrote this"
        raise PydanticCustomError("dataset", reason, {"name": repr(str(name)[:80])})


def check_run_name(name: str) -> None:
    """Raises StorageError unless ``name`` can be a file's name on every store."""
    if not _NAME.fullmatch(name):
        raise StorageError(
            f"run name {name!r}: letters, digits, '.', '_' and '-' only, beginning with a letter or digit"
        )


def run_names(root: Root) -> list[str]:
    """Names of all runs under a root."""
    return [name.removesuffix(".json") for name in root.names("runs") if name.endswith(".json")]


def read_run(root: Root, name: str | None = None) -> RunRecord:
    """The record of a run; of the only one if ``name`` is None.

    Raises StorageError, naming the runs that there are.
    """
    try:
        known = run_names(root)
    except store_errors() as error:
        raise StorageError(f"root {root.url!r} cannot be read: {error}") from error
    if name is None:
        if len(known) != 1:
            found = f"there are {', '.join(known)}; choose one with --run" if known else "there is no run yet"
            raise StorageError(f"root {root.url!r}: {found}")
        name = known[0]
    check_known(root, name, known)
    key = record_key(name)
    record = read_record(RunRecord, read_file(root, key), key)
    if record.name != name:
        raise DamagedFileError(key, f"it is the record of another run, {record.name[:80]!r}")
    return record


def record_key(name: str) -> str:
    """Key of a run's record."""
    return f"runs/{name}.json"


def check_known(root: Root, name: str, known: Sequence[str] | None = None) -> None:
    """Raises StorageError, naming the runs that there are, if ``name`` is none of them."""
    known = run_names(root) if known is None else known
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StorageError(f"root {root.url!r} has no run {name!r}; {hint}runs: {', '.join(known) or 'none'}")


def write_run(root: Root, record: RunRecord) -> None:
    """Publish a run's record in place of its last one."""
    check_run_name(record.name)
    root.write(record_key(record.name), dump_record(record))


def hold(root: Root, record: RunRecord, held: Sequence[str]) -> None:
    """Publish that a run works on these (``dataset/method``), so that no collection takes them away."""
    record.holds = sorted({*unsettled(record), *held})
    write_run(root, record)


def unsettled(record: RunRecord) -> list[str]:
    """What a run holds that has not become a dataset of it."""
    made = {f"{name}/{entry.method}" for name, entry in record.datasets.items() if entry.manifest is not None}
    return [held for held in record.holds if held not in made]


def forget_run(root: Root, name: str) -> None:
    """Drop a run's record, even a damaged one; what it made stays until a collection.

    StorageError if there is none.
    """
    check_known(root, name)
    root.delete_if_there(record_key(name))


def dataset_record(record: RunRecord, dataset: str) -> DatasetRecord:
    """A complete dataset of a run. StorageError says what there is; MissingDatasetError: not this one, yet."""
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StorageError(f"there is no dataset {dataset!r}; {hint}datasets: {', '.join(DATASETS)}")
    found = record.datasets.get(dataset)
    if dataset == "features" and found is None and "windows" in record.datasets:
        raise StorageError(
            f"run {record.name!r} holds its features as conv maps (datasets maps and windows); "
            f"`spp extract --set features.store=vectors` makes vectors of them, "
            f"jobs.features.stored.scan pools while reading"
        )
    if found is None or found.manifest is None:
        raise MissingDatasetError(record.name, dataset)
    return found
