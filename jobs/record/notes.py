"""What the ledgers of a run say, counted: notes, kind by kind. Manifests hold the ledgers; no data are read."""

from __future__ import annotations

from dataclasses import dataclass

from storage.damage import MISSING, DamagedFileError
from storage.manifest import Manifest, read_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.schemas import unit_column

_NOUNS = {"image_id": "images", "class_name": "classes"}
"""What a ledger's rows are of, by the unit of the dataset; of others they are of images, which it does not count."""

_WITHOUT_ROWS = "NoExamples"
"""The type of the notes on what the dataset has no rows of, and so does not count."""

GONE = "Gone"
"""The type of the note on a dataset whose manifest is missing; no ledger holds it."""

_PHRASES = {
    "Annotation": "have an annotation that was not taken as it stands",
    "MissingAnnotation": "have no annotation",
    "NamedTwice": "are named more than once",
    "NoExamples": "have nothing to learn from",
    "NoProposals": "have no proposals",
    "NotConverged": "were not trained to the end",
    "NotTurned": "are read as they are stored, though an EXIF orientation turns them",
    "Scaled": "have more than 8 bits a value, and were scaled",
    "SeveralFiles": "have several files",
    "Turned": "were turned as their EXIF orientation says",
}
"""What is so with them, by the type of a note; of others the type is said."""

_OF_THE_DATA_SET = ("CopiesDiffer", "PassedOver", "SimilarClassNames", "TrainAndTest")
"""Types of notes whose messages speak of the whole data set; the image that they stand with is only one of it."""

_MOST = 300
"""Characters of a message in a line of text."""


@dataclass(frozen=True, kw_only=True)
class NoteCount:
    """Notes of one type in one dataset.

    ``count`` of them are about ``things`` images or classes (``noun``) of the ``of`` that there are (None: not known;
    ``things`` 0: about none in particular). ``example``: the first, and the ``message`` about it.
    """

    stage: str
    dataset: str
    type: str
    count: int
    things: int
    of: int | None
    noun: str
    example: str
    message: str

    @property
    def sentence(self) -> str:
        """One line: how many, and an example."""
        message = " ".join(self.message.split())
        message = message if len(message) <= _MOST else f"{message[:_MOST]}..."
        if not self.things or self.type in _OF_THE_DATA_SET:
            return f"{self.stage}: {message}" + (f" ({self.count} notes {self.type})" if self.count > 1 else "")
        share = f"{self.things:,}" + ("" if self.of is None else f" of {self.of:,}")
        phrase = _PHRASES.get(self.type, f"have a note {self.type}")
        return f"{self.stage}: {share} {self.noun} {phrase}, such as {self.example} ({message})"


@dataclass
class _Kind:
    """Notes of one type, as they are counted."""

    stage: str
    example: str
    message: str
    count: int = 0
    things: int = 0


def notes_in(manifest: Manifest) -> list[NoteCount]:
    """The notes of one dataset by stage and type, in the order in which types turn up; one shard at a time."""
    kinds: dict[tuple[str, str], _Kind] = {}
    for rows in manifest.ledgers():
        things: dict[tuple[str, str], set[str]] = {}
        for row in rows:
            if row["level"] != "note":
                continue
            key = (row["stage"], row["type"])
            if key not in kinds:
                kinds[key] = _Kind(row["stage"], row["image_id"], row["message"])
            kinds[key].count += 1
            if row["image_id"]:
                things.setdefault(key, set()).add(row["image_id"])
        for key, ids in things.items():
            kinds[key].things += len(ids)
    unit = unit_column(manifest.dataset)
    counted = manifest.images + manifest.failed if kinds and unit in _NOUNS else None
    return [
        NoteCount(
            stage=kind.stage,
            dataset=manifest.dataset,
            type=type_,
            count=kind.count,
            things=kind.things,
            of=None if counted is None else counted + (kind.things if type_ == _WITHOUT_ROWS else 0),
            noun=_NOUNS.get(unit, "images"),
            example=kind.example,
            message=kind.message,
        )
        for (_, type_), kind in kinds.items()
    ]


def recorded_notes(root: Root, record: RunRecord) -> list[NoteCount]:
    """The notes of all complete datasets of a run, and one on each that is there no more (deleted by hand, say)."""
    notes: list[NoteCount] = []
    for name, entry in record.datasets.items():
        if entry.manifest is None:
            continue
        try:
            notes += notes_in(read_manifest(root, name, entry.method, entry.manifest))
        except DamagedFileError as error:
            if error.reason != MISSING:
                raise
            notes.append(_gone(entry.stage, name, f"{error}; the next run makes {name} anew"))
    return notes


def _gone(stage: str, dataset: str, message: str) -> NoteCount:
    return NoteCount(
        stage=stage, dataset=dataset, type=GONE, count=1, things=0, of=None, noun="", example="", message=message
    )
