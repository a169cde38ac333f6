"""Vectors or conv maps: the same numbers, whichever way features are stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

import storage
from jobs import features
from tests.integration.conftest import EXTRACT

pytestmark = pytest.mark.slow


def vectors(root) -> dict[str, np.ndarray]:
    """Image id to its vectors, as bits."""
    found: dict[str, list[np.ndarray]] = {}
    for table in features.scan(str(root)):
        bits = storage.vectors_of(table["feature"]).view(np.uint16).copy()
        found.setdefault(table["image_id"][0].as_py(), []).append(bits)
    return {image_id: np.concatenate(parts) for image_id, parts in found.items()}


MAPS = ("--set", "features.store=maps")


def test_both_stores_hold_the_same_numbers_and_maps_fewer_bytes(project, tmp_path):
    assert project.spp("run", *EXTRACT) == 0
    assert project.spp("run", *EXTRACT, *MAPS, root=tmp_path / "maps") == 0
    one, other = vectors(project.root), vectors(tmp_path / "maps")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[image_id], other[image_id]) for image_id in one)
    assert project.spp("verify", root=tmp_path / "maps") == 0
    records = [storage.read_run(storage.open_root(str(root))) for root in (project.root, tmp_path / "maps")]
    assert records[0].datasets["features"].method == records[1].datasets["windows"].method


def test_a_finished_store_of_maps_becomes_vectors_without_images_or_a_body(project, tmp_path):
    assert project.spp("run", *EXTRACT, *MAPS) == 0
    before = vectors(project.root)
    maps = project.commits("maps")
    pictures = project.data.path / "JPEGImages"
    pictures.rename(tmp_path / "away")
    assert project.spp("extract", "--set", "features.store=vectors") == 0
    assert project.commits("maps") == maps
    record = storage.read_run(storage.open_root(str(project.root)))
    assert record.datasets["features"].manifest is not None
    assert "conv" not in record.datasets["features"].seconds
    stored = {}
    for table in storage.scan(str(project.root), "features"):
        stored[table["image_id"][0].as_py()] = storage.vectors_of(table["feature"]).view(np.uint16).copy()
    assert all(np.array_equal(before[image_id], stored[image_id]) for image_id in before)
    assert project.spp("verify") == 0


def test_sql_over_maps_has_every_column_but_the_vector_and_says_how_to_get_it(project, capsys):
    assert project.spp("run", *EXTRACT, *MAPS) == 0
    capsys.readouterr()
    assert project.spp("query", "select image_id, count(*) n from features group by 1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]) == 14
    assert project.spp("query", "select feature from features") == 2
    assert "spp extract --set features.store=vectors" in capsys.readouterr().err
    assert project.spp("files", "features") == 2
    assert "spp extract --set features.store=vectors" in capsys.readouterr().err
    assert project.spp("status", "--json") == 0
    states = {e["dataset"]: e["state"] for e in json.loads(capsys.readouterr().out.splitlines()[-1])["datasets"]}
    assert states["windows"] == states["maps"] == "complete"
    assert "features" not in states


def test_scan_gives_only_the_images_asked_for(project):
    assert project.spp("run", *EXTRACT, *MAPS) == 0
    found = [table["image_id"][0].as_py() for table in features.scan(str(project.root), None, ["im-003", "im-012"])]
    assert found == ["im-003", "im-012"]
