import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import as_boxes
from pipeline.errors import ProposalError
from pipeline.proposals import opencv_search
from pipeline.proposals.methods import AlpacaSelectiveSearch, OpenCVSelectiveSearch, propose, seed_of
from pipeline.proposals.opencv_search import OpenCVSearch, SearchCrashed
from pipeline.proposals.ranked_boxes import RankedBoxes
from pipeline.proposals.recall import best_overlaps
from pipeline.proposals.selective_search import SelectiveSearch

pytestmark = pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern`")

FAST, OPENCV = SelectiveSearch(), OpenCVSelectiveSearch()
ALPACA = AlpacaSelectiveSearch(scale=100, min_size=20)
SEARCHES = [FAST, OPENCV, ALPACA]


def searched(*given, **options):
    return propose(*given, **options).boxes


def picture(seed=0, height=120, width=160):
    """Coloured rectangles over noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, height - 40), rng.integers(0, width - 40)
        image[y : y + rng.integers(25, 60), x : x + rng.integers(25, 60)] = rng.integers(0, 256, 3)
    return image


# --- real methods ---


@pytest.mark.parametrize("method", SEARCHES)
def test_boxes_lie_in_the_image_have_long_sides_and_never_repeat(method):
    image = picture()
    boxes = searched(method, image, seed=1)
    assert len(boxes) > 1
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [160, 120]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    np.testing.assert_array_equal(boxes, np.round(boxes), "an image searched at its own size has whole pixels")


@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_seed_gives_the_same_boxes_in_any_order_of_images_and_in_threads(method):
    images = {name: picture(seed, 80, 100) for seed, name in enumerate("abcd")}

    def search(name):
        return searched(method, images[name], seed_of(name, 7))

    expected = {name: search(name) for name in images}
    shuffled = random.Random(0).sample(sorted(images) * 2, 8)
    for name in shuffled:
        np.testing.assert_array_equal(search(name), expected[name])
    with ThreadPoolExecutor(4) as workers:
        for name, found in zip(shuffled, workers.map(search, shuffled), strict=True):
            np.testing.assert_array_equal(found, expected[name])


def test_another_process_finds_the_same_boxes_in_the_same_order(tmp_path):
    images = [picture(seed, 80, 100) for seed in range(3)]
    np.save(tmp_path / "images.npy", images)
    script = """
import sys
import numpy as np
from pipeline.proposals.methods import propose
from pipeline.proposals.selective_search import SelectiveSearch
images = np.load(sys.argv[1])
np.savez(sys.argv[2], *[propose(SelectiveSearch(), image, 7).boxes for image in images[::-1]])
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "images.npy", tmp_path / "boxes.npz"], check=True)
    with np.load(tmp_path / "boxes.npz") as elsewhere:
        for name, image in zip(elsewhere.files, images[::-1], strict=True):
            np.testing.assert_array_equal(elsewhere[name], searched(FAST, image, 7))


def test_another_seed_ranks_opencvs_boxes_otherwise():
    ranked = [searched(OPENCV, picture(), seed) for seed in (1, 2)]
    assert not np.array_equal(*ranked)
    assert set(map(tuple, ranked[0].tolist())) == set(map(tuple, ranked[1].tolist()))


def test_objects_that_stand_out_are_searched():
    image = picture(height=150, width=200) * 0 + 120
    image[30:90, 40:110] = [200, 30, 30]
    image[70:140, 130:190] = [30, 30, 220]
    for method in SEARCHES:
        overlaps = best_overlaps(as_boxes([[40, 30, 110, 90], [130, 70, 190, 140]]), searched(method, image, 0))
        assert (overlaps > 0.9).all()


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("size", [(60, 80), (20, 20), (20, 400), (400, 21)])
def test_a_blank_image_has_one_box_itself(method, size):
    blank = np.full((*size, 3), 40, np.uint8)
    assert searched(method, blank, 0).tolist() == [[0, 0, size[1], size[0]]]


def test_opencvs_boxes_are_those_of_its_own_call_on_bgr():
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR))
    search.switchToSelectiveSearchFast(50, 50, 0.8)
    expected = {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}  # in an order of this process's own
    found = OPENCV(picture(), 3).boxes
    assert set(map(tuple, found.tolist())) == expected
    assert len(found) == len(expected)
    search.setBaseImage(picture())
    search.switchToSelectiveSearchFast(50, 50, 0.8)
    assert {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()} != expected, "channels matter"


# --- the rules common to all methods, with a method of known boxes ---


@dataclass(frozen=True)
class Fixed:
    boxes: tuple
    searched: list

    def __call__(self, image, seed):
        self.searched.append((image.shape, seed))
        return RankedBoxes(as_boxes(self.boxes))

    def warm_up(self):
        pass


def fixed(*boxes):
    return Fixed(boxes, [])


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


def test_the_first_of_equal_boxes_keeps_its_rank():
    method = fixed([0, 0, 50, 50], [5, 5, 60, 60], [0, 0, 50, 50], [1, 1, 40, 40], [5, 5, 60, 60])
    assert searched(method, blank(100, 100), 0).tolist() == [[0, 0, 50, 50], [5, 5, 60, 60], [1, 1, 40, 40]]


def test_a_side_of_20_is_kept_and_of_19_dropped():
    method = fixed([0, 0, 20, 20], [0, 0, 19, 50], [0, 0, 50, 19], [9, 9, 29, 99])
    assert searched(method, blank(100, 100), 0).tolist() == [[0, 0, 20, 20], [9, 9, 29, 99]]


def test_max_boxes_counts_what_is_left_after_the_other_rules():
    method = fixed([0, 0, 5, 5], [0, 0, 50, 50], [0, 0, 50, 50], [1, 1, 40, 40], [2, 2, 30, 30])
    assert searched(method, blank(100, 100), 0, max_boxes=2).tolist() == [[0, 0, 50, 50], [1, 1, 40, 40]]


@pytest.mark.parametrize("method", SEARCHES)
def test_max_boxes_keeps_the_best_ranked(method):
    everything = searched(method, picture(), 5)
    np.testing.assert_array_equal(searched(method, picture(), 5, max_boxes=3), everything[:3])


def test_an_image_of_500_pixels_is_searched_as_it_is_and_one_more_is_not():
    method = fixed([10, 10, 60, 60])
    assert searched(method, blank(300, 500), 9).tolist() == [[10, 10, 60, 60]]
    searched(method, blank(300, 501), 9)
    assert method.searched == [((300, 500, 3), 9), ((299, 500, 3), 9)]


def test_a_large_image_is_searched_small_and_its_boxes_scaled_back():
    method = fixed([0, 0, 500, 250], [50, 100, 150, 200], [0, 0, 19, 250])
    found = searched(method, blank(1000, 2000), 0)
    assert method.searched == [((250, 500, 3), 0)]
    # the last one has 76 pixels, but fewer than 20 where it was searched
    assert found.tolist() == [[0, 0, 2000, 1000], [200, 400, 600, 800]]


def test_without_max_side_every_image_is_searched_as_it_is():
    method = fixed([10, 10, 60, 60])
    assert searched(method, blank(1000, 2000), 0, max_side=None).tolist() == [[10, 10, 60, 60]]


@settings(max_examples=40)
@given(st.integers(500, 2000), st.integers(20, 2000))
def test_the_whole_searched_image_is_the_whole_image_and_none_reaches_beyond(height, width):
    method = fixed()

    class Whole:
        def __call__(self, image, seed):
            method(image, seed)
            h, w = image.shape[:2]
            return RankedBoxes(as_boxes([[0, 0, w, h], [w - 20, h - 20, w, h]]))

    found = searched(Whole(), np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3)), 0)
    for shape, _ in method.searched:
        assert max(shape) <= 500
        x, y = width - 20 * width / shape[1], height - 20 * height / shape[0]
        np.testing.assert_allclose(found, [[0, 0, width, height], [x, y, width, height]], rtol=1e-5, atol=1e-3)
        assert (found <= np.array([width, height, width, height], np.float32)).all()
    assert bool(len(found)) == bool(method.searched)


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (19, 300), (300, 19), (30, 5000)])
def test_an_image_too_small_for_a_box_has_none_and_is_not_searched(size):
    method = fixed([0, 0, 50, 50])
    assert searched(method, blank(*size), 0).shape == (0, 4)
    assert method.searched == []


@pytest.mark.parametrize("method", SEARCHES)
def test_small_sides_may_be_asked_for(method):
    assert searched(method, blank(5, 5), 0, min_side=1).tolist() == [[0, 0, 5, 5]]
    assert searched(method, blank(1, 9), 0, min_side=1).shape == (0, 4)


def test_seeds_are_32_bits_and_differ_by_image_and_seed():
    seeds = {seed_of(image, seed) for image in ("a", "b", "1a") for seed in (0, 1, 10)}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of("2007_000027", 0) == seed_of("2007_000027", 0)
    assert seed_of("1", 1) != seed_of("11", 0)


# --- OpenCV's process ---


def test_a_search_that_dies_fails_its_image_and_not_the_next(monkeypatch):
    search = OpenCVSearch()
    expected = search(picture(), 50, 50, 0.8, 3)
    child = search._child
    child.kill()
    child.wait()
    # found dead before the question: a new child answers
    np.testing.assert_array_equal(search(picture(), 50, 50, 0.8, 3), expected)
    child = search._child
    poll = child.poll
    monkeypatch.setattr(child, "poll", lambda: None)
    child.kill()
    while poll() is None:
        pass
    # dead, and not known to be: this image fails
    with pytest.raises(SearchCrashed, match=r"died \(exit code -9\)"):
        search(picture(), 50, 50, 0.8, 3)
    np.testing.assert_array_equal(search(picture(), 50, 50, 0.8, 3), expected)
    search.close()


def test_a_search_that_is_interrupted_does_not_answer_the_next_image(monkeypatch):
    search, first, second = OpenCVSearch(), picture(1), picture(2)
    expected = search(second, 50, 50, 0.8, 3)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opencv_search, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(first, 50, 50, 0.8, 3)
    np.testing.assert_array_equal(search(second, 50, 50, 0.8, 3), expected)
    search.close()


def test_what_opencv_refuses_is_a_proposal_error():
    with pytest.raises(ProposalError, match=r"another proposals\.method"):
        OPENCV(np.zeros((0, 5, 3), np.uint8), 0)
    assert len(OPENCV(picture(), 0)) > 1


def test_a_closed_search_leaves_no_process():
    search = OpenCVSearch()
    search(picture(), 50, 50, 0.8, 3)
    child = search._child
    search.close()
    search.close()
    assert child.poll() == 0


def test_the_callers_own_random_numbers_change_nothing():
    """C's rand() has one stream in a process: drawn from by others while OpenCV ranks, it would rank otherwise."""
    import ctypes

    expected = searched(OPENCV, picture(), 4)
    stop = threading.Event()

    def draw():
        libc = ctypes.CDLL(None)
        while not stop.is_set():
            libc.rand()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(3):
            np.testing.assert_array_equal(searched(OPENCV, picture(), 4), expected)
    finally:
        stop.set()
        thread.join()
