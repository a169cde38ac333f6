"""The body of a run: its weights loaded, and told apart from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.config.features import FeaturesConfig
from jobs.errors import UsageError
from jobs.features.known_bodies import BodyIdentity, body_key, recall, remember
from storage.identity import canonical_json, digest

if TYPE_CHECKING:
    import torch

    from pipeline.bodies import BodySpec, Engine


@dataclass(frozen=True)
class LoadedBody:
    """A body as the driver hands it to the actors. ``digest``, ``classifier`` and ``engine``: see ``BodyIdentity``.

    ``weights_digest``: of the weights alone.
    """

    spec: BodySpec
    state: dict[str, torch.Tensor]
    digest: str
    classifier: str = ""
    engine: Engine = "torch"
    weights_digest: str = ""

    @property
    def identity(self) -> BodyIdentity:
        """What names methods, without the weights."""
        return BodyIdentity(self.spec.channels, self.digest, self.classifier, self.engine)


def identify_body(config: FeaturesConfig) -> BodyIdentity:
    """What names the methods of ``config``: known from an earlier command, or of the weights read now.

    UsageError as ``load_body``.
    """
    return recall(body_key(config)) or load_body(config).identity


def engine_note(config: FeaturesConfig, body: BodyIdentity) -> str | None:
    """That another engine runs the body than the one asked for; None if it does not."""
    if body.engine == config.engine:
        return None
    return f"features.engine: {config.engine} cannot run body {config.body!r} as torch does, so {body.engine} runs it"


def load_body(config: FeaturesConfig) -> LoadedBody:
    """Read the weights once, on the driver. UsageError if the weights, the body or its engine cannot be had."""
    key = body_key(config)
    known = recall(key)
    body = _read_body(config, known.engine if known else None)
    if body_key(config) == key:  # else they were written while they were read
        remember(key, body.identity)
    return body


def _read_body(config: FeaturesConfig, known_engine: str | None) -> LoadedBody:
    from pipeline.bodies import (
        EngineError,
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
        engine = _engine_of(config, spec, known_engine)
    except EngineError as error:
        raise UsageError(f"features.engine: {error}") from error
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
    weights = weights_digest(state)
    return LoadedBody(spec, state, _digest(weights, engine, config.precision), told, engine, weights)


def _digest(weights: str, engine: str, precision: str) -> str:
    """Of what makes the map. What is at its default is left out: it was named before there were others."""
    values: dict[str, Any] = {"engine": engine, "precision": precision}
    others = {name: value for name, value in values.items() if value not in ("torch", "float32")}
    return digest(canonical_json([weights, others])) if others else weights


def _engine_of(config: FeaturesConfig, spec: BodySpec, known: str | None) -> Engine:
    """The engine that runs the body: the one asked for, or torch if that cannot. EngineError if it is not installed."""
    if config.engine == "torch":
        return "torch"
    from pipeline.bodies.engine_trial import refusal
    from pipeline.bodies.openvino_runner import openvino

    openvino()
    # tests hold the engine to every body of our own; of others it is known, or tried
    runs = not config.body.startswith("timm:") or known == config.engine
    if runs or (known is None and not refusal(spec, config.engine, config.precision)):
        return config.engine
    return "torch"
