"""The measured geometry of networks that come without a layer list, against networks that have one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.bodies import BODIES, probe
from pipeline.bodies.caffe_layers import WithinChannelNorm
from pipeline.bodies.probe import NoGeometryError, measure
from pipeline.spp.receptive_field import Layer, geometry, map_length


def stack(layers):
    """A small network of a layer list, with what networks have between their convolutions."""
    modules, channels = [], 3
    for number, layer in enumerate(layers):
        if layer.ceil:
            modules.append(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=True))
            continue
        modules += [
            nn.Conv2d(channels, 4, layer.kernel, layer.stride, layer.padding, layer.dilation),
            *(nn.BatchNorm2d(4), nn.GELU()) * (number % 2),
        ]
        channels = 4
    return nn.Sequential(*modules)


@st.composite
def strided_by_8(draw):
    """Layers with strides 2, 2 and 2 somewhere among them; poolings are not padded by more than half, as in torch."""
    layers = []
    for stride in draw(st.permutations([2, 2, 2, 1, 1])):
        kernel = draw(st.integers(stride, 5))
        ceil = draw(st.booleans())
        padding = draw(st.integers(0, kernel // 2))
        dilation = 1 if ceil else draw(st.integers(1, 2))
        layers.append(Layer(kernel, stride, padding, dilation, ceil=ceil))
    return layers


@settings(max_examples=30)
@given(strided_by_8())
def test_it_measures_what_the_layers_add_up_to(layers):
    layer, pad_to, least = measure(stack(layers), 8)
    assert geometry([layer]) == geometry(layers)
    assert pad_to == 1
    assert least <= geometry(layers).size
    lengths = range(least, least + 200)
    assert [map_length([layer], n) for n in lengths] == [map_length(layers, n) for n in lengths]


def thinned(network):
    """The network, in place, with an eighth of its channels: what a cell sees does not hang on their number."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d):
            inputs, outputs, groups = (max(1, n // 8) for n in (child.in_channels, child.out_channels, child.groups))
            placing = child.kernel_size, child.stride, child.padding, child.dilation
            inputs = 3 if child.in_channels == 3 else inputs
            setattr(network, name, nn.Conv2d(inputs, outputs, *placing, groups, child.bias is not None))
        elif isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.BatchNorm2d(child.num_features // 8))
        else:
            thinned(child)
    return network


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("efficientnet") else name
        for name in sorted(set(BODIES) - {"efficientnet_lite0"})  # whose 851 pixels take long
    ],
)
def test_it_measures_every_body_as_its_layer_list_says(name):
    spec = BODIES[name]
    network = thinned(spec.build())
    for child, module in list(network.named_children()):
        if isinstance(module, WithinChannelNorm):
            setattr(network, child, nn.Identity())  # which is not in the list
    layer, _, _ = measure(network, spec.geometry.stride)
    assert geometry([layer]) == spec.geometry
    padded = [spec.padded_length(n) for n in range(1, 1300)]
    assert [map_length([layer], n) for n in padded] == [map_length(spec.layers, n) for n in padded]


def test_zf5s_normalisation_widens_what_a_cell_feels_and_moves_no_centre():
    layer, _, _ = measure(BODIES["zf5"].build(), 16)
    assert geometry([layer]).centre == BODIES["zf5"].geometry.centre
    assert layer.kernel == BODIES["zf5"].geometry.size + 2 * 2 + 2 * 8


class SamePad(nn.Module):
    """TensorFlow's: as much padding as the length asks for."""

    def __init__(self, kernel):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, kernel, 2)

    def forward(self, batch):
        sides = []
        for n in (batch.shape[3], batch.shape[2]):
            total = max((-(-n // 2) - 1) * 2 + self.conv.kernel_size[0] - n, 0)
            sides += [total // 2, total - total // 2]
        return self.conv(nn.functional.pad(batch, sides))


def test_padding_that_depends_on_the_length_is_constant_over_multiples_of_the_stride():
    layer, pad_to, _ = measure(nn.Sequential(SamePad(3), SamePad(5), SamePad(3)), 8)
    assert pad_to == 8
    assert geometry([layer]) == geometry([Layer(3, 2, 0, 1, 1), Layer(5, 2, 1, 1, 2), Layer(3, 2, 0, 1, 1)])
    assert [map_length([layer], 8 * n) for n in range(1, 50)] == list(range(1, 50))


class Around(nn.Module):
    """A stem and an end of stride 4 each, with something between."""

    def __init__(self, between):
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1)
        self.between = between

    def forward(self, batch):
        return self.end(self.between(self.stem(batch)))


class SqueezeAndExcite(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(8, 8, 1), gate

    def forward(self, batch):
        return batch * self.conv(self.gate(batch)).sigmoid()


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.scale = nn.LayerNorm(8), nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

    def forward(self, batch):
        inside = self.linear(self.norm(batch.permute(0, 2, 3, 1))) * self.scale
        return batch - inside.permute(0, 3, 1, 2)


class Split(nn.Module):
    """Half of the channels see 5 x 5; in place, and gated by one another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)

    def forward(self, batch):
        one, other = batch.chunk(2, dim=1)
        one = one * other
        one.add_(self.conv(other))
        one += other
        return torch.cat([one, nn.functional.silu(other, inplace=True)], dim=1)


@pytest.mark.parametrize(
    ("between", "sees"),
    [
        (SqueezeAndExcite(nn.AdaptiveAvgPool2d(1)), 1),
        (SqueezeAndExcite(lambda batch: batch.mean((2, 3), keepdim=True)), 1),
        (SqueezeAndExcite(lambda batch: batch.amax((2, 3), keepdim=True) + batch.mean((2, 3), keepdim=True)), 1),
        (SqueezeAndExcite(nn.AvgPool2d(3, 1, 1)), 3),  # a gate that has a place widens what a cell sees
        (ChannelsLast(), 1),
        (Split(), 5),
    ],
)
def test_it_follows_what_lies_between_convolutions(between, sees):
    layer, pad_to, _ = measure(Around(between), 8)
    assert geometry([layer]) == geometry([Layer(4, 4), Layer(sees, padding=sees // 2), Layer(3, 2, 1)])
    assert pad_to == 1


class Attention(nn.Module):
    def forward(self, batch):
        tokens = batch.flatten(2).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.transpose(1, 2).unflatten(2, batch.shape[2:])


class Recurrent(nn.Module):
    """Its gates saturate: a gradient of the network itself would be zero, and its cells seem to see little."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True).double()

    def forward(self, batch):
        return self.lstm(1e6 * batch.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, batch.shape[2:])


class Windows(nn.Module):
    """The average of each block of 8 x 8 cells, as a windowed mixer has it."""

    def forward(self, batch):
        bottom, right = -batch.shape[2] % 8, -batch.shape[3] % 8
        padded = nn.functional.pad(batch, (0, right, 0, bottom))
        blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).mean((3, 5), keepdim=True)
        blocks = blocks.expand(-1, -1, -1, 8, -1, 8).flatten(4, 5).flatten(2, 3)
        return blocks[:, :, : batch.shape[2], : batch.shape[3]]


class Centred(nn.Module):
    """The image in the middle of a canvas of multiples of 32: where cell 0 looks depends on the length."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)

    def forward(self, batch):
        right, bottom = -batch.shape[3] % 32, -batch.shape[2] % 32
        return self.conv(nn.functional.pad(batch, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)))


@pytest.mark.parametrize(
    ("network", "stride", "says"),
    [
        (Around(Attention()), 8, "uses scaled_dot_product_attention, which is no convolution, pooling or gate"),
        (Around(Recurrent()), 8, "uses lstm"),
        (Around(nn.Upsample(scale_factor=2)), 4, "uses interpolate"),
        (Around(Windows()), 8, r"cell \d+ of an image of \d+ pixels sees pixels"),
        (nn.Conv2d(3, 4, (8, 10), 8, (0, 1)), 8, r"cell \d+ of an image of \d+ pixels sees pixels"),
        (Centred(), 8, r"cell \d+ of an image of \d+ pixels sees pixels"),
        (stack([Layer(5, 2, 2)] * 4), 8, "pixels"),  # of stride 16
        (stack([Layer(5, 2, 2)] * 2), 8, "pixels"),  # of stride 4
        (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(9)), 4, "uses adaptive_avg_pool2d"),
        (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten()), 4, "what it gives is no map"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Unflatten(1, (3, -1))),
            4,
            r"it cannot take \d+ x \d+ pixels \(",
        ),
    ],
)
def test_a_network_without_a_constant_geometry_is_refused_with_what_was_found(network, stride, says):
    with pytest.raises(NoGeometryError, match=says):
        measure(network, stride)


def test_cells_that_see_the_whole_image_are_refused(monkeypatch):
    monkeypatch.setattr(probe, "MAX_SIZE", 128)
    assert measure(stack([Layer(3, 2, 1)] * 3), 8)
    with pytest.raises(NoGeometryError, match="a cell sees the whole image, or more than 128 pixels of it"):
        measure(stack([*[Layer(3, 2, 1)] * 3, *[Layer(5, 1, 2)] * 4]), 8)
