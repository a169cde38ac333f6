"""The head against torchvision's AlexNet, its layers window by window, and truncated layers against a full SVD."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_max_pool2d
from torchvision.models import alexnet

from pipeline.bodies import Body, body_spec, load_classifier
from pipeline.bodies.classifier import Classifier
from pipeline.network.head import Embedder, compressed, head_of, new_head, pretrained_head, truncated

LEVELS = (6, 3, 2, 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """AlexNet with random weights, large enough that its outputs are some units apart."""
    torch.manual_seed(0)
    found = alexnet(weights=None).eval()
    with torch.no_grad():
        for number in (1, 4, 6):
            found.classifier[number].weight.mul_(6)
    return found


@pytest.fixture(scope="module")
def classifier(network, tmp_path_factory) -> Classifier:
    """Its fully connected layers, as they come with a file of weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(network.state_dict(), path)
    found = load_classifier(body_spec("alexnet"), str(path))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def pooled(network: nn.Module, images: torch.Tensor, levels=LEVELS) -> torch.Tensor:
    """Pyramid vectors of whole maps, level by level, bins row-major, channels last, by an independent way."""
    state = {name: values for name, values in network.state_dict().items() if name.startswith("features")}
    body = Body(body_spec("alexnet"), state)
    maps = body.conv_maps_of(images)
    return torch.cat([adaptive_max_pool2d(maps, n).permute(0, 2, 3, 1).flatten(1) for n in levels], dim=1).clone()


@pytest.mark.parametrize("levels", [LEVELS, (6,), (1, 2, 3, 6)])
def test_alexnets_own_classifier_on_pooled_vectors_gives_its_logits(network, classifier, images, levels):
    head = pretrained_head(classifier, 256, levels).eval()
    with torch.inference_mode():
        fc7 = network.classifier[:6](network.avgpool(network.features(images)).flatten(1))
        logits = network(images)
    vectors = pooled(network, images, levels)
    assert logits.abs().max() > 1  # 1e-4 means something
    assert logits.shape == (3, 1000)
    with torch.inference_mode():
        torch.testing.assert_close(head(vectors), logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(head(vectors, "fc7"), fc7, atol=1e-4, rtol=0)


def test_other_levels_begin_without_a_say(classifier):
    head = pretrained_head(classifier, 256, LEVELS)
    vectors = torch.rand(2, 12800)
    other = vectors.clone()
    other[:, 36 * 256 :] = 7.0
    with torch.inference_mode():
        assert torch.equal(head.eval()(vectors), head(other))


def test_a_new_fc8_takes_the_place_of_the_thousand_classes(classifier):
    head = pretrained_head(classifier, 256, LEVELS, outputs=21, seed=3)
    assert head.size("fc8") == 21
    assert head.fc8.weight.detach().std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.fc8.bias.any()
    assert torch.equal(head.fc7.weight, classifier.state["fc7.weight"])


def small_classifier(levels, order, channels=8, seed=0) -> Classifier:
    random = torch.Generator().manual_seed(seed)
    dim = channels * sum(n * n for n in levels)
    shapes = {"fc6.weight": (12, dim), "fc6.bias": (12,), "fc7.weight": (9, 12), "fc7.bias": (9,)}
    shapes |= {"fc8.weight": (5, 9), "fc8.bias": (5,)}
    state = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return Classifier(state, tuple(levels), order)


def logits_of(classifier: Classifier, conv_map: torch.Tensor) -> torch.Tensor:
    """A classifier on the vector that it was trained on, made number by number in its own order."""
    values = []
    for n in classifier.levels:
        level = adaptive_max_pool2d(conv_map, n)
        places = [(y, x) for y in range(n) for x in range(n)]
        if classifier.order == "bin-major":
            values += [level[c, y, x] for y, x in places for c in range(len(conv_map))]
        else:
            values += [level[c, y, x] for c in range(len(conv_map)) for y, x in places]
    hidden = torch.stack(values)
    for layer in ("fc6", "fc7"):
        hidden = torch.relu(classifier.state[f"{layer}.weight"] @ hidden + classifier.state[f"{layer}.bias"])
    return classifier.state["fc8.weight"] @ hidden + classifier.state["fc8.bias"]


@pytest.mark.parametrize("order", ["bin-major", "channel-major"])
@pytest.mark.parametrize(
    ("trained", "levels"),
    [
        ((6, 3, 2, 1), (6, 3, 2, 1)),
        ((6,), (6, 3, 2, 1)),
        ((3, 1), (6, 3, 2, 1)),
        ((1, 2, 3, 6), (6, 3, 2, 1)),
        ((4, 3, 2, 1), (1, 4, 2, 3)),
    ],
)
def test_a_classifier_keeps_its_logits_in_every_pyramid_that_has_its_levels(trained, levels, order):
    classifier = small_classifier(trained, order)
    conv_map = torch.rand(8, 13, 11, generator=torch.Generator().manual_seed(1))
    vector = torch.cat([adaptive_max_pool2d(conv_map, n).permute(1, 2, 0).flatten() for n in levels])
    head = pretrained_head(classifier, 8, levels).eval()
    with torch.inference_mode():
        torch.testing.assert_close(head(vector[None])[0], logits_of(classifier, conv_map), atol=1e-4, rtol=1e-5)


def test_a_classifier_of_the_same_pyramid_in_our_order_is_taken_as_it_is():
    classifier = small_classifier(LEVELS, "bin-major")
    head = pretrained_head(classifier, 8, LEVELS)
    assert torch.equal(head.fc6.weight, classifier.state["fc6.weight"])
    assert head.fc6.weight.data_ptr() != classifier.state["fc6.weight"].data_ptr(), "training must not change it"


def test_levels_that_the_pyramid_lacks_are_refused_with_both_pyramids():
    with pytest.raises(ValueError, match=r"pyramid \(4, 3, 2, 1\); the pyramid \(6, 3, 2, 1\) has not all"):
        pretrained_head(small_classifier((4, 3, 2, 1), "bin-major"), 8, LEVELS)


def test_a_classifier_travels_to_another_process(classifier):
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(classifier, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=[buffer.raw().toreadonly() for buffer in buffers])  # noqa: S301 (our own bytes)
    assert len(data) < 5000  # the weights travel beside it, as memory that can be shared
    assert (again.levels, again.order) == ((6,), "channel-major")
    assert again.state.keys() == classifier.state.keys()
    assert all(torch.equal(values, classifier.state[name]) for name, values in again.state.items())
    pretrained_head(again, 256, LEVELS)


@pytest.mark.parametrize(("channels", "levels", "message"), [(256, (3, 2, 1), "has not all"), (128, LEVELS, "9216")])
def test_a_classifier_that_does_not_fit_is_refused(classifier, channels, levels, message):
    with pytest.raises(ValueError, match=message):
        pretrained_head(classifier, channels, levels)


def test_bodies_without_a_classifier_have_none(classifier, tmp_path):
    assert load_classifier(body_spec("alexnet"), "random") is None
    assert load_classifier(body_spec("squeezenet1_1"), "random") is None
    path = tmp_path / "conv_only.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    assert load_classifier(body_spec("alexnet"), str(path)) is None


def test_he_initialisation_keeps_the_size_of_what_passes():
    vectors = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0)).abs() * 40
    rms = float(vectors.square().mean().sqrt())
    head = new_head(3000, (2000, 1500), 5, seed=1, rms=rms).eval()
    with torch.inference_mode():
        for layer in ("fc6", "fc7"):
            assert head(vectors, layer).square().mean().sqrt() == pytest.approx(1.0, rel=0.15)
        assert head(vectors).abs().max() < 3
    again = new_head(3000, (2000, 1500), 5, seed=1, rms=rms)
    other = new_head(3000, (2000, 1500), 5, seed=2, rms=rms)
    assert torch.equal(head.fc6.weight, again.fc6.weight)
    assert not torch.equal(head.fc6.weight, other.fc6.weight)


@pytest.mark.parametrize("rms", [0.0, float("nan"), float("inf"), -1.0])
def test_vectors_of_no_size_are_refused(rms):
    with pytest.raises(ValueError, match="rms"):
        new_head(10, (4, 4), 3, seed=0, rms=rms)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_truncation_is_the_best_one_of_its_rank(shape):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    u, s, v = torch.linalg.svd(layer.weight.detach().double())
    vectors = torch.randn(7, shape[1])
    for rank in (1, 5, 20):
        wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
        found = truncated(layer, rank)
        torch.testing.assert_close((found[1].weight @ found[0].weight).double(), wanted, atol=1e-5, rtol=0)
        with torch.inference_mode():
            torch.testing.assert_close(
                found(vectors), nn.functional.linear(vectors, wanted.float(), layer.bias), atol=1e-5, rtol=0
            )
        assert truncated(found, 1) is found


def test_a_rank_that_saves_nothing_leaves_the_layer_as_it_is():
    layer = nn.Linear(100, 40)
    assert truncated(layer, 28) is not layer  # 28 * 140 < 4000
    assert truncated(layer, 29) is layer


def test_a_heads_state_makes_the_same_head_compressed_or_not():
    head = new_head(300, (40, 30), 4, seed=0, rms=2.0).eval()
    slim = compressed(head, (10, 8))
    vectors = torch.rand(5, 300)
    with torch.inference_mode():
        for one in (head, slim):
            again = head_of(one.state_dict())
            assert torch.equal(again(vectors), one(vectors))
            assert (again.dim, again.size("fc6"), again.size("fc8")) == (300, 40, 4)
        assert not torch.equal(slim(vectors), head(vectors))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).random((300, 640), np.float32).astype(np.float16)


@pytest.mark.parametrize("layer", ["fc6", "fc7", "fc8"])
def test_a_window_has_the_same_outputs_whatever_stands_beside_it(vectors, layer):
    embedder = Embedder(new_head(640, (96, 64), 4, seed=0, rms=0.5), layer)
    whole = embedder(vectors)
    order = np.random.default_rng(1).permutation(len(vectors))
    np.testing.assert_array_equal(embedder(vectors[order]), whole[order])
    np.testing.assert_array_equal(np.concatenate([embedder(part) for part in np.split(vectors, [1, 77, 78])]), whole)


def test_outputs_are_those_of_the_layers_one_after_another(vectors):
    head = new_head(640, (96, 64), 4, seed=0, rms=0.5)
    state = {name: values.numpy().astype(np.float64) for name, values in head.state_dict().items()}
    fc6 = np.maximum(vectors.astype(np.float64) * state["scale"] @ state["fc6.weight"].T + state["fc6.bias"], 0)
    fc7 = np.maximum(fc6 @ state["fc7.weight"].T + state["fc7.bias"], 0)
    odds = np.exp(fc7 @ state["fc8.weight"].T + state["fc8.bias"])
    for layer, wanted in (("fc6", fc6), ("fc7", fc7), ("fc8", odds / odds.sum(axis=1, keepdims=True))):
        np.testing.assert_allclose(Embedder(head, layer)(vectors), wanted, rtol=1e-4, atol=1e-5)


def test_an_embedder_travels_to_another_process(vectors):
    embedder = Embedder(compressed(new_head(640, (96, 64), 4, seed=0, rms=0.5), (20, 10)), "fc7")
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(embedder, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=[buffer.raw().toreadonly() for buffer in buffers])  # noqa: S301 (our own bytes)
    assert len(data) < 5000  # the weights travel beside it, as memory that can be shared
    np.testing.assert_array_equal(again(vectors), embedder(vectors))


def test_no_windows_have_no_outputs_and_other_vectors_are_refused(vectors):
    embedder = Embedder(new_head(640, (96, 64), 4, seed=0, rms=0.5), "fc6")
    assert embedder(vectors[:0]).shape == (0, 96)
    with pytest.raises(ValueError, match="length 640"):
        embedder(vectors[:, :-1])
