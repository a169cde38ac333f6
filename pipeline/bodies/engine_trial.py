"""Whether an engine can run a body: tried, on noise of several sizes, against PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.bodies.body import Body, BodySpec
from pipeline.bodies.engine import ConversionError, Engine, Precision
from pipeline.bodies.weights import load_state

TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 0.2, "float16": 0.02}
"""Of the norm of PyTorch's map in float32: how far an engine's may be from it. Bodies here are 2e-6 away at most in
float32; in bfloat16, which has 3 digits, up to 8e-2."""

_SIZES = ((160, 224), (230, 131), (97, 331))


def refusal(spec: BodySpec, engine: Engine, precision: Precision = "float32") -> str:
    """Why an engine cannot run a body, in a few words; empty if it can. It takes seconds.

    A conversion that took the size of one image for that of all, or left something out, gives other maps.
    Raises EngineError if the engine is not installed, or never computes with the precision here.
    """
    state = load_state(spec, "random")
    reference = Body(spec, state)
    noise = [np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8) for size in _SIZES]
    batches = [reference.preprocess(images) for images in noise]
    maps = [reference.conv_maps_of(batch) for batch in batches]
    try:
        tried = Body(spec, state, engine=engine, precision=precision)
        for (height, width), batch, expected in zip(_SIZES, batches, maps, strict=True):
            found = tried.conv_maps_of(batch)
            if expected.shape != found.shape:
                return f"of {height} x {width} pixels it makes a map of another size"
            error = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
            if not error <= TOLERANCE[precision]:
                return f"of {height} x {width} pixels it makes another map: {error:.0e} of its norm away"
    except (ConversionError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
