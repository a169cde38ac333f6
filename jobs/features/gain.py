"""What another engine or precision would gain on this machine, in a line: by a rule, from what was measured once.

``MEASURED`` is what ``python -m benchmarks.body`` printed on one core of a processor with AVX-512 and AMX: how many
times as fast as PyTorch in float32 each body's maps were made at its usual scales. The command measures any machine.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from jobs.config.features import FeaturesConfig


class Gain(NamedTuple):
    """Of a body: times as fast, by OpenVINO in float32 and in bfloat16; and how far a map is then off, in per cent."""

    float32: float
    bfloat16: float
    off: float


MEASURED = {
    "alexnet": Gain(1.0, 3.4, 0.4),
    "convnet5": Gain(1.2, 2.7, 0.2),
    "efficientnet_lite0": Gain(2.1, 3.4, 6.4),
    "efficientnet_lite1": Gain(1.6, 2.0, 7.4),
    "efficientnet_lite2": Gain(2.0, 3.5, 7.6),
    "overfeat5": Gain(1.1, 3.8, 0.2),
    "resnet50": Gain(1.2, 3.6, 0.8),
    "squeezenet1_1": Gain(1.4, 2.5, 0.9),
    "zf5": Gain(1.6, 3.5, 0.2),
}

_WORTH = 1.15
"""Times as fast: below, nothing is said."""


def gain(config: FeaturesConfig, flags: frozenset[str]) -> str | None:
    """What is to be said of a run on CPUs with these flags, as /proc/cpuinfo has them; None if nothing is.

    Processors without AVX-512 have not been measured, and hear nothing. bfloat16 is named where the processor is made
    for it, with what it does to a map.
    """
    measured = MEASURED.get(config.body)
    if measured is None or (config.engine, config.precision) != ("torch", "float32") or "avx512f" not in flags:
        return None
    ways = []
    if measured.float32 >= _WORTH:
        ways.append(f"features.engine: openvino ({measured.float32:.1f} times)")
    if "amx_bf16" in flags:
        key = "that and features.precision" if ways else "features.engine: openvino and features.precision"
        ways.append(f"{key}: bfloat16 ({measured.bfloat16:.1f} times, maps {measured.off:g}% off)")
    if not ways:
        return None
    install = "" if importlib.util.find_spec("openvino") is not None else "; pip install 'spp-pipeline[openvino]'"
    return (
        f"cores such as this machine's make maps of {config.body} faster with {', or with '.join(ways)}; results then "
        f"have other names (`python -m benchmarks.body` measures it){install}"
    )


def processor_flags() -> frozenset[str]:
    """What this machine's processor can do; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
