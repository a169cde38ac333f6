"""ZF-5, the paper's main body: the layer list of its release (Zeiler_conv5.prototxt:10-459)."""

from __future__ import annotations

from pipeline.receptive_field import Layer

ZF5_LAYERS = (
    Layer(7, stride=2, padding=1),
    Layer(3, stride=2, ceil=True),
    Layer(5, stride=2),
    Layer(3, stride=2, ceil=True),
    Layer(3, padding=1),
    Layer(3, padding=1),
    Layer(3, padding=1),
)
