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
    "efficientnet_lite0": Gain(2.1, 4.3, 4.6),
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
    parts = []
    if measured.float32 >= _WORTH:
        parts.append(f"features.engine: openvino made its maps {measured.float32:.1f} times as fast")
    if "amx_bf16" in flags:
        also = "with" if parts else "features.engine: openvino with"
        parts.append(
            f"{also} features.precision: bfloat16 {measured.bfloat16:.1f} times, with maps {measured.off:g}% off"
        )
    if not parts:
        return None
    there = importlib.util.find_spec("openvino") is not None
    install = "" if there else "; pip install 'spp-pipeline[openvino]'"
    return (
        f"{config.body} on a core such as this machine's: {', '.join(parts)} (benchmarks.body; the results get other "
        f"names){install}"
    )


def processor_flags() -> frozenset[str]:
    """What this machine's processor can do; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
