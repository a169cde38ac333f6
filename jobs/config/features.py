"""The section ``features``: body, weights, scales, pyramid, and how features are stored."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.settings import ADDED_LATER, Settings

BODY_NAMES = (
    "alexnet",
    "convnet5",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "overfeat5",
    "overfeat7",
    "resnet50",
    "squeezenet1_1",
    "vgg16",
    "zf5",
)
"""The names in ``pipeline.bodies.BODIES``, which a command that needs no network can check without torch."""


class FeaturesConfig(Settings):
    """The ``features:`` section of the config."""

    body: str = "alexnet"
    """The convolutional body: alexnet, convnet5, efficientnet_lite0 (1, 2), overfeat5 (7), resnet50, squeezenet1_1,
    vgg16, zf5, or timm:NAME for a convolutional model of the timm library; see docs/bodies.md."""
    weights: str = "default"
    """default: the published ones; random: seeded; or the path of a .safetensors, .pt or .pth state dict."""
    seed: int = 0
    """Draws the weights of a body with ``weights: random``, a baseline without any training."""
    scales: tuple[int, ...] = (480, 576, 688, 864, 1200)
    """Short sides in pixels."""
    scale_rule: Literal["area", "linear208"] = "area"
    """area: the scaled box comes closest to 224 x 224 (paper); linear208: the released code's."""
    mapping: Literal["released", "paper"] = "released"
    """How a box becomes a window; see docs/method.md."""
    pyramid: tuple[int, ...] = (6, 3, 2, 1)
    """Levels of the spatial pyramid, in the order of the vector."""
    max_scaled_pixels: int = Field(1200 * 2400, ge=4096)
    """Larger scaled images are taken at the largest smaller size that fits."""
    source: Literal["windows", "warp"] = Field("windows", json_schema_extra=ADDED_LATER)
    """windows: proposals are pooled from the image's conv maps (SPP-net); warp: each is warped to the body's input size
    and passes the body alone (R-CNN), to compare with. Then scales and mapping have no say."""
    engine: Literal["torch", "openvino"] = "torch"
    """What runs the body on CPUs: PyTorch, or OpenVINO (``pip install 'spp-pipeline[openvino]'``), which is faster with
    most bodies; see docs/bodies.md. Their maps differ in the last digits, so results have other names. A body that
    OpenVINO cannot run is run by torch; GPUs have torch alone."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the body's arithmetic. bfloat16 is up to three times as fast on CPUs that are made for it (AMX), float16 is
    for GPUs; by how much maps then differ depends on the body, see docs/bodies.md."""
    store: Literal["vectors", "maps"] = "vectors"
    """vectors: a row per window, to query; maps: the conv maps, 6 to 40 times smaller, pooled while they are read."""

    @field_validator("body")
    @classmethod
    def _body_is_known(cls, body: str) -> str:
        if body not in BODY_NAMES and not (body.startswith("timm:") and body != "timm:"):
            close = difflib.get_close_matches(body, BODY_NAMES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{hint}the bodies are {', '.join(BODY_NAMES)} and timm:NAME")
        return body

    @field_validator("scales")
    @classmethod
    def _scales_are_sizes(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if not scales or min(scales) < 32 or len(set(scales)) != len(scales):
            raise ValueError("give one or more distinct short sides, each at least 32 pixels")
        return tuple(sorted(scales))

    @field_validator("pyramid")
    @classmethod
    def _levels_are_numbers(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or min(levels) < 1 or max(levels) > 32 or len(set(levels)) != len(levels):
            raise ValueError("give one or more distinct levels from 1 to 32, such as [6, 3, 2, 1]")
        return levels

    @model_validator(mode="after")
    def _openvino_has_no_float16(self) -> FeaturesConfig:
        if self.engine == "openvino" and self.precision == "float16":
            raise ValueError("engine: openvino has no precision: float16; use bfloat16 or float32, or engine: torch")
        return self

    @model_validator(mode="after")
    def _warped_windows_have_no_common_map(self) -> FeaturesConfig:
        if self.source == "warp" and self.store == "maps":
            raise ValueError("source: warp makes no conv map that windows share; use store: vectors")
        return self

    def identity(self) -> dict[str, Any]:
        """Without weights, engine and precision, for which the body's digest stands (``jobs.features.known_bodies``),
        and without the store: both hold the same numbers."""
        values = super().identity()
        unused = ("scales", "scale_rule", "mapping", "max_scaled_pixels") if self.source == "warp" else ()
        for key in ("weights", "seed", "engine", "precision", "store", *unused):
            del values[key]
        return values
