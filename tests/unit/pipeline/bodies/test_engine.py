"""OpenVINO, and half precision, against PyTorch in float32."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from jobs.config.features import FeaturesConfig
from pipeline.bodies import BODIES, Body, Engine, EngineError, Precision, load_state
from pipeline.bodies import openvino_runner as runner
from pipeline.bodies.engine_trial import TOLERANCE, refusal
from tests import REPOSITORY
from tests.small_body import SMALL_BODY

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed (the extra openvino)"
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def distance(found, expected):
    """As a share of the expected map's norm."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def body_of(spec, **options):
    return Body(spec, load_state(spec, "random", seed=1), **options)


def test_a_config_names_the_engines_and_precisions_that_there_are():
    for key, known in (("engine", Engine), ("precision", Precision)):
        assert get_args(FeaturesConfig.model_fields[key].annotation) == get_args(known)


# --- OpenVINO ---


@needs_openvino
@pytest.mark.parametrize("name", BODIES)
def test_openvino_makes_the_layers_of_every_body_at_every_size(name):
    spec = BODIES[name]
    torchs, openvinos = body_of(spec), body_of(spec, engine="openvino")
    for height, width in ((64, 96), (97, 75)):
        batch = torchs.preprocess(noise(2, height, width))
        expected, found = (body.layers_of(batch, spec.layer_names) for body in (torchs, openvinos))
        assert list(found) == list(expected)
        for layer, maps in found.items():
            assert maps.shape == expected[layer].shape
            assert maps.dtype == torch.float32
            assert maps.is_contiguous(memory_format=torch.channels_last)
            assert distance(maps, expected[layer]) < TOLERANCE["float32"]
        assert torch.equal(openvinos.conv_maps_of(batch), found[spec.last])


@pytest.fixture(scope="module")
def squeezenets():
    """By images at once."""
    spec = BODIES["squeezenet1_1"]
    return {count: body_of(spec, engine="openvino", at_once=count) for count in (1, 2, 5)}


@needs_openvino
def test_how_many_images_are_computed_at_once_changes_no_bit(squeezenets):
    images = [noise(*size, seed=seed) for seed, size in enumerate(((120, 161), (97, 240), (200, 150), (64, 64)))]
    expected = [squeezenets[1].conv_map(image, 96) for image in images]
    for count, body in squeezenets.items():
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(lambda image, body=body: body.conv_map(image, 96), images * 3))
        assert all(torch.equal(one, other) for one, other in zip(found, expected * 3, strict=True))


@needs_openvino
def test_a_map_stays_as_it_is_when_the_next_is_made(squeezenets):
    first = squeezenets[1].conv_map(noise(80, 90), 80)
    kept = first.clone()
    squeezenets[1].conv_map(noise(80, 90, seed=1), 80)
    assert torch.equal(first, kept)


@needs_openvino
def test_float32_is_float32_also_where_the_processor_likes_bfloat16(squeezenets):
    model = squeezenets[1]._run._of((BODIES["squeezenet1_1"].last,)).model
    assert model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert model.get_property("ENABLE_CPU_PINNING") is False


@needs_openvino
@pytest.mark.parametrize("name", ["alexnet", "zf5", "squeezenet1_1", "resnet50", "efficientnet_lite0"])
def test_openvino_makes_the_map_of_bodies_in_bfloat16_or_refuses(name):
    spec = BODIES[name]
    if "BF16" not in runner.openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match=r"bfloat16 on this processor; use features\.precision: float32"):
            body_of(spec, engine="openvino", precision="bfloat16")
        return
    torchs, openvinos = body_of(spec), body_of(spec, engine="openvino", precision="bfloat16")
    batch = torchs.preprocess(noise(2, 97, 75))
    for layer, maps in openvinos.layers_of(batch, spec.layer_names).items():
        assert 1e-4 < distance(maps, torchs.layers_of(batch, [layer])[layer]) < TOLERANCE["bfloat16"]


def test_openvino_refuses_float16():
    with pytest.raises(EngineError, match=r"with float16; use features\.precision: float32 or bfloat16"):
        body_of(SMALL_BODY, engine="openvino", precision="float16")
    with pytest.raises(ValueError, match="engine: openvino has no precision: float16; use bfloat16 or float32, or"):
        FeaturesConfig(engine="openvino", precision="float16")


class _OfOneSize(nn.Module):
    """What a trace takes for constants: the height, as Python's number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 4, 1)

    def forward(self, batch):
        return self.conv(batch) * float(batch.shape[2])


class _Unknown(_OfOneSize):
    """An operation that OpenVINO has not."""

    def forward(self, batch):
        return torch.special.bessel_j0(self.conv(batch))


@needs_openvino
def test_a_body_that_openvino_runs_otherwise_is_refused():
    assert refusal(SMALL_BODY, "openvino") == ""
    assert "another map" in refusal(replace(SMALL_BODY, build=_OfOneSize), "openvino")
    said = refusal(replace(SMALL_BODY, build=_Unknown), "openvino")
    assert "OpenVINO cannot convert the body" in said
    assert "\n" not in said


@needs_openvino
def test_openvino_reports_to_nobody(tmp_path):
    """Where its package for that is installed: here one that only says so when it is imported."""
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('imported')")
    code = "from pipeline.bodies.openvino_runner import openvino; print(openvino().convert_model.__name__)"
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (said.returncode, said.stdout, said.stderr) == (0, "convert_model\n", "")


def test_without_openvino_the_remedy_is_named(monkeypatch):
    runner.openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"not installed; pip install 'spp-pipeline\[openvino\]', or use features\."):
        body_of(SMALL_BODY, engine="openvino")
    with pytest.raises(EngineError, match="not installed"):
        refusal(SMALL_BODY, "openvino")


def test_on_a_gpu_there_is_torch_alone():
    with pytest.raises(EngineError, match=r"openvino runs a body on CPUs alone; use features\.engine: torch"):
        body_of(SMALL_BODY, device="cuda", engine="openvino")


# --- precision ---


@pytest.mark.parametrize(("precision", "least", "most"), [("bfloat16", 1e-4, 2e-2), ("float16", 1e-5, 2e-3)])
@pytest.mark.parametrize("name", ["alexnet", "zf5"])
def test_half_precision_is_that_and_its_maps_are_float32(name, precision, least, most):
    spec = BODIES[name]
    full, half = body_of(spec), body_of(spec, precision=precision)
    batch = full.preprocess(noise(96, 128))
    expected, found = (body.layers_of(batch, spec.layer_names) for body in (full, half))
    for layer, maps in found.items():
        assert maps.dtype == torch.float32
        assert torch.equal(maps, maps.to(getattr(torch, precision)).float())
        assert least < distance(maps, expected[layer]) < most
