import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.root import StorageError, open_root
from storage.runs import (
    DatasetRecord,
    MissingDatasetError,
    RunRecord,
    check_run_name,
    dataset_record,
    read_run,
    run_names,
    write_run,
)
from storage.schemas import SCHEMA_VERSION

FULL = RunRecord(
    name="voc2007",
    config={"features": {"body": "alexnet", "scales": [480, 688]}},
    argv=["spp", "run"],
    versions={"torch": "2.15.0"},
    host="here",
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:01:00+00:00",
    status="failed",
    exit_code=1,
    error="no space",
    datasets={
        "features": DatasetRecord(
            stage="extract", method="0123456789ab", manifest="ba9876543210", shards=3, seconds={"conv": 1.5}
        ),
        "proposals": DatasetRecord(stage="propose", method="0123456789ab"),
    },
)


def test_a_run_comes_back_as_it_was_written(place):
    write_run(place, FULL)
    assert place.names("runs") == ["voc2007.json"]
    assert read_run(place, "voc2007") == FULL
    assert FULL.schema_version == SCHEMA_VERSION


def test_a_run_is_replaced(place):
    write_run(place, RunRecord(name="a", status="running", error="x" * 1000))
    write_run(place, RunRecord(name="a", status="done", exit_code=0))
    assert read_run(place, "a") == RunRecord(name="a", status="done", exit_code=0)
    assert run_names(place) == ["a"]


def test_the_only_run_needs_no_name(place):
    write_run(place, RunRecord(name="a"))
    assert read_run(place).name == "a"


def test_of_several_runs_one_must_be_named(place):
    write_run(place, RunRecord(name="b"))
    write_run(place, RunRecord(name="a"))
    with pytest.raises(StorageError, match="there are a, b; choose one with --run"):
        read_run(place)
    assert read_run(place, "b").name == "b"


def test_a_root_without_runs_says_so(place):
    assert run_names(place) == []
    with pytest.raises(StorageError, match="there is no run yet"):
        read_run(place)
    with pytest.raises(StorageError, match="has no run 'a'; runs: none"):
        read_run(place, "a")


def test_a_misspelt_run_is_answered_with_the_nearest(place):
    for name in ("voc2007", "raccoon"):
        write_run(place, RunRecord(name=name))
    with pytest.raises(StorageError, match=r"no run 'voc2008'; did you mean 'voc2007'\? runs: raccoon, voc2007"):
        read_run(place, "voc2008")


def test_other_files_beside_runs_are_passed_over(place):
    write_run(place, RunRecord(name="a"))
    place.write("runs/notes.txt", b"")
    place.write("runs/.b.json.1f.tmp", b"")
    assert run_names(place) == ["a"]


def test_a_root_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    root = open_root(str(tmp_path))

    def outage(*args, **kwargs):
        raise PermissionError("keep out")

    monkeypatch.setattr(root.fs, "ls", outage)
    with pytest.raises(StorageError, match=r"cannot be read: keep out"):
        read_run(root)


def test_a_newer_run_is_refused_by_name(place):
    fields = {"schema_version": SCHEMA_VERSION + 1, "name": ["a"], "datasets": []}
    place.write("runs/a.json", json.dumps(fields).encode())
    with pytest.raises(StorageError, match=rf"runs/a\.json has schema version {SCHEMA_VERSION + 1}"):
        read_run(place, "a")


def test_a_damaged_run_is_named(place):
    place.write("runs/a.json", FULL.model_dump_json().encode()[:200])
    with pytest.raises(StorageError, match=r"runs/a\.json is damaged"):
        read_run(place)


@pytest.mark.parametrize("name", ["a", "VOC2007", "0", "a.b-c_d", "a..b"])
def test_names_of_runs(name):
    check_run_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "ü", "a\n", "a%"])
def test_other_names_are_refused_and_written_nowhere(place, name):
    with pytest.raises(StorageError, match="run name"):
        write_run(place, RunRecord(name=name))
    assert run_names(place) == []


@given(st.text(max_size=6))
def test_a_run_with_an_allowed_name_can_be_found_again(name):
    root = open_root("memory://runs-of-any-name")
    try:
        write_run(root, RunRecord(name=name))
    except StorageError:
        return
    assert read_run(root, name).name == name
    assert run_names(root) == [name]
    root.delete(f"runs/{name}.json")


# --- datasets of a run ---


def test_a_complete_dataset_is_given():
    assert dataset_record(FULL, "features").manifest == "ba9876543210"


@pytest.mark.parametrize("dataset", ["proposals", "images", "objects", "truth_features"])
def test_an_incomplete_dataset_is_named(dataset):
    with pytest.raises(MissingDatasetError, match=f"run 'voc2007' has no complete dataset '{dataset}' yet") as caught:
        dataset_record(FULL, dataset)
    assert caught.value.dataset == dataset
    assert not FULL.complete(dataset)


def test_features_kept_as_maps_name_the_command_that_makes_vectors():
    record = RunRecord(name="m", datasets={"windows": DatasetRecord(stage="extract", method="0123456789ab")})
    with pytest.raises(StorageError, match=r"run 'm' .*conv maps.*`spp extract --set features\.store=vectors`"):
        dataset_record(record, "features")


def test_an_unknown_dataset_is_answered_with_the_nearest():
    with pytest.raises(StorageError, match=r"no dataset 'feature'; did you mean 'features'\? datasets: images, "):
        dataset_record(FULL, "feature")


# --- what a shared root's record may say ---

_OBJECTS = {"stage": "index", "method": "0123456789ab", "manifest": "ba9876543210"}
HOSTILE_RECORDS = {
    "sql": {"datasets": {"objects as select 1; copy (select 1) to 'written.csv'; create view z": _OBJECTS}},
    "quoted sql": {"datasets": {'objects" as select 1; --': _OBJECTS}},
    "a folder above": {"datasets": {"../../elsewhere": _OBJECTS}},
    "an absolute folder": {"datasets": {"/etc": _OBJECTS}},
    "a NUL": {"datasets": {"objects\0": _OBJECTS}},
    "another case": {"datasets": {"Objects": _OBJECTS}},
    "of a newer version": {"datasets": {"masks": _OBJECTS}},
    "a method above": {"datasets": {"objects": {**_OBJECTS, "method": "../../../etc"}}},
    "a method of two lines": {"datasets": {"objects": {**_OBJECTS, "method": "0123456789ab\n"}}},
    "a method of other digits": {"datasets": {"objects": {**_OBJECTS, "method": "0123456789a²"}}},
    "a manifest elsewhere": {"datasets": {"objects": {**_OBJECTS, "manifest": "/tmp/ba9876543210"}}},
    "a pattern": {"datasets": {"objects": {**_OBJECTS, "manifest": "*"}}},
    "it holds a folder above": {"holds": ["../0123456789ab"]},
    "it holds no method": {"holds": ["objects"]},
    "it holds more": {"holds": ["objects/0123456789ab/data"]},
    "another run's name": {"name": "../a"},
}


@pytest.mark.parametrize("case", HOSTILE_RECORDS)
def test_names_in_a_record_lead_nowhere_else(place, case):
    fields = {"schema_version": SCHEMA_VERSION, "name": "a", **HOSTILE_RECORDS[case]}
    place.write("runs/a.json", json.dumps(fields).encode())
    with pytest.raises(StorageError, match=r"^runs/a\.json is damaged: .*") as error:
        read_run(place, "a")
    assert len(str(error.value)) < 300
    assert place.names("") == ["runs"]


def test_a_dataset_of_a_newer_version_is_called_so(place):
    fields = {"schema_version": SCHEMA_VERSION, "name": "a", **HOSTILE_RECORDS["of a newer version"]}
    place.write("runs/a.json", json.dumps(fields).encode())
    with pytest.raises(StorageError, match="'masks' is no dataset of this version of spp-pipeline: update"):
        read_run(place, "a")
