import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bodies import BODIES
from pipeline.bodies.zf5 import ZF5_LAYERS
from pipeline.boxes import as_boxes, from_inclusive
from pipeline.spp.receptive_field import Geometry, geometry, map_length
from pipeline.spp.windows import choose_scales, fitting_scale, fitting_scales, map_windows, scaled_size

ZF5 = geometry(ZF5_LAYERS)
FIELDS = {f"{field.centre:g} + {field.stride}p": field for field in (spec.geometry for spec in BODIES.values())}
assert {field.stride for field in FIELDS.values()} == {12, 16}
PAPER_SCALES = (480, 576, 688, 864, 1200)
RELEASED_SCALES = (480, 576, 688, 874, 1200)

sides = st.integers(1, 1500)
scales = st.sampled_from((*PAPER_SCALES, 1, 16, 97, 224))
mappings = st.sampled_from(["released", "paper"])


@st.composite
def image_and_box(draw):
    """(height, width) and a box of it, its corners on halves of a pixel."""
    height, width = draw(sides), draw(sides)

    def ends(length):
        return sorted(draw(st.tuples(*[st.integers(0, 2 * length)] * 2)))

    (x1, x2), (y1, y2) = ends(width), ends(height)
    return (height, width), tuple(Fraction(v, 2) for v in (x1, y1, x2, y2))


def zf5_map(height, width, scale):
    return tuple(map_length(ZF5_LAYERS, n) for n in scaled_size(height, width, scale))


# --- windows ---


def cells_of(low, high, field, cells):
    """First and last cell by DESIGN 3, one axis: every cell's centre looked at, in exact arithmetic.

    Twice a centre is a whole number, and so is compared with whole numbers.
    """
    twice = {i: int(2 * field.centre) + 2 * i * field.stride for i in range(-3, cells + 3)}
    above, below = math.floor(2 * low), math.ceil(2 * high)
    inside = [i for i, centre in twice.items() if above < centre < below]
    if not inside:
        middle = math.floor(low + high)
        inside = [max((i for i, centre in twice.items() if centre <= middle), default=0)]
    return tuple(min(max(i, 0), cells - 1) for i in (inside[0], inside[-1]))


def window_of(box, size, scale, field, map_size, mapping):
    height, width = size
    if box[0] <= 0 and box[1] <= 0 and box[2] >= width and box[3] >= height:
        return (0, 0, map_size[1] - 1, map_size[0] - 1)
    short = min(size)
    factor = Fraction(scale - 1, short - 1) if short > 1 else Fraction(scale)
    slack = Fraction(3, 2) if mapping == "released" else 0
    x = cells_of(box[0] * factor - slack, (box[2] - 1) * factor + slack, field, map_size[1])
    y = cells_of(box[1] * factor - slack, (box[3] - 1) * factor + slack, field, map_size[0])
    return (x[0], y[0], x[1], y[1])


@settings(max_examples=400)
@given(image_and_box(), scales, mappings, st.sampled_from(sorted(FIELDS)))
def test_a_window_is_the_cells_whose_centres_lie_in_the_box(case, scale, mapping, name):
    (height, width), box = case
    field = FIELDS[name]
    # any map that is large enough will do, and small ones to see the clamping
    map_size = tuple(max(1, n // 16) for n in scaled_size(height, width, scale))
    if max(map_size) > 2000:
        return
    found = map_windows(as_boxes([[float(v) for v in box]]), (height, width), scale, field, map_size, mapping)
    assert found.dtype == np.int16
    assert tuple(found[0].tolist()) == window_of(box, (height, width), scale, field, map_size, mapping)


@pytest.mark.parametrize(("mapping", "slack2"), [("released", 3), ("paper", 0)])
@pytest.mark.parametrize("name", FIELDS)
def test_an_edge_exactly_on_a_centre_is_decided_exactly(name, mapping, slack2):
    """Rounding in the scaling would put such an edge on either side."""
    field, tried = FIELDS[name], 0
    for scale in PAPER_SCALES:
        for short in range(100, 700, 5 if field.centre == slack2 == 0 else 1):  # pixel 0 is then always an edge
            size, map_size = (short, 2 * short), (100, 100)
            x = np.arange(short - 1)
            # x * factor - centre +- slack is a multiple of the stride
            twice = 2 * x * (scale - 1) - int(2 * field.centre) * (short - 1)
            ties = [(twice + edge * (short - 1)) % (2 * field.stride * (short - 1)) == 0 for edge in (-slack2, slack2)]
            pixels = x[ties[0] | ties[1]].tolist()[:4]
            corners = [c for x in pixels for c in ((x, 0, x + 1, 90), (x, 0, x + 40, 90), (0, 0, x + 1, 90))]
            found = map_windows(as_boxes(corners), size, scale, field, map_size, mapping)
            for box, window in zip(corners, found.tolist(), strict=True):
                assert tuple(window) == window_of([Fraction(v) for v in box], size, scale, field, map_size, mapping)
                tried += 1
    assert tried > 100


@given(image_and_box(), scales, mappings)
def test_a_window_is_inside_the_map_and_never_empty(case, scale, mapping):
    size, box = case
    map_size = tuple(max(1, n // 16) for n in scaled_size(*size, scale))
    x1, y1, x2, y2 = map_windows(as_boxes([[float(v) for v in box]]), size, scale, ZF5, map_size, mapping)[0]
    assert 0 <= x1 <= x2 < map_size[1]
    assert 0 <= y1 <= y2 < map_size[0]


@pytest.mark.parametrize("mapping", ["released", "paper"])
@pytest.mark.parametrize("name", BODIES)
def test_the_whole_image_is_the_whole_map(name, mapping):
    spec = BODIES[name]
    lengths = (1, 2, 17, 63, 64, 100, 224, 333, 375, 500, 1000)
    for height in lengths:
        for width in lengths:
            for scale in fitting_scales(height, width, (480, 688, 1200), 1200 * 2400):
                map_size = spec.map_size(height, width, scale)
                whole = as_boxes([[0, 0, width, height], [-3, -1, width + 2, height + 9]])
                windows = map_windows(whole, (height, width), scale, spec.geometry, map_size, mapping)
                assert windows.tolist() == [[0, 0, map_size[1] - 1, map_size[0] - 1]] * 2


def test_a_box_across_the_whole_width_has_all_columns_of_zf5s_map():
    # sppnet.md 10: true for every input side 64..2499, without the special rule for whole images
    for side in range(64, 2500):
        map_size = zf5_map(side, side, side)
        window = map_windows(as_boxes([[0, 1, side, side]]), (side, side), side, ZF5, map_size)[0]
        assert (window[0], window[2]) == (0, map_size[1] - 1)


@pytest.mark.parametrize(
    ("side", "pixels", "cells"),
    [
        (224, (1, 224), (1, 13)),
        (224, (1, 16), (1, 1)),
        (224, (17, 48), (1, 2)),
        (224, (20, 24), (1, 1)),
        (224, (23, 34), (1, 1)),  # no centre inside: the lower cell
        (224, (100, 131), (6, 7)),
        (224, (215, 224), (13, 13)),  # beyond the last centre
        (688, (1, 688), (1, 42)),
    ],
)
def test_hand_vectors_of_the_released_code(side, pixels, cells):
    """1-based inclusive pixels and cells of research/sppnet.md 1.2, in an image taken at its own size."""
    for axes in ([0, 2], [1, 3]):
        box = np.array([1, 1, side - 1, side - 1], np.float32)
        box[axes] = pixels
        window = map_windows(from_inclusive(box), (side, side), side, ZF5, zf5_map(side, side, side))[0]
        assert tuple(window[axes] + 1) == cells


def test_a_one_pixel_box_on_a_centre_is_that_cell_in_both_mappings():
    box = as_boxes([[52, 36, 53, 37]])  # ZF-5's cells 2 and 1 are centred on pixels 52 and 36
    for mapping in ("released", "paper"):
        assert map_windows(box, (224, 224), 224, ZF5, (13, 13), mapping).tolist() == [[2, 1, 2, 1]]


def test_a_centre_on_the_papers_edge_is_outside_and_one_pixel_more_takes_it_in():
    # inclusive pixels 20..52 end on the centres of cells 0 and 2
    boxes = as_boxes([[20, 20, 53, 53], [19, 19, 54, 54]])
    assert map_windows(boxes, (224, 224), 224, ZF5, (13, 13), "paper").tolist() == [[1, 1, 1, 1], [0, 0, 2, 2]]
    assert map_windows(boxes, (224, 224), 224, ZF5, (13, 13), "released").tolist() == [[0, 0, 2, 2], [0, 0, 2, 2]]


def test_boxes_without_area_get_one_cell():
    for box in ([50, 50, 50, 50], [50, 60, 50, 90], [0, 0, 0, 0], [224, 224, 224, 224]):
        x1, y1, x2, y2 = map_windows(as_boxes([box]), (224, 224), 224, ZF5, (13, 13))[0]
        assert x1 == x2
        assert y1 <= y2


def test_a_one_pixel_image_has_a_window():
    assert map_windows(as_boxes([[0, 0, 1, 1]]), (1, 1), 480, ZF5, (29, 29)).tolist() == [[0, 0, 28, 28]]
    assert map_windows(as_boxes([[2, 0, 3, 1]]), (1, 5), 480, ZF5, (29, 149)).shape == (1, 4)


def test_no_boxes_have_no_windows():
    assert map_windows(as_boxes([]), (100, 100), 480, ZF5, (29, 29)).shape == (0, 4)
    assert choose_scales(as_boxes([]), 100, 100, PAPER_SCALES).shape == (0,)


@pytest.fixture(scope="module")
def oracle(shared):
    return json.loads((shared / "oracles/windows_zf5.json").read_text())["mapping"]


def test_all_400_oracle_cases_have_their_scale(oracle):
    assert len(oracle) == 400
    for case in oracle:
        box = from_inclusive(case["box_1based"])
        assert choose_scales(box, *case["image_hw"], RELEASED_SCALES, "linear208").tolist() == [case["scale"]]


def test_all_400_oracle_cases_have_their_map_and_window(oracle):
    for case in oracle:
        size, scale = tuple(case["image_hw"]), case["scale"]
        assert list(scaled_size(*size, scale)) == case["net_hw"]
        map_size = zf5_map(*size, scale)
        assert list(map_size) == case["conv5_hw"]
        window = map_windows(from_inclusive(case["box_1based"]), size, scale, ZF5, map_size)[0]
        assert (window + 1).tolist() == case["window_1based_ltrb"]


# --- scales ---


@st.composite
def image_and_whole_pixel_boxes(draw):
    height, width = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        x = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
        y = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
        boxes.append((x[0], y[0], x[1], y[1]))
    return height, width, boxes


@given(image_and_whole_pixel_boxes())
def test_the_area_rule_takes_the_scale_whose_area_is_closest_to_224_squared(case):
    height, width, boxes = case
    found = choose_scales(as_boxes(boxes), height, width, PAPER_SCALES, "area")
    short = min(height, width)
    for (x1, y1, x2, y2), scale in zip(boxes, found.tolist(), strict=True):
        distances = {s: abs((x2 - x1) * (y2 - y1) * s * s - 224 * 224 * short * short) for s in PAPER_SCALES}
        assert distances[scale] == min(distances.values())
        assert scale == min(s for s in PAPER_SCALES if distances[s] == distances[scale])


@given(image_and_whole_pixel_boxes())
def test_the_released_rule_takes_the_scale_nearest_to_208_short_sides_per_side(case):
    height, width, boxes = case
    found = choose_scales(as_boxes(boxes), height, width, RELEASED_SCALES, "linear208")
    every = tuple(range(1, 2001))  # among these the rounding shows
    rounded = choose_scales(as_boxes(boxes), height, width, every, "linear208")
    short = min(height, width)
    for (x1, y1, x2, y2), scale, nearest in zip(boxes, found.tolist(), rounded.tolist(), strict=True):
        pixels = (x2 - x1) * (y2 - y1)
        if pixels == 0:
            assert (scale, nearest) == (RELEASED_SCALES[-1], every[-1])
            continue
        # the largest e with e - 1/2 <= 208 short / sqrt(pixels), in whole numbers
        expected = (math.isqrt((2 * 208 * short) ** 2 // pixels) + 1) // 2
        assert (2 * expected - 1) ** 2 * pixels <= (2 * 208 * short) ** 2 < (2 * expected + 1) ** 2 * pixels
        assert scale == min(RELEASED_SCALES, key=lambda s: (abs(s - expected), s))
        assert nearest == min(expected, every[-1])


@pytest.mark.parametrize(
    ("rule", "scales", "switches"),
    [
        ("linear208", RELEASED_SCALES, (0.394, 0.329, 0.266, 0.201)),
        ("area", PAPER_SCALES, (0.4225, 0.353, 0.287, 0.214)),
    ],
)
def test_the_rules_switch_where_they_should(rule, scales, switches):
    """Side of a square box over the image's short side, at which the next larger scale takes over (sppnet.md 1.3)."""
    short = 10_000
    for smaller, larger, switch in zip(scales[:-1], scales[1:], switches, strict=True):
        above, below = round((switch + 0.001) * short), round((switch - 0.001) * short)
        boxes = as_boxes([[0, 0, above, above], [0, 0, below, below]])
        assert choose_scales(boxes, short, short, scales, rule).tolist() == [smaller, larger]


def test_a_box_of_208_pixels_squared_asks_for_the_images_own_size():
    box = as_boxes([[10, 20, 218, 228]])
    for short in RELEASED_SCALES:
        assert choose_scales(box, short, short + 300, RELEASED_SCALES, "linear208").tolist() == [short]


def test_of_two_equally_good_scales_the_smaller_is_taken():
    # 208 * 500 / 200 = 520, as far from 480 as from 560
    assert choose_scales(as_boxes([[0, 0, 200, 200]]), 500, 500, (480, 560), "linear208").tolist() == [480]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500))
def test_the_short_side_becomes_the_scale_and_the_long_one_is_rounded_up(height, width, scale):
    found = scaled_size(height, width, scale)
    short, long = (0, 1) if height <= width else (1, 0)
    assert found[short] == scale
    assert found[long] == math.ceil(Fraction(max(height, width) * scale, min(height, width)))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1200), st.integers(1, 3_000_000))
def test_the_fitting_scale_is_the_largest_that_fits(height, width, scale, max_pixels):
    def pixels(s):
        return math.prod(scaled_size(height, width, s))

    found = fitting_scale(height, width, scale, max_pixels)
    fitting = [s for s in range(1, scale + 1) if pixels(s) <= max_pixels]
    assert found == (fitting[-1] if fitting else 1)


def test_fitting_scales_are_ascending_without_repetition():
    # 100 x 1000 at most 600 x 6000 pixels / 4: 480, 576 and more all become 300
    assert fitting_scales(100, 1000, (688, 480, 200), 300 * 3000) == (200, 300)
    assert fitting_scales(375, 500, (1200, 480), 1200 * 2400) == (480, 1200)


def test_a_wide_image_is_taken_at_the_largest_size_that_fits():
    scale = fitting_scale(500, 5000, 1200, 1200 * 2400)
    assert math.prod(scaled_size(500, 5000, scale)) <= 1200 * 2400 < math.prod(scaled_size(500, 5000, scale + 1))


def test_geometry_may_be_any_bodys():
    # stride 12 as Overfeat's, cell 0 centred on pixel 6: pixels 10..40 hold the centres 18 and 30, and none by slack
    assert map_windows(as_boxes([[10, 10, 41, 41]]), (120, 120), 120, Geometry(12, 6.0, 99), (10, 10)).tolist() == [
        [1, 1, 2, 2]
    ]
