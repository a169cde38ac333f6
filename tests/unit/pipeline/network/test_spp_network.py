"""Whole networks: the pyramid in a batch against pipeline.spp.pyramid, fixed pooling as sliding windows, export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bodies import Body, body_spec, load_state
from pipeline.bodies.weights import read_state
from pipeline.network.spp_network import (
    FIXED_LEVELS,
    SIDE,
    InputSizeError,
    network_of,
    new_network,
    pooling_levels,
    pyramid_pool,
)
from pipeline.spp import pyramid
from tests.small_body import SMALL_BODY

LEVELS = (4, 3, 2, 1)


def small(pooling="spp", initial="he", seed=0, **options):
    return new_network(SMALL_BODY, pooling, LEVELS, 3, sizes=(8, 6), initial=initial, seed=seed, **options)


def pixels(height: int = SIDE, width: int = SIDE, count: int = 2) -> torch.Tensor:
    random = np.random.default_rng(height * width)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), np.uint8))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (1, 7, 5)])
@pytest.mark.parametrize("size", [(13, 13), (10, 10), (16, 23), (3, 1), (31, 6)])
def test_the_pyramid_over_a_batch_is_that_of_windows_on_the_whole_map(levels, size):
    maps = torch.randn((3, 8, *size), generator=torch.Generator().manual_seed(1)) * 50
    found = pyramid_pool(maps, levels).half() + 0.0
    window = np.array([[0, 0, size[1] - 1, size[0] - 1]], np.int16)
    for one, vector in zip(maps, found.numpy(), strict=True):
        conv_map = pyramid.half(one.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(vector, pyramid.pool(conv_map, window, levels)[0])


@pytest.mark.parametrize(("cells", "stride"), [(13, 2), (18, 3)])
def test_six_by_six_bins_are_sliding_windows_on_the_maps_of_the_papers_networks(cells, stride):
    maps = torch.randn(2, 5, cells, cells)
    slid = nn.functional.max_pool2d(maps, 3, stride)
    assert slid.shape[2:] == (6, 6)
    torch.testing.assert_close(pyramid_pool(maps, FIXED_LEVELS), slid.permute(0, 2, 3, 1).flatten(1), rtol=0, atol=0)


def test_gradients_go_to_the_maxima():
    maps = torch.randn(1, 2, 5, 7, requires_grad=True)
    pyramid_pool(maps, (1,)).sum().backward()
    assert maps.grad is not None
    wanted = torch.zeros_like(maps)
    for channel in range(2):
        wanted[0, channel].view(-1)[maps[0, channel].argmax()] = 1
    torch.testing.assert_close(maps.grad, wanted)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (180, 180), (97, 300), (256, 20)])
def test_a_network_with_a_pyramid_takes_every_size(size):
    assert small()(pixels(*size)).shape == (2, 3)


def test_a_network_without_takes_one_size_and_says_so():
    network = small("fixed")
    assert network.levels == pooling_levels("fixed", LEVELS) == (6,)
    assert network(pixels()).shape == (2, 3)
    for size in ((180, 180), (SIDE, SIDE + 1)):
        with pytest.raises(InputSizeError, match=f"224 x 224 pixels only, not {size[0]} x {size[1]}"):
            network(pixels(*size))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_input_is_preprocessed_as_the_body_does(order):
    spec = dataclasses.replace(SMALL_BODY, colour_order=order, mean=(100, 110, 120), std=(50, 60, 70), pad_to=16)
    network = new_network(spec, "spp", LEVELS, 3, sizes=(8, 6), initial="gaussian")
    body = Body(spec, network.body.state_dict())
    image = pixels(37, 50, 1)
    found = network.maps(image)[0]
    conv_map = body.conv_map(image[0].numpy(), 37)
    torch.testing.assert_close(found, conv_map, rtol=0, atol=0)


def test_a_shift_is_added_to_every_pixel_in_rgb():
    spec = dataclasses.replace(SMALL_BODY, colour_order="BGR", mean=(100, 110, 120), std=(50, 60, 70))
    network = new_network(spec, "spp", LEVELS, 3, sizes=(8, 6), initial="he").eval()
    image = pixels(40, 40) // 2 + 20
    shift = torch.tensor([[3.0, -5, 7], [0, 20, -20]])
    shifted = (image + shift[:, None, None, :]).to(torch.uint8)
    torch.testing.assert_close(network(image, shift), network(shifted))


def test_gaussian_weights_are_as_the_release_begins():
    network = new_network(body_spec("zf5"), "spp", (6, 3, 2, 1), 10, sizes=(256, 128), initial="gaussian")
    assert network.head.dim == 12_800
    for name, values in network.exported().items():
        if name.endswith("weight"):
            assert values.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(values.mean().item()) < 1e-3
        else:
            assert (values == (0 if name in ("conv1.bias", "conv3.bias") else 1)).all()


@pytest.mark.parametrize("pooling", ["spp", "fixed"])
def test_he_weights_keep_the_size_of_values(pooling):
    network = new_network(body_spec("zf5"), pooling, (6, 3, 2, 1), 10, sizes=(256, 128), initial="he").eval()
    random = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    image = torch.from_numpy(random.repeat(28, 1).repeat(28, 2))  # coarse, as photographs are
    with torch.inference_mode():
        vectors = pyramid_pool(network.maps(image), network.levels)
        hidden = network.head(vectors, "fc7")
        logits = network.head(vectors)
    assert 0.2 < (vectors * network.head.scale).pow(2).mean().sqrt() < 5
    assert 0.1 < hidden.pow(2).mean().sqrt() < 5
    assert logits.abs().max() < 1


def test_the_same_seed_gives_the_same_network():
    torch.manual_seed(5)
    wanted = small(seed=3).exported()
    torch.rand(7)
    again, other = small(seed=3).exported(), small(seed=4).exported()
    assert all(torch.equal(values, again[name]) for name, values in wanted.items())
    assert not torch.equal(wanted["first.weight"], other["first.weight"])


def test_what_is_exported_is_named_as_the_body_and_the_layers_are(tmp_path):
    network = small().eval()
    state = network.exported()
    body = set(SMALL_BODY.build().state_dict())
    assert set(state) == body | {f"fc{n}.{kind}" for n in (6, 7, 8) for kind in ("weight", "bias")}
    assert network.head.scale != 1
    assert network.gain != 1
    path = tmp_path / "small.pt"
    torch.save(state, path)
    assert load_state(SMALL_BODY, str(path)).keys() == body
    again = network_of(SMALL_BODY, read_state(path), LEVELS, fixed=False)
    with torch.inference_mode():
        torch.testing.assert_close(again(pixels(60, 80)), network(pixels(60, 80)))
