"""Commits: what makes a shard's data exist.

A commit is a small JSON file, written last and never overwritten. Its name alone tells the shard, the revision and the
attempt, so one listing tells what is done. Of several commits of a shard the winner has the highest revision, then the
lexicographically smallest attempt id: zombie writers and two drivers at once are harmless.
"""

from __future__ import annotations

import re
import socket
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from storage.damage import DamagedFileError, read_files
from storage.records import dump_record, read_record
from storage.root import Root
from storage.schemas import SCHEMA_VERSION

_NAME = re.compile(r"(?P<shard>[0-9a-f]+)\.r(?P<revision>\d+)\.(?P<attempt>[0-9a-z-]+)\.json")


class CommitName(NamedTuple):
    """What a commit file's name says."""

    shard: str
    revision: int
    attempt: str

    @property
    def stem(self) -> str:
        """Common part of the names of its commit and data files."""
        return f"{self.shard}.r{self.revision}.{self.attempt}"

    @property
    def data(self) -> str:
        """Key of its data file, relative to the method's folder."""
        return f"data/{self.stem}.parquet"


class LedgerRow(BaseModel):
    """One thing about one image that a user should know of.

    ``failed``: the image has no rows here. ``note``: it was accepted under the rule that the message states.
    """

    model_config = ConfigDict(frozen=True)

    image_id: str
    stage: str
    type: str
    message: str
    attempt: str = ""
    level: Literal["failed", "note"] = "failed"


class Upstream(BaseModel):
    """The commit of another dataset that a shard was made from."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    method: str
    shard: str
    revision: int


class Commit(BaseModel):
    """A shard's commit record.

    ``images`` gives every image its number of rows, 0 included; images that failed stand in ``ledger`` instead, and
    those that failed upstream in ``skipped``. ``seconds`` are by phase, ``passes`` how often an image passed the body
    for it; ``sha256`` and ``bytes`` are of the data file.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    dataset: str
    method: str
    shard: str
    revision: int
    attempt: str
    data: str
    rows: int
    bytes: int
    sha256: str
    images: dict[str, int]
    ledger: tuple[LedgerRow, ...] = ()
    skipped: tuple[str, ...] = ()
    upstream: tuple[Upstream, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    passes: int = 0
    host: str = Field(default_factory=socket.gethostname)
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    producer: str = ""

    @property
    def name(self) -> CommitName:
        """Shard, revision and attempt."""
        return CommitName(self.shard, self.revision, self.attempt)

    @property
    def failed(self) -> tuple[LedgerRow, ...]:
        """The ledger's rows of images that failed."""
        return tuple(row for row in self.ledger if row.level == "failed")


def new_attempt() -> str:
    """An attempt id. It begins with the time, so that of two complete attempts usually the first one stays."""
    return f"{int(time.time() * 1000):011x}-{uuid.uuid4().hex[:8]}"


def data_key(dataset: str, method: str, name: CommitName) -> str:
    """Key of a data file."""
    return f"{dataset}/{method}/{name.data}"


def commit_key(dataset: str, method: str, name: CommitName) -> str:
    """Key of a commit record."""
    return f"{dataset}/{method}/commit/{name.stem}.json"


def winners(root: Root, dataset: str, method: str) -> dict[str, CommitName]:
    """The winning commit of every committed shard of a method, from one listing."""
    best: dict[str, CommitName] = {}
    for file_name in root.hashed_names(f"{dataset}/{method}/commit"):
        match = _NAME.fullmatch(file_name)
        if match is None:
            continue
        name = CommitName(match["shard"], int(match["revision"]), match["attempt"])
        other = best.get(name.shard)
        if other is None or (-name.revision, name.attempt) < (-other.revision, other.attempt):
            best[name.shard] = name
    return best


def read_commits(root: Root, dataset: str, method: str, names: Iterable[CommitName]) -> list[Commit]:
    """The records behind ``names``, in their order. DamagedFileError: one is missing, broken, or another's."""
    names = list(names)
    keys = [commit_key(dataset, method, name) for name in names]
    commits = []
    for name, key, data in zip(names, keys, read_files(root, keys), strict=True):
        commit = read_record(Commit, data, key)
        # what it says of itself leads to files: it says what its own key does
        if (commit.dataset, commit.method, commit.name) != (dataset, method, name) or commit.data != name.data:
            said = f"{commit.dataset}/{commit.method}/{commit.data}"
            raise DamagedFileError(key, f"it is the commit of other data, {said[:120]!r}")
        commits.append(commit)
    return commits


def write_commit(root: Root, commit: Commit) -> None:
    """Publish a commit record; from then on the shard exists."""
    root.write(commit_key(commit.dataset, commit.method, commit.name), dump_record(commit))
