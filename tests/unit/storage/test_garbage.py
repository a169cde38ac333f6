"""Garbage: exactly what no run refers to and is old enough, on every kind of store."""

import os
from datetime import datetime, timedelta, timezone

import pytest

from storage.check import check_dataset
from storage.commits import commit_key, data_key
from storage.garbage import collect, plan_collection
from storage.manifest import fold, manifest_key
from storage.root import StorageError
from storage.runs import DatasetRecord, RunRecord, forget_run, run_names, write_run
from tests.stored import METHOD, commit_features, commit_images, fold_winners, publish_run, store_run

OTHER = "fedcba987654"


def garbage(root, grace: float = -5) -> set[str]:
    """Keys that a collection would delete; by default it takes files of the future for old."""
    return {file.key for file in plan_collection(root, grace).garbage}


def delete(root) -> None:
    list(collect(root, plan_collection(root, -5)))


def files_of(commit) -> set[str]:
    return {key(commit.dataset, commit.method, commit.name) for key in (data_key, commit_key)}


def everything(root) -> set[str]:
    return {file.key for file in root.files("")}


def test_all_that_a_run_refers_to_is_kept(place):
    store_run(place)
    assert garbage(place) == set()


def test_what_no_run_refers_to_goes_and_the_rest_is_whole(place):
    record = store_run(place)
    kept = everything(place)
    gone = files_of(commit_features(place, "dd", {"i": 3})) | files_of(
        commit_features(place, "aa", {"a": 1}, method=OTHER)
    )
    gone |= files_of(commit_features(place, "aa", {"a": 5, "b": 3, "c": 4}, attempt="zzzz"))  # loses to the first
    fold_winners(place, "features", OTHER)
    gone |= {key for key in everything(place) if f"{OTHER}/manifest" in key}
    assert garbage(place) == gone
    delete(place)
    assert everything(place) == kept
    assert all(not list(check_dataset(place, record, dataset)) for dataset in record.datasets)


def test_of_two_runs_each_keeps_its_own_and_a_forgotten_one_nothing(place):
    store_run(place)
    dataset = commit_features(place, "dd", {"i": 3})
    publish_run(place, "grown")  # four shards; the other run has three of them
    assert garbage(place) == set()
    forget_run(place, "grown")
    grown = {key for key in garbage(place) if "/manifest/" in key}
    assert garbage(place) == files_of(dataset) | grown
    assert len(grown) == 1
    forget_run(place, "trial")
    assert run_names(place) == []
    assert garbage(place) == everything(place)
    delete(place)
    assert everything(place) == set()


def test_an_incomplete_dataset_keeps_all_of_its_method(place):
    commit_features(place, "aa", {"a": 5})
    write_run(place, RunRecord(name="begun", datasets={"features": DatasetRecord(stage="extract", method=METHOD)}))
    assert garbage(place) == set()


def test_nothing_within_the_grace_goes(place):
    commit_features(place, "aa", {"a": 5})
    assert garbage(place, grace=3600) == set()
    assert len(garbage(place)) == 2


def test_nothing_younger_than_a_running_run_goes_and_a_note_says_why(place):
    commit_features(place, "aa", {"a": 5})
    started = datetime.now(timezone.utc) - timedelta(minutes=1)  # clocks may differ by more than that
    write_run(place, RunRecord(name="busy", started=started.isoformat(), status="running"))
    plan = plan_collection(place, -5)
    assert plan.garbage == []
    assert "run 'busy' says that it is running" in plan.notes[0]
    assert "spp forget busy" in plan.notes[0]
    write_run(place, RunRecord(name="busy", started=started.isoformat(), status="failed"))
    assert len(garbage(place)) == 2


def test_a_run_whose_manifest_is_gone_keeps_its_whole_method(place):
    record = store_run(place)
    place.delete(manifest_key("features", METHOD, record.datasets["features"].manifest))
    extra = commit_features(place, "dd", {"i": 3})
    plan = plan_collection(place, -5)
    assert not files_of(extra) & {file.key for file in plan.garbage}
    assert "all of that method is kept" in plan.notes[0]


def test_files_that_we_did_not_name_are_never_touched(place):
    store_run(place)
    forget_run(place, "trial")
    for key in ("notes.txt", "features/README", f"features/{METHOD}/data/mine.parquet", "elsewhere/x/data/y.parquet"):
        place.write(key, b"mine")
    assert not garbage(place) & {"notes.txt", "features/README", f"features/{METHOD}/data/mine.parquet"}
    delete(place)
    assert len(everything(place)) == 4


def test_a_temporary_file_of_a_killed_writer_goes(tmp_path):
    from storage.root import open_root

    root = open_root(str(tmp_path / "root"))
    store_run(root)
    left = f"features/{METHOD}/data/.aa.r0.x.parquet.0123abcd.tmp"
    (tmp_path / "root" / left).write_bytes(b"half")
    assert garbage(root) == {left}
    assert garbage(root, grace=3600) == set()


def test_folders_of_a_method_that_is_gone_go_too(tmp_path):
    from storage.root import open_root

    root = open_root(str(tmp_path / "root"))
    commit_images(root, "1a", "ab")
    fold(root, "images", METHOD, [])
    delete(root)
    assert os.listdir(tmp_path / "root/images") == []


def test_the_plan_counts_bytes_and_names_the_runs(place):
    store_run(place)
    extra = commit_features(place, "dd", {"i": 3})
    (holding,) = (h for h in plan_collection(place, -5).holdings if h.dataset == "features")
    assert holding.runs == ["trial"]
    assert sum(file.bytes for file in holding.garbage) == extra.bytes + place.size(
        commit_key("features", METHOD, extra.name)
    )


def test_the_stores_clock_is_asked_not_ours(place, monkeypatch):
    """A machine whose clock is an hour fast must not take new files for old ones."""
    monkeypatch.setattr("time.time", lambda: pytest.fail("asked our own clock"))
    assert abs(place.now() - datetime.now(timezone.utc).timestamp()) < 60


@pytest.mark.parametrize("held", ["features", "checkpoints"])
def test_what_a_run_says_it_works_on_is_kept_whole_though_it_failed(place, held):
    """Shards of a stage that was interrupted days ago, and the checkpoints of a training."""
    commit_features(place, "aa", {"a": 5})
    place.write(f"checkpoints/{METHOD}/progress.json", b"{}")
    write_run(place, RunRecord(name="stopped", status="failed", holds=[f"{held}/{METHOD}"]))
    assert {key.split("/")[0] for key in garbage(place)} == {"features", "checkpoints"} - {held}


def test_what_a_run_has_begun_to_need_since_the_plan_was_made_stays(place):
    commit = commit_features(place, "aa", {"a": 5})
    plan = plan_collection(place, -5)
    assert len(plan.garbage) == 2
    write_run(place, RunRecord(name="new", status="running", holds=[f"features/{METHOD}"]))
    assert sum(files for files, _ in collect(place, plan)) == 0
    assert files_of(commit) <= everything(place)


def test_a_store_that_keeps_what_it_was_told_to_delete_is_not_believed(place, monkeypatch):
    commit_features(place, "aa", {"a": 5})
    monkeypatch.setattr(type(place), "delete_many", lambda *_: None)
    with pytest.raises(StorageError, match="keeps 2 of 2 files of features/"):
        delete(place)


def test_an_empty_root_is_only_looked_at(tmp_path):
    from storage.root import open_root

    root = open_root(str(tmp_path / "typo"))
    assert garbage(root) == set()
    assert not (tmp_path / "typo").exists()


def test_a_damaged_record_can_be_forgotten(place):
    store_run(place)
    place.write("runs/broken.json", b"{")
    with pytest.raises(StorageError, match="broken"):
        garbage(place)
    forget_run(place, "broken")
    assert garbage(place) == set()
