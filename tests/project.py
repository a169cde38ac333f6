"""A small project as a user has one, a data set, a config and a root, and what tests ask of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

import storage
from jobs.cli.main import main
from storage.root import open_root
from storage.tensors import read_tensors
from tests.voc_folder import VocFolder, small_data_set

CONFIG: dict[str, dict[str, Any]] = {
    "proposals": {"max_per_image": 60, "min_side": 10},
    "features": {"body": "alexnet", "weights": "random", "scales": [96, 160]},
    "execution": {"progress_seconds": 1, "backoff": 0.1, "workers": 1},
}
"""Sections of a config for a few small images. One worker: each is a process, and starts for seconds."""

EXTRACT = ("--until", "extract")
"""For tests of what comes before the training: the last stage of a run."""

_ORDER = (
    *("phase", "iteration", "name", "image_id", "proposal_id", "object_id", "window_id", "class_name", "score"),
    *("view", "layer", "split"),
)
"""Columns that tables are sorted by, those that they have."""


def config_with(**changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of ``CONFIG``, with keys of theirs changed and other sections added."""
    return {name: {**CONFIG.get(name, {}), **changes.get(name, {})} for name in {**CONFIG, **changes}}


def sets(*changes: str) -> tuple[str, ...]:
    """Arguments of a command that change keys of its config: ``sets("svm.C=2")``."""
    return tuple(word for change in changes for word in ("--set", change))


def last_json(capsys: Any) -> dict[str, Any]:
    """The JSON object that the last command printed."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def link_tree(source: Path, target: Path) -> None:
    """``target`` becomes a folder like ``source``, its files the same ones under a second name.

    The store replaces files whole and never writes into one, so what is done to the one folder by commands leaves the
    other as it is. What damages a file in place must give it a copy of its own first.
    """
    shutil.copytree(source, target, copy_function=os.link)


@dataclass
class Project:
    """A data set, a config and a root: a folder, or the URL of one with ``storage_options`` to open it.

    Its run has the name of the config's file. ``data``: None where the test has the data set in hand itself.
    """

    data: VocFolder | None
    config: Path
    root: Path | str
    storage_options: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The name of its run."""
        return self.config.stem

    @property
    def folder(self) -> Path:
        """The root's folder, also of a URL that stands for one."""
        return self.root if isinstance(self.root, Path) else Path("/" + self.root.split("://")[1].strip("/"))

    def spp(self, verb: str, *arguments: str, root: Path | str | None = None) -> int:
        """Run a verb with this config and root, or another root; returns its exit code."""
        return main([verb, *arguments, "--config", str(self.config), "--root", str(root or self.root)])

    def answer(self, verb: str, *arguments: str) -> dict[str, Any]:
        """The JSON object that a verb prints; it must end with 0."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = self.spp(verb, *arguments, "--json")
        assert code == 0, printed.getvalue()
        return json.loads(printed.getvalue().splitlines()[-1])

    def planned(self, *arguments: str) -> set[str]:
        """The datasets of which a plan would make some shard."""
        datasets = self.answer("plan", *arguments)["datasets"]
        return {entry["dataset"] for entry in datasets if entry["shards_done"] < entry["shards"]}

    def states(self, *arguments: str) -> dict[str, str]:
        """Dataset to what ``spp status`` says of it."""
        return {entry["dataset"]: entry["state"] for entry in self.answer("status", *arguments)["datasets"]}

    def commits(self, dataset: str) -> set[str]:
        """Names of all commit records of a dataset, of every method: ``method/name``."""
        return self.all_commits().get(dataset, set())

    def all_commits(self) -> dict[str, set[str]]:
        """Dataset to its commit records, of every method."""
        found: dict[str, set[str]] = defaultdict(set)
        for path in self.folder.glob("*/*/commit/*.json"):
            found[path.parts[-4]].add(f"{path.parts[-3]}/{path.name}")
        return dict(found)

    def commit_file(self, dataset: str, name: str) -> Path:
        """The file of a commit that ``commits`` names."""
        method, file = name.split("/")
        return self.folder / dataset / method / "commit" / file

    def place(self) -> storage.Root:
        """The root, opened."""
        return open_root(str(self.root), self.storage_options)

    def record(self, run: str | None = None) -> storage.runs.RunRecord:
        """The record of its run, or of another one."""
        return storage.read_run(self.place(), run or self.run)

    def table(self, dataset: str, run: str | None = None) -> pa.Table:
        """All rows of a dataset of its run, or of another one, in an order that does not depend on files."""
        return sorted_rows(storage.open(self.place(), dataset, run or self.run).to_table())

    def tensors(self, dataset: str, run: str | None = None) -> dict[str, np.ndarray]:
        """The tensors of a dataset that is one file of them."""
        entry = self.record(run).datasets[dataset]
        (key,) = storage.manifest.read_manifest(self.place(), dataset, entry.method, entry.manifest).keys
        return read_tensors(self.place(), key)

    def clone(self, folder: Path, without: Collection[str] = ()) -> Project:
        """A project in ``folder`` with the same runs, that can be changed: a data set and a root of its own.

        Its data set is at another place, which makes its table of images a new one, and nothing else. Of the datasets
        ``without`` nothing is there: they are made again, and what follows from them.
        """
        assert self.data is not None
        data = VocFolder(folder / "data")
        shutil.copytree(self.data.path, data.path, dirs_exist_ok=True)
        sections = yaml.safe_load(self.config.read_text())
        sections["dataset"]["path"] = str(data.path.parent)
        config = folder / self.config.name
        config.write_text(yaml.safe_dump(sections))
        link_tree(self.folder, folder / "root")
        for dataset in without:
            shutil.rmtree(folder / "root" / dataset)
        cloned = Project(data, config, folder / "root", self.storage_options)
        assert cloned.spp("index") == 0
        return cloned

    def change_config(self, **changes: Mapping[str, Any]) -> None:
        """Write the config anew, with keys changed."""
        sections = yaml.safe_load(self.config.read_text())
        for name, keys in changes.items():
            sections.setdefault(name, {}).update(keys)
        self.config.write_text(yaml.safe_dump(sections))


def sorted_rows(table: pa.Table) -> pa.Table:
    """The rows in an order that does not depend on files."""
    keys = [name for name in _ORDER if name in table.column_names and not pa.types.is_nested(table[name].type)]
    return table.sort_by([(key, "ascending") for key in keys])


def make_project(folder: Path, train: int = 9, test: int = 5, sections: Mapping[str, Any] | None = None) -> Project:
    """A project in ``folder``: so many images of two classes to train and to test on, and a config, by default
    ``CONFIG``. Nothing is run."""
    data = small_data_set(folder / "data", train, test)
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({"dataset": {"path": str(folder / "data")}, **(sections or CONFIG)}))
    return Project(data, config, folder / "root")


def project_in(folder: Path) -> Project:
    """The project that ``make_project`` made in ``folder``, or that was cloned into it."""
    return Project(VocFolder(folder / "data"), folder / "small.yaml", folder / "root")
