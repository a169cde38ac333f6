import colorsys
import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from pipeline.boxes import as_boxes, first_of_duplicates
from pipeline.images.decode import decode_image
from pipeline.phases import PhaseClock
from pipeline.proposals.methods import propose
from pipeline.proposals.selective_search import SelectiveSearch, conversion, grouping, regions, segmentation
from tests import selective_search_reference as reference

SEARCH = SelectiveSearch()
EVERY_SIZE = [1, 2, 3, 5, 8, 13, 21, 32]
TOUCHING = np.ones((3, 3))
"""For scipy: pixels that meet at a corner are connected."""


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    SEARCH.warm_up()


@pytest.fixture(scope="module")
def photograph(shared):
    path = min((shared / "data/voc_subset/VOCdevkit/VOC2012/JPEGImages").iterdir())
    return decode_image(path.read_bytes())


def picture(seed=0, height=60, width=80):
    """Coloured rectangles over noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(80, 140, (height, width, 3)).astype(np.uint8)
    for _ in range(8):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + rng.integers(4, 30), x : x + rng.integers(4, 30)] = rng.integers(0, 256, 3)
    return image


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def flat(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def blurred(image, sigma=0.8):
    return conversion._blur(image, sigma)


def weights_of(image, sigma=0.8, prune=False):
    weights = segmentation.edge_weights(blurred(image, sigma))
    if prune:
        segmentation.prune(weights)
    return weights


def rows(found):
    """What is known of each box, in order."""
    boxes = map(tuple, found.boxes.astype(int).tolist())
    return list(zip(boxes, found.strategies.tolist(), found.levels.tolist(), strict=True))


def assert_same(found, expected):
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.strategies, expected.strategies)
    np.testing.assert_array_equal(found.levels, expected.levels)
    assert found.names == expected.names


@st.composite
def graphs(draw, most=12):
    """Weights of small images: few levels, so that many are equal, or many; near a unit of 64 steps, or far from it."""
    height, width = draw(st.sampled_from(range(most, 0, -1))), draw(st.sampled_from(range(most, 0, -1)))  # large: first
    levels = draw(st.sampled_from([[0], [0, 1], [0, 16, 32, 64], [63, 64, 65], range(40), range(0, 6400, 7), [28267]]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.choice(np.array(levels, np.uint16), (4, height, width))
    weights[0, :, -1] = weights[1:, -1] = weights[2, :, -1] = weights[3, :, 0] = segmentation.NO_EDGE
    return weights


# --- colours and blur ---


def test_rgb_stays_as_it_is():
    np.testing.assert_array_equal(conversion._convert(picture(), "rgb"), picture())


def test_hsv_is_colorsyss_with_all_three_from_0_to_255():
    image = noise(1, 20, 20)
    found = conversion._convert(image, "hsv").reshape(-1, 3).astype(int)
    for rgb, (hue, saturation, value) in zip(image.reshape(-1, 3) / 255, found, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        assert abs((hue - 256 * h + 128) % 256 - 128) <= 1, "a full turn is 256"
        assert abs(saturation - 255 * s) <= 1
        assert value == round(255 * v)


def test_lab_is_cies_with_the_lightness_from_0_to_255_and_128_for_no_hue():
    image = noise(2, 20, 20)
    linear = np.where(image / 255 <= 0.04045, image / 255 / 12.92, ((image / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = (116 * f[..., 1] - 16) * 255 / 100
    expected = np.stack([lightness, 500 * (f[..., 0] - f[..., 1]) + 128, 200 * (f[..., 1] - f[..., 2]) + 128], axis=2)
    np.testing.assert_allclose(conversion._convert(image, "lab"), expected, atol=1.6)


@pytest.mark.parametrize("sigma", [0, 0.1, 0.5, 0.8, 1.5, 4])
def test_a_flat_image_stays_flat_whatever_the_blur(sigma):
    for value in (0, 1, 77, 254, 255):
        assert (blurred(flat(5, 7, value), sigma) == 256 * value).all()


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.8, 1.3, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3), (25, 31)])
def test_the_blur_is_scipys_gaussian_cut_at_four_sigma(sigma, size):
    image = noise(3, *size)
    radius = int(np.ceil(4 * sigma))
    expected = [
        ndimage.gaussian_filter(channel, sigma, mode="nearest", radius=radius)
        for channel in np.moveaxis(image, 2, 0).astype(float)
    ]
    np.testing.assert_allclose(blurred(image, sigma) / 256, expected, atol=3 / 256)


def test_without_a_blur_planes_are_colours_in_256ths():
    image = noise(4, 6, 5)
    np.testing.assert_array_equal(blurred(image, 0), np.moveaxis(image, 2, 0).astype(int) * 256)


# --- the graph of pixels ---


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (40, 50)])
def test_weights_are_distances_of_colours_to_the_nearest_64th(size):
    for planes in (blurred(noise(5, *size)), blurred(picture(5, *size))):
        found, expected = segmentation.edge_weights(planes), reference.edge_weights(planes)
        np.testing.assert_array_equal(found == segmentation.NO_EDGE, expected == reference.NO_EDGE)
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.002, "only where float32 does not tell a half"


def test_a_weight_is_64_to_a_unit_of_colour():
    image = np.array([[[0, 0, 0], [255, 255, 255]], [[3, 4, 0], [0, 0, 1]]], np.uint8)
    right, down, falling, rising = weights_of(image, sigma=0)
    assert down[0, 0] == 64 * 5
    assert falling[0, 0] == 64
    assert right[0, 0] == round(64 * 255 * 3**0.5)
    assert rising[0, 1] == round(64 * (252**2 + 251**2 + 255**2) ** 0.5)
    assert right[1, 0] == round(64 * (9 + 16 + 1) ** 0.5)


@settings(max_examples=60)
@given(graphs(8))
def test_an_edge_goes_if_it_is_the_heaviest_of_a_cycle_in_a_block(weights):
    found = weights.copy()
    segmentation.prune(found)
    np.testing.assert_array_equal(found, reference.pruned(weights))


def test_pruning_a_picture_leaves_out_what_the_reference_does():
    weights = weights_of(picture(6, 20, 24))
    found = weights.copy()
    segmentation.prune(found)
    np.testing.assert_array_equal(found, reference.pruned(weights))
    assert (found != weights).mean() > 0.4


def tree_weight(weights):
    """Of the minimum spanning tree; plus 1 for each edge, as scipy takes 0 for no edge."""
    _, height, width = weights.shape
    direction, y, x = np.nonzero(weights != segmentation.NO_EDGE)
    down, across = np.array(reference.NEIGHBOURS)[direction].T
    ends = (y * width + x, (y + down) * width + x + across)
    graph = coo_array((weights[direction, y, x].astype(int) + 1, ends), shape=(height * width,) * 2)
    return minimum_spanning_tree(graph.tocsr()).sum()


@given(graphs())
def test_pruning_keeps_the_minimum_spanning_tree(weights):
    before = tree_weight(weights)
    segmentation.prune(weights)
    assert tree_weight(weights) == before


# --- segmentation ---


@settings(max_examples=400)
@given(
    graphs(),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 50, 200]), st.integers(0, 40)), min_size=1, max_size=3),
)
def test_segments_are_the_references(weights, prune, choices):
    """Small k too, whose thresholds fall by few steps from one size to the next."""
    if prune:
        segmentation.prune(weights)
    ks, min_sizes = zip(*choices, strict=True)
    found = segmentation.segment(weights, ks, min_sizes)
    for labels, k, min_size in zip(found, ks, min_sizes, strict=True):
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, reference.segment(weights, k, min_size))
        first = np.unique(labels, return_index=True)[1]
        assert (np.unique(labels) == np.arange(labels.max() + 1)).all()
        assert (np.diff(first) > 0).all(), "numbered in the order of first pixels"
        assert np.bincount(labels.ravel()).min() >= min(min_size, labels.size)


@pytest.mark.parametrize("prune", [False, True])
def test_segments_of_a_photograph_are_the_references(photograph, prune):
    crop = conversion._convert(photograph[100:160, 120:200], "hsv")
    weights = weights_of(crop, prune=prune)
    for labels, (k, min_size) in zip(
        segmentation.segment(weights, [50, 100, 5], [50, 100, 10]), [(50, 50), (100, 100), (5, 10)], strict=True
    ):
        assert labels.max() > 3
        np.testing.assert_array_equal(labels, reference.segment(weights, k, min_size))


@pytest.mark.parametrize("size", [(3, 700), (700, 3), (1, 2000), (40, 50)])
def test_segments_of_more_edges_than_a_block_has_are_the_references(size):
    weights = weights_of(picture(7, *size))
    np.testing.assert_array_equal(segmentation.segment(weights, [20])[0], reference.segment(weights, 20, 20))


def test_a_smallest_size_that_is_not_given_is_k():
    weights = weights_of(noise(8, 30, 30))
    found = segmentation.segment(weights, [5, 30])
    for labels, expected in zip(found, segmentation.segment(weights, [5, 30], [5, 30]), strict=True):
        np.testing.assert_array_equal(labels, expected)
    assert found[0].max() > found[1].max() > 0


@pytest.mark.parametrize("k", [0, -1, (1 << 25) + 1])
def test_a_k_beyond_what_32_bits_count_is_refused(k):
    with pytest.raises(ValueError, match="k must be from 1 to"):
        segmentation.segment(weights_of(flat(3, 3)), [50, k])


def test_the_greatest_k_makes_one_segment():
    """Of its threshold, no bit is lost."""
    weights = weights_of(noise(9, 12, 12), sigma=0)
    assert not segmentation.segment(weights, [1 << 25], [1])[0].any()


def test_an_image_of_more_pixels_than_an_edges_number_holds_is_refused():
    huge = np.broadcast_to(np.uint16(0), (4, 1 << 16, (1 << 14) + 1))
    with pytest.raises(ValueError, match="16385 x 65536 has more than 2\\^30 pixels"):
        segmentation.segment(huge, [50])


# --- regions ---


def described(image, k, min_size, sigma=0.8):
    """The package's Regions and the reference's, of one segmentation."""
    planes = blurred(image, sigma)
    labels = segmentation.segment(segmentation.edge_weights(planes), [k], [min_size])[0]
    found = regions.describe(labels, regions.pixel_codes(image, planes))
    return found, reference.describe(labels, image, planes)


@pytest.mark.parametrize("make", [noise, picture])
def test_every_pixel_falls_into_the_references_bins(make):
    """Each pixel a region of its own: its histograms say its bins."""
    image = make(10, 24, 30)
    for sigma in (0, 0.8):
        planes = blurred(image, sigma)
        codes = regions.pixel_codes(image, planes)
        counts = regions.describe(np.arange(720, dtype=np.int32).reshape(24, 30), codes).counts
        colour, texture = reference.pixel_bins(image, planes)
        in_bins = counts[:, : regions.COLOUR].reshape(24, 30, 3, 25)
        np.testing.assert_array_equal(in_bins.argmax(axis=3), colour)
        in_bins = counts[:, regions.COLOUR :].reshape(24, 30, 3, 8, 10)
        np.testing.assert_array_equal(in_bins.argmax(axis=4), texture)
        assert (in_bins.sum(axis=4) == 1).all()
        assert len(np.unique(texture)) == 10


def test_all_values_of_colour_fall_into_25_bins_of_about_ten():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    codes = regions.pixel_codes(image, blurred(image))[:3].reshape(3, -1)
    for channel in codes:
        assert set(np.bincount(channel)) == {10, 11}
        assert len(np.bincount(channel)) == 25
        assert (np.diff(channel.astype(int)) >= 0).all()


@pytest.mark.parametrize("orientation", range(8))
def test_a_ramp_rises_along_its_orientation_and_less_along_those_beside_it(orientation):
    """By 6 or 8.5 units a pixel, which are 2.5 or 3.5 tenths of the steepest; 45 degrees away, by 4.2 or 6."""
    angles = [0, 180, 90, 270, 45, 225, 315, 135]  # clockwise from the right, in the order of the histogram
    y, x = np.mgrid[-4:5, -4:5]
    across, down = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)][orientation]
    image = (120 + 6 * (across * x + down * y)).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    counts = regions.describe(np.zeros((9, 9), np.int32), regions.pixel_codes(image, blurred(image, 0))).counts[0]
    bins = counts[regions.COLOUR :].reshape(3, 8, 10).argmax(axis=2)
    own, beside = (3, 2) if across and down else (2, 1)
    turns = [(angle - angles[orientation]) % 360 for angle in angles]
    assert bins.tolist() == [[{0: own, 45: beside, 315: beside}.get(turn, 0) for turn in turns]] * 3


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([noise, picture, lambda seed, h, w: noise(seed, h, w) // 128 * 255]),
    st.integers(1, 60),
    st.integers(0, 12),
)
def test_regions_are_the_references(seed, height, width, make, k, min_size):
    found, expected = described(make(seed, height, width), k, min_size, sigma=seed % 2 * 0.8)
    assert found.pixels == height * width
    assert found.sizes.tolist() == [region.size for region in expected]
    assert found.boxes.tolist() == [list(region.box) for region in expected]
    colour, texture = found.counts[:, : regions.COLOUR], found.counts[:, regions.COLOUR :]
    np.testing.assert_array_equal(colour, [region.colour for region in expected])
    np.testing.assert_array_equal(texture, [region.texture for region in expected])
    assert list(map(tuple, found.pairs.tolist())) == [
        (a, b) for a, region in enumerate(expected) for b in sorted(region.neighbours) if a < b
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_neighbours_of_any_labels_are_those_that_touch(seed, height, width, count):
    """Regions in pieces too: each block of 2 x 2 labels that there can be."""
    drawn = np.random.default_rng(seed).integers(0, count, (height, width))
    labels = np.unique(drawn, return_inverse=True)[1].reshape(height, width).astype(np.int32)
    touching = set()
    for y, x, (down, across) in itertools.product(range(height), range(width), reference.NEIGHBOURS):
        if y + down < height and 0 <= x + across < width:
            touching.add(tuple(sorted((int(labels[y, x]), int(labels[y + down, x + across])))))
    found = regions.describe(labels, np.zeros((15, height, width), np.uint8)).pairs
    assert list(map(tuple, found.tolist())) == sorted((a, b) for a, b in touching if a != b)


def crossing_lines(side):
    """Labels: one diagonal way on the white fields of a chessboard, the other on the black: all cross at corners."""
    y, x = np.mgrid[:side, :side]
    lines = np.where((x + y) % 2 == 0, x - y, 10 * side + x + y)
    return np.unique(lines, return_inverse=True)[1].reshape(side, side).astype(np.int32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_lines_that_all_cross_have_more_neighbours_than_regions_of_a_plane_could():
    """Regions that hang together at corners alone can cross, so their number does not bound that of pairs.

    In a child, for a search without an end could not be stopped here.
    """
    labels = crossing_lines(200)
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    sides += [(labels[:-1, :-1], labels[1:, 1:]), (labels[1:, :-1], labels[:-1, 1:])]
    ends = np.concatenate([np.sort(np.stack([a, b], axis=-1).reshape(-1, 2), axis=1) for a, b in sides])
    expected = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    assert len(expected) > 32 * (labels.max() + 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # one in Python would wait for compiled code to return
        signal.alarm(120)
        found = regions.describe(labels, np.zeros((15, 200, 200), np.uint8)).pairs
        os._exit(0 if np.array_equal(found, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- grouping ---


def links(shape, count, rng):
    """Pairs that connect ``count`` regions: in a row, around one, all with all, or by chance."""
    if shape == "row":
        return {(i, i + 1) for i in range(count - 1)}
    if shape == "star":
        return {(0, i) for i in range(1, count)}
    if shape == "wheel":
        rim = {(i, i + 1) for i in range(1, count - 1)}
        return {(0, i) for i in range(1, count)} | rim | ({(1, count - 1)} if count > 2 else set())
    if shape == "all":
        return set(itertools.combinations(range(count), 2))
    tree = {(int(rng.integers(0, i)), i) for i in range(1, count)}
    more = rng.integers(0, count, (count, 2)).tolist()
    return tree | {(min(pair), max(pair)) for pair in more if pair[0] != pair[1]}


def region_graph(seed, count, shape, kinds, sizes):
    """Regions of no image, for the package and for the reference; few ``kinds`` and ``sizes`` make many equal pairs."""
    rng = np.random.default_rng(seed)
    renumbered = rng.permutation(count)
    pairs = sorted(tuple(sorted(int(renumbered[i]) for i in pair)) for pair in links(shape, count, rng))
    size = rng.choice(sizes, count)
    low = rng.integers(0, (36, 26), (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 5, (count, 2))], axis=1)
    if kinds:  # a histogram is one of a few, all pixels in one bin
        kind = rng.integers(0, kinds, count)
        colour = np.zeros((count, 3, 25), int)
        texture = np.zeros((count, 24, 10), int)
        colour[np.arange(count), :, kind] = texture[np.arange(count), :, kind % 10] = size[:, None]
    else:
        colour = rng.multinomial(size[:, None], rng.dirichlet(np.ones(25)), (count, 3))
        texture = rng.multinomial(size[:, None], rng.dirichlet(np.ones(10)), (count, 24))
    counts = np.concatenate([colour.reshape(count, -1), texture.reshape(count, -1)], axis=1).astype(np.int32)
    given = regions.Regions(
        1200,
        size.astype(np.int64),
        boxes.astype(np.int32),
        counts,
        np.array(pairs, np.int32).reshape(-1, 2),
    )
    return given, [
        reference.Region(
            frozenset({i}),
            int(size[i]),
            tuple(boxes[i].tolist()),
            counts[i, :75].astype(int),
            counts[i, 75:].astype(int),
            {a + b - i for a, b in pairs if i in (a, b)},
        )
        for i in range(count)
    ]


def assert_grouped_as_the_reference(given, segments, colour):
    before = [array.copy() for array in (given.sizes, given.boxes, given.counts, given.pairs)]
    found = grouping.group(given, colour)
    expected = reference.group(segments, given.pixels, colour)
    assert found.shape == (2 * len(segments) - 1, 4)
    assert list(map(tuple, found.tolist())) == [region.box for region in expected]
    for array, old in zip((given.sizes, given.boxes, given.counts, given.pairs), before, strict=True):
        np.testing.assert_array_equal(array, old, "what is given stays, for the next grouping")


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.sampled_from(["row", "star", "wheel", "all", "chance"]),
    st.sampled_from([0, 1, 2, 12]),
    st.sampled_from([[8], [1, 2], list(range(1, 50))]),
    st.booleans(),
)
def test_regions_are_grouped_as_by_the_reference(seed, count, shape, kinds, sizes, colour):
    assert_grouped_as_the_reference(*region_graph(seed, count, shape, kinds, sizes), colour)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(
    ("shape", "count", "kinds", "sizes"),
    [("star", 110, 0, [1, 2, 3]), ("star", 90, 1, [4]), ("wheel", 100, 3, [1, 5]), ("all", 24, 0, [7])],
)
def test_regions_with_many_neighbours_are_grouped_as_by_the_reference(shape, count, kinds, sizes, colour):
    """So many pairs come up that the heap must make room, more than once for a star."""
    assert_grouped_as_the_reference(*region_graph(11, count, shape, kinds, sizes), colour)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("palette", [1, 2, 5])
def test_equal_tiles_are_grouped_as_by_the_reference(palette, colour):
    """Hardly a choice that is not between equals, and corners where four regions meet."""
    tiles = np.arange(42, dtype=np.int32).reshape(6, 7)
    colours = np.random.default_rng(palette).integers(0, 256, (palette, 3)).astype(np.uint8)
    image = colours[np.arange(42) % palette].reshape(6, 7, 3).repeat(3, axis=0).repeat(3, axis=1)
    labels = tiles.repeat(3, axis=0).repeat(3, axis=1)
    planes = blurred(image)
    found = regions.describe(labels, regions.pixel_codes(image, planes))
    assert_grouped_as_the_reference(found, reference.describe(labels, image, planes), colour)


def test_of_equally_similar_pairs_the_lowest_numbers_go_first():
    """Four alike in a row, in one row of pixels: 0+1, then 2+3, as 1+2 is no more; without histograms to tell."""
    labels = np.arange(4, dtype=np.int32).reshape(1, 4)
    image = flat(1, 4)
    found = regions.describe(labels, regions.pixel_codes(image, blurred(image)))
    assert grouping.group(found, True)[4:].tolist() == [[0, 0, 2, 1], [2, 0, 4, 1], [0, 0, 4, 1]]


@pytest.mark.parametrize(("more", "first"), [(-1, (4, 11)), (0, (4, 11)), (1, (10, 20))])
def test_one_part_of_65535_decides(more, first):
    """Three in a row, of as many pixels as a histogram has parts. In an image of 1,200, the box of the left two, 7 x 1,
    takes ONE * 7 / 1200 = 9174.9 off their similarity, of which 9174 count; that of the right two, 10 x 1, takes 13107.
    """
    counts = np.zeros((3, regions.COLOUR + regions.TEXTURE), np.int32)
    shared = [20_000, 65_535, 20_000 + 13_107 - 9_174 + more]
    counts[:, -10], counts[:, -9] = shared, 65_535 - np.array(shared)
    boxes = np.array([[4, 0, 5, 1], [10, 0, 11, 1], [19, 0, 20, 1]], np.int32)
    pairs = np.array([[0, 1], [1, 2]], np.int32)
    found = grouping.group(regions.Regions(1200, np.full(3, 65_535), boxes, counts, pairs), colour=False)
    assert found[3:].tolist() == [[first[0], 0, first[1], 1], [4, 0, 20, 1]]


def test_the_heap_of_a_star_stays_in_proportion_to_its_pairs(monkeypatch):
    """Run uncompiled to watch it: 150 regions around one bring up 11,000 pairs, at no time more than 2 x 150 and 64."""
    given, _ = region_graph(12, 151, "star", 0, [1, 2, 3])
    lengths, make_room = [], grouping._make_room

    def watched(similarities, heap, alive):
        made = make_room(similarities, heap, alive)
        lengths.extend([len(heap), len(made[1])])
        assert made[2] < len(made[1]) == len(made[0])
        return made

    monkeypatch.setattr(grouping, "_make_room", watched)
    boxes = np.empty((301, 4), np.int32)
    boxes[:151] = given.boxes
    grouping._group.py_func(1200, given.sizes.copy(), given.counts.copy(), given.pairs, regions.COLOUR, boxes)
    assert len(lengths) > 20
    assert max(lengths) <= 2 * 150 + 64
    np.testing.assert_array_equal(boxes, grouping.group(given, True))


# --- the whole search ---


def spaces_of(image, search):
    """Colours, planes and weights by the package, each tested above, for the reference to go on from."""
    for colour in search.colours:
        colours = conversion._convert(image, colour)
        yield colours, blurred(colours, search.sigma), weights_of(colours, search.sigma, search.prune)


def assert_found_as_by_the_reference(search, image, seed):
    expected = reference.search(spaces_of(image, search), search.ks, search.similarities, seed)
    found = search(image, seed)
    assert rows(found) == expected
    assert (found.boxes.dtype, found.strategies.dtype, found.levels.dtype) == (np.float32, np.int16, np.int32)


@pytest.mark.parametrize(
    "search",
    [
        SelectiveSearch(),
        SelectiveSearch(prune=True),
        SelectiveSearch(colours=("rgb",), ks=(3, 20), similarities=("tsf", "ctsf"), sigma=0.5),
    ],
)
def test_boxes_strategies_levels_and_ranks_are_the_references(search):
    for seed, image in enumerate([picture(13, 30, 36), noise(14, 20, 28), flat(9, 4)]):
        assert_found_as_by_the_reference(search, image, seed)


def test_the_boxes_of_a_photograph_are_the_references(photograph):
    assert_found_as_by_the_reference(SelectiveSearch(ks=(20, 50)), photograph[150:190, 200:250], 7)


@pytest.mark.parametrize("colour", [True, False])
def test_every_box_bounds_a_region_that_hangs_together(colour):
    image = noise(15, 26, 32)
    planes = blurred(image)
    weights = segmentation.edge_weights(planes)
    segmentation.prune(weights)
    for labels in segmentation.segment(weights, [5, 50]):
        found = grouping.group(regions.describe(labels, regions.pixel_codes(image, planes)), colour)
        made = reference.group(reference.describe(labels, image, planes), labels.size, colour)
        assert len(found) == len(made) > 3
        for box, region in zip(found.tolist(), made, strict=True):
            covered = np.isin(labels, list(region.parts))
            assert ndimage.label(covered, TOUCHING)[1] == 1
            y, x = np.nonzero(covered)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_hierarchy_of_r_segments_has_2r_less_1_levels_and_the_image_on_top():
    image = picture(16)
    found = SEARCH(image, 3)
    assert found.names == (
        *("hsv-50-ctsf", "hsv-50-tsf", "hsv-100-ctsf", "hsv-100-tsf"),
        *("lab-50-ctsf", "lab-50-tsf", "lab-100-ctsf", "lab-100-tsf"),
    )
    strategy = 0
    for _, _, weights in spaces_of(image, SEARCH):
        for labels in segmentation.segment(weights, SEARCH.ks):
            for _ in SEARCH.similarities:
                of_this = found[found.strategies == strategy]
                assert sorted(of_this.levels) == list(range(1, 2 * labels.max() + 2))
                assert of_this[of_this.levels == 1].boxes.tolist() == [[0, 0, 80, 60]]
                strategy += 1
    assert strategy == 8
    assert found.strategies.max() == 7


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_a_place_is_a_level_times_chance(seed):
    """The same seed gives the same order, another one another order of the same boxes."""
    image = picture(17, 30, 40)
    found, again, other = SEARCH(image, seed), SEARCH(image, seed), SEARCH(image, seed + 1)
    assert_same(found, again)
    assert rows(found) != rows(other)
    assert sorted(rows(found)) == sorted(rows(other))
    in_order = sorted(rows(found), key=lambda row: (row[1], -row[2]))  # hierarchies, each from the segments up
    chance = np.random.Generator(np.random.PCG64(seed)).random(len(found))
    place = {row: row[2] * drawn for row, drawn in zip(in_order, chance, strict=True)}
    places = [place[row] for row in rows(found)]
    assert places == sorted(places)


def test_high_levels_come_early():
    levels = np.concatenate([SEARCH(picture(18), seed).levels[:40] for seed in range(20)])
    assert levels.mean() < 0.6 * SEARCH(picture(18), 0).levels.mean()


def test_four_threads_find_what_one_does():
    images = [picture(seed, 70, 90) for seed in range(6)] * 4
    expected = [SEARCH(image, seed) for seed, image in enumerate(images)]
    with ThreadPoolExecutor(4) as workers:
        for found, alone in zip(workers.map(SEARCH, images, range(len(images))), expected, strict=True):
            assert_same(found, alone)


def test_whatever_is_compiled_releases_the_gil():
    compiled = [
        function
        for module in (conversion, segmentation, regions, grouping)
        for function in vars(module).values()
        if hasattr(function, "py_func")
    ]
    assert len(compiled) > 10
    assert all(function.targetoptions.get("nogil") for function in compiled)


def test_a_view_of_an_image_is_searched_as_its_copy():
    large = np.stack([picture(19, 60, 80), picture(20, 60, 80)], axis=2)  # (H, W, 2, 3)
    views = (large[:, :, 0, ::-1], large[::-1, :, 1], large[:, ::-2, 0], large[..., 0, :].transpose(1, 0, 2))
    for view in views:
        assert not view.flags.c_contiguous
        for search in (SEARCH, SelectiveSearch(colours=("rgb",))):
            assert_same(search(view, 1), search(view.copy(), 1))
    bgr = views[0]
    assert rows(SEARCH(bgr, 1)) != rows(SEARCH(bgr[:, :, ::-1], 1)), "channels matter"


def test_the_image_stays_as_it_is():
    image = picture(21)
    image.flags.writeable = False
    SelectiveSearch(colours=("rgb", "hsv", "lab"))(image, 0)
    np.testing.assert_array_equal(image, picture(21))


def test_the_clock_counts_every_phase():
    clock = PhaseClock()
    SEARCH(picture(22), 0, clock)
    assert set(clock.seconds) == {"convert", "weigh", "segment", "describe", "group", "rank"}


# --- images of every kind ---


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5000), (5000, 1), (32, 32), (40, 70)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_image_is_one_segment_and_its_own_only_box(size, value):
    found = SEARCH(flat(*size, value), 0)
    assert found.boxes.tolist() == [[0, 0, size[1], size[0]]] * 8
    assert sorted(found.strategies) == list(range(8))
    assert found.levels.tolist() == [1] * 8


@pytest.mark.parametrize("make", [noise, picture])
def test_an_image_of_any_size_has_hierarchies_that_end_in_it(make):
    for height, width in itertools.product(EVERY_SIZE, repeat=2):
        found = SEARCH(make(23, height, width), 0)
        assert found[found.levels == 1].boxes.tolist() == [[0, 0, width, height]] * 8
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= [width, height]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        if height * width < 2 * 50:
            assert len(found) == 8, "no room for two segments of 50 pixels"


def test_four_pixels_of_four_colours_are_four_segments_or_one():
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    assert SEARCH(image, 0).boxes.tolist() == [[0, 0, 2, 2]] * 8
    each = SelectiveSearch(colours=("rgb",), ks=(1,), similarities=("tsf",), sigma=0)(image, 0)
    assert len(each) == 7
    singles = each[each.levels > 3].boxes.tolist()
    assert sorted(singles) == [[0, 0, 1, 1], [0, 1, 1, 2], [1, 0, 2, 1], [1, 1, 2, 2]]


def test_a_grey_image_has_regions_in_lightness():
    image = flat(60, 80, 40)
    image[10:40, 20:60] = 200
    found = SEARCH(image, 0)
    assert {(20, 10, 60, 40), (0, 0, 80, 60)} <= {box for box, _, _ in rows(found)}
    assert set(found.strategies) == set(range(8))


def test_a_column_has_the_boxes_of_the_row_it_is_when_turned():
    """Only textures change their orientations, and no similarity with them."""
    row = np.random.default_rng(24).integers(0, 256, (1, 100, 3)).astype(np.uint8).repeat(50, axis=1)
    found, turned = SEARCH(row, 5), SEARCH(np.ascontiguousarray(row.transpose(1, 0, 2)), 5)
    assert row.shape == (1, 5000, 3)
    assert len(found) > 8 * 50
    assert_same(turned, found.moved_to(found.boxes[:, [1, 0, 3, 2]]))
    assert (found.boxes[:, [1, 3]] == [0, 1]).all()


def test_noise_makes_segments_of_at_least_k_pixels():
    image = noise(25, 64, 64)
    for colours, planes, weights in spaces_of(image, SEARCH):
        for labels, k in zip(segmentation.segment(weights, SEARCH.ks), SEARCH.ks, strict=True):
            found = regions.describe(labels, regions.pixel_codes(colours, planes))
            assert 2 <= len(found.sizes) <= 4096 / k
            assert found.sizes.min() >= k
            assert found.sizes.sum() == 4096


# --- as proposals ---


@pytest.mark.parametrize("min_side", [1, 20, 35])
def test_proposals_have_long_sides_never_repeat_and_know_where_they_come_from(min_side):
    image = picture(26, 90, 120)
    raw, found = SEARCH(image, 4), propose(SEARCH, image, 4, min_side=min_side, max_boxes=10_000)
    first = {}
    for box, strategy, level in rows(raw):
        if box[2] - box[0] >= min_side and box[3] - box[1] >= min_side:
            first.setdefault(box, (strategy, level))
    assert rows(found) == [(box, *origin) for box, origin in first.items()]
    assert 1 < len(found) < len(raw)
    assert found.names == SEARCH.strategies


def test_the_best_ranked_proposals_are_kept():
    image = picture(27, 90, 120)
    everything = propose(SEARCH, image, 4, max_boxes=10_000)
    assert_same(propose(SEARCH, image, 4, max_boxes=5), everything[:5])


def test_a_large_image_is_searched_small_and_its_boxes_scaled_back():
    image = picture(28, 90, 120)
    small = cv2.resize(image, (60, 45), interpolation=cv2.INTER_AREA)
    expected = propose(SEARCH, small, 4, min_side=10)
    assert_same(propose(SEARCH, image, 4, min_side=10, max_side=60), expected.moved_to(expected.boxes * 2))


@pytest.mark.parametrize("size", [(19, 200), (200, 19), (1, 1), (1, 500)])
def test_an_image_below_the_smallest_side_has_no_proposals(size):
    assert propose(SEARCH, noise(29, *size), 0).boxes.shape == (0, 4)


# --- duplicates ---


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3e38])] * 4), max_size=30).map(as_boxes),
)
@example(as_boxes([]))
@example(as_boxes([[0.0, 0, 0, 0], [-0.0, 0, 0, 0], [0, -0.0, 0, 0], [0, 0, 0, -0.0]]))
def test_of_equal_boxes_the_first_remains(boxes):
    before = boxes.copy()
    first = {}
    for i, box in enumerate(boxes.tolist()):
        first.setdefault(tuple(box), i)  # -0.0 == 0.0, and their hashes are the same
    found = first_of_duplicates(boxes)
    assert found.dtype == np.intp
    assert found.tolist() == list(first.values())
    np.testing.assert_array_equal(boxes.view(np.uint32), before.view(np.uint32))


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_of_equal_boxes_of_a_search_the_first_remains_in_any_memory_order(seed, count):
    boxes = np.random.default_rng(seed).integers(0, 4, (count, 4)).astype(np.float32)
    first = {}
    for i, box in enumerate(map(tuple, boxes.tolist())):
        first.setdefault(box, i)
    for same in (boxes, np.asfortranarray(boxes), boxes[::-1][::-1]):
        assert first_of_duplicates(same).tolist() == list(first.values())


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"similarities": ("ctfs",)}, "similarities must be some of ctsf, tsf"),
        ({"colours": "hsv"}, "colours must be some of hsv, lab, rgb"),
        ({"colours": ()}, "colours must be some of"),
        ({"colours": ("hsv", "hsv")}, "colours repeats itself"),
        ({"ks": ()}, "ks must be from 1 to"),
        ({"ks": (0,)}, "ks must be from 1 to"),
        ({"ks": (50, 50)}, "ks repeats itself"),
        ({"sigma": -1.0}, "sigma must be from 0 to 16"),
        ({"sigma": float("inf")}, "sigma must be from 0 to 16"),
        ({"sigma": float("nan")}, "sigma must be from 0 to 16"),
    ],
)
def test_a_search_of_impossible_parameters(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        SelectiveSearch(**given)


def test_ks_are_whole_numbers_of_any_type():
    with pytest.raises(TypeError):
        SelectiveSearch(ks=(50.5,))
    of_bytes = SelectiveSearch(ks=np.array([50, 100], np.uint8))
    assert of_bytes == SEARCH
    np.testing.assert_array_equal(of_bytes(picture(), 0).boxes, SEARCH(picture(), 0).boxes)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20, 3), np.float32),
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((0, 20, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_of_bytes_is_refused(image):
    with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\)"):
        SEARCH(image, 0)


def test_warming_up_compiles_everything():
    modules = (conversion, segmentation, regions, grouping)
    kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "signatures")]
    assert len(kernels) > 20
    SEARCH.warm_up()
    SelectiveSearch(prune=True).warm_up()
    before = {kernel: len(kernel.signatures) for kernel in kernels}
    for colours in (("hsv", "lab"), ("rgb",)):
        for prune in (True, False):
            search = SelectiveSearch(colours=colours, ks=(50, 100, 200), prune=prune)
            for image in (picture(), flat(1, 1), noise(0, 3, 50), picture()[::-1, ::-1]):
                search(image, 0)
                image = image.copy()
                image.setflags(write=False)
                search(image, 0)
    assert {kernel: len(kernel.signatures) for kernel in kernels} == before
