"""spp retry: failed images again, as a new revision; what follows is redone, nothing else."""

from __future__ import annotations

import shutil

import pytest

import storage
from tests.project import EXTRACT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", ["vectors", "maps"])
def test_a_mended_outage_is_retried_as_a_new_revision_and_what_follows_is_redone(project, tmp_path, store):
    arguments = ("--set", f"features.store={store}")
    features = "features" if store == "vectors" else "windows"
    assert project.spp("index", *arguments) == 0
    picture = project.data.path / "JPEGImages/im-005.jpg"
    shutil.move(picture, tmp_path / "away.jpg")  # gone after it was indexed
    assert project.spp("propose", *arguments) == 3
    assert project.spp("extract", *arguments) == 3
    before = {name: project.commits(name) for name in ("proposals", features)}
    assert "im-005" not in image_ids(project, features)
    shutil.move(tmp_path / "away.jpg", picture)
    assert project.spp("retry", *EXTRACT, *arguments) == 0
    for name, old in before.items():
        new = project.commits(name) - old
        assert len(new) == 1, name
        assert ".r1." in next(iter(new))
    assert "im-005" in image_ids(project, features)
    assert len(image_ids(project, features)) == 14
    assert project.spp("verify", *arguments) == 0
    (commit,) = (path for path in (project.root / features).glob("*/commit/*.r1.*.json"))
    assert storage.commits.Commit.model_validate_json(commit.read_text()).upstream[0].revision == 1
    again = {name: project.commits(name) for name in before}
    assert project.spp("run", *EXTRACT, *arguments) == 0
    assert {name: project.commits(name) for name in before} == again


def test_retry_with_nothing_failed_does_nothing(cloned):
    before = {name: cloned.commits(name) for name in ("proposals", "features", "truth_features")}
    assert cloned.spp("retry", *EXTRACT) == 0
    assert {name: cloned.commits(name) for name in before} == before


def image_ids(project, dataset: str) -> set[str]:
    found = storage.open(str(project.root), dataset).to_table(columns=["image_id"])
    return set(found["image_id"].to_pylist())
