"""The tasks of train-svm, called here as the functions that they are."""

import functools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from jobs.dataset.objects import ImageObjects
from jobs.features.stored import FeatureShard
from jobs.features.training_data import TrainingShard
from jobs.svm.tasks import Mined, audit, gather, mine, norm_of, positives, start_negatives
from pipeline.boxes import as_boxes
from pipeline.detection.mining import NegativeCache, NegativeRules
from pipeline.detection.scoring import LinearScorer
from storage.columns import box_column, vector_column, window_column
from storage.root import open_root
from storage.schemas import schema
from storage.writer import ROW_GROUP_BYTES, ShardWriter
from tests.stored import METHOD

CLASSES, DIM, SCALE = 3, 6, 0.25
NAMES = ("cat", "cow", "dog")
TRAINING = ("a", "b", "c", "e", "f", "g")
"""Of the images a to g all but d."""

RULES = {
    "released": NegativeRules(),
    "all windows": NegativeRules(once_per_cells=False),
    "paper": NegativeRules(dedupe=0.7, once_per_cells=False),
    "both": NegativeRules(overlap=0.5, dedupe=0.5),
}
SEEDS = range(3)


@dataclass(frozen=True)
class Window:
    """A proposal, or a ground-truth box (``label`` is its class)."""

    image: str
    id: int
    box: tuple
    cells: tuple
    vector: tuple
    label: int | None = None


@functools.cache
def drawn(seed, proposals=12):
    """Windows of the images a to g, in the order in which they are numbered.

    b has no objects, c no proposals, f neither. All are near each other, and on few cells. The numbers of vectors are
    such that float32 scores them without an error.
    """
    rng = np.random.default_rng(seed)
    windows = []
    for image in "abcdefg":
        truths = 0 if image in "bf" else int(rng.integers(1, 4))
        for number in range((0 if image in "cf" else proposals) + truths):
            x, y, width, height = rng.integers([0, 0, 8, 8], [12, 12, 25, 25]).tolist()
            truth = number - (0 if image in "cf" else proposals)
            windows.append(
                Window(
                    image,
                    number if truth < 0 else -1 - truth,
                    (x, y, x + width, y + height),
                    (int(rng.choice([480, 688])), *rng.integers(0, 2, 4).tolist()),
                    tuple(rng.integers(0, 5, DIM).tolist()),
                    None if truth < 0 else int(rng.integers(CLASSES)),
                )
            )
    return tuple(windows)


def rows_of(windows, dataset):
    """Windows of one image as rows of ``features`` or ``truth_features``."""
    truth = dataset == "truth_features"
    ids = [-1 - w.id if truth else w.id for w in windows]
    labels = {
        "class_name": pa.array([NAMES[w.label] for w in windows if truth], pa.string()),
        "difficult": pa.array([w.id % 2 == 0 for w in windows], pa.bool_()),
    }
    columns = {
        "image_id": pa.array([w.image for w in windows], pa.string()),
        "object_id" if truth else "proposal_id": pa.array(ids, pa.int32()),
        **(labels if truth else {}),
        "box": box_column(as_boxes([w.box for w in windows])),
        "scale": pa.array([w.cells[0] for w in windows], pa.int32()),
        "window": window_column(np.array([w.cells[1:] for w in windows], np.int16)),
        "feature": vector_column(np.array([w.vector for w in windows], np.float16)),
    }
    return pa.table(columns, schema=schema(dataset, DIM))


def committed(root, dataset, shard, windows, images):
    """The key of a file of the windows of these images."""
    with ShardWriter(root, dataset, METHOD, shard, schema(dataset, DIM)) as writer:
        for image in images:
            own = [w for w in windows if w.image == image and (w.label is not None) == (dataset == "truth_features")]
            writer.write_image(image, rows_of(own, dataset) if own else None)
        return f"{dataset}/{METHOD}/{writer.commit().data}"


@functools.cache
def stored(windows, images=TRAINING, held="abcdefg", group_bytes=ROW_GROUP_BYTES):
    """A shard whose file of features has the images ``held``, and of which ``images`` are training images."""
    root = open_root(f"memory://{uuid.uuid4().hex}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.writer.ROW_GROUP_BYTES", group_bytes)
        key = committed(root, "features", "aa", windows, held)
        truth = [committed(root, "truth_features", *one) for one in (("bb", windows, "abc"), ("cc", windows, "defg"))]
    objects = {}
    for image in images:
        own = [w for w in windows if w.image == image and w.label is not None]
        if own:
            labels = np.array([w.label for w in own], np.int64)
            difficult = np.array([w.id % 2 == 0 for w in own])
            objects[image] = ImageObjects(as_boxes([w.box for w in own]), labels, difficult)
    features = FeatureShard(root, "aa", key, None, held[0], held[-1])
    return TrainingShard(features, tuple(truth), tuple(images), objects)


# --- the same, said plainly ---


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def above(value, limit):
    return value > Fraction(str(limit))


def negatives_of(windows, number, rules):
    """The windows of one image that are negatives of a class, in their order."""
    objects = [w.box for w in windows if w.label == number]
    kept = []
    for w in windows:
        if any(overlap(w.box, box) >= Fraction(str(rules.overlap)) for box in objects):
            continue
        if rules.once_per_cells and w.cells in [other.cells for other in kept]:
            continue
        kept.append(w)
    if rules.dedupe is not None:
        candidates, kept = kept, []
        for w in candidates:
            if not any(above(overlap(w.box, other.box), rules.dedupe) for other in kept):
                kept.append(w)
    return kept


def all_negatives(windows, rules, images=TRAINING):
    """(image, class number, its negatives) of every image and class."""
    for image in images:
        for number in range(CLASSES):
            yield image, number, negatives_of([w for w in windows if w.image == image], number, rules)


@dataclass(frozen=True)
class Svms:
    """Whole numbers of quarters."""

    weights: np.ndarray
    biases: np.ndarray

    @property
    def scorer(self):
        return LinearScorer(self.weights, self.biases, SCALE)

    def score(self, window, number):
        return (
            SCALE * sum(w * x for w, x in zip(self.weights[number], window.vector, strict=True)) + self.biases[number]
        )


def svms(seed):
    rng = np.random.default_rng([seed, 1])
    return Svms(rng.integers(-3, 4, (CLASSES, DIM)).astype(float), rng.integers(-4, 2, CLASSES) / 2)


def some_known(windows, rules, seed):
    """Of some images some windows in any order, cached for some classes of which they are negatives, or for none."""
    rng = np.random.default_rng([seed, 2])
    cached: dict[str, dict[int, list[bool]]] = {}
    for image, number, kept in all_negatives(windows, rules, "aceg"):
        for w in kept:
            if rng.random() < 0.4:
                cached.setdefault(image, {}).setdefault(w.id, [False] * CLASSES)[number] = rng.random() < 0.7
    known = {}
    for image, rows in cached.items():
        ids = rng.permutation(list(rows))
        known[image] = (ids, np.array([rows[i] for i in ids.tolist()], bool))
    return known


def cached_for(known, image, window, number):
    if image not in known:
        return False
    ids, joined = known[image]
    return any(i == window and joined[at, number] for at, i in enumerate(ids.tolist()))


def is_known(known, image, window):
    return image in known and window in known[image][0].tolist()


@dataclass
class Expected:
    """(image, window): the classes that it joins; and how many of each class a cap kept out."""

    joins: dict
    left_out: list


def plain_mine(windows, models, rules, trained, known, threshold, most):
    expected = Expected({}, [0] * CLASSES)
    for image, number, kept in all_negatives(windows, rules):
        if not trained[number]:
            continue
        scored = [(models.score(w, number), w) for w in kept if not cached_for(known, image, w.id, number)]
        hard = sorted((pair for pair in scored if pair[0] > threshold), key=lambda pair: -pair[0])
        for _, w in hard[:most]:
            expected.joins.setdefault((image, w.id), [False] * CLASSES)[number] = True
        expected.left_out[number] += len(hard) - len(hard[:most])
    return expected


def check_mined(windows, found: tuple[Mined, np.ndarray], expected: Mapping[tuple, list[bool]], known):
    """Each expected window once, with its classes; those that are not known with their vectors, one after another."""
    mined, vectors = found
    count = len(mined.image_ids)
    assert (mined.windows.shape, mined.windows.dtype) == ((count,), np.int64)
    assert (mined.classes.shape, mined.classes.dtype) == ((count, CLASSES), bool)
    assert (mined.scores.shape, mined.scores.dtype) == ((count, CLASSES), np.float32)
    assert (mined.new.shape, mined.new.dtype) == ((count,), bool)
    keys = list(zip(mined.image_ids, mined.windows.tolist(), strict=True))
    assert len(set(keys)) == count
    assert dict(zip(keys, mined.classes.tolist(), strict=True)) == expected
    assert mined.new.tolist() == [not is_known(known, *key) for key in keys]
    there = {(w.image, w.id): w.vector for w in windows}
    new = [key for key, is_new in zip(keys, mined.new, strict=True) if is_new]
    assert vectors.dtype == np.float16
    assert [tuple(vector) for vector in vectors.tolist()] == [there[key] for key in new]


# --- mine ---


in_row_groups = pytest.mark.parametrize(
    "group_bytes", [ROW_GROUP_BYTES, 150], ids=["a group an image", "groups of few rows"]
)
"""Images come whole, or in several parts."""


@in_row_groups
@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("rules", list(RULES.values()), ids=list(RULES))
@pytest.mark.parametrize("seed", SEEDS)
def test_hard_negatives_are_those_of_all_windows(seed, rules, most, group_bytes):
    windows, models = drawn(seed), svms(seed)
    trained, known = np.array([True, seed % 2 == 0, True]), some_known(windows, rules, seed)
    shard = stored(windows, group_bytes=group_bytes)
    found = mine(shard, models.scorer, rules, trained, known, threshold=-1.0, most=most)
    expected = plain_mine(windows, models, rules, trained, known, -1.0, most)
    check_mined(windows, found, expected.joins, known)
    assert found[0].left_out.tolist() == expected.left_out
    for image, window, scores in zip(found[0].image_ids, found[0].windows, found[0].scores, strict=True):
        (one,) = [w for w in windows if (w.image, w.id) == (image, window)]
        assert scores.tolist() == [models.score(one, number) for number in range(CLASSES)]


def test_what_the_drawn_windows_are_good_for():
    """Together they have what the tests above are about."""
    joined, new, again, capped = 0, 0, 0, 0
    for seed in SEEDS:
        windows, models, rules = drawn(seed), svms(seed), RULES["released"]
        trained, known = np.array([True, seed % 2 == 0, True]), some_known(windows, rules, seed)
        expected = plain_mine(windows, models, rules, trained, known, -1.0, None)
        joined += len(expected.joins)
        new += sum(not is_known(known, *key) for key in expected.joins)
        again += sum(sum(mask) > 1 for mask in expected.joins.values())
        capped += sum(plain_mine(windows, models, rules, trained, known, -1.0, 2).left_out)
    assert joined > new > 20
    assert again > 10
    assert capped > 10


def test_a_score_at_the_threshold_is_not_hard():
    windows, models = drawn(0), svms(0)
    shard, everything = stored(windows), np.ones(CLASSES, bool)
    scores = {models.score(w, n) for _, n, kept in all_negatives(windows, RULES["released"]) for w in kept}
    threshold = sorted(scores)[len(scores) // 2]
    mined, _ = mine(shard, models.scorer, RULES["released"], everything, {}, threshold=threshold, most=None)
    assert mined.scores[mined.classes].min() > threshold


def test_a_known_window_that_joins_another_class_comes_without_its_vector():
    windows = tuple(w for w in drawn(0) if w.image == "b")
    everything = Svms(np.zeros((CLASSES, DIM)), np.zeros(CLASSES)).scorer
    known = {"b": (np.array([windows[3].id]), np.array([[False, True, False]]))}
    mined, vectors = mine(
        stored(windows), everything, RULES["all windows"], np.ones(CLASSES, bool), known, threshold=-1.0, most=None
    )
    at = mined.windows.tolist().index(windows[3].id)
    assert mined.classes[at].tolist() == [True, False, True]
    assert mined.new.tolist() == [i != at for i in range(len(windows))]
    assert vectors.tolist() == [list(w.vector) for w in windows if w is not windows[3]]


def test_a_window_that_is_cached_for_all_classes_does_not_come():
    windows = tuple(w for w in drawn(0) if w.image == "b")
    everything = Svms(np.zeros((CLASSES, DIM)), np.zeros(CLASSES)).scorer
    known = {"b": (np.array([w.id for w in windows[1:]]), np.ones((len(windows) - 1, CLASSES), bool))}
    mined, vectors = mine(
        stored(windows), everything, RULES["all windows"], np.ones(CLASSES, bool), known, threshold=-1.0, most=None
    )
    assert mined.windows.tolist() == [windows[0].id]
    assert len(vectors) == 1


def test_classes_that_are_not_trained_get_none():
    windows, none = drawn(0), np.zeros(CLASSES, bool)
    hard = Svms(np.zeros((CLASSES, DIM)), np.full(CLASSES, 9.0)).scorer
    check_mined(windows, mine(stored(windows), hard, RULES["released"], none, {}, threshold=-1.0, most=1), {}, {})
    mined, _ = mine(
        stored(windows), hard, RULES["released"], np.array([False, True, False]), {}, threshold=-1.0, most=1
    )
    assert mined.classes.any(axis=0).tolist() == [False, True, False]
    assert mined.left_out[[0, 2]].tolist() == [0, 0]
    assert mined.left_out[1] > 0


def test_an_object_of_another_class_is_a_window_whose_number_is_below_zero():
    """Two objects and no proposals: each is a negative of the other two classes, known by -1 - object_id."""
    here = [
        Window("c", -1, (0, 0, 10, 10), (688, 0, 0, 1, 1), (1,) * DIM, label=2),
        Window("c", -2, (20, 0, 30, 10), (688, 2, 0, 3, 1), (2,) * DIM, label=0),
    ]
    hard = Svms(np.zeros((CLASSES, DIM)), np.zeros(CLASSES)).scorer
    found = mine(stored(tuple(here)), hard, RULES["released"], np.ones(CLASSES, bool), {}, threshold=-1.0, most=None)
    check_mined(here, found, {("c", -1): [True, True, False], ("c", -2): [False, True, True]}, {})


def test_a_difficult_object_keeps_windows_on_it_from_being_negatives():
    """Object 1 is a difficult cat: a window on it is no negative of cats, and neither is it itself."""
    here = [
        Window("e", 0, (20, 0, 30, 9), (688, 5, 0, 6, 1), (3,) * DIM),
        Window("e", -1, (0, 0, 10, 10), (688, 0, 0, 1, 1), (1,) * DIM, label=2),
        Window("e", -2, (20, 0, 30, 10), (688, 2, 0, 3, 1), (2,) * DIM, label=0),
    ]
    shard = stored(tuple(here))
    assert shard.objects["e"].difficult.tolist() == [False, True]
    hard = Svms(np.zeros((CLASSES, DIM)), np.zeros(CLASSES)).scorer
    mined, _ = mine(shard, hard, RULES["released"], np.ones(CLASSES, bool), {}, threshold=-1.0, most=None)
    assert dict(zip(mined.windows.tolist(), mined.classes[:, 0].tolist(), strict=True)) == {
        0: False,
        -1: True,
        -2: False,
    }


def test_images_that_are_not_for_training_are_not_looked_at():
    windows = drawn(1)
    hard = Svms(np.zeros((CLASSES, DIM)), np.zeros(CLASSES)).scorer
    mined, _ = mine(stored(windows), hard, RULES["released"], np.ones(CLASSES, bool), {}, threshold=-1.0, most=None)
    assert set(mined.image_ids) == set("abceg")
    assert [i for n, i in enumerate(mined.image_ids) if i not in mined.image_ids[:n]] == ["a", "b", "e", "g", "c"]


@pytest.mark.parametrize("rules", list(RULES.values()), ids=list(RULES))
def test_what_has_been_taken_into_the_cache_is_not_found_again(rules):
    windows, models, trained = drawn(2), svms(2), np.ones(CLASSES, bool)
    shard, cache = stored(windows), NegativeCache(CLASSES)
    for block, most in enumerate((1, 2, 1, None, None)):
        mined, vectors = mine(
            shard, models.scorer, rules, trained, cache.known(shard.images), threshold=-1.0, most=most
        )
        new = np.flatnonzero(mined.new)
        added = cache.add(block, [mined.image_ids[i] for i in new], mined.windows[new].tolist())
        assert len(added) == len(vectors)
        keys = zip(mined.image_ids, mined.windows.tolist(), strict=True)
        rows = np.array([cache.row(*key) for key in keys], np.int64)
        for number in range(CLASSES):
            cache.join(number, rows[mined.classes[:, number]])
    assert len(mined.windows) == 0
    expected = plain_mine(windows, models, rules, trained, {}, -1.0, None).joins
    assert cache.count().tolist() == np.sum(list(expected.values()), axis=0).tolist()
    assert audit(shard, models.scorer, rules, CLASSES, cache.known(shard.images)).violators.tolist() == [0] * CLASSES


# --- audit ---


@in_row_groups
@pytest.mark.parametrize("rules", list(RULES.values()), ids=list(RULES))
@pytest.mark.parametrize("seed", SEEDS)
def test_an_audit_counts_every_negative(seed, rules, group_bytes):
    windows, models = drawn(seed), svms(seed)
    known = some_known(windows, rules, seed)
    found = audit(stored(windows, group_bytes=group_bytes), models.scorer, rules, CLASSES, known)
    negatives, violators, hinge = [0] * CLASSES, [0] * CLASSES, [0.0] * CLASSES
    for image, number, kept in all_negatives(windows, rules):
        for w in kept:
            score = models.score(w, number)
            negatives[number] += 1
            violators[number] += score > -1 and not cached_for(known, image, w.id, number)
            hinge[number] += max(0.0, 1 + score)
    assert found.negatives.tolist() == negatives
    assert found.violators.tolist() == violators
    assert found.hinge.tolist() == hinge
    assert sum(negatives) > sum(violators) > 0


# --- the first negatives ---


def chosen_of(found):
    """(image, window) to its classes."""
    mined, _ = found
    return {(i, w): c for i, w, c in zip(mined.image_ids, mined.windows.tolist(), mined.classes.tolist(), strict=True)}


@in_row_groups
@pytest.mark.parametrize("per_image", [1, 3, 1000])
@pytest.mark.parametrize("rules", list(RULES.values()), ids=list(RULES))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_takes_so_many_negatives_of_each_image_and_class(seed, rules, per_image, group_bytes):
    windows = drawn(seed)
    found = start_negatives(stored(windows, group_bytes=group_bytes), CLASSES, rules, per_image, seed)
    chosen = chosen_of(found)
    check_mined(windows, found, chosen, {})
    assert all(any(classes) for classes in chosen.values())
    for image, number, kept in all_negatives(windows, rules):
        taken = {window for (one, window), classes in chosen.items() if one == image and classes[number]}
        assert taken <= {w.id for w in kept}
        assert len(taken) == min(per_image, len(kept))
    assert {image for image, _ in chosen} <= set(TRAINING)
    assert found[0].new.all()
    assert not found[0].scores.any()
    assert not found[0].left_out.any()


@pytest.mark.parametrize("image", ["a", "b", "c", "g"])
def test_what_a_start_takes_of_an_image_depends_on_its_id_and_the_seed_alone(image):
    windows = drawn(3)

    def taken(shard, seed=7):
        chosen = chosen_of(start_negatives(shard, CLASSES, RULES["released"], 2, seed))
        return {window: classes for (one, window), classes in chosen.items() if one == image}

    expected = taken(stored(windows))
    assert expected
    assert taken(stored(windows, group_bytes=150)) == expected
    assert taken(stored(windows, images=(image,))) == expected
    assert taken(stored(windows, images=(image,), held=(image,))) == expected
    assert taken(stored(tuple(w for w in windows if w.image == image))) == expected
    if image != "c":  # it has no choice
        assert any(taken(stored(windows), seed) != expected for seed in range(3))


def test_images_with_the_same_windows_start_with_different_ones():
    alike = tuple(replace(w, image=image) for image in "abcde" for w in drawn(3, 30) if w.image == "b")
    chosen = chosen_of(start_negatives(stored(alike), CLASSES, RULES["all windows"], 4, 0))
    assert len({tuple(sorted(w for one, w in chosen if one == image)) for image in "abce"}) == 4


def test_every_negative_can_be_among_the_first():
    windows = tuple(w for w in drawn(3) if w.image == "b")
    shard = stored(windows)
    taken = [key for seed in range(60) for key in chosen_of(start_negatives(shard, 1, RULES["all windows"], 2, seed))]
    assert set(taken) == {("b", w.id) for w in windows}
    assert max(taken.count(key) for key in set(taken)) < 3 * len(taken) / len(windows)


def test_classes_with_the_same_negatives_start_with_the_same_ones():
    windows = tuple(w for w in drawn(3) if w.image == "b")
    chosen = chosen_of(start_negatives(stored(windows), CLASSES, RULES["released"], 3, 0))
    assert list(chosen.values()) == [[True] * CLASSES] * 3


# --- where there is nothing ---


@pytest.mark.parametrize("images", [("f",), ()])
def test_images_without_windows_give_nothing(images):
    windows, rules, models = drawn(0), RULES["released"], svms(0)
    shard = stored(windows, images)
    check_mined(windows, start_negatives(shard, CLASSES, rules, 5, 0), {}, {})
    check_mined(windows, mine(shard, models.scorer, rules, np.ones(CLASSES, bool), {}, threshold=-9.0, most=5), {}, {})
    found = audit(shard, models.scorer, rules, CLASSES, {})
    assert (found.negatives.tolist(), found.violators.tolist(), found.hinge.tolist()) == ([0] * 3, [0] * 3, [0] * 3)


def test_windows_that_are_negatives_of_no_class_give_nothing():
    """The only class, and all proposals are the object."""
    here = [replace(w, box=(0, 0, 9, 9)) for w in drawn(0) if w.image == "b"]
    here.append(Window("b", -1, (0, 0, 9, 9), (688, 0, 0, 1, 1), (1,) * DIM, label=0))
    shard = stored(tuple(here))
    hard = LinearScorer(np.zeros((1, DIM)), np.zeros(1), SCALE)
    assert start_negatives(shard, 1, RULES["released"], 5, 0)[0].image_ids == []
    assert mine(shard, hard, RULES["released"], np.ones(1, bool), {}, threshold=-9.0, most=None)[0].image_ids == []
    assert audit(shard, hard, RULES["released"], 1, {}).negatives.tolist() == [0]


def test_the_norm_of_vectors_and_how_many_there_are():
    assert norm_of(np.array([[3, 4], [0, 0], [5, 12]], np.float16)) == (pytest.approx(6), 3)


# --- what is read again, and what is learned to like ---


@in_row_groups
@pytest.mark.parametrize("seed", SEEDS)
def test_vectors_that_would_be_too_many_bytes_are_not_handed_back(seed, group_bytes):
    windows, models, rules = drawn(seed), svms(seed), RULES["released"]
    known, shard = some_known(windows, rules, seed), stored(windows, group_bytes=group_bytes)
    asked = (shard, models.scorer, rules, np.ones(CLASSES, bool), known)
    whole, vectors = mine(*asked, threshold=-1.0, most=None, most_bytes=2 * DIM * 10**4)
    bytes_ = vectors.nbytes
    assert whole.held
    assert mine(*asked, threshold=-1.0, most=None, most_bytes=bytes_)[0].held
    without, nothing = mine(*asked, threshold=-1.0, most=None, most_bytes=bytes_ - 1)
    assert not without.held
    assert len(nothing) == 0
    for name in ("image_ids", "windows", "classes", "scores", "new", "left_out"):
        np.testing.assert_array_equal(getattr(without, name), getattr(whole, name), err_msg=name)


@in_row_groups
@pytest.mark.parametrize("seed", SEEDS)
def test_vectors_are_gathered_to_their_places(seed, group_bytes):
    windows = drawn(seed)
    random = np.random.default_rng(seed)
    chosen = [w for w in windows if w.image in TRAINING and (w.label is not None or random.random() < 0.4)]
    places = random.permutation(len(chosen))
    wanted = {}
    for image in {w.image for w in chosen}:
        own = [n for n, w in enumerate(chosen) if w.image == image]
        wanted[image] = (np.array([chosen[n].id for n in own]), places[own])
    found = gather(stored(windows, group_bytes=group_bytes), wanted, len(chosen))
    assert (found.dtype, found.shape) == (np.float16, (len(chosen), DIM))
    assert [tuple(row) for row in found[places].tolist()] == [w.vector for w in chosen]
    assert {w.label is None for w in chosen} == {True, False}


@pytest.mark.parametrize("difficult", [False, True])
def test_positives_are_the_objects_of_each_class(difficult):
    windows = drawn(1)
    shard, seen = stored(windows), []
    for key in shard.truth:
        (classes, dim, norm), vectors = positives(shard.features.root, key, NAMES, difficult)
        assert (dim, len(classes)) == (DIM, len(vectors))
        assert norm == pytest.approx(np.linalg.norm(vectors.astype(float), axis=1).mean())
        seen += [(int(c), tuple(v)) for c, v in zip(classes, vectors.tolist(), strict=True)]
    expected = [(w.label, w.vector) for w in windows if w.label is not None and (difficult or w.id % 2 != 0)]
    assert sorted(seen) == sorted(expected)


def test_a_file_without_positives_has_none():
    windows = tuple(w for w in drawn(1) if w.label is None)
    shard = stored(windows)
    (classes, dim, norm), vectors = positives(shard.features.root, shard.truth[0], NAMES, False)
    assert (len(classes), dim, norm, len(vectors)) == (0, 0, 0.0, 0)
