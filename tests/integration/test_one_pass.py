"""An image passes the body once per scale: for proposals, annotated boxes and the windows of a head together."""

from __future__ import annotations

import shutil

import pytest

from storage.parts import part_key
from tests.project import EXTRACT, Project

COLUMNS = ["image_id", "scale"]

pytestmark = pytest.mark.slow


def used(project: Project, *datasets: str) -> set[tuple]:
    """The passes that the rows of some datasets take, each once: image, scale, side."""
    found = set()
    for dataset in datasets:
        for row in project.table(dataset).to_pylist():
            found.add((row["image_id"], row["scale"], row.get("flipped", False)))
    return found


def passes(project: Project) -> dict[str, int]:
    """Dataset to the passes that were made for it, if there were some."""
    told = {entry["dataset"]: entry["passes"] for entry in project.answer("status")["datasets"]}
    assert told == {**told, **{name: entry.passes for name, entry in project.record().datasets.items()}}
    return {name: count for name, count in told.items() if count}


def leftovers(project: Project) -> list[str]:
    return [path.name for path in project.folder.glob("*/*/part/*.parquet")]


def test_vectors_of_proposals_and_objects_take_a_pass_for_each_image_and_scale(extracted):
    assert passes(extracted) == {"features": len(used(extracted, "features", "truth_features"))}
    assert leftovers(extracted) == []


def test_with_maps_the_windows_of_a_head_take_one_more_of_the_mirrored_image_alone(tuned):
    everything = used(tuned, "windows", "truth_features", "training_windows")
    mirrored = {one for one in everything if one[2]}
    assert mirrored
    assert passes(tuned) == {"windows": len(everything - mirrored), "training_windows": len(mirrored)}
    assert leftovers(tuned) == []


def test_a_changed_label_takes_no_pass_where_maps_are_stored(tuned, tmp_path):
    project = tuned.clone(tmp_path)
    assert project.data is not None
    for image_id in ("im-000", "im-001"):
        project.data.annotate(image_id, [("square", 11, 11, 70, 60)])
    (planned,) = (e for e in project.answer("plan", *EXTRACT)["datasets"] if e["dataset"] == "truth_features")
    assert (planned["passes"], planned["shards_done"] < planned["shards"]) == (0, True)
    assert "conv" not in planned["phases"]
    before = passes(project)
    assert project.spp("run", *EXTRACT) == 0
    assert passes(project) == before
    rows = project.table("truth_features")
    assert [row["box"]["x1"] for row in rows.to_pylist() if row["image_id"] == "im-000"] == [10]
    shutil.rmtree(project.folder / "truth_features")
    shutil.rmtree(project.folder / "windows")
    shutil.rmtree(project.folder / "maps")
    assert project.spp("run", *EXTRACT) == 0  # all anew, from images
    assert project.table("truth_features").equals(rows)


def test_where_nothing_is_stored_objects_pass_for_themselves(cloned):
    """As in an old root. What looks like parts is none, which is only seen by who wants to read them."""
    rows, before = cloned.table("truth_features"), passes(cloned)
    method = cloned.record().datasets["truth_features"].method
    commits = cloned.commits("truth_features")
    shutil.rmtree(cloned.folder / "truth_features")
    for name in commits:
        key = part_key("truth_features", method, name.split("/")[1].split(".")[0], "00", "0-1")
        cloned.place().write(key, b"no part")
    (planned,) = (e for e in cloned.answer("plan", *EXTRACT)["datasets"] if e["dataset"] == "truth_features")
    assert planned["passes"] == 0
    for path in cloned.folder.glob("*/*/part/*.parquet"):
        first = path
    first.unlink()
    (planned,) = (e for e in cloned.answer("plan", *EXTRACT)["datasets"] if e["dataset"] == "truth_features")
    assert planned["passes"] > 0
    assert planned["phases"]["conv"] > 0
    assert cloned.spp("run", *EXTRACT) == 0
    assert cloned.table("truth_features").equals(rows)
    assert passes(cloned) == {**before, "truth_features": len(used(cloned, "truth_features"))}
    assert leftovers(cloned) == []
