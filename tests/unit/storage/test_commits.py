import json
import uuid
from datetime import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.commits import (
    Commit,
    CommitName,
    LedgerRow,
    Upstream,
    commit_key,
    data_key,
    new_attempt,
    read_commits,
    winners,
    write_commit,
)
from storage.root import StorageError, open_root
from storage.schemas import SCHEMA_VERSION

METHOD = "0123456789ab"

names = st.builds(
    CommitName,
    st.sampled_from(["00", "0a", "ff", "0123456789abcdef"]),
    st.integers(0, 12),
    st.text("019az-", min_size=1, max_size=3),
)


NAME = CommitName("aa", 0, "x")


def record(name: CommitName = NAME, **fields) -> Commit:
    return Commit(
        dataset="features",
        method=METHOD,
        shard=name.shard,
        revision=name.revision,
        attempt=name.attempt,
        data=f"data/{name.stem}.parquet",
        rows=3,
        bytes=17,
        sha256="0" * 64,
        images={"a": 3, "b": 0},
        **fields,
    )


# --- names ---


def test_keys_are_those_of_the_contract():
    name = CommitName("aa", 3, "x-1")
    assert data_key("features", METHOD, name) == f"features/{METHOD}/data/aa.r3.x-1.parquet"
    assert commit_key("features", METHOD, name) == f"features/{METHOD}/commit/aa.r3.x-1.json"


def test_attempts_are_unique_and_a_later_one_sorts_later():
    attempts = [new_attempt() for _ in range(500)]
    assert len(set(attempts)) == len(attempts)
    times = [attempt.split("-")[0] for attempt in attempts]
    assert times == sorted(times)
    assert len({len(attempt) for attempt in attempts}) == 1


# --- winners ---


@given(st.sets(names, max_size=25))
@example({CommitName("00", 0, "a"), CommitName("00", 0, "a-")})  # whose file names sort the other way round
def test_the_highest_revision_wins_and_then_the_smallest_attempt(committed):
    root = open_root(f"memory://{uuid.uuid4().hex}")
    for name in committed:
        root.fs.pipe_file(root.path(commit_key("features", METHOD, name)), b"{}")
    expected = {}
    for shard in {name.shard for name in committed}:
        rivals = [name for name in committed if name.shard == shard]
        highest = max(name.revision for name in rivals)
        expected[shard] = min((name for name in rivals if name.revision == highest), key=lambda name: name.attempt)
    assert winners(root, "features", METHOD) == expected


def test_the_tenth_revision_is_above_the_ninth(place):
    for revision in (2, 10, 9):
        write_commit(place, record(CommitName("aa", revision, "x")))
    assert winners(place, "features", METHOD) == {"aa": CommitName("aa", 10, "x")}


def test_nothing_committed_has_no_winners(place):
    assert winners(place, "features", METHOD) == {}


def test_data_without_a_commit_does_not_exist(place):
    place.write(data_key("features", METHOD, CommitName("aa", 0, "x")), b"PAR1")
    assert winners(place, "features", METHOD) == {}


def test_other_methods_and_datasets_are_others(place):
    write_commit(place, record())
    assert winners(place, "features", "ba9876543210") == {}
    assert winners(place, "proposals", METHOD) == {}


UNKNOWN = """
notes.txt aa.json aa.r0.json aa.r0.x.json.tmp aa.r0.x.json~ .aa.r9.x.json.1f.tmp AA.r0.x.json xaa.r0.x.json .r0.x.json
aa.r-1.x.json aa.rx.x.json aa.r0.X.json aa.r0.x_y.json aa.r0.x.parquet
"""


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_unknown_files_beside_commits_are_passed_over(place, name):
    place.write(f"features/{METHOD}/commit/{name}", b"{}")
    assert winners(place, "features", METHOD) == {}
    write_commit(place, record())
    assert winners(place, "features", METHOD) == {"aa": CommitName("aa", 0, "x")}


# --- records ---


def test_a_commit_comes_back_as_it_was_written(place):
    written = record(
        ledger=(LedgerRow(image_id="ü", stage="extract", type="ImageError", message="no image\n", attempt="x"),),
        skipped=("s",),
        upstream=(Upstream(dataset="proposals", method="m", shard="bb", revision=2),),
        seconds={"conv": 1.25},
        producer="spp-pipeline 0.1.0",
    )
    write_commit(place, written)
    assert read_commits(place, "features", METHOD, [written.name]) == [written]
    assert written.host
    assert datetime.fromisoformat(written.created).utcoffset().total_seconds() == 0
    assert written.schema_version == SCHEMA_VERSION


def test_commits_are_read_in_the_order_asked_for(place):
    made = [CommitName(f"{number:02x}", 0, "x") for number in range(7)]
    for name in made:
        write_commit(place, record(name))
    asked = [made[3], made[0], made[6], made[3]]
    assert [commit.name for commit in read_commits(place, "features", METHOD, asked)] == asked
    assert read_commits(place, "features", METHOD, []) == []


def test_a_note_is_no_failure():
    note = LedgerRow(image_id="a", stage="index", type="T", message="m", level="note")
    failed = LedgerRow(image_id="b", stage="index", type="T", message="m")
    assert record(ledger=(note, failed)).failed == (failed,)


def test_a_newer_commit_is_refused_by_name(place):
    fields = json.loads(record().model_dump_json())
    fields |= {"schema_version": SCHEMA_VERSION + 1, "images": [["a", 3]], "rows": None}
    name = CommitName("aa", 0, "x")
    place.write(commit_key("features", METHOD, name), json.dumps(fields).encode())
    with pytest.raises(StorageError, match=rf"aa\.r0\.x\.json has schema version {SCHEMA_VERSION + 1}"):
        read_commits(place, "features", METHOD, [name])


def test_a_damaged_commit_is_named(place):
    name = CommitName("aa", 0, "x")
    place.write(commit_key("features", METHOD, name), record().model_dump_json().encode()[:100])
    with pytest.raises(StorageError, match=r"aa\.r0\.x\.json is damaged"):
        read_commits(place, "features", METHOD, [name])


# --- clocks that differ ---


@pytest.mark.parametrize("behind", [3600, -3600])
def test_a_node_whose_clock_is_wrong_changes_nothing_but_which_equal_attempt_counts(place, monkeypatch, behind):
    """Attempts of one revision have the same content; a revision outranks the other whatever their clocks say."""
    import time

    now = time.time()
    first = CommitName("aa", 0, new_attempt())
    monkeypatch.setattr("time.time", lambda: now - behind)
    second, mended = CommitName("aa", 0, new_attempt()), CommitName("aa", 1, new_attempt())
    for name in (first, second):
        write_commit(place, record(name))
    counts = winners(place, "features", METHOD)["aa"]
    assert counts == min(first, second)
    assert [c.images for c in read_commits(place, "features", METHOD, [first])] == [
        c.images for c in read_commits(place, "features", METHOD, [second])
    ]
    write_commit(place, record(mended))
    assert winners(place, "features", METHOD)["aa"] == mended


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "images"},
        {"dataset": "../../elsewhere"},
        {"method": "ba9876543210"},
        {"shard": "/etc/passwd"},
        {"revision": 1},
        {"attempt": "../y"},
        {"data": "../../../../etc/passwd"},
        {"data": "data/bb.r0.x.parquet"},
    ],
)
def test_a_commit_speaks_of_its_own_shard_alone(place, change):
    place.write(commit_key("features", METHOD, NAME), record().model_copy(update=change).model_dump_json().encode())
    with pytest.raises(StorageError, match=r"commit/aa\.r0\.x\.json is damaged: it is the commit of other data"):
        read_commits(place, "features", METHOD, [NAME])
