"""Whether an engine can run a body: tried, on noise of several sizes, against PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.bodies.body import Body, BodySpec
from pipeline.bodies.engine import Engine, EngineError
from pipeline.bodies.weights import load_state

TOLERANCE = 1e-5
"""Of the map's norm: how far an engine may be from PyTorch in float32. Bodies here are 2e-6 away at most."""

_SIZES = ((160, 224), (230, 131), (97, 331))


def refusal(spec: BodySpec, engine: Engine) -> str:
    """Why an engine cannot run a body, in a few words; empty if it can. It takes seconds.

    A conversion that took the size of one image for that of all, or left something out, gives other maps.
    Raises EngineError if the engine is not installed.
    """
    state = load_state(spec, "random")
    reference = Body(spec, state)
    if engine == "openvino":
        from pipeline.bodies.openvino_runner import openvino

        openvino()
    try:
        tried = Body(spec, state, engine=engine)
        for height, width in _SIZES:
            noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
            batch = reference.preprocess(noise)
            expected, found = reference.conv_maps_of(batch), tried.conv_maps_of(batch)
            if expected.shape != found.shape:
                return f"of {height} x {width} pixels it makes a map of another size"
            error = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
            if not error <= TOLERANCE:
                return f"of {height} x {width} pixels it makes another map: {error:.0e} of its norm away"
    except (EngineError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return ""
