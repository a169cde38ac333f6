"""What a trained network hangs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.config.pretrain import PretrainConfig
from storage.identity import canonical_json, digest, method_id

if TYPE_CHECKING:
    from jobs.config.features import FeaturesConfig


VERSION = 1


def pretrain_method(
    config: PretrainConfig, features: FeaturesConfig, examples: Sequence[str], workers: int, threads: int
) -> str:
    """The method id of ``network``; ``examples``: digests of what it is trained on, of ``examples_digests``.

    ``workers`` that train it together, each on its own part of a mini-batch, and ``threads`` of a CPU that each does it
    with (1 on GPUs): libraries sum the gradients of convolutions in an order that hangs on their number.
    """
    values: dict[str, Any] = {"pretrain": config.identity(), "body": features.body}
    if config.pooling == "spp":
        values["pyramid"] = list(features.pyramid)
    values |= {name: count for name, count in (("workers", workers), ("threads", threads)) if count > 1}
    return method_id("pretrain", VERSION, values, upstream=examples)


def examples_digests(class_names: Sequence[str], labelled: Mapping[str, str]) -> list[str]:
    """Digests of what a network is trained on; ``labelled``: training image to a digest of it and its class."""
    return [digest(canonical_json(list(class_names))), digest(canonical_json(dict(sorted(labelled.items()))))]
