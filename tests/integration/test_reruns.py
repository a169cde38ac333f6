"""A key of each stage is changed in turn: the plan says exactly what follows, that alone is made, and the old config is
complete at once. Then one root is shared: a collection keeps what any run needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import storage
from tests.integration.conftest import Project
from tests.voc_folder import small_data_set

pytestmark = pytest.mark.slow

BEFORE_TRAINING = ("images", "objects", "proposals", "truth_features", "maps", "windows")
HEAD = ("training_windows", "training_curve", "head", "truth_embeddings", "embeddings")
MODELS = ("svms", "regressors", "detections", "metrics")

CHANGES = {
    "dataset.classes=[square]": ("objects", "truth_features", *HEAD, *MODELS),
    "proposals.max_per_image=40": ("proposals", "maps", "windows", *HEAD, *MODELS),
    "features.scales=[128]": ("truth_features", "maps", "windows", *HEAD, *MODELS),
    "finetune.windows_per_image=32": (*HEAD, "svms", "detections", "metrics"),
    "finetune.momentum=0.8": (*HEAD[1:], "svms", "detections", "metrics"),
    "head.sizes=[40,32]": (*HEAD[1:], "svms", "detections", "metrics"),
    "svm.layer=ftfc6": ("truth_embeddings", "embeddings", "svms", "detections", "metrics"),
    "svm.C=0.01": ("svms", "detections", "metrics"),
    "bbox.ridge=500": ("regressors", "detections", "metrics"),
    "detect.nms_overlap=0.4": ("detections", "metrics"),
    "evaluate.thresholds=arange": ("metrics",),
    "execution.decode_threads=1": (),
}
"""A key of each section, and the datasets that follow from it."""


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Project:
    """A finished run through every stage."""
    folder = tmp_path_factory.mktemp("complete")
    data = small_data_set(folder / "data", 14, 8)
    config = folder / "small.yaml"
    sections = {
        "dataset": {"path": str(folder / "data")},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [128, 160], "store": "maps"},
        "head": {"sizes": [48, 32]},
        "finetune": {"windows_per_image": 40, "batch": 32, "schedule": [[0.003, 40]]},
        "svm": {"layer": "ftfc7"},
        "execution": {"progress_seconds": 1, "backoff": 0.1},
    }
    config.write_text(yaml.safe_dump(sections))
    project = Project(data, config, folder / "root")
    assert project.spp("run") == 0
    return project


def commits(root: Path) -> dict[str, set[str]]:
    """Dataset to its commit records, of every method."""
    found: dict[str, set[str]] = {}
    for path in root.glob("*/*/commit/*.json"):
        found.setdefault(path.parts[-4], set()).add(f"{path.parts[-3]}/{path.name}")
    return found


def planned(project: Project, capsys, *overrides: str) -> set[str]:
    """The datasets of which a plan would make some shard."""
    capsys.readouterr()
    assert project.spp("plan", "--json", *overrides) == 0
    datasets = json.loads(capsys.readouterr().out.splitlines()[-1])["datasets"]
    return {entry["dataset"] for entry in datasets if entry["shards_done"] < entry["shards"]}


@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_from_a_changed_key_is_planned_and_made_and_nothing_else(complete, capsys, change):
    expected = set(CHANGES[change])
    override = ("--set", change)
    assert planned(complete, capsys, *override) - {"maps"} == expected - {"maps"}
    before = commits(complete.root)
    assert complete.spp("run", "--run", "changed", *override) == 0
    made = {dataset for dataset, names in commits(complete.root).items() if names - before.get(dataset, set())}
    assert made - {"checkpoints"} == expected
    assert planned(complete, capsys, *override) == set()
    after = commits(complete.root)
    assert planned(complete, capsys) == set()
    assert complete.spp("run") == 0
    assert commits(complete.root) == after


def test_two_runs_share_what_they_have_in_common_and_gc_keeps_what_either_needs(complete, capsys):
    assert complete.spp("run", "--run", "theirs", "--set", "svm.C=0.03") == 0
    assert complete.spp("run", "--run", "mine", "--set", "svm.C=0.02") == 0
    root = storage.open_root(str(complete.root))
    small, mine = storage.read_run(root, "small"), storage.read_run(root, "mine")
    shared = {name for name in small.datasets if small.datasets[name].method == mine.datasets[name].method}
    assert shared == {*BEFORE_TRAINING, *HEAD, "regressors"}
    for name in storage.runs.run_names(root):
        if name not in ("small", "mine"):
            assert main_forget(complete, name) == 0
    assert gc(complete) == 0
    shown = commits(complete.root)
    assert "--yes deletes them" in capsys.readouterr().out
    assert gc(complete, "--yes") == 0
    left = commits(complete.root)
    assert sum(map(len, left.values())) < sum(map(len, shown.values()))
    for run in ("small", "mine"):
        assert complete.spp("verify", "--run", run) == 0
    assert complete.spp("run", "--run", "mine", "--set", "svm.C=0.02") == complete.spp("run") == 0
    assert commits(complete.root) == left, "nothing that was needed is gone"

    assert main_forget(complete, "mine") == 0
    assert gc(complete, "--yes") == 0
    assert complete.spp("verify") == 0
    gone = {dataset for dataset, names in left.items() if names - commits(complete.root).get(dataset, set())}
    assert gone == {"svms", "detections", "metrics"}
    capsys.readouterr()
    assert gc(complete, "--yes") == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_a_forgotten_run_is_unknown_and_one_that_never_was_is_named(complete, capsys):
    assert main_forget(complete, "smal") == 2
    assert "did you mean 'small'" in capsys.readouterr().err


def gc(project: Project, *options: str) -> int:
    from jobs.cli import main

    return main(["gc", "--root", str(project.root), "--grace-hours", "0", *options])


def main_forget(project: Project, name: str) -> int:
    from jobs.cli import main

    return main(["forget", name, "--root", str(project.root)])
