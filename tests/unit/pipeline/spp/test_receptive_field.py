import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from pipeline.bodies import BODIES
from pipeline.bodies.caffe_layers import WithinChannelNorm
from pipeline.bodies.zf5 import ZF5_LAYERS
from pipeline.spp.receptive_field import Layer, geometry, map_length, smallest_input

LAYERS = {name: spec.layers for name, spec in BODIES.items()}

layers = st.builds(
    Layer,
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    padding_after=st.none() | st.integers(0, 4),
)


def seen_by(layers, cell):
    """First and last pixel that a cell sees, found backwards from the cell."""
    first = last = cell
    for layer in reversed(layers):
        first = first * layer.stride - layer.padding
        last = last * layer.stride - layer.padding + layer.dilation * (layer.kernel - 1)
    return first, last


def test_zf5_sees_139_pixels_around_20_plus_16_cells():
    field = geometry(ZF5_LAYERS)
    assert (field.stride, field.centre, field.size) == (16, 20, 139)


def test_zf5_centred_paddings_put_cell_0_on_pixel_0():
    # the released net as deployed later, every padding floor(kernel / 2): PYF ZF test.prototxt:20-158
    centred = [Layer(x.kernel, x.stride, x.kernel // 2, ceil=x.ceil) for x in ZF5_LAYERS]
    assert geometry(centred).centre == 0


@pytest.mark.parametrize(
    ("length", "cells"), [(224, 13), (180, 10), (480, 29), (576, 35), (688, 42), (864, 53), (874, 53), (1200, 74)]
)
def test_zf5_map_lengths_are_the_papers(length, cells):
    assert map_length(ZF5_LAYERS, length) == cells


def test_zf5_lengths_on_the_way_are_the_released_nets():
    on_the_way = list(itertools.accumulate(ZF5_LAYERS, lambda n, layer: layer.length(n), initial=224))
    assert on_the_way == [224, 110, 55, 26, 13, 13, 13, 13]


@pytest.mark.parametrize("name", BODIES)
def test_the_stride_is_16_and_overfeats_12(name):
    assert geometry(LAYERS[name]).stride == (12 if name.startswith("overfeat") else 16)


@pytest.mark.parametrize(("name", "centre"), [("zf5", 21), ("overfeat5", 15), ("overfeat7", 15)])
def test_the_centre_of_the_first_cell_is_the_offset0_that_was_released(name, centre):
    """Counted from 1: SPP.lua:13-22 of the Torch port for ZF-5, subsample_images.m:78 of the release for Overfeat."""
    assert geometry(LAYERS[name]).centre + 1 == centre


@pytest.mark.parametrize(("name", "size"), [("zf5", 139), ("alexnet", 163), ("vgg16", 196)])
def test_receptive_fields_have_the_sizes_known_from_the_literature(name, size):
    assert geometry(LAYERS[name]).size == size


@given(layers, st.integers(1, 60))
def test_a_convolution_has_torchs_length(layer, n):
    line = torch.zeros(1, 1, n)
    after = layer.padding if layer.padding_after is None else layer.padding_after
    line = nn.functional.pad(line, (layer.padding, after))
    try:
        cells = nn.functional.conv1d(
            line, torch.ones(1, 1, layer.kernel), stride=layer.stride, dilation=layer.dilation
        ).shape[-1]
    except RuntimeError:  # torch refuses a kernel that does not fit
        cells = 0
    assert layer.length(n) == cells


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.booleans(), st.integers(1, 60))
def test_a_pooling_has_torchs_length(kernel, stride, padding, ceil, n):
    assume(padding <= kernel // 2)  # torch refuses more
    try:
        cells = nn.functional.max_pool1d(torch.zeros(1, 1, n), kernel, stride, padding, ceil_mode=ceil).shape[-1]
    except RuntimeError:
        cells = 0
    assert Layer(kernel, stride, padding, ceil=ceil).length(n) == cells


@given(st.lists(layers, max_size=6), st.integers(0, 20))
def test_the_centre_is_the_middle_of_what_a_cell_sees(stack, cell):
    first, last = seen_by(stack, cell)
    field = geometry(stack)
    assert field.centre + cell * field.stride == (first + last) / 2
    assert field.size == last - first + 1


@given(st.lists(layers, min_size=1, max_size=5), st.integers(1, 80), st.integers(1, 30))
def test_cells_that_see_only_padding_do_not_count(stack, length, cells):
    first_pixels = [seen_by(stack, cell)[0] for cell in range(cells)]
    expected = sum(first < length for first in first_pixels)
    assert geometry(stack).cells_that_see(length, cells) == max(expected, 1)


@given(st.lists(layers, min_size=1, max_size=5))
def test_the_smallest_input_gives_a_cell_and_one_pixel_less_gives_none(stack):
    n = smallest_input(stack)
    assert map_length(stack, n) >= 1
    assert n == 1 or map_length(stack, n - 1) < 1


# The proof by gradients (DESIGN 3): average for max pooling, constant positive weights, no activation. The gradient
# of one cell is then positive exactly where that cell looks.


class Averaging(nn.Module):
    """A convolution of equal weights: its channels are all the same, so one is computed and copied."""

    def __init__(self, conv):
        super().__init__()
        self.channels, self.placing = conv.out_channels, (conv.stride, conv.padding, conv.dilation)
        self.register_buffer("kernel", torch.full((1, 1, *conv.kernel_size), 1 / math.prod(conv.kernel_size)))

    def forward(self, batch):
        return nn.functional.conv2d(batch.mean(1, keepdim=True), self.kernel, None, *self.placing).repeat(
            1, self.channels, 1, 1
        )


def linear(module):
    """The same geometry, in place, with nothing but positive sums."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, Averaging(child))
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
        elif isinstance(child, (nn.ReLU, nn.ReLU6, nn.BatchNorm2d, WithinChannelNorm)):
            setattr(module, name, nn.Identity())
        else:
            linear(child)
    return module.double().eval()


@pytest.fixture(scope="module")
def linear_networks():
    networks = {name: linear(spec.build()) for name, spec in BODIES.items()}
    assert not any(list(network.parameters()) for network in networks.values()), "every layer was replaced"
    return networks


def support(network, height, width, padded, cell):
    """Rows and columns (first, last) of the image that a cell (row, column) of the network's map depends on."""
    image = torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    batch = nn.functional.pad(image, (0, padded[1] - width, 0, padded[0] - height))
    conv_map = network(batch)
    gradient = torch.autograd.grad(conv_map[0, :, cell[0], cell[1]].sum(), image)[0].sum(dim=(0, 1))
    rows, columns = gradient.sum(1).nonzero().flatten(), gradient.sum(0).nonzero().flatten()
    return conv_map.shape[2:], (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))


@pytest.mark.parametrize("more", [1, 8, 23, 32, 45])
@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_a_cell_is_centred_where_the_geometry_says(name, axis, more, linear_networks, monkeypatch):
    monkeypatch.setattr(nn.functional, "relu6", lambda batch: batch)
    field = geometry(LAYERS[name])
    length, other = field.size + field.stride + more, 80
    size = (length, other) if axis == "y" else (other, length)
    padded = tuple(BODIES[name].padded_length(n) for n in size)
    whole = [i for i in range(length) if seen_by(LAYERS[name], i)[0] >= 0 and seen_by(LAYERS[name], i)[1] < length]
    assert whole, "some cell sees no border"
    for cell in {whole[0], whole[-1]}:
        at = (cell, 0) if axis == "y" else (0, cell)
        cells, rows, columns = support(linear_networks[name], *size, padded, at)
        first, last = rows if axis == "y" else columns
        assert (first + last) / 2 == field.centre + cell * field.stride
        assert last - first + 1 == field.size
        assert cells == tuple(map_length(LAYERS[name], n) for n in padded)


@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7", "alexnet", "squeezenet1_1", "vgg16"])
def test_the_gradient_is_centred_in_both_axes_at_once(name, linear_networks):
    field = geometry(LAYERS[name])
    height, width = field.size + 40, field.size + 61
    cell = next((i, i + 1) for i in range(99) if seen_by(LAYERS[name], i)[0] >= 0)  # sees no border
    _, rows, columns = support(linear_networks[name], height, width, (height, width), cell)
    assert sum(rows) / 2 == field.centre + cell[0] * field.stride
    assert sum(columns) / 2 == field.centre + cell[1] * field.stride


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40, 63, 100])
@pytest.mark.parametrize("name", BODIES)
def test_the_last_cell_of_a_map_sees_the_image_and_the_next_one_does_not(name, length, linear_networks, monkeypatch):
    monkeypatch.setattr(nn.functional, "relu6", lambda batch: batch)
    spec = BODIES[name]
    image = torch.ones(1, 3, length, 70, dtype=torch.float64, requires_grad=True)
    padded = spec.padded_length(length), spec.padded_length(70)
    conv_map = linear_networks[name](nn.functional.pad(image, (0, padded[1] - 70, 0, padded[0] - length)))
    sees = [
        bool(torch.autograd.grad(conv_map[0, :, row].sum(), image, retain_graph=True)[0].any())
        for row in range(conv_map.shape[2])
    ]
    assert sum(sees) == spec.map_length(length)
    assert all(sees[: spec.map_length(length)])
