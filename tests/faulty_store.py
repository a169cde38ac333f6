"""A file system that fails as real ones do, on a plan: ``faulty:///path`` with ``storage_options: {fo: file.json}``.

The plan is a JSON object, read at every call, so that a test can mend the store in mid-run:

* ``put_fails_every``: n: every n-th PUT raises OSError before it writes; ``put_loses_answer_every``: after it wrote;
* ``put_seconds``: each PUT takes so long;
* ``put_error``: every PUT raises this errno (ENOSPC, EACCES, ...) once ``put_good`` PUTs have succeeded;
* ``exit_on``: reading a file whose path ends with this kills the process;
* ``hang_on``: reading such a file for the first time never ends; ``memory_error_on``: it raises MemoryError;
* ``hold_on``: reading such a file waits until the plan no longer says so; ``held`` tells who waits;
* ``only_in``: the faults of reading befall only workers that Ray calls so (``ray::FeatureActor``, ``ray::mine``).

Counts are kept in files beside the plan: they are those of all processes together.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import fsspec
import psutil
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class FaultyFileSystem(AbstractFileSystem):
    """The local file system behind a plan of faults; to the store it is one without renames."""

    protocol = "faulty"
    root_marker = "/"

    def __init__(self, fo: str, **options: Any) -> None:
        super().__init__(**options)
        self._plan = Path(fo)  # a key that is known to hold no secret
        self._local = LocalFileSystem(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return "/" + path.removeprefix("faulty://").strip("/")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        return self._local.ls(path, detail=detail)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return self._local.info(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._before_read(path)
        return self._local.open(path, mode)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._before_read(path)
        return self._local.cat_file(self._strip_protocol(path), start, end)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        path = self._strip_protocol(rpath)
        plan = json.loads(self._plan.read_text())
        time.sleep(plan.get("put_seconds", 0))
        number = self._count("puts")
        if plan.get("put_error") and number > plan.get("put_good", 0):
            code = getattr(errno, plan["put_error"])
            raise OSError(code, os.strerror(code), path)
        every = plan.get("put_fails_every")
        if every and number % every == 0:
            raise OSError(errno.ECONNRESET, "the connection was reset", path)
        whole = f"{path}.arriving-{os.getpid()}-{number}"
        self._local.put_file(lpath, whole)
        os.replace(whole, path)  # a PUT is seen whole or not at all
        every = plan.get("put_loses_answer_every")
        if every and number % every == 0:
            raise OSError(errno.ETIMEDOUT, "no answer came", path)

    def rm_file(self, path: str) -> None:
        self._local.rm_file(self._strip_protocol(path))

    def _before_read(self, path: str) -> None:
        plan = json.loads(self._plan.read_text())
        if not _concerns(plan):
            return
        if _ends(path, plan.get("exit_on")):
            os.kill(os.getpid(), signal.SIGSEGV)
        if _ends(path, plan.get("hang_on")) and self._count("hangs") == 1:
            time.sleep(10_000)
        if _ends(path, plan.get("memory_error_on")) and self._count("memory") == 1:
            raise MemoryError("cannot allocate a buffer")
        if _ends(path, plan.get("hold_on")):
            _holders(self._plan).mkdir(exist_ok=True)
            (_holders(self._plan) / str(os.getpid())).touch()
            while _ends(path, json.loads(self._plan.read_text()).get("hold_on")):
                time.sleep(0.05)

    def _count(self, what: str) -> int:
        """One more of ``what``, over all processes."""
        with self._plan.with_suffix(f".{what}").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = int(file.read() or 0) + 1
            file.truncate(0)
            file.write(str(number))
            return number


def _ends(path: str, wanted: str | None) -> bool:
    return bool(wanted) and path.endswith(wanted)


def _concerns(plan: dict[str, Any]) -> bool:
    """Whether this process is one that is to have faults."""
    wanted = plan.get("only_in")
    return wanted is None or any(part.startswith(wanted) for part in psutil.Process().cmdline()[:1])


def write_plan(plan: Path, **faults: Any) -> None:
    """From now on the store fails so. Whoever reads the plan finds the old one or the new one, whole."""
    arriving = plan.with_suffix(".arriving")
    arriving.write_text(json.dumps(faults))
    os.replace(arriving, plan)


def held(plan: Path) -> set[int]:
    """Ids of the processes that have been made to wait by ``hold_on``."""
    return {int(path.name) for path in _holders(plan).glob("*")}


def _holders(plan: Path) -> Path:
    return plan.with_suffix(".held")


def register() -> None:
    """Make ``faulty://`` known to fsspec in this process."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def install(folder: Path) -> None:
    """Make ``faulty://`` known to every Python that has ``folder`` on its path, as an installed package would."""
    shutil.copy(__file__, folder)
    described = folder / "faulty_store-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-store\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[fsspec.specs]\nfaulty = faulty_store:FaultyFileSystem\n")
