"""``timm:NAME``: a model of the timm library, up to one of its feature maps of stride 8 to 32.

The map is the deepest one of stride 16; where the model has none, the one nearest to it. Colour order, mean and range
are those of the model's own data config. Its geometry is measured (``pipeline.bodies.probe``).
"""

from __future__ import annotations

import difflib
import math
import types
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from pipeline.bodies.body import BodySpec, State, UnsuitableBodyError
from pipeline.bodies.probe import NoGeometryError, measure
from pipeline.bodies.weights import WeightsError

PREFIX = "timm:"
STRIDES = (8, 32)
"""Least and greatest stride of a map that is taken."""


@cache
def timm_spec(name: str) -> BodySpec:
    """The body ``timm:NAME``. Measuring its geometry takes seconds.

    Raises UnsuitableBodyError, naming the model, if timm is not installed, does not know it, or it has no such map.
    """
    timm = _timm(name)
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        close = difflib.get_close_matches(model_name, timm.list_models(), n=1)
        hint = f"did you mean {PREFIX + close[0]!r}? " if close else ""
        raise UnsuitableBodyError(
            f"timm {timm.__version__} has no model {model_name!r}; {hint}timm.list_models() lists them"
        )
    try:
        model = timm.create_model(model_name, num_classes=0)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsuitableBodyError(f"{name!r} cannot be built: {_line(error)}") from error
    index, stride, channels = _best_map(name, model)
    try:
        layer, pad_to, least = measure(_up_to(index, model), stride)
    except NoGeometryError as error:
        raise UnsuitableBodyError(
            f"{name!r} cannot be used: the cells of its map have no constant stride and centre ({error}); take a model "
            f"of convolutions and poolings alone"
        ) from error
    data = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    return BodySpec(
        name=name,
        layers=(layer,),
        channels=channels,
        mean=tuple(255 * value for value in data["mean"]),
        std=tuple(255 * value for value in data["std"]),
        build=partial(_build, model_name, index),
        published=partial(_published, name, model.pretrained_cfg),
        pad_to=pad_to,
        least=least,
        last="map",
    )


def _timm(name: str) -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise UnsuitableBodyError(
            f"{name!r} needs the Python package timm, which is not installed; pip install 'spp-pipeline[timm]'"
        ) from error
    return timm


def _best_map(name: str, model: nn.Module) -> tuple[int, int, int]:
    """Number, stride and channels of the map nearest to stride 16; of equals the deepest."""
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise UnsuitableBodyError(f"{name!r} cannot be used: timm offers no feature maps of it")
    maps = [(i, info[i]["reduction"], info[i]["num_chs"]) for i in range(len(info))]
    least, greatest = STRIDES
    fitting = [m for m in maps if least <= m[1] <= greatest]
    if not fitting:
        strides = ", ".join(str(stride) for stride in sorted({m[1] for m in maps}))
        raise UnsuitableBodyError(
            f"{name!r} cannot be used: its maps are of stride {strides}; {least} to {greatest} will do"
        )
    return min(fitting, key=lambda m: (abs(math.log2(m[1] / 16)), m[1], -m[0]))


def _build(model_name: str, index: int) -> nn.Module:
    import timm

    return _up_to(index, timm.create_model(model_name, num_classes=0))


def _up_to(index: int, model: Any) -> nn.Module:
    """The model up to its map ``index``, changed in place; parameters are named as in the whole model."""
    (kept,) = model.prune_intermediate_layers([index], prune_norm=True)

    def forward(self: Any, batch: torch.Tensor) -> torch.Tensor:
        maps: list[torch.Tensor] = self.forward_intermediates(
            batch, indices=[kept], norm=False, stop_early=True, intermediates_only=True
        )
        return maps[0]

    model.forward = types.MethodType(forward, model)
    network: nn.Module = model
    return network


def _published(name: str, pretrained: dict[str, Any]) -> State:
    import timm

    source = pretrained.get("hf_hub_id") or pretrained.get("url")
    if not source:
        raise WeightsError(f"timm has no pretrained weights of {name!r}; use weights: PATH or weights: random")
    try:
        return timm.create_model(name.removeprefix(PREFIX), pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # huggingface_hub's errors are OSErrors
        raise WeightsError(
            f"weights of {name!r} ({source}) could not be downloaded ({_line(error)}); fetch that repository's "
            f"model.safetensors elsewhere and use weights: PATH, or use weights: random"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
