"""A root that version 0.1.0 wrote: method ids are as they were, and nothing of it is made again.

``tests/old_root.tar.xz`` holds a data set of six images, three configs and the root of their runs: vectors, conv maps
with streamed detection, and a fine-tuned head; and a classification of whole images. The body's weights come from a
package, so no id hangs on a processor's random numbers.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli.main import main
from jobs.config.features import FeaturesConfig
from jobs.config.pretrain import PretrainConfig
from jobs.pretrain.method import pretrain_method
from tests import REPOSITORY
from tests.project import last_json

RUNS = ("vectors", "maps", "tuned")


@pytest.fixture
def old(tmp_path) -> Path:
    """The folder, to be changed."""
    with tarfile.open(REPOSITORY / "tests" / "old_root.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "golden"


def spp(old: Path, verb: str, run: str, *more: str, config: str | None = None) -> int:
    moved = f"dataset.path={old / 'data' / 'VOC2007'}"
    place = ("--config", str(old / f"{config or run}.yaml"), "--root", str(old / "root"), "--run", run)
    return main([verb, *place, "--set", moved, *more])


def recorded(old: Path, run: str) -> dict[str, str]:
    datasets = json.loads((old / "root" / "runs" / f"{run}.json").read_text())["datasets"]
    return {name: entry["method"] for name, entry in datasets.items()}


def made(old: Path) -> set[str]:
    """All files but the runs' records, and the index, which says where images are: they have moved."""
    found = {path.relative_to(old / "root") for path in (old / "root").rglob("*") if path.is_file()}
    return {str(path) for path in found if path.parts[0] not in ("runs", "images", "objects")}


@pytest.mark.parametrize("run", RUNS)
def test_every_method_has_the_id_that_it_had(old, run, capsys):
    there = recorded(old, run)
    assert spp(old, "plan", run, "--json") == 0
    planned = {entry["dataset"]: entry["method"] for entry in last_json(capsys)["datasets"]}
    assert planned.items() <= there.items()
    assert set(there) - set(planned) <= {"maps"}  # which have the id of their windows


def test_nothing_is_made_again(old, capsys):
    before = made(old)
    ids = {run: recorded(old, run) for run in RUNS}
    for run in RUNS:
        assert spp(old, "run", run) == 0, run
        assert recorded(old, run) == ids[run]
    assert spp(old, "classify", "whole", config="vectors") == 0
    assert made(old) == before
    for run in (*RUNS, "whole"):
        assert main(["verify", "--root", str(old / "root"), "--run", run]) == 0, run
    capsys.readouterr()
    assert main(["status", "--root", str(old / "root"), "--run", "tuned", "--json"]) == 0
    assert {entry["state"] for entry in last_json(capsys)["datasets"]} == {"complete"}


def test_its_notes_are_shown(old, capsys):
    """A manifest of then that holds notes, as those of such runs did from the first: nobody showed them."""
    entry = json.loads((old / "root" / "runs" / "vectors.json").read_text())["datasets"]["proposals"]
    path = old / "root" / "proposals" / entry["method"] / "manifest" / f"{entry['manifest']}.parquet"
    table = pq.read_table(path)
    row = {"stage": "propose", "type": "NoProposals", "message": "none", "attempt": "0-1", "level": "note"}
    ledgers = [json.dumps([{"image_id": name, **row}]) for name in table["first_image"].to_pylist()]
    place = table.schema.get_field_index("ledger")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(ledgers)), path)
    run = ("--root", str(old / "root"), "--run", "vectors")
    assert main(["status", *run]) == 0
    shown = capsys.readouterr().out
    assert f"note: propose: {len(table)} of 6 images have no proposals, such as " in shown
    assert main(["notes", *run, "--json"]) == 0
    assert last_json(capsys)["rows"] == len(table)


def test_a_network_that_was_trained_is_found_again():
    assert pretrain_method(PretrainConfig(), FeaturesConfig(), "0123", 1, 1) == "1f0eaacba50c"
