"""extract: one vector per proposal (``features``) and per ground-truth box of the training splits (``truth_features``).

    spp extract --config configs/raccoon_kangaroo.yaml --root /data/spp

Actors hold the body, one per GPU (or on CPU cores), and write the Parquet files themselves: feature bytes travel
neither through Ray's object store nor through the driver. The actor is in ``jobs/feature_actor.py``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.errors import UsageError
from jobs.known_bodies import BodyIdentity, body_key, recall, remember
from jobs.settings import ADDED_LATER, Settings
from jobs.trial import Trial
from storage.commits import CommitName, Upstream
from storage.identity import canonical_json, digest, method_id

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from jobs.imagefile import ImageFile
    from pipeline.bodies import BodySpec
    from storage.root import Root

VERSION = 1
TRUTH_BOXES_PER_IMAGE = 64
"""Ground-truth boxes of one image that a shard of ``truth_features`` is cut for."""
BODY_NAMES = (
    "alexnet",
    "convnet5",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "overfeat5",
    "overfeat7",
    "resnet50",
    "squeezenet1_1",
    "vgg16",
    "zf5",
)
"""The names in ``pipeline.bodies.BODIES``, which a command that needs no network can check without torch."""


class FeaturesConfig(Settings):
    """The ``features:`` section of the config."""

    body: str = "alexnet"
    """The convolutional body: alexnet, convnet5, efficientnet_lite0 (1, 2), overfeat5 (7), resnet50, squeezenet1_1,
    vgg16, zf5, or timm:NAME for a convolutional model of the timm library; see docs/bodies.md."""
    weights: str = "default"
    """default: the published ones; random: seeded; or the path of a .safetensors, .pt or .pth state dict."""
    seed: int = 0
    """Of random weights."""
    scales: tuple[int, ...] = (480, 576, 688, 864, 1200)
    """Short sides in pixels."""
    scale_rule: Literal["area", "linear208"] = "area"
    """area: the scaled box comes closest to 224 x 224 (paper); linear208: the released code's."""
    mapping: Literal["released", "paper"] = "released"
    """How a box becomes a window; see docs/method.md."""
    pyramid: tuple[int, ...] = (6, 3, 2, 1)
    """Levels of the spatial pyramid, in the order of the vector."""
    max_scaled_pixels: int = Field(1200 * 2400, ge=4096)
    """Larger scaled images are taken at the largest smaller size that fits."""
    source: Literal["windows", "warp"] = Field("windows", json_schema_extra=ADDED_LATER)
    """windows: proposals are pooled from the image's conv maps (SPP-net); warp: each is warped to the body's input size
    and passes the body alone (R-CNN), to compare with. Then scales and mapping have no say."""
    store: Literal["vectors", "maps"] = "vectors"
    """vectors: a row per window, to query; maps: the conv maps, 6 to 40 times smaller, pooled while they are read."""

    @field_validator("body")
    @classmethod
    def _body_is_known(cls, body: str) -> str:
        if body not in BODY_NAMES and not (body.startswith("timm:") and body != "timm:"):
            close = difflib.get_close_matches(body, BODY_NAMES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{hint}the bodies are {', '.join(BODY_NAMES)} and timm:NAME")
        return body

    @field_validator("scales")
    @classmethod
    def _scales_are_sizes(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if not scales or min(scales) < 32 or len(set(scales)) != len(scales):
            raise ValueError("give one or more distinct short sides, each at least 32 pixels")
        return tuple(sorted(scales))

    @field_validator("pyramid")
    @classmethod
    def _levels_are_numbers(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or min(levels) < 1 or max(levels) > 32 or len(set(levels)) != len(levels):
            raise ValueError("give one or more distinct levels from 1 to 32, such as [6, 3, 2, 1]")
        return levels

    @model_validator(mode="after")
    def _warped_windows_have_no_common_map(self) -> FeaturesConfig:
        if self.source == "warp" and self.store == "maps":
            raise ValueError("source: warp makes no conv map that windows share; use store: vectors")
        return self

    def identity(self) -> dict[str, Any]:
        """Without the weights, whose digest stands for them, and the store: both hold the same numbers."""
        values = super().identity()
        unused = ("scales", "scale_rule", "mapping", "max_scaled_pixels") if self.source == "warp" else ()
        for key in ("weights", "seed", "store", *unused):
            del values[key]
        return values


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


def load_body(config: FeaturesConfig, identity: BodyIdentity | None = None) -> LoadedBody:
    """Read the weights once, on the driver.

    ``identity``: of the body that methods were named after. UsageError if the weights or the body cannot be had, or are
    not that one.
    """
    key = body_key(config)
    body = _read_body(config)
    if body_key(config) == key:  # else they were written while they were read
        remember(key, body.identity)
    if identity not in (None, body.identity):
        raise UsageError(
            f"features.weights: the weights {config.weights!r} have changed since this command looked at them; run it "
            f"again"
        )
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
        if (classifier.levels, classifier.order) != (
            (6,),
            "channel-major",
        ):  # torchvision's, named before there were others
            told = digest(canonical_json([told, list(classifier.levels), classifier.order]))
    return LoadedBody(spec, state, weights_digest(state), told)


def vector_length(config: FeaturesConfig, body: BodyIdentity) -> int:
    """Channels times bins: 12,800 for AlexNet with (6, 3, 2, 1)."""
    return body.channels * sum(n * n for n in config.pyramid)


def features_method(config: FeaturesConfig, weights: str, proposals: str) -> str:
    """The method id of ``features``, made with ``weights`` (a digest) from the method ``proposals``."""
    return method_id("extract", VERSION, config.identity(), weights=weights, upstream=[proposals])


def truth_method(config: FeaturesConfig, weights: str, index: str) -> str:
    """The method id of ``truth_features``: it does not depend on proposals."""
    return method_id("extract-truth", VERSION, config.identity(), weights=weights, upstream=[index])


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
        "weights_digest": body.digest,
        **(found if config.source == "windows" else {}),
        "levels": ",".join(map(str, config.pyramid)),
        "order": "level,bin,channel",
        "dtype": "float16",
        "producer": producer,
    }


@dataclass(frozen=True)
class ExtractShard:
    """All that a worker needs to know of its shard.

    ``proposals``: the commit of the proposals to pool, for ``features`` and ``windows`` (with which ``maps`` are
    made). ``objects``: the ground truth, columns as in the objects dataset, for ``truth_features``. ``windows``: the
    commit of the windows to make vectors of with those of ``maps``, where neither image nor body is needed.
    ``dim``: length of the vectors.
    """

    dataset: Literal["features", "windows", "truth_features"]
    method: str
    shard: str
    revision: int
    images: tuple[ImageFile, ...]
    metadata: dict[str, str]
    proposals: CommitName | None = None
    proposals_method: str = ""
    objects: pa.Table | None = None
    windows: CommitName | None = None
    maps: CommitName | None = None
    dim: int = 0
    trial: Trial = field(default_factory=Trial)

    def upstream(self) -> tuple[Upstream, ...]:
        """What the shard's commit names as its source."""
        if self.proposals is None:
            return ()
        name = self.proposals
        return (Upstream(dataset="proposals", method=self.proposals_method, shard=name.shard, revision=name.revision),)


@dataclass(frozen=True)
class ActorSettings:
    """What an actor is made with: the same for all shards of a run."""

    root: Root
    config: FeaturesConfig
    device: str
    threads: int
    decode_threads: int
    decode_ahead: int
    max_boxes: int
    storage_options: dict[str, Any]
    producer: str

    @property
    def images_at_once(self) -> int:
        """Images that an actor computes at once: one in each of its threads on a CPU."""
        return self.threads if self.device == "cpu" else 1
