"""The body of a run: its weights loaded, and told apart from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.config.features import FeaturesConfig
from jobs.errors import UsageError
from jobs.features.known_bodies import BodyIdentity, body_key, recall, remember
from storage.identity import canonical_json, digest

if TYPE_CHECKING:
    import torch

    from pipeline.bodies import BodySpec


@dataclass(frozen=True)
class LoadedBody:
    """A body as the driver hands it to the actors. ``digest`` and ``classifier``: see ``BodyIdentity``."""

    spec: BodySpec
    state: dict[str, torch.Tensor]
    digest: str
    classifier: str = ""

    @property
    def identity(self) -> BodyIdentity:
        """What names methods, without the weights."""
        return BodyIdentity(self.spec.channels, self.digest, self.classifier)


def identify_body(config: FeaturesConfig) -> BodyIdentity:
    """What names the methods of ``config``: known from an earlier command, or of the weights read now.

    UsageError as ``load_body``.
    """
    return recall(body_key(config)) or load_body(config).identity


def load_body(config: FeaturesConfig) -> LoadedBody:
    """Read the weights once, on the driver. UsageError if the weights or the body cannot be had."""
    key = body_key(config)
    body = _read_body(config)
    if body_key(config) == key:  # else they were written while they were read
        remember(key, body.identity)
    return body


def _read_body(config: FeaturesConfig) -> LoadedBody:
    from pipeline.bodies import (
        UnsuitableBodyError,
        WeightsError,
        body_spec,
        load_classifier,
        load_state,
        weights_digest,
    )

    try:
        spec = body_spec(config.body)
        state = load_state(spec, config.weights, config.seed)
        classifier = load_classifier(spec, config.weights)
    except UnsuitableBodyError as error:
        raise UsageError(f"features.body: {error}") from error
    except WeightsError as error:
        raise UsageError(f"features.weights: {error}") from error
    told = ""
    if classifier is not None:
        told = weights_digest(classifier.state)
        torchvisions = ((6,), "channel-major")  # named before there were others
        if (classifier.levels, classifier.order) != torchvisions:
            told = digest(canonical_json([told, list(classifier.levels), classifier.order]))
    return LoadedBody(spec, state, weights_digest(state), told)
