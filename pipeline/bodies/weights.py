"""Weights: where they come from, what is wrong with them. No pickle: ``weights_only`` or safetensors."""

from __future__ import annotations

import contextlib
import os
import pickle  # only for the name of the error that torch raises
import struct
import sys
import urllib.error
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.bodies.body import BodySpec, State


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wanted = spec.build().state_dict()
    if weights == "random":
        return dict(wanted)
    state = spec.published() if weights == "default" else read_state(Path(weights))
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


def load_classifier(spec: BodySpec, weights: str) -> dict[str, torch.Tensor] | None:
    """The fully connected layers that come with a body's weights, named fc6, fc7, fc8; None if there are none.

    ``weights`` as for ``load_state``, which has to succeed for the same before: WeightsError is its affair.
    """
    if spec.classifier is None or weights == "random":
        return None
    state = spec.published() if weights == "default" else read_state(Path(weights))
    names = {
        f"{layer}.{kind}": f"{name}.{kind}"
        for layer, name in zip(("fc6", "fc7", "fc8"), spec.classifier, strict=True)
        for kind in ("weight", "bias")
    }
    if any(name not in state for name in names.values()):
        return None
    return {layer: state[name].float() for layer, name in names.items()}


def read_state(path: Path) -> State:
    """A state dict from a ``.safetensors``, ``.pt`` or ``.pth`` file; WeightsError says what is wrong with it."""
    if not path.is_file():
        raise WeightsError(
            f"weights file {str(path)!r} does not exist; give its path, or use weights: default or weights: random"
        )
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
        raise WeightsError(
            f"weights {name} in {cache} cannot be used: {_reason(error)}; remove a file that is there, or use "
            f"weights: random"
        ) from error


def _reason(error: Exception) -> str:
    """An error in one line, which torch's are not."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
