"""What is odd about a data set as a whole, though each of its images is in order.

Each is a note of the ledger, and stands with one image, the first that it is about: notes are stored with images.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.config.dataset import DatasetConfig
from jobs.dataset.image_file import content_of
from jobs.dataset.labelled import Listing, passed_over_text
from storage.commits import LedgerRow


def data_set_notes(
    config: DatasetConfig,
    listing: Listing,
    images: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[str]],
    unturned: Sequence[str],
) -> list[LedgerRow]:
    """The notes, in an order that depends on the data set alone.

    ``images``: the rows of the index. ``classes``: class name to the images that show it, those that are not kept too.
    ``unturned``: images that no annotation tells how to turn, and that have an EXIF orientation.
    """
    if not images:
        return []
    first = min(image["image_id"] for image in images)
    kept = set(classes) if config.classes is None else set(config.classes)
    notes = [
        *((first, kind, text) for kind, text in listing.notes),
        *_passed_over(listing, first),
        *_similar_classes(classes, kept, listing.other_classes, first),
        *_train_and_test(images, set(config.train_splits), set(config.test_splits)),
        *_two_classes(images, classes),
        *_unturned(unturned, len(images)),
    ]
    return [
        LedgerRow(image_id=image_id, stage="index", type=kind, message=text, level="note")
        for image_id, kind, text in notes
    ]


_Note = tuple[str, str, str]
"""Image id, type and message."""


def _passed_over(listing: Listing, first: str) -> Iterator[_Note]:
    if listing.passed_over:
        text = passed_over_text(listing.passed_over)
        yield first, "PassedOver", f"in the data set, passed over for their names: {text}"


def alike(name: str) -> str:
    """What class names have in common that differ only in case, white space, hyphens, invisible characters or the
    Unicode form of their letters. What separates two digits stays: 1-1 is not 11."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    shown = re.sub("[\N{VARIATION SELECTOR-1}-\N{VARIATION SELECTOR-16}\N{COMBINING GRAPHEME JOINER}]", "", shown)
    return re.sub(r"(?<![0-9])[\s_-]+|[\s_-]+(?![0-9])", "", shown)


def _similar_classes(
    classes: Mapping[str, Sequence[str]], kept: set[str], others: set[str], first: str
) -> Iterator[_Note]:
    groups: dict[str, list[str]] = {}
    for name in sorted({*classes, *others}):
        groups.setdefault(alike(name), []).append(name)
    for names in groups.values():
        if len(names) > 1 and kept.intersection(names):
            rarest = min((name for name in names if name in classes), key=lambda name: (len(classes[name]), name))
            shown = ", ".join(_shown(name) for name in names)
            text = f"in the data set classes differ only in how they are written: {shown}; each is a class of its own"
            yield min(classes[rarest], default=first), "SimilarClassNames", text


def _shown(name: str) -> str:
    """A name by which it can be told from those like it."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def _train_and_test(images: Sequence[Mapping[str, Any]], train: set[str], test: set[str]) -> Iterator[_Note]:
    """Images that are tested on and trained on, by their ids or by their bytes."""
    trained = {image["image_id"] for image in images if train.intersection(image["splits"])}
    contents = {content_of(image["digest"]) for image in images if image["image_id"] in trained} - {None}
    tested = [image for image in images if test.intersection(image["splits"])]
    same_id = sorted(image["image_id"] for image in tested if image["image_id"] in trained)
    copies = sorted(
        image["image_id"]
        for image in tested
        if image["image_id"] not in trained and content_of(image["digest"]) in contents
    )
    both = sorted([*same_id, *copies])
    if not both:
        return
    text = f"in the data set {len(both)} of {len(tested)} test images {_is(both)} also in a training split"
    if copies:
        text += f", {len(copies)} of them under another id"
    yield both[0], "TrainAndTest", f"{text}; what is measured on test images counts them, too"


def _two_classes(images: Sequence[Mapping[str, Any]], classes: Mapping[str, Sequence[str]]) -> Iterator[_Note]:
    """Copies of an image whose classes contradict each other."""
    shown: dict[str, set[str]] = {}
    for name, image_ids in classes.items():
        for image_id in image_ids:
            shown.setdefault(image_id, set()).add(name)
    copies: dict[str, list[str]] = {}
    for image in images:
        content = content_of(image["digest"])
        if content is not None:
            copies.setdefault(content, []).append(image["image_id"])
    odd = sorted(
        sorted(ids) for ids in copies.values() if len(ids) > 1 and len({frozenset(shown.get(i, ())) for i in ids}) > 1
    )
    if odd:
        number = sum(map(len, odd))
        text = f"{number} images are copies of each other and have other classes; the first are {', '.join(odd[0][:3])}"
        yield odd[0][0], "CopiesDiffer", f"in the data set {text}"


def _unturned(image_ids: Sequence[str], number: int) -> Iterator[_Note]:
    if image_ids:
        text = f"{len(image_ids)} of {number} images {_have(image_ids)} an EXIF orientation, which is not applied"
        yield min(image_ids), "NotTurned", f"in the data set {text}; turn the files if they are to be seen as shown"


def _have(things: Sequence[object]) -> str:
    return "has" if len(things) == 1 else "have"


def _is(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
