"""R-CNN's warp against the released arithmetic pixel by pixel, and the extractor against the body on one crop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from pipeline.bodies import BODIES, Body, load_state
from pipeline.boxes import as_boxes
from pipeline.errors import BodyError
from pipeline.features.regions import RegionExtractor
from pipeline.features.warping import CONTEXT, WarpExtractor, warp, warp_all
from pipeline.images.decode import decode_image
from tests.small_body import SMALL_BODY

FILL = (124, 116, 104)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_boxes(height, width, count, seed=0):
    """Whole pixels, inside, with an area."""
    rng = np.random.default_rng(seed)
    low = np.stack([rng.integers(0, width, count), rng.integers(0, height, count)], axis=1)
    high = low + 1 + np.stack([rng.integers(0, width - low[:, 0]), rng.integers(0, height - low[:, 1])], axis=1)
    return as_boxes(np.concatenate([low, high], axis=1))


# --- the warp ---


def c_round(value):
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def released(image, box, size, context, fill):
    """window_data_layer.cpp:300-392 line by line, then every pixel by inverse mapping between pixel centres."""
    rows, cols = image.shape[:2]
    x1, y1, x2, y2 = (int(v) for v in box)
    x2, y2 = x2 - 1, y2 - 1  # inclusive
    context_scale = size / (size - 2 * context)
    half_height, half_width = (y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2
    center_x, center_y = x1 + half_width, y1 + half_height
    x1, x2 = c_round(center_x - half_width * context_scale), c_round(center_x + half_width * context_scale)
    y1, y2 = c_round(center_y - half_height * context_scale), c_round(center_y + half_height * context_scale)
    unclipped_height, unclipped_width = y2 - y1 + 1, x2 - x1 + 1
    pad_x1, pad_y1 = max(0, -x1), max(0, -y1)
    pad_x2, pad_y2 = max(0, x2 - cols + 1), max(0, y2 - rows + 1)
    x1, x2, y1, y2 = x1 + pad_x1, x2 - pad_x2, y1 + pad_y1, y2 - pad_y2
    clipped_height, clipped_width = y2 - y1 + 1, x2 - x1 + 1
    crop_width, crop_height = (
        c_round(clipped_width * size / unclipped_width),
        c_round(clipped_height * size / unclipped_height),
    )
    pad_w, pad_h = c_round(pad_x1 * size / unclipped_width), c_round(pad_y1 * size / unclipped_height)
    crop_width, crop_height = min(crop_width, size - pad_w), min(crop_height, size - pad_h)
    frame = np.empty((size, size, 3))
    frame[:] = fill
    for v in range(crop_height):
        y = min(max((v + 0.5) * clipped_height / crop_height - 0.5, 0), clipped_height - 1)
        for u in range(crop_width):
            x = min(max((u + 0.5) * clipped_width / crop_width - 0.5, 0), clipped_width - 1)
            frame[pad_h + v, pad_w + u] = between(image, x1 + x, y1 + y)
    return frame


def between(image, x, y):
    """The colour at a place between four pixels of the image."""
    left, top = int(x), int(y)
    right, bottom = min(left + 1, image.shape[1] - 1), min(top + 1, image.shape[0] - 1)
    across, down = x - left, y - top
    above = image[top, left] * (1 - across) + image[top, right] * across
    below = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return above * (1 - down) + below * down


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([(24, 4), (32, 2), (17, 3), (16, 7)]),
    st.integers(0, 10**6),
)
def test_a_warp_is_the_released_codes(image_size, frame, seed):
    size, context = frame
    image = noise(*image_size, seed)
    for box in random_boxes(*image_size, 4, seed):
        found = warp(image, box, size, context, FILL)
        assert found.shape == (size, size, 3)
        assert found.dtype == np.uint8
        # OpenCV interpolates in fixed point
        assert np.abs(found - released(image, box, size, context, FILL)).max() <= 1


EDGES = {
    "whole image": (0, 0, 50, 40),
    "upper left corner": (0, 0, 1, 1),
    "lower right corner": (49, 39, 50, 40),
    "one pixel": (20, 20, 21, 21),
    "one column": (30, 0, 31, 40),
    "last row": (0, 39, 50, 40),
    "beyond every side": (-30, -20, 90, 77),
    "beyond the right": (40, 10, 75, 30),
    "beyond above": (10, -15, 30, 12),
    "half a pixel of fill and of image, each rounded up": (-377, -377, 6, 6),
}


@pytest.mark.parametrize("box", EDGES.values(), ids=EDGES)
def test_a_warp_at_the_images_borders_is_the_released_codes(box):
    image = noise(40, 50)
    found = warp(image, as_boxes(box)[0], 224, CONTEXT, FILL)
    assert np.abs(found - released(image, box, 224, CONTEXT, FILL)).max() <= 1


@pytest.mark.parametrize("side", [300, 480, 777, 1100])
@pytest.mark.parametrize("size", [224, 227])
def test_there_are_16_pixels_of_context_on_each_side(side, size):
    """Of the image, not of the fill; but for the rounding, which is up to two pixels of the image."""
    image = np.zeros((1500, 1500, 3), np.uint8)
    image[200 : 200 + side, 210 : 210 + side] = 255
    frame = warp(image, as_boxes((210, 200, 210 + side, 200 + side))[0], size, CONTEXT, (9, 9, 9))
    slack = 0.5 + 2 * size / side
    for line in (frame[size // 2, :, 0], frame[:, size // 2, 0]):
        inside = np.flatnonzero(line > 127)
        assert inside[0] == pytest.approx(CONTEXT, abs=slack)
        assert size - 1 - inside[-1] == pytest.approx(CONTEXT, abs=slack)
        assert (line[:8] == 0).all()
        assert (line[-8:] == 0).all()


def test_the_region_has_the_pixel_that_the_releases_rounding_adds():
    """Of a box of 192 pixels, 50 to 241, in a frame of 225: 34 to 258, which is 16 before it and 17 behind it."""
    image = noise(300, 300)
    frame = warp(image, as_boxes((50, 50, 242, 242))[0], 225, 16, FILL)  # 146 -+ 96 * 225 / 193
    np.testing.assert_array_equal(frame, image[34:259, 34:259])


def test_the_whole_image_is_filled_all_around():
    frame = warp(np.zeros((96, 192, 3), np.uint8), as_boxes((0, 0, 192, 96))[0], 224, 16, FILL)
    filled = (frame == FILL).all(axis=2)
    image = ~filled
    assert (image | (frame != 0).all(axis=2)).all()
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    for found in (rows, columns):
        assert found[0] == pytest.approx(16, abs=1)
        assert 223 - found[-1] == pytest.approx(16, abs=4)  # one pixel of the image more than on the left


@pytest.mark.parametrize("box", [(60, 0, 80, 20), (-40, 5, -9, 20), (5, 90, 20, 140), (-90, -90, -80, -80)])
def test_a_box_outside_the_image_is_all_fill(box):
    assert (warp(noise(40, 50), as_boxes(box)[0], 224, CONTEXT, FILL) == FILL).all()


def test_a_box_that_touches_the_image_by_less_than_half_a_pixel_of_the_frame_is_all_fill():
    assert (warp(noise(40, 50), as_boxes((-6000, 0, 1, 40))[0], 32, 0, FILL) == FILL).all()


def test_without_context_the_box_alone_is_resized():
    image = noise(40, 50)
    np.testing.assert_array_equal(warp(image, as_boxes((5, 6, 37, 38))[0], 32, 0, FILL), image[6:38, 5:37])


@pytest.mark.parametrize("box", [(10, 12, 10, 12), (10, 5, 10, 20), (20, 5, 10, 20)])
@pytest.mark.parametrize("context", [0, 4])
def test_an_empty_box_has_a_pixel_where_it_begins(box, context):
    image = np.zeros((40, 50, 3), np.uint8)
    image[:, box[0]] = 200
    assert (warp(image, as_boxes(box)[0], 32, context, FILL) == 200).all()


def test_a_box_need_not_lie_on_whole_pixels():
    image = noise(40, 50)
    exact, near = warp_all(image, as_boxes([(10, 10, 30, 34), (10.01, 9.99, 30.01, 34.02)]), 64, 8, FILL)
    np.testing.assert_array_equal(exact, near)


def test_a_fill_is_rounded_to_whole_numbers():
    assert warp(noise(4, 4), as_boxes((9, 9, 20, 20))[0], 8, 1, (123.675, 116.28, 103.53))[0, 0].tolist() == [
        124,
        116,
        104,
    ]


def test_a_batch_is_its_boxes_one_by_one_in_the_callers_buffer():
    image = noise(40, 50)
    boxes = np.concatenate([random_boxes(40, 50, 20), as_boxes(list(EDGES.values()))])
    buffer = np.full((64, 32, 32, 3), 7, np.uint8)
    found = warp_all(image, boxes, 32, 4, FILL, out=buffer)
    assert np.shares_memory(found, buffer)
    assert len(found) == len(boxes)
    for frame, box in zip(found, boxes, strict=True):
        np.testing.assert_array_equal(frame, warp(image, box, 32, 4, FILL))
    assert (buffer[len(boxes) :] == 7).all()
    np.testing.assert_array_equal(warp_all(image, boxes, 32, 4, FILL), found)


def test_no_boxes_give_no_frames():
    assert warp_all(noise(40, 50), as_boxes([]), 32, 4, FILL).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(("size", "context"), [(32, 16), (32, -1), (227, 114)])
def test_a_context_that_leaves_no_room_for_the_box_is_refused(size, context):
    with pytest.raises(ValueError, match=f"frame of {size} pixels has no room for {context} pixels of context"):
        warp_all(noise(40, 50), as_boxes([]), size, context, FILL)


# --- batches of images through a body ---


@pytest.mark.parametrize("name", BODIES)
def test_a_batch_is_preprocessed_and_passes_the_body_as_its_images_do(name):
    body = Body(BODIES[name], load_state(BODIES[name], "random"))
    images = np.stack([noise(70, 90, seed) for seed in range(3)])
    batch = body.preprocess(images)
    maps = body.conv_maps_of(batch)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert not maps.requires_grad
    for image, preprocessed, conv_map in zip(images, batch, maps, strict=True):
        assert torch.equal(body.preprocess(image)[0], preprocessed)
        alone = body.conv_map_of(preprocessed[None])
        assert (alone - conv_map).norm() <= 1e-5 * alone.norm()


@pytest.mark.parametrize("name", BODIES)
def test_every_body_has_an_input_size_that_needs_no_padding(name):
    assert BODIES[name].padded_length(BODIES[name].input_size) == BODIES[name].input_size


# --- the extractor ---


SPEC = replace(SMALL_BODY, mean=(120, 130, 140), colour_order="BGR", input_size=48)

ROUNDING = 2**-10
"""Of float16, the distance between neighbours over the smaller of them: the last digit."""


@pytest.fixture(scope="module")
def small():
    return Body(SPEC, load_state(SPEC, "random", seed=1))


@pytest.fixture(scope="module")
def alexnet():
    return Body(BODIES["alexnet"], load_state(BODIES["alexnet"], "random"))


def pooled(conv_map, levels=(6, 3, 2, 1)):
    """The vector of a whole float32 map (channels, height, width), rounded at the end."""
    bins = [adaptive_max_pool2d(conv_map, n).permute(1, 2, 0).reshape(-1) for n in levels]
    return (torch.cat(bins).half() + 0.0).numpy()


def bits(vectors):
    return vectors.view(np.uint16)


def assert_close(found, expected):
    """Equal up to float16's last digit, and up to what the order of sums leaves of values near 0."""
    assert found.dtype == expected.dtype == np.float16
    scale = np.abs(expected.astype(np.float32)).max()
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=ROUNDING, atol=1e-5 * scale)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (6,), (1, 2, 4)])
def test_every_row_is_the_body_on_its_warped_crop_alone(small, levels):
    image, boxes = noise(60, 90), random_boxes(60, 90, 12)
    extract = WarpExtractor(small, levels, context=5, batch=1)
    found = extract(image, boxes)
    assert extract.dim == found.vectors.shape[1]
    for box, vector in zip(boxes, found.vectors, strict=True):
        crop = warp(image, box, 48, 5, (140, 130, 120))  # the mean is in the order of BGR
        conv_map = small.conv_map_of(small.preprocess(crop))
        np.testing.assert_array_equal(bits(vector), bits(pooled(conv_map, levels)))
        peer = RegionExtractor(small, (48,), levels=levels)(crop, as_boxes((0, 0, 48, 48)))
        np.testing.assert_array_equal(bits(vector), bits(peer.vectors[0]))


def test_alexnets_rows_are_those_of_its_warped_crops(alexnet, shared):
    path = shared / "data/voc_subset/VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg"
    image = decode_image(path.read_bytes())
    boxes = random_boxes(*image.shape[:2], 9)
    found = WarpExtractor(alexnet, batch=4)(image, boxes)
    assert found.vectors.shape == (9, 12_800)
    for box, vector in zip(boxes, found.vectors, strict=True):
        crop = warp(image, box, 224, CONTEXT, (123.675, 116.28, 103.53))
        assert_close(vector, pooled(alexnet.conv_map(crop, 224)))


def test_alexnets_level_6_is_its_own_last_pooling(alexnet):
    """R-CNN's pool5: 6 x 6 maxima of 3 x 3 cells, two apart."""
    image, box = noise(60, 90), as_boxes((10, 10, 70, 50))
    found = WarpExtractor(alexnet, (6,), batch=1)(image, box).vectors[0]
    conv_map = alexnet.conv_map(warp(image, box[0], 224, CONTEXT, alexnet.spec.mean), 224)
    expected = max_pool2d(conv_map[None], 3, 2)[0].permute(1, 2, 0).reshape(-1).half().numpy()
    np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("batch", [1, 2, 7, 20, 1000])
def test_the_batch_changes_nothing_but_the_last_digit(small, batch):
    image, boxes = noise(60, 90), random_boxes(60, 90, 20)
    expected = WarpExtractor(small, context=5, batch=5)(image, boxes)
    found = WarpExtractor(small, context=5, batch=batch)(image, boxes)
    np.testing.assert_array_equal(found.windows, expected.windows)
    assert_close(found.vectors, expected.vectors)


def test_the_maps_of_a_batch_are_no_more_than_numbers_of_a_window_reach(small):
    """12 rows a map: 2,730 of them make a map whose last row still is an int16."""
    image, boxes = noise(60, 90), np.repeat(random_boxes(60, 90, 3), 1000, axis=0)
    found = WarpExtractor(small, (1,), context=5, batch=10**6)(image, boxes).vectors
    assert_close(found, np.repeat(WarpExtractor(small, (1,), context=5)(image, boxes[::1000]).vectors, 1000, axis=0))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(small, threads):
    image, boxes = noise(60, 90), random_boxes(60, 90, 50)
    one, more = (WarpExtractor(small, context=5, threads=n)(image, boxes).vectors for n in (1, threads))
    np.testing.assert_array_equal(bits(one), bits(more))


def test_the_same_boxes_give_the_same_bits(small):
    image, boxes = noise(60, 90), random_boxes(60, 90, 50)
    first, second = (WarpExtractor(small, context=5)(image, boxes).vectors for _ in range(2))
    np.testing.assert_array_equal(bits(first), bits(second))


def test_what_a_device_pools_is_what_the_processor_pools(small):
    """The way of a device's tensors, with tensors of the processor; a map has 12 x 12 cells."""
    image, boxes = noise(60, 90), random_boxes(60, 90, 6)
    extract = WarpExtractor(small, context=5, batch=6)
    maps = extract._conv_maps(warp_all(image, boxes, 48, 5, extract.fill))
    found = np.empty((6, extract.dim), np.float16)
    extract._pool_on_device(maps, np.array([(0, 12 * i, 11, 12 * i + 11) for i in range(6)], np.int16), found)
    np.testing.assert_array_equal(bits(found), bits(extract(image, boxes).vectors))


def test_scales_and_windows_need_no_pixels(small):
    boxes = random_boxes(60, 90, 7)
    scales, windows = WarpExtractor(small, context=5).windows(boxes, 60, 90)
    assert scales.tolist() == [48] * 7
    assert windows.tolist() == [[0, 0, 11, 11]] * 7
    assert (scales.dtype, windows.dtype) == (np.int32, np.int16)
    found = WarpExtractor(small, context=5)(noise(60, 90), boxes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(found.windows, windows)


def test_vectors_go_to_the_callers_buffer(small):
    image, boxes = noise(60, 90), random_boxes(60, 90, 20)
    buffer = np.full((32, 250), 7, np.float16)
    found = WarpExtractor(small, context=5, batch=6)(image, boxes, out=buffer)
    assert np.shares_memory(found.vectors, buffer)
    assert found.vectors.shape == (20, 250)
    np.testing.assert_array_equal(
        bits(buffer[:20]), bits(WarpExtractor(small, context=5, batch=6)(image, boxes).vectors)
    )
    assert (buffer[20:] == 7).all()


def test_an_image_without_boxes_has_no_vectors(small):
    found = WarpExtractor(small)(noise(60, 90), as_boxes([]))
    assert (found.scales.shape, found.windows.shape, found.vectors.shape) == ((0,), (0, 4), (0, 250))


def test_the_seconds_of_warp_conv_and_pool_are_counted(small):
    extract = WarpExtractor(small, context=5)
    extract(noise(60, 90), random_boxes(60, 90, 10))
    assert set(extract.clock.seconds) == {"warp", "conv", "pool"}
    assert all(seconds > 0 for seconds in extract.clock.seconds.values())


@pytest.mark.parametrize("value", [1e6, float("inf"), float("nan")])
def test_a_map_that_float16_cannot_hold_is_a_body_error(value):
    state = dict(load_state(SPEC, "random"))
    state["second.bias"] = torch.tensor([0, 0, value, 0, 0])
    with pytest.raises(BodyError, match=r"not finite in float16.*other weights"):
        WarpExtractor(Body(SPEC, state), context=5)(noise(60, 90), random_boxes(60, 90, 3))
