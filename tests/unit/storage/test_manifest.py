import io
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.check import check_dataset
from storage.commits import CommitName, LedgerRow, commit_key, winners
from storage.manifest import (
    MANIFEST_VERSION,
    Manifest,
    fold,
    in_memory,
    manifest_digest,
    manifest_key,
    read_manifest,
    rows_of,
)
from storage.root import StorageError, open_root
from storage.schemas import VERSION_KEY
from storage.segments import write_segment
from storage.tables import sealed
from tests.stored import METHOD, commit_features, fold_winners, publish_run

attempts = st.text("019az-", min_size=1, max_size=3)
contents = st.dictionaries(st.sampled_from(["00", "0a", "ff", "f0f"]), st.integers(0, 12))


def names_of(content, attempt) -> list[CommitName]:
    return [CommitName(shard, revision, attempt(shard)) for shard, revision in content.items()]


def failed(image_id: str) -> LedgerRow:
    return LedgerRow(image_id=image_id, stage="extract", type="ImageError", message=f"{image_id} is no image")


@pytest.fixture
def stored(place):
    """Three shards, written in another order than that of their images."""
    commit_features(place, "cc", {"m": 2, "n": 1})
    commit_features(place, "aa", {"x": 3, "z": 0}, skipped=["y"])
    commit_features(place, "bb", {"c": 4}, ledger=[failed("b"), failed("d")])
    return place


# --- digests ---


@given(contents, contents, st.data())
def test_the_digest_is_of_shards_and_revisions_and_not_of_attempts(one, other, data):
    left = names_of(one, lambda _: data.draw(attempts))
    right = data.draw(st.permutations(names_of(other, lambda _: data.draw(attempts))))
    assert (manifest_digest(left) == manifest_digest(right)) == (one == other)


def test_a_digest_never_changes():
    """Whoever changes this makes every stored manifest unknown to its run."""
    assert manifest_digest([CommitName("bb", 10, "x"), CommitName("aa", 2, "y")]) == "c867bba58774"
    assert manifest_digest([]) == "e3b0c44298fc"


def test_the_same_content_has_the_same_digest_on_another_root(place):
    commit_features(place, "aa", {"a": 2}, attempt="late")
    elsewhere = open_root(f"memory://{uuid.uuid4().hex}")
    commit_features(elsewhere, "aa", {"a": 2}, attempt="early")
    assert fold_winners(place, "features").digest == fold_winners(elsewhere, "features").digest


# --- ledgers ---


@pytest.mark.parametrize("text", ["[{", "null", "7", '[{"image_id": "a"}]', '["a"]', None])
def test_a_damaged_ledger_names_the_manifest(place, text):
    commit_features(place, "aa", {"a": 2})
    manifest = fold_winners(place, "features")
    column = manifest.table.schema.get_field_index("ledger")
    broken = manifest.table.set_column(column, manifest.table.schema.field(column), pa.array([text], pa.string()))
    for read in (lambda made: made.ledger, lambda made: list(made.ledgers())):
        with pytest.raises(
            StorageError, match=rf"manifest/{manifest.digest}\.parquet is damaged: its ledger is no list of notes"
        ):
            read(Manifest("features", METHOD, manifest.digest, broken))


def test_a_ledger_row_of_no_level_that_there_is_names_the_manifest(place):
    commit_features(place, "aa", {"a": 2}, ledger=[failed("b")])
    manifest = fold_winners(place, "features")
    column = manifest.table.schema.get_field_index("ledger")
    texts = pa.array([text.replace('"failed"', '"fbiled"') for text in manifest.table["ledger"].to_pylist()])
    broken = manifest.table.set_column(column, manifest.table.schema.field(column), texts)
    with pytest.raises(StorageError, match="is damaged: its ledger is"):
        _ = Manifest("features", METHOD, manifest.digest, broken).ledger


# --- folding ---


def test_shards_stand_in_the_order_of_their_images(stored):
    table = fold_winners(stored, "features").table
    assert table["shard"].to_pylist() == ["bb", "cc", "aa"]
    assert table["first_image"].to_pylist() == ["b", "m", "x"]
    assert table["last_image"].to_pylist() == ["d", "n", "z"]


def test_totals(stored):
    manifest = fold_winners(stored, "features")
    assert manifest.rows == 10
    assert manifest.images == 5
    assert manifest.failed == 2
    assert manifest.bytes == sum(stored.size(key) for key in manifest.keys)
    assert {row.image_id: row.message for row in manifest.ledger} == {"b": "b is no image", "d": "d is no image"}


def test_seconds_are_summed_by_phase(stored):
    manifest = fold_winners(stored, "features")
    parts = [json.loads(text)["write"] for text in manifest.table["seconds"].to_pylist()]
    assert manifest.seconds == {"write": pytest.approx(sum(parts))}


def test_keys_are_those_of_the_data(stored):
    keys = fold_winners(stored, "features").keys
    assert sorted(keys) == sorted(f"features/{METHOD}/data/{name}" for name in stored.names(f"features/{METHOD}/data"))
    assert [key.split("/")[-1][:2] for key in keys] == ["bb", "cc", "aa"]


def test_names_are_those_of_the_winners(stored):
    manifest = fold_winners(stored, "features")
    assert [name.shard for name in manifest.names] == ["bb", "cc", "aa"]
    assert set(manifest.names) == set(winners(stored, "features", METHOD).values())


def test_a_folded_manifest_can_be_read(stored):
    made = fold_winners(stored, "features")
    assert stored.names(f"features/{METHOD}/manifest") == [f"{made.digest}.parquet"]
    read = read_manifest(stored, "features", METHOD, made.digest)
    assert read.table.equals(made.table)
    assert (read.dataset, read.method, read.digest) == ("features", METHOD, made.digest)


def test_any_tool_can_read_a_manifest(stored):
    made = fold_winners(stored, "features")
    data = stored.read(manifest_key("features", METHOD, made.digest))
    assert pq.read_table(pa.BufferReader(data)).column_names[:4] == ["shard", "revision", "attempt", "data"]


def test_a_manifest_is_written_once(stored):
    made = fold_winners(stored, "features")
    before = stored.read(manifest_key("features", METHOD, made.digest))
    commit_features(stored, "cc", {"m": 2, "n": 1}, attempt="0")  # a zombie's: it wins, with the same content
    again = fold_winners(stored, "features")
    assert again.digest == made.digest
    assert again.table.equals(made.table)
    assert stored.read(manifest_key("features", METHOD, made.digest)) == before


def test_a_new_revision_makes_a_new_manifest_beside_the_old_one(stored):
    old = fold_winners(stored, "features")
    commit_features(stored, "bb", {"b": 1, "c": 4, "d": 1}, revision=1)
    new = fold_winners(stored, "features")
    assert new.digest != old.digest
    assert (new.rows, new.failed) == (12, 0)
    assert read_manifest(stored, "features", METHOD, old.digest).table.equals(old.table)


def test_a_manifest_is_made_anew_when_a_commit_that_it_names_was_removed(stored):
    """A damaged shard is redone by removing its commit; the manifest must not stay with the damaged file."""
    lost = commit_features(stored, "dd", {"x": 2})
    old = fold_winners(stored, "features")
    stored.delete(commit_key("features", METHOD, lost.name))
    redone = commit_features(stored, "dd", {"x": 2})
    new = fold_winners(stored, "features")
    assert new.digest == old.digest
    assert (lost.name in old.names, lost.name in new.names, redone.name in new.names) == (True, False, True)
    assert read_manifest(stored, "features", METHOD, old.digest).table.equals(new.table)


def test_a_manifest_in_memory_writes_nothing(stored):
    names = list(winners(stored, "features", METHOD).values())[:2]
    seen = in_memory(stored, "features", METHOD, names)
    assert stored.names(f"features/{METHOD}/manifest") == []
    assert seen.table.equals(fold(stored, "features", METHOD, names).table)


def test_a_manifest_of_nothing(place):
    made = fold(place, "truth_features", METHOD, [])
    assert (made.rows, made.images, made.keys, made.ledger, made.seconds) == (0, 0, [], [], {})
    assert read_manifest(place, "truth_features", METHOD, made.digest).table.equals(made.table)


# --- what is refused ---


def test_a_manifest_of_the_first_version_has_no_passes_and_is_as_good(stored):
    commit_features(stored, "dd", {"p": 1}, passes=3)
    record = publish_run(stored)
    made = fold_winners(stored, "features")
    assert (made.passes, made.counts) == (3, True)
    key = manifest_key("features", METHOD, made.digest)
    rows = made.table.drop_columns("passes").replace_schema_metadata({VERSION_KEY: "1"})
    pq.write_table(sealed(rows, "features", METHOD), buffer := io.BytesIO())
    stored.write(key, buffer.getvalue())
    old = read_manifest(stored, "features", METHOD, made.digest)
    assert (old.passes, old.counts) == (0, False)
    assert old.table.schema.equals(made.table.schema, check_metadata=True)
    assert old.table.drop_columns("passes").equals(made.table.drop_columns("passes"))
    record.datasets["features"].manifest_sha256 = ""
    assert not [problem for problem in check_dataset(stored, record, "features") if "commit says" in problem.text]


def test_a_newer_manifest_is_refused_by_name(stored):
    made = fold_winners(stored, "features")
    key = manifest_key("features", METHOD, made.digest)
    sink = pa.BufferOutputStream()
    pq.write_table(made.table.replace_schema_metadata({VERSION_KEY: str(MANIFEST_VERSION + 1)}), sink)
    stored.write(key, sink.getvalue().to_pybytes())
    with pytest.raises(StorageError, match=rf"{made.digest}\.parquet has schema version {MANIFEST_VERSION + 1}"):
        read_manifest(stored, "features", METHOD, made.digest)


def test_a_damaged_manifest_is_named(stored):
    made = fold_winners(stored, "features")
    key = manifest_key("features", METHOD, made.digest)
    stored.write(key, stored.read(key)[:-9])
    with pytest.raises(StorageError, match=rf"{made.digest}\.parquet is damaged"):
        read_manifest(stored, "features", METHOD, made.digest)
    stored.delete(key)
    assert fold_winners(stored, "features").table.equals(made.table)


# --- what a shared root's manifest may say ---

HOSTILE_ROWS = {
    "a path above": {"data": "../../../../etc/passwd"},
    "an absolute path": {"data": "/etc/passwd"},
    "another shard's data": {"data": "data/bb.r0.x.parquet"},
    "a shard that is a path": {"shard": "../aa", "data": "data/../aa.r0.x.parquet"},
    "an attempt that is a path": {"attempt": "/../../x", "data": "data/aa.r0./../../x.parquet"},
    "a NUL": {"attempt": "x\0", "data": "data/aa.r0.x\0.parquet"},
    "two lines": {"attempt": "x\n", "data": "data/aa.r0.x\n.parquet"},
    "a pattern": {"attempt": "*", "data": "data/aa.r0.*.parquet"},
    "nothing": {"data": None},
}


def _published(place, change: dict) -> str:
    commit_features(place, "aa", {"x": 3}, attempt="x")
    manifest = fold_winners(place, "features")
    rows = [{**row, **change} for row in manifest.table.to_pylist()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.table.schema), buffer)
    place.write(manifest_key("features", METHOD, manifest.digest), buffer.getvalue())
    return manifest.digest


@pytest.mark.parametrize("case", HOSTILE_ROWS)
def test_names_in_a_manifest_lead_nowhere_else(place, case):
    ident = _published(place, HOSTILE_ROWS[case])
    with pytest.raises(StorageError, match=r"manifest/[0-9a-f]+\.parquet is damaged: .* is no name of a data file"):
        read_manifest(place, "features", METHOD, ident)


def test_a_table_without_names_is_no_manifest(place):
    rows = pa.table({"shard": [1], "data": [2]}).replace_schema_metadata({VERSION_KEY: "1"})
    pq.write_table(rows, buffer := io.BytesIO())
    place.write(manifest_key("features", METHOD, "0" * 12), buffer.getvalue())
    with pytest.raises(StorageError, match="is damaged: it is no manifest"):
        read_manifest(place, "features", METHOD, "0" * 12)


@pytest.mark.parametrize("case", HOSTILE_ROWS)
def test_a_segment_that_leads_elsewhere_is_not_believed(place, case):
    commit = commit_features(place, "aa", {"x": 3}, attempt="x")
    rows = [{**row, **HOSTILE_ROWS[case]} for row in rows_of([commit]).to_pylist()]
    write_segment(place, "features", METHOD, pa.Table.from_pylist(rows, schema=rows_of([commit]).schema))
    assert fold_winners(place, "features").keys == [f"features/{METHOD}/data/aa.r0.x.parquet"]
