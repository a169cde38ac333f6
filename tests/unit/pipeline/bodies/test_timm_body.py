"""``timm:NAME``: geometry, map, preprocessing and weights of models of the timm library, small ones."""

import builtins
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize

from pipeline.bodies import BODIES, Body, UnsuitableBodyError, WeightsError, body_spec, load_state, weights_digest
from pipeline.bodies.efficientnet_lite import EFFICIENTNET_LITE0, EFFICIENTNET_LITE2
from pipeline.bodies.probe import Measured
from pipeline.bodies.timm_body import _best_map, timm_spec
from pipeline.spp.receptive_field import Layer, geometry, map_length

SMALL = ["test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "tf_mobilenetv3_small_minimal_100"]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_its_map_is_what_the_whole_model_has_there(name):
    spec, found = body_spec(f"timm:{name}"), {}
    whole = timm.create_model(name).eval()
    (module,) = (info["module"] for info in whole.feature_info if info["reduction"] == 16)
    whole.get_submodule(module).register_forward_hook(lambda _, inputs, output: found.update(conv_map=output[0]))
    own = spec.build().state_dict().keys()
    body = Body(spec, {key: values for key, values in whole.state_dict().items() if key in own})
    for height, width in ((64, 80), (97, 140)):
        batch = body.preprocess(noise(height, width))
        with torch.inference_mode():
            whole(batch)
        torch.testing.assert_close(body.conv_map_of(batch), found["conv_map"])


@pytest.mark.parametrize("name", SMALL)
def test_its_map_is_as_large_as_announced(name):
    spec = body_spec(f"timm:{name}")
    body = Body(spec, load_state(spec, "random", seed=3))
    for height, width in ((1, 1), (1, 40), (15, 16), (17, 33), (64, 65), (97, 140)):
        shape = body.conv_map(noise(height, width), min(height, width)).shape
        assert shape == (spec.channels, *spec.map_size(height, width, min(height, width)))
        whole = body.conv_map_of(body.preprocess(noise(height, width))).shape
        assert whole[1:] == tuple(map_length(spec.layers, spec.padded_length(n)) for n in (height, width))


BLOCK = Layer(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet50", BODIES["resnet50"].layers),
        ("resnet18", (Layer(7, 2, 3), Layer(3, 2, 1), *(BLOCK,) * 4, *(Layer(3, 2, 1), *(BLOCK,) * 3) * 2)),
        # TensorFlow's padding; its map of stride 16 lies before the block whose stride ours has taken away
        ("tf_efficientnet_lite0", EFFICIENTNET_LITE0.layers[:12]),
        pytest.param("tf_efficientnet_lite2", EFFICIENTNET_LITE2.layers[:16], marks=pytest.mark.slow),
        # 2x2 average poolings between dense blocks: a centre that is no multiple of half a stride
        pytest.param(
            "densenet121",
            (
                *(Layer(7, 2, 3), Layer(3, 2, 1), *(BLOCK,) * 6),
                *(Layer(2, 2), *(BLOCK,) * 12),
                *(Layer(2, 2), *(BLOCK,) * 24),
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_its_geometry_is_that_of_the_models_layers(name, layers):
    spec = body_spec(f"timm:{name}")
    assert spec.geometry == geometry(layers)


def test_padding_as_tensorflows_asks_for_multiples_of_the_stride():
    assert body_spec("timm:tf_mobilenetv3_small_minimal_100").pad_to == 16
    assert body_spec("timm:test_resnet").pad_to == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_pixel_changes_the_cells_that_see_it_and_no_other(name, axis):
    """The network as it is, activations, max pooling, random weights and all."""
    spec = body_spec(f"timm:{name}")
    body, field = Body(spec, load_state(spec, "random", seed=1)), spec.geometry
    length = 16 * ((field.size + 180) // 16)
    shape = (length, 32) if axis == "y" else (32, length)
    image = noise(*shape)
    before = body.conv_map_of(body.preprocess(image))
    for pixel in (0, 37, length // 2, length - 1):
        changed = image.copy()
        (changed if axis == "y" else changed.swapaxes(0, 1))[pixel] ^= 255
        differs = (body.conv_map_of(body.preprocess(changed)) != before).any(0).any(1 if axis == "y" else 0)
        centres = field.centre + field.stride * np.arange(len(differs))
        sees = abs(centres - pixel) <= (field.size - 1) / 2
        assert not differs.numpy()[~sees].any()
        assert differs[abs(centres - pixel).argmin()], "the cell whose centre is nearest"


@pytest.mark.parametrize(
    ("strides", "taken"),
    [
        ((2, 4, 8, 16, 32), 3),
        ((4, 8, 16, 16, 16, 32), 4),
        ((4, 8, 32), 1),  # as far from 16 as 32 is, and finer
        ((1, 2, 4, 32), 3),
        ((2, 14, 28), 1),
    ],
)
def test_the_map_is_the_deepest_of_stride_16_or_the_nearest(strides, taken):
    maps = [{"reduction": stride, "num_chs": 10 + number} for number, stride in enumerate(strides)]
    model = SimpleNamespace(feature_info=maps, forward_intermediates=None)
    assert _best_map("timm:some", model) == (taken, strides[taken], 10 + taken)


def test_what_was_measured_is_what_the_body_has(monkeypatch):
    found = Measured(Layer(99, 16, 41), pad_to=16, least=77)
    monkeypatch.setattr("pipeline.bodies.timm_body.measure", lambda network, stride: found)
    spec = timm_spec.__wrapped__("timm:test_resnet")
    assert (spec.layers, spec.pad_to, spec.least) == ((found.layer,), 16, 77)


def test_preprocessing_is_the_models_own():
    for name in ("test_resnet", "resnet18"):
        spec = body_spec(f"timm:{name}")
        config = timm.get_pretrained_cfg(name)
        image = noise(40, 50)
        expected = normalize(torch.from_numpy(image).permute(2, 0, 1) / 255, config.mean, config.std)
        torch.testing.assert_close(Body(spec, load_state(spec, "random")).preprocess(image)[0], expected)


# --- weights ---


def test_weights_come_from_a_file_of_the_whole_model(tmp_path):
    torch.manual_seed(5)
    whole = timm.create_model("test_resnet").state_dict()
    save_file(whole, tmp_path / "model.safetensors")
    state = load_state(body_spec("timm:test_resnet"), str(tmp_path / "model.safetensors"))
    assert all(torch.equal(values, whole[name]) for name, values in state.items())
    assert len(state) < len(whole), "nothing of what lies behind the map"


def test_random_weights_follow_the_seed():
    spec = body_spec("timm:test_resnet")
    digests = [weights_digest(load_state(spec, "random", seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_default_weights_are_timms_pretrained(monkeypatch):
    torch.manual_seed(5)
    whole = timm.create_model("test_resnet").state_dict()
    asked = []
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda source, **_: asked.append(source) or dict(whole)
    )
    state = load_state(body_spec("timm:test_resnet"), "default")
    assert asked == [timm.get_pretrained_cfg("test_resnet").hf_hub_id]
    assert all(torch.equal(values, whole[name]) for name, values in state.items())


def test_weights_that_cannot_be_downloaded_are_named_with_the_choices(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"'timm:test_resnet' \(timm/test_resnet\..*weights: PATH.*weights: random"):
        load_state(body_spec("timm:test_resnet"), "default")


def test_a_model_that_timm_never_trained_says_so():
    assert not timm.get_pretrained_cfg("ghostnet_050").has_weights
    with pytest.raises(WeightsError, match=r"timm has no pretrained weights of 'timm:ghostnet_050'; use weights: PATH"):
        load_state(body_spec("timm:ghostnet_050"), "default")


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet81", r"timm [\d.]+ has no model 'resnet81'; did you mean 'timm:resnet"),
        ("", r"timm [\d.]+ has no model ''"),
        ("resnet18.no_such_tag", "'timm:resnet18.no_such_tag' cannot be built: .*no_such_tag"),
        ("test_vit", "'timm:test_vit' cannot be used: .* no constant stride and centre"),
        ("test_vit2", "uses scaled_dot_product_attention, which is no convolution"),
        ("convmixer_768_32", "'timm:convmixer_768_32' cannot be used: its maps are of stride 7; 8 to 32 will do"),
        ("hrnet_w18_small", "uses interpolate"),
    ],
)
def test_a_model_that_cannot_serve_is_refused_by_name(name, says):
    with pytest.raises(UnsuitableBodyError, match=says) as error:
        body_spec(f"timm:{name}")
    assert "\n" not in str(error.value)


def test_without_timm_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsuitableBodyError, match=r"needs the Python package timm.*pip install 'spp-pipeline\[timm\]'"):
        body_spec("timm:test_mambaout")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext2", "test_byobnet", "test_mambaout"])
def test_gates_and_gated_convolutions_are_measured(name):
    """Squeeze-and-excitation, response norms, gated blocks: their centres are those of convolutions around them."""
    assert body_spec(f"timm:{name}").geometry.stride == 16
