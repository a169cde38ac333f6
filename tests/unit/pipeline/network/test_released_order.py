"""The released order of a pooled vector, built number by number from a map, against ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bodies import BODIES, load_classifier, load_state, save_network
from pipeline.network.head import pretrained_head
from pipeline.network.released_order import from_released, to_released
from pipeline.spp.pyramid import half, pool

LEVELS = (6, 3, 2, 1)
pyramids = st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True)


def released_vector(conv_map, levels=(1, 2, 3, 6)):
    """As spm_pool_caffe_mex.cpp:167-234 writes it, loop by loop, of a map (height, width, channels)."""
    height, width, channels = conv_map.shape
    values = []
    for n in levels:
        cache = {}
        for yy in range(n):
            rows = range(int(np.floor(yy * height / n)), int(np.ceil((yy + 1) * height / n)))
            for xx in range(n):
                columns = range(int(np.floor(xx * width / n)), int(np.ceil((xx + 1) * width / n)))
                for d in range(channels):
                    cache[d * n * n + yy * n + xx] = max(conv_map[y, x, d] for y in rows for x in columns)
        values += [cache[i] for i in range(n * n * channels)]
    return np.array(values)


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("shape", [(13, 13, 3), (7, 10, 4), (2, 5, 1)])
def test_released_weights_on_the_released_vector_are_ours_on_ours(shape, kind):
    random = np.random.default_rng(0)
    conv_map = half(random.random(shape))
    released, ours = released_vector(conv_map), pool(conv_map, np.array([[0, 0, shape[1] - 1, shape[0] - 1]], np.int16))
    weights = random.normal(size=(11, len(released)))
    given = weights if kind == "array" else torch.from_numpy(weights)
    converted = from_released(given, channels=shape[2])
    assert isinstance(converted, type(given))
    assert not np.array_equal(ours[0], released), "the orders differ"
    np.testing.assert_allclose(np.asarray(converted) @ ours[0].astype(float), weights @ released.astype(float))


@given(pyramids, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_there_and_back_nothing_changes(levels, channels, rows, tensor):
    columns = channels * sum(n * n for n in levels)
    weights = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    given = torch.from_numpy(weights) if tensor else weights
    for first, then in ((from_released, to_released), (to_released, from_released)):
        there = first(given, channels, levels)
        assert sorted(np.asarray(there)[0]) == list(weights[0]), "a permutation of columns"
        np.testing.assert_array_equal(np.asarray(then(there, channels, levels)), weights)


def test_one_channel_of_two_levels_by_hand():
    np.testing.assert_array_equal(from_released(np.arange(5)[None], 1, (2, 1)), [[1, 2, 3, 4, 0]])
    two = np.array([["c0", "c1", "c0 b00", "c0 b01", "c0 b10", "c0 b11", "c1 b00", "c1 b01", "c1 b10", "c1 b11"]])
    ours = "c0 b00,c1 b00,c0 b01,c1 b01,c0 b10,c1 b10,c0 b11,c1 b11,c0,c1"
    assert ",".join(from_released(two, 2, (2, 1))[0]) == ours


def test_columns_that_do_not_fit_and_levels_twice_are_refused():
    with pytest.raises(ValueError, match=r"\(outputs, 12800\), for 256 channels x 50 bins; these have \(4, 9216\)"):
        from_released(np.zeros((4, 9216)), 256)
    with pytest.raises(ValueError, match="twice"):
        to_released(np.zeros((4, 8)), 1, (2, 2))


def test_a_released_network_becomes_a_file_whose_head_gives_its_logits(tmp_path):
    """The snippet of docs/bodies.md, with small layers."""
    random = torch.Generator().manual_seed(0)
    spec = BODIES["zf5"]
    state = dict(load_state(spec, "random"))
    for layer, shape in (("fc6", (20, 12800)), ("fc7", (10, 20)), ("fc8", (4, 10))):
        state[f"{layer}.weight"] = torch.randn(shape, generator=random)
        state[f"{layer}.bias"] = torch.randn(shape[0], generator=random)
    conv_map = half(torch.rand(9, 8, 256, generator=random).numpy())
    hidden = torch.from_numpy(released_vector(conv_map)).float()
    for layer in ("fc6", "fc7"):
        hidden = torch.relu(state[f"{layer}.weight"] @ hidden + state[f"{layer}.bias"])
    logits = state["fc8.weight"] @ hidden + state["fc8.bias"]

    state["fc6.weight"] = from_released(state["fc6.weight"], channels=256)
    path = tmp_path / "zf5.safetensors"
    save_network(path, spec, state, levels=LEVELS, class_names=["a", "b", "c", "d"])
    classifier = load_classifier(spec, str(path))
    assert classifier is not None
    vector = torch.from_numpy(pool(conv_map, np.array([[0, 0, 7, 8]], np.int16))).float()
    with torch.inference_mode():
        found = pretrained_head(classifier, 256, LEVELS).eval()(vector)
    torch.testing.assert_close(found[0], logits, rtol=1e-4, atol=1e-2)
