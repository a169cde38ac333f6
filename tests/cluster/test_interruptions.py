"""What is killed goes on where it stopped, and two who do the same do it once. Real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import yaml

import storage
from jobs.cli import main
from tests.voc_folder import small_data_set

pytestmark = pytest.mark.full

SPP = str(Path(sys.executable).with_name("spp"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """40 images, cut into many shards: 60 windows of 12,800 values would fit in one."""
    small_data_set(tmp_path / "data", train=26, test=14)
    path = tmp_path / "small.yaml"
    sections = {
        "dataset": {"path": str(tmp_path / "data")},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [480, 688]},
        "execution": {"progress_seconds": 1, "num_cpus": 2},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def start(config: Path, root: Path, until: str = "extract") -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    command = [SPP, "run", f"--until={until}", "--config", str(config), "--root", str(root)]
    return subprocess.Popen(
        command, cwd=root.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
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


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)


def commits(root: Path, dataset: str) -> set[str]:
    return {path.name for path in root.glob(f"{dataset}/*/commit/*.json")}


def content(root: Path, dataset: str) -> pa.Table:
    table = storage.open(str(root), dataset).to_table()
    keys = [name for name in ("image_id", "proposal_id", "object_id") if name in table.column_names]
    return table.sort_by([(key, "ascending") for key in keys])


def assert_same_content(one: Path, other: Path) -> None:
    for dataset in ("images", "objects", "proposals", "features", "truth_features"):
        assert content(one, dataset).equals(content(other, dataset)), dataset


def undisturbed(config: Path, root: Path) -> Path:
    """The same run without any disturbance."""
    process = start(config, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return root


def test_a_run_killed_in_mid_extract_goes_on_and_ends_with_the_same_content(config, tmp_path):
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    kill_tree(process)
    before = commits(root, "features")
    process = start(config, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = commits(root, "features")
    assert before < after, "the run was over before it was killed"
    shards = [name.split(".")[0] for name in after]
    assert len(shards) == len(set(shards)), "a finished shard was done again"
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def test_sigterm_abandons_what_is_in_hand_and_leaves_a_clean_end(config, tmp_path):
    """What a job that is stopped, or the driver of a preempted node, is sent."""
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "spp: error: interrupted; the same command goes on where it stopped" in output
    assert "Traceback" not in output
    record = storage.read_run(storage.open_root(str(root)), "small")
    assert (record.status, record.exit_code, record.error) == ("failed", 1, "interrupted")
    process = start(config, root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def test_two_processes_at_once_on_one_root_both_end_and_every_image_stands_once(config, tmp_path):
    root = tmp_path / "root"
    both = [start(config, root), start(config, root)]
    for process in both:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    assert main(["verify", "--root", str(root)]) == 0
    features = content(root, "features")
    pairs = list(zip(features["image_id"].to_pylist(), features["proposal_id"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert len(set(features["image_id"].to_pylist())) == 40
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def test_a_killed_actor_costs_a_shard_not_the_run(config, tmp_path):
    root = tmp_path / "root"
    process = start(config, root)
    wait_until(lambda: bool(commits(root, "features")))
    actors = [
        member
        for member in psutil.Process(process.pid).children(recursive=True)
        if member.name().startswith("ray::FeatureAc")
    ]
    assert actors
    for actor in actors:
        actor.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "is tried again: its worker died" in output
    assert main(["verify", "--root", str(root)]) == 0
    assert_same_content(root, undisturbed(config, tmp_path / "other"))


def finetuned(config: Path, training: dict) -> None:
    """Make the config one that fine-tunes a small head, with a checkpoint after every iteration."""
    sections = yaml.safe_load(config.read_text())
    sections["head"] = {"sizes": [64, 48]}
    sections["svm"] = {"layer": "ftfc7"}
    sections["features"]["scales"] = [160]
    sections["finetune"] = {"windows_per_image": 40, "batch": 32, **training}
    sections["execution"] |= {"checkpoint_seconds": 0, "train_threads": 1}
    config.write_text(yaml.safe_dump(sections))


@pytest.mark.parametrize("kills", [1, 3])
def test_a_fine_tuning_killed_at_random_steps_ends_with_the_same_weights(config, tmp_path, kills):
    chosen = {"learning_rates": [0.01, 0.003], "trial_iterations": 60, "max_iterations": 150, "measure_every": 25}
    finetuned(config, chosen)
    root, other = tmp_path / "root", tmp_path / "other"
    random = np.random.default_rng()
    seen: set[str] = set()
    for _ in range(kills):
        process = start(config, root, until="finetune")
        wait_until(lambda p=process, old=frozenset(seen): bool(commits(root, "checkpoints") - old) or p.poll() == 0)
        time.sleep(random.uniform(0, 6))
        kill_tree(process)
        seen |= commits(root, "checkpoints")
        assert commits(root, "checkpoints"), "the training was over before it was killed"
    process = start(config, root, until="finetune")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    process = start(config, other, until="finetune")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    for dataset in ("training_windows", "training_curve", "head"):
        one, two = (storage.open(str(place), dataset).to_table() for place in (root, other))
        keys = [k for k in ("image_id", "window_id", "phase", "iteration", "name") if k in one.column_names]
        assert one.sort_by([(k, "ascending") for k in keys]).equals(two.sort_by([(k, "ascending") for k in keys]))
    print("killed after", sorted(seen))


def test_an_interrupt_ends_a_fine_tuning_at_once(config, tmp_path):
    finetuned(config, {"schedule": [[0.001, 1_000_000]]})
    root = tmp_path / "root"
    process = start(config, root, until="finetune")
    wait_until(lambda: bool(commits(root, "checkpoints")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; the same command goes on where it stopped" in output
    before = commits(root, "checkpoints")
    time.sleep(2)
    assert commits(root, "checkpoints") == before, "the worker went on"
