import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_max_pool2d

from pipeline.bodies import BODIES, Body, load_state
from pipeline.boxes import as_boxes
from pipeline.errors import BodyError, ImageError
from pipeline.features.regions import RegionExtractor, RegionFeatures, Wanted
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid
from pipeline.spp.windows import choose_scales, fitting_scales, map_windows
from tests.small_body import SMALL_BODY

SPEC = SMALL_BODY


class CountingBody(Body):
    """Remembers at which scales it was asked, and what it answered."""

    def __init__(self, state=None):
        super().__init__(SPEC, state or load_state(SPEC, "random", seed=1))
        self.asked, self.maps = [], {}

    def conv_map(self, image, scale):
        self.asked.append(scale)
        self.maps[scale] = super().conv_map(image, scale)
        return self.maps[scale]


def extractor(body=None, scales=(32, 64, 96), **options):
    return RegionExtractor(body or CountingBody(), scales, **options)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_boxes(height, width, count, seed=0):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, width + 1, (count, 2)))
    y = np.sort(rng.integers(0, height + 1, (count, 2)))
    return as_boxes(np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1))


def pooled(conv_map, window, levels=(6, 3, 2, 1)):
    """The vector of a window (inclusive cells) of a float32 map (channels, height, width), rounded at the end."""
    x1, y1, x2, y2 = (int(v) for v in window)
    crop = conv_map[:, y1 : y2 + 1, x1 : x2 + 1]
    bins = [adaptive_max_pool2d(crop, n).permute(1, 2, 0).reshape(-1) for n in levels]
    return (torch.cat(bins).half() + 0.0).numpy()


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype == np.float16
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("mapping", ["released", "paper"])
@pytest.mark.parametrize("name", BODIES)
def test_the_whole_images_vector_is_the_pyramid_of_the_bodys_whole_map(name, mapping):
    body = Body(BODIES[name], load_state(BODIES[name], "random"))
    image = noise(125, 170)
    conv_map = body.conv_map(image, 150)
    found = RegionExtractor(body, (150,), mapping=mapping)(image, as_boxes([[0, 0, 170, 125]]))
    assert found.windows.tolist() == [[0, 0, conv_map.shape[2] - 1, conv_map.shape[1] - 1]]
    assert_same_bits(found.vectors[0], pooled(conv_map, found.windows[0]))
    assert found.vectors.shape == (1, 50 * BODIES[name].channels)


@settings(max_examples=30)
@given(
    st.tuples(st.integers(20, 90), st.integers(20, 90)) | st.tuples(st.integers(1, 5), st.integers(1, 20)),
    st.sampled_from(["area", "linear208"]),
    st.sampled_from(["released", "paper"]),
    st.lists(st.sampled_from((160, 224, 288, 352, 448)), min_size=1, max_size=4, unique=True),
    st.sampled_from([(6, 3, 2, 1), (1, 2, 3, 6), (4, 3, 2, 1), (5,)]),
)
def test_every_row_is_its_box_at_its_scale(size, rule, mapping, scales, levels):
    """Against each box alone: its scale, its window, the adaptive pooling of that window."""
    image, boxes = noise(*size), random_boxes(*size, 12)
    body, peer = CountingBody(), CountingBody()
    extract = extractor(body, scales, scale_rule=rule, mapping=mapping, levels=levels)
    found = extract(image, boxes)
    assert extract.dim == found.vectors.shape[1]
    for i in range(len(boxes)):
        box = boxes[i : i + 1]
        scale = int(choose_scales(box, *size, sorted(scales), rule)[0])
        conv_map = peer.maps[scale] if scale in peer.maps else peer.conv_map(image, scale)
        window = map_windows(box, size, scale, SPEC.geometry, tuple(conv_map.shape[1:]), mapping)[0]
        assert found.scales[i] == scale
        assert found.windows[i].tolist() == window.tolist()
        assert_same_bits(found.vectors[i], pooled(conv_map, window, levels))
    assert sorted(body.asked) == sorted(set(found.scales.tolist())), "the body runs once per scale that is used"


def test_the_body_runs_once_per_scale_that_some_box_uses():
    sizes = {32: (224, 224), 64: (112, 112), 96: (75, 75)}  # in an image of short side 32: what each scale is best for
    image = np.zeros((32, 400, 3), np.uint8)
    for used in itertools.chain.from_iterable(itertools.combinations(sizes, n) for n in (1, 2, 3)):
        body = CountingBody()
        boxes = as_boxes([[0, 0, sizes[s][0] * sizes[s][1] / 32, 32] for s in used] * 3)
        found = extractor(body)(image, boxes)
        assert found.scales.tolist() == [*used] * 3
        assert sorted(body.asked) == sorted(used)


def test_an_image_without_boxes_does_not_pass_the_body():
    body = CountingBody()
    found = extractor(body)(noise(40, 50), as_boxes([]))
    assert body.asked == []
    assert found.scales.shape == (0,)
    assert found.windows.shape == (0, 4)
    assert found.vectors.shape == (0, 250)


def test_the_result_has_the_announced_types():
    found = extractor()(noise(40, 50), random_boxes(40, 50, 7))
    assert found.scales.dtype == np.int32
    assert found.windows.dtype == np.int16
    assert found.vectors.dtype == np.float16


def test_vectors_go_to_the_callers_buffer():
    image, boxes = noise(60, 90), random_boxes(60, 90, 20)
    expected = extractor()(image, boxes).vectors
    buffer = np.full((32, 250), 7, np.float16)
    found = extractor()(image, boxes, out=buffer)
    assert np.shares_memory(found.vectors, buffer)
    assert found.vectors.shape == (20, 250)
    assert_same_bits(buffer[:20], expected)
    assert (buffer[20:] == 7).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    image, boxes = noise(60, 90), random_boxes(60, 90, 50)
    assert_same_bits(extractor(threads=threads)(image, boxes).vectors, extractor(threads=1)(image, boxes).vectors)


def test_windows_need_no_pixels():
    boxes = random_boxes(60, 90, 20)
    scales, windows = extractor().windows(boxes, 60, 90)
    found = extractor()(noise(60, 90), boxes)
    np.testing.assert_array_equal(scales, found.scales)
    np.testing.assert_array_equal(windows, found.windows)


def test_an_image_too_large_at_a_scale_is_taken_at_the_largest_that_fits():
    body = CountingBody()
    found = extractor(body, (64,), max_scaled_pixels=3000)(noise(50, 100), as_boxes([[0, 0, 100, 50]]))
    (scale,) = fitting_scales(50, 100, (64,), 3000)
    assert scale * 2 * scale <= 3000 < (scale + 1) * 2 * (scale + 1)
    assert body.asked == found.scales.tolist() == [scale]


def test_an_image_whose_map_is_too_long_for_its_windows_is_an_image_error():
    with pytest.raises(ImageError, match="too long and thin"):
        extractor(scales=(16,)).windows(as_boxes([[0, 0, 5, 1]]), 1, 200_000)


@pytest.mark.parametrize("value", [1e6, -1e6, float("inf"), float("nan")])
def test_a_map_that_float16_cannot_hold_is_a_body_error(value):
    state = dict(load_state(SPEC, "random"))
    state["second.bias"] = torch.tensor([0, 0, value, 0, 0])
    with pytest.raises(BodyError, match=r"not finite in float16.*other weights"):
        extractor(CountingBody(state))(noise(40, 50), random_boxes(40, 50, 3))


def test_the_seconds_of_conv_and_pool_are_counted():
    clock = PhaseClock()
    extractor(clock=clock)(noise(40, 50), random_boxes(40, 50, 30))
    assert set(clock.seconds) == {"conv", "pool"}
    assert all(seconds > 0 for seconds in clock.seconds.values())


def test_a_phase_counts_its_seconds_though_it_fails():
    clock = PhaseClock()
    with pytest.raises(KeyError), clock.phase("a"):
        raise KeyError
    with clock.phase("a"):
        pass
    first = clock.seconds["a"]
    clock.add("a", 2)
    clock.add("b", 1)
    assert clock.seconds == {"a": first + 2, "b": 1}


@pytest.mark.parametrize("fits", [1, 7, 100])
def test_batches_are_halved_until_they_fit_into_the_devices_memory(monkeypatch, fits):
    """The rule, on tensors of the processor: what a GPU adds is who says that the memory is full."""
    boxes = as_boxes([(x, y, x + 20 + y, y + 25 + x) for x in range(0, 40, 6) for y in range(0, 40, 9)])
    maker = extractor()
    scales, windows = maker.windows(boxes, 90, 120)
    image, expected = noise(90, 120), maker(noise(90, 120), boxes).vectors
    asked = []
    real = pyramid.pool_torch

    def pool_torch(conv_map, part, levels):
        asked.append(len(part))
        if len(part) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(conv_map, part, levels)

    monkeypatch.setattr(pyramid, "pool_torch", pool_torch)
    vectors = np.empty_like(expected)
    for scale in np.unique(scales):
        rows = np.flatnonzero(scales == scale)
        maker._pool_on_device(maker._conv_map(image, int(scale)), windows[rows], rows, vectors)
    assert np.array_equal(vectors.view(np.int16), expected.view(np.int16))
    assert min(asked) <= fits
    assert all(one == other or one == other // 2 or one <= fits for other, one in itertools.pairwise(asked))


def test_a_window_that_does_not_fit_alone_is_an_outage_not_an_images_fault(monkeypatch):
    def pool_torch(conv_map, part, levels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pyramid, "pool_torch", pool_torch)
    maker = extractor()
    scales, windows = maker.windows(as_boxes([(0, 0, 30, 30)]), 90, 120)
    with pytest.raises(torch.OutOfMemoryError):
        maker._pool_on_device(
            maker._conv_map(noise(90, 120), int(scales[0])), windows, np.arange(1), np.empty((1, maker.dim), np.float16)
        )


# --- several sets of boxes from the same maps ---


def test_several_sets_of_boxes_take_one_pass_for_each_scale_and_get_what_each_gets_alone():
    image, body = noise(60, 80), CountingBody()
    sets = [random_boxes(60, 80, count, seed) for seed, count in enumerate((30, 3, 0, 12))]
    drawn = np.resize(np.array([32, 96], np.int32), 12)
    alone = [extractor(body)(image, boxes) for boxes in sets[:3]] + [extractor(body)(image, sets[3], scales=drawn)]
    body.asked.clear()
    clock = PhaseClock()
    wanted = [Wanted(boxes) for boxes in sets[:3]] + [Wanted(sets[3], drawn)]
    found = extractor(body, clock=clock).together(image, wanted)
    for one, expected in zip(found, alone, strict=True):
        assert_same_bits(one.vectors, expected.vectors)
        assert one.scales.tolist() == expected.scales.tolist()
        assert one.windows.tolist() == expected.windows.tolist()
    assert body.asked == sorted({int(scale) for one in alone for scale in one.scales})
    assert clock.passes == len(body.asked)


def test_maps_that_are_there_are_not_made_again():
    image, body = noise(60, 80), CountingBody()
    boxes, scales = random_boxes(60, 80, 20), np.resize(np.array([32, 64, 96], np.int32), 20)
    expected = extractor(body)(image, boxes, scales=scales)
    clock = PhaseClock()
    made = extractor(body, clock=clock)
    maps = made.conv_maps(image, scales)
    assert clock.passes == len(maps) == 3
    (found,) = made.together(image, [Wanted(boxes, scales)], maps)
    assert_same_bits(found.vectors, expected.vectors)
    assert clock.passes == 3
    del maps[64]
    (found,) = made.together(image, [Wanted(boxes, scales)], maps)
    assert_same_bits(found.vectors, expected.vectors)
    assert clock.passes == 4


class BrokenAt64(CountingBody):
    """Its map at one scale is no number."""

    def conv_map(self, image, scale):
        return super().conv_map(image, scale) * (np.nan if scale == 64 else 1)


def test_a_scale_that_fails_fails_those_sets_alone_that_want_it():
    image, boxes = noise(60, 80), random_boxes(60, 80, 4)
    at = [np.full(4, scale, np.int32) for scale in (32, 64, 96)]
    found = extractor(BrokenAt64()).together(image, [Wanted(boxes, scales) for scales in at])
    assert [type(one) for one in found] == [RegionFeatures, BodyError, RegionFeatures]
    for one, scales in zip(found[::2], at[::2], strict=True):
        assert_same_bits(one.vectors, extractor()(image, boxes, scales=scales).vectors)
    with pytest.raises(BodyError):
        extractor(BrokenAt64())(image, boxes, scales=at[1])
