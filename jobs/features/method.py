"""What features hang on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.config.features import FeaturesConfig
from jobs.features.known_bodies import BodyIdentity
from jobs.record.versions import versions_of
from storage.identity import method_id

if TYPE_CHECKING:
    from jobs.features.body import LoadedBody

VERSION = 1
TRUTH_BOXES_PER_IMAGE = 64
"""Ground-truth boxes of one image that a shard of ``truth_features`` is cut for."""


def vector_length(config: FeaturesConfig, body: BodyIdentity) -> int:
    """Channels times bins: 12,800 for AlexNet with (6, 3, 2, 1)."""
    return body.channels * sum(n * n for n in config.pyramid)


def features_method(config: FeaturesConfig, weights: str, proposals: str) -> str:
    """The method id of ``features``, made with the body of digest ``weights`` from the method ``proposals``."""
    return method_id("extract", VERSION, config.identity(), weights=weights, upstream=[proposals])


def truth_method(config: FeaturesConfig, weights: str, index: str) -> str:
    """The method id of ``truth_features``: it does not depend on proposals."""
    return method_id("extract-truth", VERSION, config.identity(), weights=weights, upstream=[index])


def engine_metadata(config: FeaturesConfig, body: LoadedBody) -> dict[str, str]:
    """What a file says of who computed its maps: the engine that ran the body, with its version, and the precision."""
    return {"engine": f"{body.engine} {versions_of([body.engine])[body.engine]}", "precision": config.precision}


def file_metadata(config: FeaturesConfig, body: LoadedBody, method: str, producer: str) -> dict[str, str]:
    """What a feature file says about itself."""
    geometry = body.spec.geometry
    found = {
        "stride": str(geometry.stride),
        "centre": str(geometry.centre),
        "scales": ",".join(map(str, config.scales)),
        "scale_rule": config.scale_rule,
        "mapping": config.mapping,
    }
    return {
        "method": method,
        "source": config.source,
        "body": config.body,
        "weights_digest": body.weights_digest,
        **engine_metadata(config, body),
        **(found if config.source == "windows" else {}),
        "levels": ",".join(map(str, config.pyramid)),
        "order": "level,bin,channel",
        "dtype": "float16",
        "producer": producer,
    }
