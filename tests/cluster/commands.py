"""Commands as users give them, in processes of their own, on projects that tests disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests import faulty_store
from tests.project import Project, config_with
from tests.voc_folder import VocFolder

BIN = Path(sys.executable).parent
SPP = str(BIN / "spp")

EXTRACTED = ("images", "objects", "proposals", "features", "truth_features")
MODELS = ("svms", "regressors", "detections", "metrics")
FINETUNED = ("training_windows", "training_curve", "head")

HELD = "scene007.jpg"
"""An image in the middle of the largest shard of ``scenes``."""
EXTRACTING = "ray::FeatureActor"
"""What Ray calls a process that extracts."""

PATIENCE = 300.0
"""Seconds that anything may take on a slow machine: what takes longer hangs."""


class Command:
    """A command in a process group of its own, which a test can signal and kill; its output goes to a file."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                arguments,
                cwd=log.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def output(self) -> str:
        """What it has printed so far, errors included."""
        return self._log.read_text()

    def ended(self, code: int = 0) -> str:
        """Wait until it ends, as it should with this exit code; its output."""
        found = self.process.wait(timeout=PATIENCE)
        assert found == code, f"exit code {found}: {self.output}"
        return self.output

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that is to be while the command runs."""

        def met() -> bool:
            found = condition()
            assert found or self.process.poll() is None, f"it ended before that: {self.output}"
            return found

        wait_until(met)

    def kill_tree(self) -> None:
        """SIGKILL to the process and all that came of it, its Ray included."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(timeout=PATIENCE)
        psutil.wait_procs(family, timeout=PATIENCE)


@dataclass
class DisturbedProject(Project):
    """A project whose images, and whose root if that is ``faulty://``, lie on a store that fails on a plan."""

    @property
    def plan(self) -> Path:
        """The file of the plan."""
        return self.config.with_name("plan.json")

    def disturb(self, **faults: Any) -> None:
        """From now on the store fails so; without any, it does not."""
        faulty_store.write_plan(self.plan, **faults)

    def hold_extraction(self) -> None:
        """Actors wait in the middle of a shard, so that no run is over before a test has done what it wants to it."""
        self.disturb(hold_on=HELD, only_in=EXTRACTING)

    def held(self) -> set[int]:
        """Ids of the processes that have been made to wait."""
        return faulty_store.held(self.plan)

    def in_mid_extract(self) -> bool:
        """Whether some shards are committed and another is held in the middle."""
        return bool(self.held()) and bool(self.commits("features"))

    def arguments(self, until: str) -> list[str]:
        """The command line of a run."""
        return ["run", f"--until={until}", "--config", str(self.config), "--root", str(self.root)]

    def start(self, until: str = "extract", address: str | None = None) -> Command:
        """A run in a process of its own; on the Ray at ``address``, if any. Tests use ``begin``, which ends it."""
        number = len(list(self.config.parent.glob("log*")))
        environment = {"RAY_ADDRESS": address} if address else {}
        return Command([SPP, *self.arguments(until)], self.config.with_name(f"log{number}"), environment)


def disturbed_project(
    folder: Path, data: VocFolder, root: Path | str | None = None, **changes: Any
) -> DisturbedProject:
    """A project in ``folder`` on that data set, with ``changes`` of the config; its root is a folder unless it is given
    as a URL. The store does not fail yet."""
    options = {"fo": str(folder / "plan.json")}
    changes["dataset"] = {"path": f"faulty://{data.path.parent}", "storage_options": options}
    changes["features"] = {"scales": [96], **changes.get("features", {})}
    changes["execution"] = {"num_cpus": 2, **changes.get("execution", {})}
    faulty = str(root).startswith("faulty://")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**config_with(**changes), **({"storage_options": options} if faulty else {})}))
    made = DisturbedProject(data, config, root or folder / "root", options if faulty else {})
    made.disturb()
    return made


def small_head(**training: Any) -> dict[str, dict[str, Any]]:
    """Changes of a config that make it fine-tune a small head, with a checkpoint after every iteration."""
    return {
        "head": {"sizes": [64, 48]},
        "svm": {"layer": "ftfc7"},
        "finetune": {"windows_per_image": 40, "batch": 32, **training},
        "execution": {"checkpoint_seconds": 0, "train_threads": 1},
    }


def shards_of(commits: Iterable[str]) -> list[str]:
    """The shard of each commit."""
    return [name.split("/")[1].split(".")[0] for name in commits]


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)


def assert_same_content(one: Project, other: Project, datasets: Sequence[str] = EXTRACTED) -> None:
    """The same rows, whatever the runs and roots are called."""
    for dataset in datasets:
        assert one.table(dataset).equals(other.table(dataset)), dataset
