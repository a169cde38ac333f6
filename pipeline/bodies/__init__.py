"""Convolutional bodies by name."""

from pipeline.bodies.alexnet import ALEXNET
from pipeline.bodies.body import Body, BodySpec, weights_digest
from pipeline.bodies.efficientnet_lite import EFFICIENTNET_LITE0
from pipeline.bodies.weights import WeightsError, load_state

BODIES: dict[str, BodySpec] = {spec.name: spec for spec in (ALEXNET, EFFICIENTNET_LITE0)}
"""Every body that ``features.body`` may name."""

__all__ = ["BODIES", "Body", "BodySpec", "WeightsError", "load_state", "weights_digest"]
