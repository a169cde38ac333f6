"""Convnet*-5 and Overfeat against the paper's Table 1: filters, strides, order of layers, sides of the maps."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bodies import BODIES, Body, WeightsError, load_state
from pipeline.bodies.caffe_layers import WithinChannelNorm

FILTERS = {
    "convnet5": {1: (96, 3, 11), 2: (256, 96, 5), 3: (384, 256, 3), 4: (384, 384, 3), 5: (256, 384, 3)},
    "overfeat5": {1: (96, 3, 7), 2: (256, 96, 5), 3: (512, 256, 3), 4: (512, 512, 3), 5: (512, 512, 3)},
}
FILTERS["overfeat7"] = FILTERS["overfeat5"] | {6: (512, 512, 3), 7: (512, 512, 3)}

OWN = ("convnet5", "overfeat5", "overfeat7", "zf5")


def on_the_way(name, pixels):
    """Kinds and sides, in order, of what a square image passes through, in the network itself; one ReLU per layer."""
    network, steps = BODIES[name].build().eval(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.ReLU, WithinChannelNorm)):
            module.register_forward_hook(lambda module, _, output: steps.append((type(module), output.shape[2:])))
    with torch.inference_mode():
        network(torch.zeros(1, 3, pixels, pixels))
    assert all(height == width for _, (height, width) in steps)
    return [(kind, height) for kind, (height, _) in steps]


CONV, POOL, RELU, NORM = nn.Conv2d, nn.MaxPool2d, nn.ReLU, WithinChannelNorm


def test_convnet5_pools_after_conv2_and_conv3_and_normalises_after_relu():
    assert on_the_way("convnet5", 224) == [
        *[(CONV, 55), (RELU, 55), (NORM, 55)],
        *[(CONV, 55), (RELU, 55), (NORM, 55), (POOL, 27)],
        *[(CONV, 27), (RELU, 27), (POOL, 13)],
        *[(CONV, 13), (RELU, 13)] * 2,
    ]


@pytest.mark.parametrize("name", ["overfeat5", "overfeat7"])
def test_overfeat_pools_and_then_normalises_after_conv1(name):
    assert on_the_way(name, 224) == [
        *[(CONV, 109), (RELU, 109), (POOL, 37), (NORM, 37)],
        *[(CONV, 35), (RELU, 35), (POOL, 18)],
        *[(CONV, 18), (RELU, 18)] * (int(name[-1]) - 2),
    ]


@pytest.mark.parametrize(
    ("name", "cells"),
    [("zf5", (13, 10)), ("convnet5", (13, 10)), ("overfeat5", (18, 14)), ("overfeat7", (18, 14))],
)
def test_maps_of_224_and_of_180_pixels(name, cells):
    for pixels, expected in zip((224, 180), cells, strict=True):
        assert on_the_way(name, pixels)[-1] == (RELU, expected)
        assert BODIES[name].map_length(pixels) == expected


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_is_the_tables(name):
    state = load_state(BODIES[name], "random", seed=2)
    expected = {f"conv{number}.weight": (*shape, shape[-1]) for number, shape in FILTERS[name].items()}
    assert {key: tuple(values.shape) for key, values in state.items() if values.ndim == 4} == expected
    assert set(state) == {f"conv{number}.{kind}" for number in FILTERS[name] for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", FILTERS)
def test_random_weights_are_drawn_as_zf5s(name):
    state = load_state(BODIES[name], "random", seed=2)
    for number in FILTERS[name]:
        weight = state[f"conv{number}.weight"]
        assert abs(weight.mean()) < 4 * 0.01 / weight.numel() ** 0.5
        assert abs(weight.std() / 0.01 - 1) < 0.02
        assert (state[f"conv{number}.bias"] == (0 if number in (1, 3) else 1)).all()


@pytest.mark.parametrize("name", OWN)
def test_they_take_blue_green_red_less_128(name):
    image = np.array([[[10, 128, 250]]], np.uint8).repeat(40, 0).repeat(40, 1)
    batch = Body(BODIES[name], load_state(BODIES[name], "random")).preprocess(image)
    assert batch[0, :, 0, 0].tolist() == [250 - 128, 0, 10 - 128]


@pytest.mark.parametrize("name", OWN)
def test_they_have_no_published_weights_and_say_what_to_use(name):
    with pytest.raises(WeightsError, match=rf"^{name} has no published weights; use weights: PATH .*weights: random"):
        load_state(BODIES[name], "default")


@pytest.mark.parametrize("name", OWN)
def test_their_whole_networks_have_fc6_fc7_and_fc8(name):
    assert BODIES[name].classifier == ("fc6", "fc7", "fc8")
