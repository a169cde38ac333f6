"""``spp propose`` with our own search: its columns, and parameters that cannot be."""

from __future__ import annotations

import pyarrow as pa
import pytest

import storage
from jobs.config.proposals import ProposalsConfig
from jobs.proposals.method import propose_method
from pipeline.images.decode import decode_image
from pipeline.proposals.methods import propose, seed_of
from pipeline.proposals.selective_search import SelectiveSearch


def test_each_box_of_the_search_says_which_hierarchy_found_it_and_where(project):
    assert project.spp("run", "--until", "propose") == 0
    table = storage.open(str(project.root), "proposals").to_table()
    assert set(table["method"].to_pylist()) == {"fast"}
    assert set(table["strategy"].to_pylist()) == set(SelectiveSearch().strategies)
    image_id = table["image_id"][0].as_py()
    rows = table.filter(pa.compute.equal(table["image_id"], image_id)).sort_by("rank")
    image = decode_image((project.data.path / "JPEGImages" / f"{image_id}.jpg").read_bytes())
    found = propose(SelectiveSearch(), image, seed_of(image_id, 0), min_side=10, max_boxes=60)
    assert storage.boxes_of(rows["box"]).tolist() == found.boxes.tolist()
    assert rows["level"].to_pylist() == found.levels.tolist()
    assert rows["strategy"].to_pylist() == [found.names[strategy] for strategy in found.strategies]


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("ks=[50,50]", "ks must not repeat a value"),
        ("ks=[5]", "greater than or equal to 10"),
        ("colours=[hsv,cmyk]", "hsv"),
        ("similarities=[]", "at least 1"),
        ("sigma=.inf", "only finite numbers"),
    ],
)
def test_impossible_parameters_of_the_search(assignment, complaint, project, capsys):
    assert project.spp("run", "--set", f"proposals.{assignment}") == 2
    assert complaint in capsys.readouterr().err


def test_spelling_out_the_defaults_changes_nothing():
    plain = ProposalsConfig()
    spelt = ProposalsConfig(colours=("hsv", "lab"), ks=(50, 100), similarities=("ctsf", "tsf"), sigma=0.8, prune=False)
    assert propose_method(plain, "images") == propose_method(spelt, "images")
    assert propose_method(plain, "images") != propose_method(ProposalsConfig(ks=(100, 50)), "images")
