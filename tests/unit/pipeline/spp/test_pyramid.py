import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_max_pool2d

from pipeline.spp import pyramid
from pipeline.spp.pyramid import LEVELS, bin_count, bins, half, pool, pool_torch, warm_up

LEVEL_LISTS = [(6, 3, 2, 1), (1, 2, 3, 6), (4, 3, 2, 1), (5,)]


def reference(conv_map, windows, levels):
    """PyTorch's adaptive pooling of each cropped map, level by level, bins row-major, channels last."""
    cells = torch.from_numpy(conv_map.astype(np.float32)).permute(2, 0, 1)  # (C, H, W)
    vectors = []
    for x1, y1, x2, y2 in np.asarray(windows).tolist():
        crop = cells[:, y1 : y2 + 1, x1 : x2 + 1]
        pooled = [adaptive_max_pool2d(crop, n).permute(1, 2, 0).reshape(-1) for n in levels]
        vectors.append(torch.cat(pooled).numpy())
    if not vectors:
        return np.empty((0, conv_map.shape[2] * bin_count(levels)), np.float32)
    return np.stack(vectors)


def assert_same_bits(found, expected):
    assert found.dtype == np.float16
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.view(np.uint16), expected.astype(np.float16).view(np.uint16))


def random_map(height, width, channels, signed, seed=0):
    """As a body's: half the values are 0 where it is positive (ReLU)."""
    values = np.random.default_rng(seed).normal(0, 3, (height, width, channels)).astype(np.float32)
    return values if signed else np.maximum(values, 0)


def random_windows(height, width, count, seed=0):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, width, (count, 2)))
    y = np.sort(rng.integers(0, height, (count, 2)))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.int16)


def windows_of_every_size(height, width, seed=0):
    """One window of every size from 1x1 to the whole map, at random places."""
    rng = np.random.default_rng(seed)
    windows = []
    for h in range(1, height + 1):
        for w in range(1, width + 1):
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            windows.append((x, y, x + w - 1, y + h - 1))
    return np.array(windows, np.int16)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", LEVEL_LISTS)
def test_every_window_size_pools_as_adaptive_max_pool2d(levels, signed):
    conv_map = half(random_map(13, 17, 3, signed))
    windows = windows_of_every_size(13, 17)
    assert len(windows) == 13 * 17
    assert_same_bits(pool(conv_map, windows, levels), reference(conv_map, windows, levels))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 256, 320])
def test_any_number_of_channels_pools_as_adaptive_max_pool2d(channels, signed):
    conv_map = half(random_map(31, 42, channels, signed))
    windows = random_windows(31, 42, 60)
    assert_same_bits(pool(conv_map, windows), reference(conv_map, windows, LEVELS))


@st.composite
def maps_and_windows(draw):
    """Small maps of every kind of finite float16, with windows of them."""
    height, width, channels = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    finite = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7C00 != 0x7C00)
    few = draw(st.lists(finite, min_size=1, max_size=6))
    picks = draw(st.lists(st.sampled_from(few), min_size=height * width * channels, max_size=height * width * channels))
    conv_map = np.array(picks, np.uint16).view(np.float16).reshape(height, width, channels)
    windows = []
    for _ in range(draw(st.integers(0, 4))):
        x = sorted(draw(st.tuples(*[st.integers(0, width - 1)] * 2)))
        y = sorted(draw(st.tuples(*[st.integers(0, height - 1)] * 2)))
        windows.append((x[0], y[0], x[1], y[1]))
    return conv_map, np.array(windows, np.int16).reshape(-1, 4)


@settings(max_examples=200)
@given(maps_and_windows(), st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True))
def test_any_map_window_and_levels_pool_as_adaptive_max_pool2d(case, levels):
    conv_map, windows = case
    assert_same_bits(pool(half(conv_map), windows, levels), reference(half(conv_map), windows, levels))


@pytest.mark.parametrize("signed", [False, True])
def test_the_number_of_threads_changes_nothing(signed):
    conv_map = half(random_map(20, 30, 16, signed))
    windows = random_windows(20, 30, 101)
    one = pool(conv_map, windows, threads=1)
    for threads in (2, 3):
        assert_same_bits(pool(conv_map, windows, threads=threads), one)
        assert_same_bits(pool(conv_map, windows[:3], threads=threads), one[:3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_pools_with_threads_of_its_own():
    conv_map, windows = half(random_map(20, 30, 16, signed=False)), random_windows(20, 30, 50)
    expected = pool(conv_map, windows, threads=2)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # one of Python's would wait for the kernel to return
        signal.alarm(120)  # its parent's threads are not in it: waiting for them would never end
        os._exit(0 if np.array_equal(pool(conv_map, windows, threads=2), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_say_where_vectors_go_and_the_others_stay(threads):
    conv_map = half(random_map(10, 11, 4, signed=True))
    windows = random_windows(10, 11, 20)
    out = np.full((64, 200), 7, np.float16)
    rows = np.random.default_rng(1).permutation(64)[:20]
    assert pool(conv_map, windows, threads=threads, out=out, rows=rows) is out
    assert_same_bits(out[rows], pool(conv_map, windows))
    assert (out[np.setdiff1d(np.arange(64), rows)] == 7).all()


def test_without_rows_the_first_of_out_are_written():
    conv_map = half(random_map(10, 11, 4, signed=False))
    windows = random_windows(10, 11, 5)
    out = np.full((8, 200), 7, np.float16)
    pool(conv_map, windows, out=out)
    assert_same_bits(out[:5], pool(conv_map, windows))
    assert (out[5:] == 7).all()


def test_no_windows_have_no_vectors():
    conv_map = half(random_map(5, 5, 4, signed=False))
    none = np.empty((0, 4), np.int16)
    assert pool(conv_map, none).shape == (0, 200)
    assert pool_torch(torch.from_numpy(conv_map).permute(2, 0, 1), none).shape == (0, 200)


def test_one_cell_fills_all_50_bins():
    conv_map = half(random_map(5, 5, 4, signed=True))
    vector = pool(conv_map, np.array([[2, 3, 2, 3]], np.int16)).reshape(50, 4)
    assert_same_bits(vector, np.tile(conv_map[3, 2], (50, 1)))


def test_the_vector_is_levels_as_given_then_bins_row_major_then_channels():
    # cells numbered 0..35 on one channel, their negatives on the other: a 6x6 bin is its own cell
    numbers = np.arange(36, dtype=np.float32).reshape(6, 6)
    conv_map = half(np.stack([numbers, -numbers], axis=2))
    whole = np.array([[0, 0, 5, 5]], np.int16)
    vector = pool(conv_map, whole, (2, 6))[0]
    assert vector.shape == (2 * (4 + 36),)
    assert vector[:8].tolist() == [14, 0, 17, -3, 32, -18, 35, -21]
    assert vector[8::2].tolist() == list(range(36))
    assert vector[9::2].tolist() == [-n for n in range(36)]


# --- bins ---


def test_the_bins_are_the_oracles(shared):
    tables = json.loads((shared / "oracles/windows_zf5.json").read_text())["bins"]
    assert tables
    for name, expected in tables.items():
        length, n = (int(part[1:]) for part in name.split("_"))
        assert [list(b) for b in bins(n, length)] == expected


@given(st.integers(1, 40), st.integers(1, 2000))
def test_bins_are_never_empty_and_leave_no_cell_out(n, length):
    found = bins(n, length)
    assert len(found) == n
    assert all(0 <= start < stop <= length for start, stop in found)
    assert (found[0][0], found[-1][1]) == (0, length)
    assert all(after[0] <= before[1] for before, after in itertools.pairwise(found))


@pytest.mark.parametrize(("fine", "coarse"), [(6, 3), (6, 2), (6, 1), (4, 2), (4, 1), (3, 1), (2, 1)])
def test_a_level_that_divides_a_finer_one_is_a_union_of_its_bins(fine, coarse):
    step = fine // coarse
    for length in range(1, 501):
        small = [set(range(*b)) for b in bins(fine, length)]
        for j, big in enumerate(bins(coarse, length)):
            assert set(range(*big)) == set().union(*small[j * step : (j + 1) * step])


def test_50_bins_are_the_papers_and_30_the_smaller_pyramids():
    assert bin_count(LEVELS) == 50
    assert bin_count((4, 3, 2, 1)) == 30


# --- rounding ---


@pytest.mark.parametrize("signed", [False, True])
def test_pooling_the_rounded_map_equals_rounding_the_pooled_map(signed):
    conv_map = random_map(13, 17, 8, signed)
    windows = random_windows(13, 17, 50)
    pooled = reference(conv_map, windows, LEVELS)  # of float32 values
    assert (pooled.astype(np.float16) != pooled).any(), "rounding does something here"
    assert_same_bits(pool(half(conv_map), windows), pooled + np.float32(0))


@pytest.mark.parametrize("fill", [-0.0, np.float32(-1e-9)])
def test_negative_zero_becomes_positive_zero(fill):
    # -1e-9 is -0 in float16
    conv_map = np.full((4, 5, 2), fill, np.float32)
    windows = np.array([[0, 0, 4, 3], [1, 1, 1, 1]], np.int16)
    assert not half(conv_map).view(np.uint16).any()
    assert not pool(half(conv_map), windows).view(np.uint16).any()
    on_device = pool_torch(torch.from_numpy(conv_map).permute(2, 0, 1), windows)
    assert not on_device.numpy().view(np.uint16).any()


def test_half_keeps_the_map_it_is_given():
    conv_map = np.full((2, 2, 1), -0.0, np.float16)
    half(conv_map)
    assert np.signbit(conv_map).all()


def test_half_is_contiguous_whatever_it_is_given():
    conv_map = random_map(6, 5, 3, signed=True)
    turned = np.ascontiguousarray(conv_map.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert half(turned).flags.c_contiguous
    assert_same_bits(half(turned), conv_map)


@given(st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 59))
def test_half_refuses_a_nan_or_an_infinity_anywhere(dtype, place):
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        conv_map = np.ones((4, 5, 3), dtype)
        conv_map.reshape(-1)[place] = bad
        with pytest.raises(ValueError, match="not finite in float16"):
            half(conv_map)


def test_half_takes_what_rounds_to_float16s_largest_number_and_refuses_more():
    assert half(np.full((1, 1, 2), [65519, -65519], np.float32)).tolist() == [[[65504, -65504]]]
    for beyond in (65520, -65520, 1e30):
        with pytest.raises(ValueError, match="not finite in float16"):
            half(np.full((1, 1, 1), beyond, np.float32))


# --- on the map's own device ---


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", [*LEVEL_LISTS, (7, 2), (21, 7)])
def test_pool_torch_gives_the_same_bits_for_every_window_size(levels, signed):
    conv_map = random_map(13, 17, 3, signed)
    windows = windows_of_every_size(13, 17)
    for dtype in (torch.float32, torch.float16):
        found = pool_torch(torch.from_numpy(conv_map).permute(2, 0, 1).to(dtype), windows, levels)
        assert_same_bits(found.numpy(), pool(half(conv_map), windows, levels))


@pytest.mark.parametrize("level", [*range(1, 13), 21])
def test_pool_torchs_bins_are_exact(level):
    """Numbers that rise along x, then along y: each bin's maximum is its last cell."""
    length = 420
    ramp = torch.arange(length, dtype=torch.float32)[None, None, :]
    windows = np.array([[0, 0, w, 0] for w in range(length)], np.int16)
    for axes in ((0, 1, 2), (0, 2, 1)):
        where = windows if axes[1] == 1 else windows[:, [1, 0, 3, 2]]
        for sign in (1, -1):
            found = pool_torch((sign * ramp).permute(axes), where, (level,)).reshape(-1, level, level)
            line = found[:, 0, :] if axes[1] == 1 else found[:, :, 0]
            for w, ends in enumerate(line.tolist()):
                edges = bins(level, w + 1)
                expected = [stop - 1 for _, stop in edges] if sign == 1 else [-start for start, _ in edges]
                assert ends == expected


# --- what is refused ---


@pytest.mark.parametrize(
    "window", [[0, 0, 7, 3], [0, 0, 3, 6], [-1, 0, 3, 3], [0, -1, 3, 3], [3, 0, 2, 3], [0, 3, 3, 2]]
)
def test_a_window_outside_the_map_is_refused(window):
    conv_map = half(random_map(6, 7, 2, signed=False))
    with pytest.raises(ValueError, match="inside the 6 x 7 map"):
        pool(conv_map, np.array([[0, 0, 6, 5], window], np.int16))


def test_arrays_of_another_shape_or_type_are_refused():
    conv_map = half(random_map(6, 7, 2, signed=False))
    window = np.array([[0, 0, 1, 1]], np.int16)
    for bad in (conv_map.astype(np.float32), conv_map[0], conv_map.transpose(1, 0, 2), conv_map[:, ::2]):
        with pytest.raises(ValueError, match="conv_map must be"):
            pool(bad, window)
    shapes = ((1, 99), (1, 100, 1), (100,))
    for out in (*(np.empty(s, np.float16) for s in shapes), np.empty((1, 100)), np.empty((1, 200), np.float16)[:, ::2]):
        with pytest.raises(ValueError, match="out must be"):
            pool(conv_map, window, out=out)


@pytest.mark.parametrize("rows", [[3], [-1], [0, 1], []])
def test_rows_that_out_does_not_have_are_refused(rows):
    conv_map = half(random_map(6, 7, 2, signed=False))
    with pytest.raises(ValueError, match="a row of out"):
        pool(
            conv_map,
            np.array([[0, 0, 1, 1]], np.int16),
            out=np.empty((3, 100), np.float16),
            rows=np.array(rows, np.intp),
        )


def test_more_windows_than_rows_of_out_are_refused():
    conv_map = half(random_map(6, 7, 2, signed=False))
    with pytest.raises(ValueError, match="a row of out"):
        pool(conv_map, np.zeros((3, 4), np.int16), out=np.empty((2, 100), np.float16))


@pytest.mark.parametrize("levels", [(), (0,), (3, 3), (6, -1)])
def test_levels_are_distinct_positive_numbers(levels):
    conv_map = half(random_map(6, 7, 2, signed=False))
    with pytest.raises(ValueError, match="distinct positive"):
        pool(conv_map, np.array([[0, 0, 1, 1]], np.int16), levels)


def test_the_plan_takes_nested_levels_from_finer_ones_and_only_those():
    def sources(levels):
        return {n: (levels[source] if source >= 0 else None) for n, source, _, _ in pyramid._plan(levels).tolist()}

    assert sources((6, 3, 2, 1)) == {6: None, 3: 6, 2: 6, 1: 2}
    assert sources((1, 2, 3, 6)) == {6: None, 3: 6, 2: 6, 1: 2}
    assert sources((4, 3, 2, 1)) == {4: None, 3: None, 2: 4, 1: 2}


def test_warm_up_runs():
    warm_up()
