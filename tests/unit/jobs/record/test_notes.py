"""What the ledgers of a run say, counted and told in a line each."""

from __future__ import annotations

import json

import pytest

from jobs.console.runs import list_failed, print_notes
from jobs.record.notes import NoteCount, notes_in, recorded_notes
from jobs.record.recording import failed_images
from storage.commits import CommitName, LedgerRow
from storage.manifest import Manifest, in_memory, rows_of
from storage.runs import write_run
from tests.stored import METHOD, commit_features, commit_images, fold_winners, publish_run


def note(image_id: str, kind: str = "NoProposals", message: str = "no proposals", stage: str = "propose") -> LedgerRow:
    return LedgerRow(image_id=image_id, stage=stage, type=kind, message=f"{image_id}: {message}", level="note")


def failed(image_id: str) -> LedgerRow:
    return LedgerRow(image_id=image_id, stage="extract", type="ImageError", message=f"{image_id} is no image")


def counted(**changes: object) -> NoteCount:
    values: dict = {
        "stage": "propose",
        "dataset": "proposals",
        "type": "NoProposals",
        "count": 1,
        "things": 1,
        "of": 2,
        "noun": "images",
        "example": "test1",
        "message": "test1.jpg: no proposals",
    }
    return NoteCount(**{**values, **changes})


def test_notes_are_counted_by_type_over_all_shards_and_failures_are_not_among_them(place):
    commit_features(place, "bb", {"d": 1, "e": 0, "f": 2}, ledger=[note("e"), note("d", "Odd"), note("d", "Odd")])
    commit_features(place, "aa", {"a": 0, "b": 3}, ledger=[note("a"), failed("c")])
    commit_features(place, "cc", {"x": 1})
    first, second = notes_in(fold_winners(place, "features"))
    assert (first.stage, first.dataset, first.type, first.count, first.things) == (
        "propose",
        "features",
        "NoProposals",
        2,
        2,
    )
    assert (first.of, first.noun, first.example, first.message) == (7, "images", "a", "a: no proposals")
    assert (second.type, second.count, second.things, second.example) == ("Odd", 2, 1, "d")


def test_a_note_of_the_whole_data_set_is_its_message():
    note = counted(stage="index", type="TrainAndTest", message="in the data set 1 of 3 images")
    assert note.sentence == "index: in the data set 1 of 3 images"


def test_a_ledger_without_notes_has_none_and_reads_no_more(place):
    commit_features(place, "aa", {"a": 1}, ledger=[failed("b")])
    record = publish_run(place)
    record.datasets["features"].failed = 1


def test_one_type_of_two_stages_is_two_kinds(place):
    commit_features(place, "aa", {"a": 0}, ledger=[note("a"), note("a", stage="extract")])
    assert [kind.stage for kind in notes_in(fold_winners(place, "features"))] == ["propose", "extract"]


@pytest.mark.parametrize(
    ("dataset", "kind", "name", "of", "noun"),
    [
        ("svms", "NoExamples", "ring", 3, "classes"),  # which has no row, and so is not among the two that are counted
        ("svms", "NotConverged", "slab", 2, "classes"),
        ("network", "Odd", "im-1", None, "images"),  # whose commits count tensors
    ],
)
def test_classes_are_counted_as_classes(dataset, kind, name, of, noun):
    manifest = manifest_of(dataset, {"slab": 1, "square": 1}, [note(name, kind)])
    (found,) = notes_in(manifest)
    assert (found.things, found.of, found.noun) == (1, of, noun)


def manifest_of(dataset: str, counts: dict[str, int], ledger: list[LedgerRow]) -> Manifest:
    """A manifest of one shard, of a dataset of any kind."""
    from storage.commits import Commit

    name = CommitName("aa", 0, "z")
    commit = Commit(
        dataset=dataset,
        method=METHOD,
        shard=name.shard,
        revision=name.revision,
        attempt=name.attempt,
        data=f"data/{name.stem}.parquet",
        rows=sum(counts.values()),
        bytes=1,
        sha256="0",
        images=counts,
        ledger=tuple(ledger),
    )
    return Manifest(dataset, METHOD, "0" * 12, rows_of([commit]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "propose: 1 of 2 images have no proposals, such as test1 (test1.jpg: no proposals)"),
        (
            {"things": 1234, "of": 5678},
            "propose: 1,234 of 5,678 images have no proposals, such as test1 (test1.jpg: no",
        ),
        ({"type": "Unheard"}, "propose: 1 of 2 images have a note Unheard, such as test1 ("),
        ({"of": None}, "propose: 1 images have no proposals, such as test1 ("),
        (
            {"stage": "train-svm", "type": "NoExamples", "noun": "classes", "example": "ring"},
            "train-svm: 1 of 2 classes have nothing to learn from, such as ring (",
        ),
        ({"things": 0, "message": "2 SVMs did not converge"}, "propose: 2 SVMs did not converge"),
        ({"things": 0, "count": 3, "type": "Odd", "message": "x"}, "propose: x (3 notes Odd)"),
        ({"message": "a\nb\r\n c"}, "propose: 1 of 2 images have no proposals, such as test1 (a b c)"),
    ],
)
def test_a_kind_is_one_line(changes, says):
    sentence = counted(**changes).sentence
    assert sentence.startswith(says)
    assert "\n" not in sentence


def test_a_long_message_is_cut():
    assert len(counted(message="x" * 10_000).sentence) < 500


def test_of_a_run_complete_datasets_are_counted(place, capsys):
    commit_images(place, "1a", ["a", "b"], ledger=[note("a", "Turned", "turned", "index")])
    commit_features(place, "aa", {"a": 0, "b": 0}, ledger=[note("a"), note("b")])
    record = publish_run(place)
    assert [(kind.dataset, kind.count) for kind in recorded_notes(place, record)] == [("images", 1), ("features", 2)]
    shown = print_notes(place, record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "note: index: 1 of 2 images were turned as their EXIF orientation says, such as a (a: turned)",
        "note: propose: 2 of 2 images have no proposals, such as a (a: no proposals)",
    ]
    assert lines[2].startswith("`spp notes --root ")
    assert f"--run {record.name}` lists them" in lines[2]
    assert json.loads(json.dumps(shown))[1]["example"] == "a"
    record.datasets["features"].manifest = None
    write_run(place, record)
    assert [kind.dataset for kind in recorded_notes(place, record)] == ["images"]


def test_a_dataset_that_was_deleted_by_hand_is_a_note_and_its_failed_images_are_not_known(place, capsys):
    commit_images(place, "1a", ["a"])
    commit_features(place, "aa", {"a": 1}, ledger=[failed("b")])
    record = publish_run(place)
    record.datasets["features"].failed = 1
    assert list(failed_images(place, record)) == ["b"]
    place.fs.rm(place.path("features"), recursive=True)
    assert failed_images(place, record) == {}
    assert [kind.dataset for kind in recorded_notes(place, record)] == ["features"]
    print_notes(place, record)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: extract: features/{METHOD}/manifest/")
    assert line.endswith("the file is missing; the next run makes features anew")


def test_without_notes_nothing_is_said(place, capsys):
    commit_images(place, "1a", ["a"])
    commit_features(place, "aa", {"a": 1})
    assert print_notes(place, publish_run(place)) == []
    assert capsys.readouterr().out == ""


def test_ten_thousand_notes_are_one_line_and_many_failures_twenty(place, capsys):
    for number in range(20):
        ids = [f"{number:02d}-{image:03d}" for image in range(500)]
        commit_images(place, f"{number:02x}", ids, ledger=[note(image_id) for image_id in ids])
    print_notes(place, publish_run(place, datasets=["images"]))
    first, _ = capsys.readouterr().out.splitlines()
    assert "10,000 of 10,000 images have no proposals, such as 00-000 (" in first
    list_failed({f"im-{number}": "gone" for number in range(100)})
    *_, last = lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert "80 more failed images; `spp notes --failed` lists all" in last


def test_shards_that_are_not_folded_yet_are_counted_alike(place):
    made = commit_features(place, "aa", {"a": 0, "b": 1}, ledger=[note("a")])
    (found,) = notes_in(in_memory(place, "features", METHOD, [made.name]))
    assert (found.things, found.of) == (1, 2)
