"""Weights: where they come from, what is wrong with them. No pickle: ``weights_only`` or safetensors.

A file of a whole network of ours (``save_network``) is a ``.safetensors`` with the entries of the body, named as
``spec.build()`` names them, those of fc6, fc7 and fc8 if it has them, and in its metadata:

- ``spp.schema_version``: "1";
- ``spp.body``: the name of the body;
- ``spp.levels``: of the pyramid, "6,3,2,1";
- ``spp.order``: of fc6's columns, "level,bin,channel" (``pipeline.spp.pyramid``'s) or "level,channel,bin";
- ``spp.classes``: the names of fc8's outputs, a JSON list.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle  # only for the name of the error that torch raises
import struct
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from pipeline.bodies.body import BodySpec, State
from pipeline.bodies.classifier import Classifier, Order

SCHEMA_VERSION = "1"
FC_LAYERS = ("fc6", "fc7", "fc8")
"""As they are called in a state dict of a network of ours, and in ``pipeline.network.head.Head``."""

_FC_ENTRIES = tuple(f"{layer}.{kind}" for layer in FC_LAYERS for kind in ("weight", "bias"))
_ORDERS: dict[str, Order] = {"level,bin,channel": "bin-major", "level,channel,bin": "channel-major"}
_PYRAMIDS = ((6, 3, 2, 1), (4, 3, 2, 1), (6,))
"""The paper's (4.1, 3.1.1, and none): one of them is meant where a state dict does not say."""


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit. The message names the file and the remedy."""


# What torch.load raises on bytes that are no state dict, besides UnpicklingError: whatever its parser stumbles on.
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)


def load_state(spec: BodySpec, weights: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state of a body.

    Parameters
    ----------
    weights : ``default`` (the published ones), ``random`` (seeded), or the path of a ``.safetensors``, ``.pt`` or
        ``.pth`` file that holds a state dict. Entries that the body does not have (a classifier's) are ignored.

    Raises
    ------
    WeightsError : missing, unreadable, refused (pickled code) or not fitting.
    """
    wanted = _random_state(spec, seed)
    if weights == "random":
        return wanted
    if weights == "default":
        state = spec.published()
    else:
        state = read_state(Path(weights))
        _check_body(spec, Path(weights), read_metadata(Path(weights)))
    missing = [name for name in wanted if name not in state]
    if missing:
        raise WeightsError(
            f"weights {weights!r} do not fit body {spec.name!r}: {len(missing)} of {len(wanted)} entries are missing, "
            f"the first is {missing[0]!r}; give a state dict of this body"
        )
    for name, values in wanted.items():
        if state[name].shape != values.shape:
            raise WeightsError(
                f"weights {weights!r} do not fit body {spec.name!r}: {name!r} has shape {tuple(state[name].shape)}, "
                f"{tuple(values.shape)} is needed"
            )
    return {name: state[name].to(values.dtype) for name, values in wanted.items()}


def load_classifier(spec: BodySpec, weights: str) -> Classifier | None:
    """The fully connected layers that come with a body's weights, named fc6, fc7, fc8; None if there are none.

    ``weights`` as for ``load_state``. A file of ``save_network`` tells levels and order itself. Of other state dicts,
    those that name their layers fc6, fc7, fc8 are taken to be in our order (``pipeline.network.released_order``
    converts the released one), their levels inferred from fc6's columns; torchvision's are channel-major over 6 x 6.

    Raises
    ------
    WeightsError : as ``load_state``; or levels that are not known, or that fc6 does not fit.
    """
    if weights == "random":
        return None
    about: dict[str, str] = {}
    if weights != "default":
        about = read_metadata(Path(weights))
        _check_body(spec, Path(weights), about)
    if spec.classifier is None and not about:
        return None
    state = spec.published() if weights == "default" else read_state(Path(weights))
    layers = FC_LAYERS if about or spec.classifier is None else spec.classifier
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    if any(name not in state for name in names):
        return None
    found = {entry: state[name].float() for entry, name in zip(_FC_ENTRIES, names, strict=True)}
    if layers != FC_LAYERS:
        return Classifier(found, (6,), "channel-major")
    columns = found["fc6.weight"].shape[1] if found["fc6.weight"].ndim == 2 else 0
    if about:
        levels, order = _recorded_order(weights, about, columns, spec.channels)
    else:
        levels, order = _inferred_levels(weights, columns, spec), "bin-major"
    for name, shape in _fc_shapes(spec, found, levels).items():
        if found[name].shape != shape:
            raise WeightsError(
                f"weights file {weights!r}: {name!r} has shape {tuple(found[name].shape)}, {tuple(shape)} is needed "
                f"after the layer before it; leave fc6, fc7 and fc8 out, or mend them"
            )
    return Classifier(found, levels, order)


def save_network(
    target: str | Path | BinaryIO,
    spec: BodySpec,
    state: State,
    levels: Sequence[int],
    class_names: Sequence[str] = (),
) -> None:
    """Write a network as a ``.safetensors`` that ``weights: PATH`` takes, pretrained fc6 and fc7 included.

    Parameters
    ----------
    target : a path that ends in .safetensors, or a binary file open for writing, such as ``io.BytesIO()``.
    state : the entries of the body, named as in ``spec.build()``, and weights and biases of fc6, fc7 and fc8, or none
        of these. fc6 takes the vectors of ``pipeline.spp.pyramid`` as they are, not multiplied by anything.
    levels : of the pyramid, in the order of those vectors.
    class_names : of fc8's outputs, in order; may be left out.

    Raises
    ------
    ValueError : an entry that is missing, unknown or of another shape, or a path of another kind of file.
    """
    if isinstance(target, (str, Path)) and Path(target).suffix != ".safetensors":
        raise ValueError(f"a network is saved as .safetensors; {str(target)!r} is named otherwise")
    shapes = {name: values.shape for name, values in _random_state(spec, 0).items()}
    if any(name in state for name in _FC_ENTRIES):
        shapes.update(_fc_shapes(spec, state, levels, class_names))
    for kind, names in (("missing", set(shapes) - set(state)), ("unknown", set(state) - set(shapes))):
        if names:
            raise ValueError(f"a network of body {spec.name!r} cannot be saved: {kind} entries {sorted(names)}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(
                f"a network of body {spec.name!r} cannot be saved: {name!r} has shape {tuple(state[name].shape)}, "
                f"{tuple(shape)} is needed"
            )
    tensors = {name: state[name].detach().cpu().contiguous() for name in shapes}
    about = {
        "spp.schema_version": SCHEMA_VERSION,
        "spp.body": spec.name,
        "spp.levels": ",".join(map(str, levels)),
        "spp.order": "level,bin,channel",
        "spp.classes": json.dumps(list(class_names)),
    }
    if isinstance(target, (str, Path)):
        save_file(tensors, target, metadata=about)
    else:
        target.write(save(tensors, metadata=about))


def read_metadata(path: Path) -> dict[str, str]:
    """What a file of ``save_network`` says about itself, see the top of this module; empty for every other file.

    Raises WeightsError for a ``.safetensors`` that is missing or unreadable, or of a later version than this.
    """
    if path.suffix != ".safetensors":
        return {}
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, *_UNREADABLE) as error:
        raise WeightsError(f"weights file {str(path)!r} cannot be read: {_reason(error)}") from error
    about = {key: value for key, value in metadata.items() if key.startswith("spp.")}
    version = about.get("spp.schema_version")
    if about and version != SCHEMA_VERSION:
        raise WeightsError(
            f"weights file {str(path)!r} has spp.schema_version {version!r}; this program reads {SCHEMA_VERSION!r}; "
            f"save it again with its save_network"
        )
    return about


def unpublished(name: str) -> State:
    """``BodySpec.published`` of a body that nobody has published weights of: raises WeightsError with the choices."""
    raise WeightsError(
        f"{name} has no published weights; use weights: PATH of a state dict of your own, weights: random, or the body "
        f"alexnet, whose weights are published"
    )


def read_state(path: Path) -> State:
    """A state dict from a ``.safetensors``, ``.pt`` or ``.pth`` file; WeightsError says what is wrong with it."""
    _check_exists(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {str(path)!r} is no weights file, or holds pickled code, which is never run; save a state "
            f"dict with torch.save or safetensors"
        ) from error
    except (SafetensorError, *_UNREADABLE) as error:
        raise WeightsError(f"weights file {str(path)!r} cannot be read: {_reason(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"weights file {str(path)!r} holds no state dict (names to tensors)")
    return state


def download_state(url: str) -> State:
    """A published state dict, downloaded once to torch's cache and checked against the hash in its name.

    Raises WeightsError, naming the file, the place to put it by hand and the offline choice.
    """
    name = url.rsplit("/", 1)[-1]
    cache = os.path.join(torch.hub.get_dir(), "checkpoints")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces a download on standard output
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True, progress=False
            )
    except urllib.error.URLError as error:
        raise WeightsError(
            f"weights {name} could not be downloaded ({error.reason}); put the file into {cache}, or use "
            f"weights: random or the body efficientnet_lite0, whose weights come with a Python package"
        ) from error
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and not os.path.exists(os.path.join(cache, name)):
            raise WeightsError(
                f"weights {name} cannot be kept in {cache}: {error.strerror or error}; set TORCH_HOME to a folder that "
                f"can be written to, or use weights: PATH or weights: random"
            ) from error
        raise WeightsError(
            f"weights {name} in {cache} cannot be used: {_reason(error)}; remove a file that is there, or use "
            f"weights: random"
        ) from error


def _random_state(spec: BodySpec, seed: int) -> dict[str, torch.Tensor]:
    """The state of a body that knows nothing; torch's own generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(spec.build().state_dict())


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(
            f"weights file {str(path)!r} does not exist; give its path, or use weights: default or weights: random"
        )


def _check_body(spec: BodySpec, path: Path, about: dict[str, str]) -> None:
    body = about.get("spp.body", spec.name)
    if body != spec.name:
        raise WeightsError(
            f"weights file {str(path)!r} is of the body {body!r}, not {spec.name!r}; use features.body: {body}, or "
            f"give a file of {spec.name!r}"
        )


def _recorded_order(path: str, about: dict[str, str], columns: int, channels: int) -> tuple[tuple[int, ...], Order]:
    """Levels and order that a file's metadata tells of fc6, which has so many ``columns``."""
    levels, order = about.get("spp.levels", ""), about.get("spp.order", "")
    if order not in _ORDERS or not all(part.isdecimal() and int(part) for part in levels.split(",")):
        raise WeightsError(
            f"weights file {path!r} has spp.levels {levels!r} and spp.order {order!r}; needed are levels such as "
            f"'6,3,2,1' and one of {', '.join(map(repr, _ORDERS))}; save it again with save_network"
        )
    found = tuple(int(part) for part in levels.split(","))
    if len(set(found)) != len(found) or columns != channels * sum(n * n for n in found):
        raise WeightsError(
            f"weights file {path!r} has spp.levels {levels!r}, to which its fc6 for vectors of {columns} numbers with "
            f"{channels} channels does not fit; save it again with save_network"
        )
    return found, _ORDERS[order]


def _inferred_levels(path: str, columns: int, spec: BodySpec) -> tuple[int, ...]:
    for levels in _PYRAMIDS:
        if columns == spec.channels * sum(n * n for n in levels):
            return levels
    raise WeightsError(
        f"weights file {path!r}: its fc6 is for vectors of {columns} numbers, and {spec.name!r} has {spec.channels} "
        f"channels, which gives none of the pyramids {', '.join(str(list(levels)) for levels in _PYRAMIDS)}; save it "
        f"with pipeline.bodies.save_network, which records the pyramid, or leave fc6, fc7 and fc8 out"
    )


def _fc_shapes(
    spec: BodySpec, state: State, levels: Sequence[int], class_names: Sequence[str] = ()
) -> dict[str, torch.Size]:
    """The shapes that fc6, fc7 and fc8 must have; their numbers of outputs are free but for the classes' number."""
    fc6, fc7, fc8 = (state[f"{layer}.bias"].numel() if f"{layer}.bias" in state else 0 for layer in FC_LAYERS)
    inputs = (spec.channels * sum(n * n for n in levels), fc6, fc7)
    shapes = {}
    for layer, into, out in zip(FC_LAYERS, inputs, (fc6, fc7, len(class_names) or fc8), strict=True):
        shapes[f"{layer}.weight"] = torch.Size((out, into))
        shapes[f"{layer}.bias"] = torch.Size((out,))
    return shapes


def _reason(error: Exception) -> str:
    """An error in one line, which torch's are not."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
