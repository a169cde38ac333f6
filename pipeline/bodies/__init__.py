"""Convolutional bodies by name."""

from pipeline.bodies.alexnet import ALEXNET
from pipeline.bodies.body import Body, BodySpec, UnsuitableBodyError, weights_digest
from pipeline.bodies.convnet5 import CONVNET5
from pipeline.bodies.efficientnet_lite import EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2
from pipeline.bodies.engine import Engine, EngineError, Precision
from pipeline.bodies.overfeat import OVERFEAT5, OVERFEAT7
from pipeline.bodies.resnet import RESNET50
from pipeline.bodies.squeezenet import SQUEEZENET1_1
from pipeline.bodies.timm_body import PREFIX, timm_spec
from pipeline.bodies.vgg import VGG16
from pipeline.bodies.weights import WeightsError, load_classifier, load_state, save_network
from pipeline.bodies.zf5 import ZF5

BODIES: dict[str, BodySpec] = {
    spec.name: spec
    for spec in (
        ALEXNET,
        CONVNET5,
        EFFICIENTNET_LITE0,
        EFFICIENTNET_LITE1,
        EFFICIENTNET_LITE2,
        OVERFEAT5,
        OVERFEAT7,
        RESNET50,
        SQUEEZENET1_1,
        VGG16,
        ZF5,
    )
}
"""Every body of our own."""


def body_spec(name: str) -> BodySpec:
    """The body that ``features.body`` names: one of ``BODIES``, or ``timm:NAME``.

    Raises UnsuitableBodyError for one that does not exist or cannot be used.
    """
    if name.startswith(PREFIX):
        return timm_spec(name)
    if name not in BODIES:
        raise UnsuitableBodyError(f"there is no body {name!r}; the bodies are {', '.join(BODIES)} and {PREFIX}NAME")
    return BODIES[name]


__all__ = [
    "BODIES",
    "Body",
    "BodySpec",
    "Engine",
    "EngineError",
    "Precision",
    "UnsuitableBodyError",
    "WeightsError",
    "body_spec",
    "load_classifier",
    "load_state",
    "save_network",
    "weights_digest",
]
