"""Vectors or conv maps: the same numbers, whichever way features are stored."""

from __future__ import annotations

import numpy as np
import pytest

import storage
from jobs.features import stored as features
from tests.project import EXTRACT, Project, config_with, make_project, project_in

pytestmark = pytest.mark.slow


def vectors(root) -> dict[str, np.ndarray]:
    """Image id to its vectors, as bits."""
    found: dict[str, list[np.ndarray]] = {}
    for table in features.scan(str(root)):
        bits = storage.vectors_of(table["feature"]).view(np.uint16).copy()
        found.setdefault(table["image_id"][0].as_py(), []).append(bits)
    return {image_id: np.concatenate(parts) for image_id, parts in found.items()}


@pytest.fixture(scope="module")
def mapped(made_once, extracted) -> Project:
    """The data set of ``extracted``, run until extract with conv maps. To read."""

    def fill(folder):
        project = make_project(folder, sections=config_with(features={"store": "maps"}))
        assert project.spp("run", *EXTRACT) == 0

    return project_in(made_once("mapped", fill))


def test_both_stores_hold_the_same_numbers_and_maps_fewer_bytes(extracted, mapped):
    one, other = vectors(extracted.root), vectors(mapped.root)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[image_id], other[image_id]) for image_id in one)
    assert mapped.spp("verify") == 0
    assert extracted.record().datasets["features"].method == mapped.record().datasets["windows"].method


def test_a_finished_store_of_maps_becomes_vectors_without_images_or_a_body(mapped, tmp_path):
    project = mapped.clone(tmp_path)
    before = vectors(project.root)
    maps = project.commits("maps")
    pictures = project.data.path / "JPEGImages"
    pictures.rename(tmp_path / "away")
    assert project.spp("extract", "--set", "features.store=vectors") == 0
    assert project.commits("maps") == maps
    record = project.record()
    assert record.datasets["features"].manifest is not None
    assert "conv" not in record.datasets["features"].seconds
    stored = {}
    for table in storage.scan(str(project.root), "features"):
        stored[table["image_id"][0].as_py()] = storage.vectors_of(table["feature"]).view(np.uint16).copy()
    assert all(np.array_equal(before[image_id], stored[image_id]) for image_id in before)
    assert project.spp("verify") == 0


def test_sql_over_maps_has_every_column_but_the_vector_and_says_how_to_get_it(mapped, capsys):
    assert len(mapped.answer("query", "select image_id, count(*) n from features group by 1")["rows"]) == 14
    assert mapped.spp("query", "select feature from features") == 2
    assert "spp extract --set features.store=vectors" in capsys.readouterr().err
    assert mapped.spp("files", "features") == 2
    assert "spp extract --set features.store=vectors" in capsys.readouterr().err
    states = mapped.states()
    assert states["windows"] == states["maps"] == "complete"
    assert "features" not in states


def test_scan_gives_only_the_images_asked_for(mapped):
    found = [table["image_id"][0].as_py() for table in features.scan(str(mapped.root), None, ["im-003", "im-012"])]
    assert found == ["im-003", "im-012"]
