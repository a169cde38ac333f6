"""Who runs the body: what it names, what files say of it, what is refused, and what actors are given."""

import importlib.util
import logging
import sys

import numpy as np
import pytest
import torch

from jobs.config.features import FeaturesConfig
from jobs.errors import UsageError
from jobs.features.body import identify_body, load_body
from jobs.features.crew import check_engine
from jobs.features.gain import MEASURED, gain
from jobs.features.known_bodies import BodyIdentity, body_key, remember
from jobs.features.method import features_method, file_metadata, truth_method
from jobs.features.ring import ExtractionRing
from jobs.features.shard import ActorSettings
from pipeline.bodies import BODIES, openvino_runner, weights_digest
from pipeline.bodies.engine import TorchRunner
from pipeline.phases import PhaseClock
from storage.root import open_root

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="OpenVINO is not installed (the extra openvino)")
AMX = frozenset(("avx512f", "amx_bf16"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is known of any body."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config_of(**values):
    return FeaturesConfig(**{"body": "squeezenet1_1", "weights": "random", "scales": (96,), **values})


# --- identity ---


def test_what_was_made_before_there_were_engines_keeps_its_name():
    body = load_body(config_of())
    assert body.digest == body.weights_digest == weights_digest(body.state)
    assert not {"engine", "precision"} & set(config_of().identity())
    assert features_method(config_of(), "w" * 64, "0123456789ab") == "3fda8515f846"


@needs_openvino
def test_every_engine_and_precision_has_results_of_its_own():
    configs = [config_of(engine=e, precision=p) for e in ("torch", "openvino") for p in ("float32", "bfloat16")]
    bodies = [load_body(config) for config in configs]
    assert [body.engine for body in bodies] == [config.engine for config in configs]
    assert len({body.weights_digest for body in bodies}) == 1
    assert [body.identity for body in bodies] == [identify_body(config) for config in configs]
    methods = {truth_method(c, body.digest, "0123456789ab") for c, body in zip(configs, bodies, strict=True)}
    assert len(methods) == len(configs)


@needs_openvino
def test_what_torch_runs_in_its_place_is_named_after_torch(caplog):
    asked = config_of(engine="openvino", body="timm:resnet18")
    pytest.importorskip("timm")
    remember(body_key(asked), BodyIdentity(256, "d" * 64, engine="torch"))
    given, torchs = load_body(asked), load_body(asked.model_copy(update={"engine": "torch"}))
    assert given.engine == "torch"
    assert given.identity == torchs.identity
    with caplog.at_level(logging.WARNING, logger="spp"):
        check_engine(asked, given, on_gpu=True)
    assert "features.engine: openvino cannot run body 'timm:resnet18' as torch does, so torch runs it" in caplog.text


@needs_openvino
def test_a_timm_body_is_tried_before_it_is_named():
    pytest.importorskip("timm")
    assert load_body(config_of(engine="openvino", body="timm:resnet18")).engine == "openvino"


# --- what files say ---


def test_files_tell_the_engine_its_version_and_the_precision():
    said = file_metadata(config_of(precision="bfloat16"), load_body(config_of(precision="bfloat16")), "m", "p")
    assert said["engine"] == f"torch {torch.__version__.split('+')[0]}"
    assert said["precision"] == "bfloat16"
    assert said["weights_digest"] == load_body(config_of()).digest


# --- what is refused ---


def test_an_engine_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    openvino_runner.openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"^features\.engine: OpenVINO is not installed; pip install 'spp-pipeline\["):
        load_body(config_of(engine="openvino"))


@needs_openvino
def test_gpus_and_an_engine_of_cpus_are_refused_together(caplog):
    asked = config_of(engine="openvino")
    with pytest.raises(UsageError, match=r"on CPUs alone.*use features\.engine: torch, or execution\.device: cpu"):
        check_engine(asked, load_body(asked), on_gpu=True)
    check_engine(asked, load_body(asked), on_gpu=False)
    check_engine(config_of(), load_body(config_of()), on_gpu=True)
    assert caplog.text == ""


# --- what actors do ---


@needs_openvino
def test_an_actor_pools_from_maps_of_the_engine_and_precision_that_are_asked_for(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 160, 120], [10, 20, 90, 100]], np.float32)
    found = {}
    for engine, precision in (("torch", "float32"), ("openvino", "float32"), ("torch", "bfloat16")):
        config = config_of(engine=engine, precision=precision)
        settings = ActorSettings(
            root=open_root(str(tmp_path)),
            config=config,
            device="cpu",
            threads=1,
            decode_threads=1,
            decode_ahead=1,
            max_boxes=4,
            storage_options={},
            producer="test",
        )
        ring = ExtractionRing(settings, {name: v.numpy() for name, v in load_body(config).state.items()})
        runs = ring.extractor.body._run
        assert isinstance(runs, {"torch": TorchRunner, "openvino": openvino_runner.OpenVinoRunner}[engine])
        features, buffer = ring.features(image, boxes, PhaseClock())
        found[engine, precision] = features.vectors.astype(np.float64)
        ring.give_back(buffer)
    expected = found.pop(("torch", "float32"))
    norm = np.linalg.norm(expected)
    near = {way: np.linalg.norm(vectors - expected) / norm for way, vectors in found.items()}
    assert near["openvino", "float32"] < 1e-4  # a last digit of float16 here and there
    assert 1e-4 < near["torch", "bfloat16"] < 3e-2


# --- what a plan says ---


def test_a_plan_names_what_this_machine_would_gain_in_a_line():
    config = FeaturesConfig(body="efficientnet_lite0")
    said = gain(config, AMX)
    assert said is not None
    assert f"features.engine: openvino ({MEASURED['efficientnet_lite0'].float32} times)" in said
    assert f"features.precision: bfloat16 ({MEASURED['efficientnet_lite0'].bfloat16} times" in said
    assert "% off" in said
    assert ("pip install 'spp-pipeline[openvino]'" in said) is not INSTALLED
    assert "bfloat16" not in (gain(config, frozenset({"avx512f"})) or "bfloat16")


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, frozenset()),
        ({"engine": "openvino"}, AMX),
        ({"precision": "bfloat16"}, AMX),
        ({"body": "timm:resnet18"}, AMX),
        ({"body": "vgg16"}, frozenset({"avx512f"})),
    ],
)
def test_where_nothing_is_known_or_gained_nothing_is_said(changes, flags):
    assert gain(FeaturesConfig(**{"body": "efficientnet_lite0", **changes}), flags) is None


def test_what_was_measured_are_bodies_of_our_own():
    assert set(MEASURED) <= set(BODIES)
