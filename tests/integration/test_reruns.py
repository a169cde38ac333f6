"""A key of each stage is changed in turn: the plan says exactly what follows, that alone is made, and the old config is
complete at once. Then one root is shared: a collection keeps what any run needs."""

from __future__ import annotations

import pytest

import storage
from tests.project import Project, sets

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
def complete(tuned, tmp_path_factory) -> Project:
    """A finished run through every stage."""
    return tuned.clone(tmp_path_factory.mktemp("complete"))


@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_from_a_changed_key_is_planned_and_made_and_nothing_else(complete, change):
    expected = set(CHANGES[change])
    assert complete.planned(*sets(change)) - {"maps"} == expected - {"maps"}
    before = complete.all_commits()
    assert complete.spp("run", "--run", "changed", *sets(change)) == 0
    after = complete.all_commits()
    made = {dataset for dataset, names in after.items() if names - before.get(dataset, set())}
    assert made - {"checkpoints"} == expected
    assert complete.planned(*sets(change)) == set()
    assert complete.planned() == set()
    assert complete.spp("run") == 0
    assert complete.all_commits() == after


def test_two_runs_share_what_they_have_in_common_and_gc_keeps_what_either_needs(complete, capsys):
    assert complete.spp("run", "--run", "theirs", "--set", "svm.C=0.03") == 0
    assert complete.spp("run", "--run", "mine", "--set", "svm.C=0.02") == 0
    small, mine = complete.record(), complete.record("mine")
    shared = {name for name in small.datasets if small.datasets[name].method == mine.datasets[name].method}
    assert shared == {*BEFORE_TRAINING, *HEAD, "regressors"}
    for name in storage.runs.run_names(complete.place()):
        if name not in ("small", "mine"):
            assert complete.spp("forget", name) == 0
    assert collected(complete) == 0
    shown = complete.all_commits()
    assert "--yes deletes them" in capsys.readouterr().out
    assert collected(complete, "--yes") == 0
    left = complete.all_commits()
    assert sum(map(len, left.values())) < sum(map(len, shown.values()))
    for run in ("small", "mine"):
        assert complete.spp("verify", "--run", run) == 0
    assert complete.spp("run", "--run", "mine", "--set", "svm.C=0.02") == complete.spp("run") == 0
    assert complete.all_commits() == left, "nothing that was needed is gone"

    assert complete.spp("forget", "mine") == 0
    assert collected(complete, "--yes") == 0
    assert complete.spp("verify") == 0
    gone = {dataset for dataset, names in left.items() if names - complete.all_commits().get(dataset, set())}
    assert gone == {"svms", "detections", "metrics"}
    capsys.readouterr()
    assert collected(complete, "--yes") == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_a_forgotten_run_is_unknown_and_one_that_never_was_is_named(complete, capsys):
    assert complete.spp("forget", "smal") == 2
    assert "did you mean 'small'" in capsys.readouterr().err


def collected(project: Project, *options: str) -> int:
    return project.spp("gc", "--grace-hours", "0", *options)
