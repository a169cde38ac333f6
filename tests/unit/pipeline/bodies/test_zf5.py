"""ZF-5 against its release: SPP_net Zeiler_conv5.prototxt, and Caffe's layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bodies import Body, WeightsError, load_state
from pipeline.bodies.caffe_layers import WithinChannelNorm
from pipeline.bodies.zf5 import ZF5, ZF5Body


def caffes_norm(x, size=3, alpha=5e-5, beta=0.75):
    """WITHIN_CHANNEL, value by value: what lies beyond the edge counts as zero, and counts in the divisor."""
    normalised = np.empty_like(x)
    channels, height, width = x.shape
    reach = size // 2
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                total = 0.0
                for y in range(max(i - reach, 0), min(i + reach + 1, height)):
                    for z in range(max(j - reach, 0), min(j + reach + 1, width)):
                        total += x[c, y, z] ** 2
                normalised[c, i, j] = x[c, i, j] * (1 + alpha / size**2 * total) ** -beta
    return normalised


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1.0, 1e2, 1e4]), st.integers(0, 99))
def test_the_normalisation_is_caffes_within_channel(channels, height, width, magnitude, seed):
    x = np.random.default_rng(seed).normal(scale=magnitude, size=(channels, height, width))
    found = WithinChannelNorm()(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, caffes_norm(x), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_the_normalisations_gradient_is_that_of_its_formula(beta):
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul_(40)
    norm = WithinChannelNorm(alpha=5e-3, beta=beta)
    assert torch.autograd.gradcheck(norm, (x.requires_grad_(),))


def test_the_normalisation_of_halves_is_computed_in_float32():
    x = torch.full((1, 1, 4, 4), 300.0)  # whose square is beyond float16
    for half, close in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        found = WithinChannelNorm()(x.to(half))
        assert found.dtype == half
        torch.testing.assert_close(found.float(), WithinChannelNorm()(x), rtol=close, atol=0)


def test_the_normalisation_is_not_torchs_which_goes_across_channels():
    x = torch.full((1, 8, 5, 5), 300.0)
    across = torch.nn.LocalResponseNorm(3, alpha=5e-5, beta=0.75)(x)
    assert not torch.allclose(WithinChannelNorm()(x)[..., 0, 0], across[..., 0, 0], rtol=0.01)


def lengths_on_the_way(pixels):
    """Sides of the maps after conv1, pool1, conv2, pool2 and conv5 of a square image, in the network itself."""
    network, lengths = ZF5Body(), []
    for module in (network.conv1, network.pool, network.conv2, network.conv5):
        module.register_forward_hook(lambda module, inputs, output: lengths.append(tuple(output.shape[2:])))
    with torch.inference_mode():
        network(torch.zeros(1, 3, pixels, pixels))
    assert all(height == width for height, width in lengths)
    return [height for height, _ in lengths]


@pytest.mark.parametrize(("pixels", "expected"), [(224, [110, 55, 26, 13, 13]), (180, [88, 44, 20, 10, 10])])
def test_the_maps_on_the_way_are_the_releases(pixels, expected):
    assert lengths_on_the_way(pixels) == expected


@pytest.mark.parametrize(("scale", "cells"), [(480, 29), (576, 35), (688, 42), (864, 53), (1200, 74)])
def test_the_map_of_a_scale_has_the_papers_length(scale, cells):
    with torch.inference_mode():
        conv_map = ZF5Body()(torch.zeros(1, 3, scale, 64))
    assert conv_map.shape[:3] == (1, 256, cells)
    assert ZF5.map_length(scale) == cells


def test_every_filter_is_the_tables():
    shapes = {name: tuple(values.shape) for name, values in ZF5Body().state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (96, 3, 7, 7),
        "conv2.weight": (256, 96, 5, 5),
        "conv3.weight": (384, 256, 3, 3),
        "conv4.weight": (384, 384, 3, 3),
        "conv5.weight": (256, 384, 3, 3),
    }


def test_a_state_dict_has_the_convolutions_and_nothing_else():
    assert list(ZF5Body().state_dict()) == [f"conv{n}.{kind}" for n in range(1, 6) for kind in ("weight", "bias")]


def test_random_weights_are_the_releases_initialisation():
    state = load_state(ZF5, "random", seed=2)
    for number, bias in enumerate((0, 1, 0, 1, 1), start=1):
        weight = state[f"conv{number}.weight"]
        assert abs(weight.mean()) < 4 * 0.01 / weight.numel() ** 0.5
        assert abs(weight.std() / 0.01 - 1) < 0.02
        assert (state[f"conv{number}.bias"] == bias).all()


def test_it_takes_blue_green_red_less_128():
    image = np.array([[[10, 128, 250]]], np.uint8).repeat(40, 0).repeat(40, 1)
    batch = Body(ZF5, load_state(ZF5, "random")).preprocess(image)
    assert batch[0, :, 0, 0].tolist() == [250 - 128, 0, 10 - 128]


def test_layer_by_layer_it_is_conv_relu_norm_pool():
    state = {name: values.double() for name, values in load_state(ZF5, "random", seed=1).items()}
    network = ZF5Body().double()
    network.load_state_dict(state)
    batch = 50 * torch.randn(1, 3, 61, 75, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = batch
    for number, (stride, padding) in enumerate(((2, 1), (2, 0), (1, 1), (1, 1), (1, 1)), start=1):
        x = torch.nn.functional.conv2d(x, state[f"conv{number}.weight"], state[f"conv{number}.bias"], stride, padding)
        x = x.clamp(min=0)
        if number <= 2:
            x = torch.from_numpy(caffes_norm(x[0].numpy()))[None]
            x = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
    with torch.inference_mode():
        torch.testing.assert_close(network(batch), x)


def test_it_has_no_published_weights_and_says_what_to_use():
    with pytest.raises(WeightsError, match=r"zf5 has no published weights; use weights: PATH .*weights: random"):
        load_state(ZF5, "default")
