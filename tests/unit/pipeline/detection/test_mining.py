import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes, iou
from pipeline.detection.mining import NegativeCache, NegativeRules, hard_negatives

CLASSES = 3
IMAGES = ("a", "b", "c")

# --- which windows are negatives ---


def plain_negatives(boxes, cells, overlaps, rules):
    """The rules said plainly: class by class, window by window."""
    mask = np.zeros(overlaps.shape, bool)
    for number in range(overlaps.shape[1]):
        rows = [i for i in range(len(boxes)) if overlaps[i, number] < np.float32(rules.overlap)]
        if rules.once_per_cells:
            rows = [i for at, i in enumerate(rows) if cells[i] not in {cells[j] for j in rows[:at]}]
        if rules.dedupe is not None:
            stay = []
            for i in rows:
                if all(iou(boxes[[i]], boxes[[j]])[0, 0] <= np.float32(rules.dedupe) for j in stay):
                    stay.append(i)
            rows = stay
        mask[rows, number] = True
    return mask


@st.composite
def labelled_windows(draw):
    side = st.integers(0, 12)
    row = st.tuples(
        st.tuples(side, side, st.integers(1, 12), st.integers(1, 12)),
        st.tuples(st.sampled_from([480, 688]), *[st.integers(0, 1)] * 4),
        st.tuples(*[st.sampled_from([0.0, 0.25, 0.3, 0.31, 0.7])] * CLASSES),
    )
    rows = draw(st.lists(row, max_size=20))
    boxes = as_boxes([(x, y, x + w, y + h) for (x, y, w, h), _, _ in rows])
    overlaps = np.array([shares for _, _, shares in rows], np.float32).reshape(-1, CLASSES)
    return boxes, [cells for _, cells, _ in rows], overlaps


def negatives_of(rules, boxes, cells, overlaps):
    pairs = np.array(cells, np.int64).reshape(-1, 5)
    return rules.of(boxes, pairs[:, 0].astype(np.int32), pairs[:, 1:].astype(np.int16), overlaps)


@given(
    labelled_windows(),
    st.builds(NegativeRules, st.sampled_from([0.3, 0.5]), st.sampled_from([None, 0.5, 0.7]), st.booleans()),
)
def test_negatives_are_those_of_the_plain_rules(windows, rules):
    found = negatives_of(rules, *windows)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, plain_negatives(*windows, rules))


def test_by_default_the_released_code_s_rules_hold():
    assert NegativeRules() == NegativeRules(overlap=0.3, dedupe=None, once_per_cells=True)


BOXES = as_boxes([[0, 0, 100, 100], [1, 0, 100, 100], [0, 1, 100, 100], [500, 0, 600, 100]])
SAME = [(688, 0, 0, 5, 5)] * 3 + [(688, 30, 0, 36, 5)]


def test_of_negatives_on_the_same_cells_the_first_is_taken_class_by_class():
    overlaps = np.array([[0.5, 0.0], [0.1, 0.1], [0.2, 0.2], [0.0, 0.0]], np.float32)
    found = negatives_of(NegativeRules(), BOXES, SAME, overlaps)
    assert found.tolist() == [[False, True], [True, False], [False, False], [True, True]]


def test_the_same_cells_of_another_scale_are_other_cells():
    cells = [(688, 0, 0, 5, 5), (480, 0, 0, 5, 5), (688, 0, 0, 5, 6), (688, 0, 0, 5, 5)]
    assert negatives_of(NegativeRules(), BOXES, cells, np.zeros((4, 1)))[:, 0].tolist() == [True, True, True, False]


def test_windows_on_the_same_cells_all_count_where_that_is_wanted():
    assert negatives_of(NegativeRules(once_per_cells=False), BOXES, SAME, np.zeros((4, 2))).all()


def test_what_overlaps_an_earlier_negative_is_left_out():
    rules = NegativeRules(dedupe=0.7, once_per_cells=False)
    assert negatives_of(rules, BOXES, SAME, np.zeros((4, 1)))[:, 0].tolist() == [True, False, False, True]
    assert negatives_of(replace(rules, dedupe=0.995), BOXES, SAME, np.zeros((4, 1))).all()


def test_an_overlap_of_exactly_the_limit_is_no_negative():
    at = np.full((1, 1), 0.3, np.float32)
    assert not negatives_of(NegativeRules(), BOXES[:1], SAME[:1], at).any()
    assert negatives_of(NegativeRules(), BOXES[:1], SAME[:1], np.nextafter(at, np.float32(0))).all()
    assert negatives_of(NegativeRules(overlap=0.5), BOXES[:1], SAME[:1], at).all()


@pytest.mark.parametrize("rules", [NegativeRules(), NegativeRules(dedupe=0.7), NegativeRules(once_per_cells=False)])
@pytest.mark.parametrize(("count", "classes"), [(0, 2), (2, 0), (0, 0)])
def test_no_windows_or_no_classes_have_no_negatives(rules, count, classes):
    found = negatives_of(rules, BOXES[:count], SAME[:count], np.zeros((count, classes), np.float32))
    assert (found.dtype, found.shape) == (bool, (count, classes))


# --- which of them are hard ---


@st.composite
def scored_candidates(draw):
    row = st.tuples(*[st.tuples(st.booleans(), st.sampled_from([-2.0, -1.0, -0.5, 0.0, 1.0]))] * CLASSES)
    rows = draw(st.lists(row, max_size=15))
    pairs = np.array(rows, np.float32).reshape(-1, CLASSES, 2)
    return pairs[..., 1], pairs[..., 0] > 0


@given(scored_candidates(), st.sampled_from([-3.0, -1.0, 0.5]), st.one_of(st.none(), st.integers(0, 5)))
def test_hard_negatives_are_the_best_candidates_above_the_threshold(scored, threshold, most):
    scores, candidates = scored
    before = scores.copy(), candidates.copy()
    hard, left_out = hard_negatives(scores, candidates, threshold, most)
    assert (hard.dtype, hard.shape, left_out.shape) == (bool, scores.shape, (CLASSES,))
    for number in range(CLASSES):
        above = [i for i in range(len(scores)) if candidates[i, number] and scores[i, number] > threshold]
        best = sorted(above, key=lambda i: (-scores[i, number], i))[:most]
        assert np.flatnonzero(hard[:, number]).tolist() == sorted(best)
        assert left_out[number] == len(above) - len(best)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(candidates, before[1])


def test_a_score_at_the_threshold_is_not_hard():
    scores = np.array([[-1.0], [np.nextafter(np.float32(-1), np.float32(0))]], np.float32)
    hard, left_out = hard_negatives(scores, np.ones((2, 1), bool), -1.0, None)
    assert hard[:, 0].tolist() == [False, True]
    assert left_out.tolist() == [0]


def test_of_equal_scores_the_earlier_join():
    hard, left_out = hard_negatives(np.zeros((40, 1), np.float32), np.ones((40, 1), bool), -1.0, 25)
    assert np.flatnonzero(hard[:, 0]).tolist() == list(range(25))
    assert left_out.tolist() == [15]


def test_a_cap_counts_what_it_keeps_out_and_nothing_else():
    scores = np.array([[0.0, -5.0], [2.0, -5.0], [1.0, 0.0], [3.0, 0.0]], np.float32)
    candidates = np.array([[True, True], [True, True], [True, True], [False, True]])
    hard, left_out = hard_negatives(scores, candidates, -1.0, 2)
    assert hard.tolist() == [[False, False], [True, False], [True, True], [False, True]]
    assert left_out.tolist() == [1, 0]


# --- the cache ---


class PlainCache:
    """What NegativeCache says it is, as sets of windows (image id, window id)."""

    def __init__(self, classes):
        self.classes = [set() for _ in range(classes)]
        self.at = {}  # window: (block, place)

    def joined(self, window):
        return [window in members for members in self.classes]

    def unused(self, blocks):
        dead = [block for block in blocks if not any(self.at[window][0] == block for c in self.classes for window in c)]
        self.at = {window: at for window, at in self.at.items() if at[0] not in dead}
        return dead


class Both:
    """A cache and its plain double, driven together; ``alive`` blocks are those that a driver keeps."""

    def __init__(self, rng):
        self.rng, self.cache, self.plain, self.alive = rng, NegativeCache(CLASSES), PlainCache(CLASSES), {}
        self.rows = {}

    def add(self):
        unknown = [
            (image, window) for image in IMAGES for window in range(-3, 6) if (image, window) not in self.plain.at
        ]
        new = self.rng.sample(unknown, self.rng.randint(0, min(5, len(unknown))))
        block = max(self.alive, default=-1) + 1
        rows = self.cache.add(block, [image for image, _ in new], [window for _, window in new])
        assert len(rows) == len(new)
        for place, (window, row) in enumerate(zip(new, rows, strict=True)):
            self.plain.at[window] = (block, place)
            self.rows[window] = int(row)
        self.alive[block] = "vectors"

    def join(self):
        number = self.rng.randrange(CLASSES)
        free = sorted(set(self.plain.at) - self.plain.classes[number])
        chosen = self.rng.sample(free, self.rng.randint(0, len(free)))
        self.cache.join(number, self.rows_of(chosen))
        self.plain.classes[number].update(chosen)

    def evict(self):
        number = self.rng.randrange(CLASSES)
        members = sorted(self.plain.classes[number])
        chosen = self.rng.sample(members, self.rng.randint(0, len(members)))
        self.cache.evict(number, self.rows_of(chosen))
        self.plain.classes[number].difference_update(chosen)

    def empty(self):
        number = self.rng.randrange(CLASSES)
        self.cache.evict(number, self.rows_of(sorted(self.plain.classes[number])))
        self.plain.classes[number].clear()

    def unused(self):
        dead = self.cache.unused(self.alive)
        assert dead == self.plain.unused(self.alive)
        for block in dead:
            del self.alive[block]

    def rows_of(self, windows):
        return np.array([self.rows[window] for window in windows], np.int64)

    def check(self):
        assert self.cache.count().tolist() == [len(members) for members in self.plain.classes]
        known = self.cache.known([*IMAGES, "no such image"])
        assert set(known) == {image for image, _ in self.plain.at}
        for image, (ids, joined) in known.items():
            assert (ids.dtype, joined.dtype, joined.shape) == (np.int64, bool, (len(ids), CLASSES))
            assert sorted(ids.tolist()) == sorted(window for one, window in self.plain.at if one == image)
            assert joined.tolist() == [self.plain.joined((image, window)) for window in ids.tolist()]
        for image in IMAGES:
            for window in range(-3, 6):
                expected = self.rows[image, window] if (image, window) in self.plain.at else None
                assert self.cache.row(image, window) == expected
        for number, members in enumerate(self.plain.classes):
            rows = self.cache.rows_of(number)
            assert rows.tolist() == [self.rows[w] for w in sorted(members)]
            assert list(zip(*self.cache.windows_of(rows), strict=True)) == sorted(members)
            at = {
                member: (block, place)
                for block, places, members in self.cache.places(rows)
                for place, member in zip(places.tolist(), members.tolist(), strict=True)
            }
            assert [at[member] for member in range(len(rows))] == [self.plain.at[w] for w in sorted(members)]


@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(["add", "join", "evict", "empty", "unused"])))
def test_a_cache_is_a_set_of_windows_for_each_class(rng, steps):
    both = Both(rng)
    both.check()
    for step in steps:
        getattr(both, step)()
        both.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_cache_stays_so_over_many_rounds(seed):
    """Rounds as of a training: windows come and join, some leave, and blocks that none needs any more are dropped."""
    both = Both(random.Random(seed))
    dropped = 0
    for _ in range(40):
        for step in ("add", "join", "join", "evict", "evict", "empty"):
            getattr(both, step)()
        before = len(both.alive)
        both.unused()
        dropped += before - len(both.alive)
        both.check()
    assert dropped > 5


@pytest.fixture
def cache():
    """Windows 5 of a, 7 of b and -1 of a in block 4, window 9 of a in block 2; class 0 has all of them."""
    made = NegativeCache(2)
    made.join(0, made.add(4, ["a", "b", "a"], [5, 7, -1]))
    made.join(0, made.add(2, ["a"], [9]))
    return made


def test_a_window_is_cached_once(cache):
    with pytest.raises(ValueError, match="window 7 of image 'b' is cached already"):
        cache.add(5, ["c", "b"], [7, 7])
    with pytest.raises(ValueError, match="window 1 of image 'd' is cached already"):
        cache.add(5, ["d", "d"], [1, 1])
    cache.add(6, ["a"], [7])


def test_a_window_joins_a_class_once(cache):
    row = cache.row("b", 7)
    cache.join(1, np.array([row]))
    for number in (0, 1):
        with pytest.raises(ValueError, match="cached for this class already"):
            cache.join(number, np.array([row]))
    cache.evict(1, np.array([row]))
    cache.join(1, np.array([row]))


def where(cache, rows):
    """Blocks, and in each the places and which of the rows are there."""
    return [(block, places.tolist(), numbers.tolist()) for block, places, numbers in cache.places(rows)]


def test_rows_come_by_image_and_window_and_are_found_in_their_blocks(cache):
    assert cache.rows_of(0).tolist() == [2, 0, 3, 1]
    assert where(cache, cache.rows_of(0)) == [(2, [0], [2]), (4, [0, 1, 2], [1, 3, 0])]
    images, windows = cache.windows_of(cache.rows_of(0))
    assert (images, windows.tolist()) == (["a", "a", "a", "b"], [-1, 5, 9, 7])
    cache.evict(0, np.array([0, 3]))
    assert where(cache, cache.rows_of(0)) == [(4, [1, 2], [1, 0])]


def test_the_order_of_rows_is_that_of_the_windows_whatever_the_way(cache):
    other = NegativeCache(2)
    other.join(0, other.add(0, ["a"], [9]))
    other.join(0, other.add(1, ["b", "a", "a"], [7, 5, -1], [2, 0, 1]))
    for made in (cache, other):
        images, windows = made.windows_of(made.rows_of(0))
        assert list(zip(images, windows.tolist(), strict=True)) == [("a", -1), ("a", 5), ("a", 9), ("b", 7)]
    assert where(other, other.rows_of(0)) == [(0, [0], [2]), (1, [0, 1, 2], [1, 0, 3])]


def test_a_class_without_windows_has_no_places(cache):
    assert cache.rows_of(1).tolist() == []
    assert cache.places(cache.rows_of(1)) == []


def test_places_follow_the_rows_that_are_left_of_a_class(cache):
    """After a training the rows are chosen from by their scores, which are in the order of ``rows_of``."""
    rows = cache.rows_of(0)[[True, False, True, True]]
    assert where(cache, rows) == [(2, [0], [1]), (4, [1, 2], [2, 0])]


def test_a_window_that_left_its_last_class_stays_known_while_its_block_does(cache):
    cache.evict(0, np.array([cache.row("b", 7)]))
    assert cache.unused({2: None, 4: None}) == []
    ids, joined = cache.known(["b"])["b"]
    assert (ids.tolist(), joined.tolist()) == ([7], [[False, False]])


def test_a_block_that_no_class_uses_is_forgotten_with_its_windows(cache):
    cache.join(1, np.array([cache.row("b", 7)]))
    cache.evict(0, cache.rows_of(0))
    assert cache.unused({2: None, 4: None}) == [2]
    assert cache.row("a", 9) is None
    assert cache.known("ab")["a"][0].tolist() == [5, -1]
    cache.evict(1, cache.rows_of(1))
    assert cache.unused({4: None}) == [4]
    assert cache.known("ab") == {}
    assert cache.add(4, ["b"], [7]).tolist() == [4]


def test_a_block_without_windows_is_unused(cache):
    assert cache.unused({2: None, 3: None, 4: None}) == [3]
    assert cache.count().tolist() == [4, 0]
