"""Commands as users give them, in processes of their own, which tests disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyarrow as pa
import yaml

import storage

SPP = str(Path(sys.executable).with_name("spp"))


def small_config(folder: Path, data: Path) -> Path:
    """40 images, cut into many shards: 60 windows of 12,800 values would fit in one."""
    path = folder / "small.yaml"
    sections = {
        "dataset": {"path": str(data)},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [480, 688]},
        "execution": {"progress_seconds": 1, "num_cpus": 2},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def finetuned(config: Path, training: dict) -> None:
    """Make the config one that fine-tunes a small head, with a checkpoint after every iteration."""
    sections = yaml.safe_load(config.read_text())
    sections["head"] = {"sizes": [64, 48]}
    sections["svm"] = {"layer": "ftfc7"}
    sections["features"]["scales"] = [160]
    sections["finetune"] = {"windows_per_image": 40, "batch": 32, **training}
    sections["execution"] |= {"checkpoint_seconds": 0, "train_threads": 1}
    config.write_text(yaml.safe_dump(sections))


def start(
    config: Path, root: Path, until: str = "extract", address: str | None = None, log: Path | None = None
) -> subprocess.Popen[str]:
    """The command, in a process group of its own; on the Ray at ``address``, if any; its output to ``log``, if any."""
    command = [SPP, "run", f"--until={until}", "--config", str(config), "--root", str(root)]
    output = log.open("w") if log else subprocess.PIPE
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
    return subprocess.Popen(
        command,
        cwd=root.parent,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and all that came of it, its Ray included."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)
    psutil.wait_procs(family, timeout=30)


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)


def commits(root: Path, dataset: str) -> set[str]:
    return {path.name for path in root.glob(f"{dataset}/*/commit/*.json")}


def content(root: Path | str, dataset: str, run: str | None = None) -> pa.Table:
    """All rows, in an order of their own."""
    table = storage.open(str(root), dataset, run).to_table()
    known = ("phase", "iteration", "name", "image_id", "proposal_id", "object_id", "window_id", "class_name", "score")
    keys = [name for name in known if name in table.column_names and not pa.types.is_nested(table[name].type)]
    return table.sort_by([(key, "ascending") for key in keys])


EXTRACTED = ("images", "objects", "proposals", "features", "truth_features")


def assert_same_content(one: Path, other: Path, datasets: Sequence[str] = EXTRACTED) -> None:
    for dataset in datasets:
        assert content(one, dataset).equals(content(other, dataset)), dataset
