"""Segments: a cache that changes no manifest, whatever becomes of it."""

import pytest

from storage.commits import winners
from storage.garbage import plan_collection
from storage.manifest import fold, in_memory, rows_of
from storage.runs import forget_run
from storage.segments import write_segment
from tests.stored import METHOD, commit_features, store_run


@pytest.fixture
def commits(place):
    """Three shards, one of them a second revision, and a run."""
    store_run(place)
    commit_features(place, "bb", {"d": 2, "e": 1, "f": 6}, revision=1)
    return place


def manifest(root):
    return in_memory(root, "features", METHOD, list(winners(root, "features", METHOD).values()))


def segment(root, *shards: str) -> None:
    """A segment of the winning commits of some shards."""
    from storage.commits import read_commits

    names = winners(root, "features", METHOD)
    write_segment(root, "features", METHOD, rows_of(read_commits(root, "features", METHOD, [names[s] for s in shards])))


@pytest.mark.parametrize("shards", [("aa",), ("bb", "cc"), ("aa", "bb", "cc")])
def test_a_manifest_is_the_same_with_segments_and_without(commits, shards):
    before = manifest(commits)
    segment(commits, *shards)
    after = manifest(commits)
    assert after.digest == before.digest
    assert after.table.equals(before.table)


def test_what_stands_in_a_segment_is_read_from_it_alone(commits, monkeypatch):
    before = manifest(commits)
    segment(commits, "aa", "bb", "cc")
    monkeypatch.setattr("storage.manifest.read_commits", lambda *a: [] if not a[-1] else pytest.fail("read a commit"))
    assert manifest(commits).table.equals(before.table)


def test_two_drivers_may_have_written_down_the_same(commits):
    before = manifest(commits)
    segment(commits, "aa", "bb")
    segment(commits, "bb", "cc")
    assert manifest(commits).table.equals(before.table)


def test_a_segment_of_commits_that_no_longer_count_is_passed_over(commits):
    segment(commits, "bb")
    commit_features(commits, "bb", {"d": 5}, revision=2)
    assert manifest(commits).rows == 5 + 3 + 4 + 5 + 1 + 7


def test_a_damaged_segment_costs_time_and_nothing_else(commits):
    before = manifest(commits)
    segment(commits, "aa", "bb")
    (name,) = commits.names(f"features/{METHOD}/segment")
    commits.write(f"features/{METHOD}/segment/{name}", b"PAR1 no PAR1")
    assert manifest(commits).table.equals(before.table)


def test_segments_go_with_the_last_run_of_their_method(commits):
    fold(commits, "features", METHOD, list(winners(commits, "features", METHOD).values()))
    segment(commits, "aa")
    held = {file.key for file in plan_collection(commits, -5).garbage}
    assert not any("/segment/" in key for key in held)
    forget_run(commits, "trial")
    assert any("/segment/" in file.key for file in plan_collection(commits, -5).garbage)
