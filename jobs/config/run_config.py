"""The config of a run: one section per stage, read from YAML and the command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from jobs.config.bbox import BboxConfig
from jobs.config.classify import ClassifyConfig
from jobs.config.dataset import DatasetConfig
from jobs.config.detect import DetectConfig
from jobs.config.evaluate import EvaluateConfig
from jobs.config.execution import ExecutionConfig
from jobs.config.features import FeaturesConfig
from jobs.config.head import FINETUNED, FinetuneConfig, HeadConfig
from jobs.config.pretrain import PretrainConfig
from jobs.config.proposals import ProposalsConfig
from jobs.config.settings import NOT_IDENTITY, Settings
from jobs.config.svm import SvmConfig
from jobs.errors import UsageError


class RunConfig(Settings):
    """A whole config file."""

    dataset: DatasetConfig
    proposals: ProposalsConfig = ProposalsConfig()
    features: FeaturesConfig = FeaturesConfig()
    head: HeadConfig = HeadConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    svm: SvmConfig = SvmConfig()
    bbox: BboxConfig = BboxConfig()
    detect: DetectConfig = DetectConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    classify: ClassifyConfig = ClassifyConfig()
    pretrain: PretrainConfig = PretrainConfig()
    execution: ExecutionConfig = ExecutionConfig()
    storage_options: dict[str, Any] = Field(default_factory=dict, json_schema_extra=NOT_IDENTITY)
    """For the file system of the root; secrets as ``env:NAME``, or by the store's own profiles and variables."""

    @model_validator(mode="after")
    def _the_softmax_has_no_svms(self) -> RunConfig:
        if self.detect.classifier == "softmax" and self.svm.layer != "pool5":
            raise ValueError(
                f"detect.classifier: softmax takes no SVMs, so svm.layer: {self.svm.layer} has no say; use pool5"
            )
        return self

    @property
    def needs_head(self) -> bool:
        """Whether detections come from a layer of the head."""
        return self.svm.layer != "pool5" or self.detect.classifier == "softmax"

    @property
    def needs_finetuning(self) -> bool:
        """Whether they come from a fine-tuned one; else it is as its weights were published."""
        return self.svm.layer in FINETUNED or self.detect.classifier == "softmax"

    @property
    def finetunes(self) -> bool:
        """Whether stage finetune trains: not where all that is wanted is the published head."""
        return self.needs_finetuning or not self.needs_head


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in the YAML file ``path``, changed by ``overrides`` of the form ``a.b=value`` (YAML values).

    Raises UsageError, in one line, for a missing or broken file, an unknown key, a wrong type or an impossible
    combination, naming the key and what is allowed.
    """
    values = _read_yaml(path)
    for override in overrides:
        _set(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: " + "; ".join(_explain(dict(e)) for e in error.errors())) from error


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"config file {path!r} cannot be read: {reason}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"config file {path!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(
            f"config file {path!r} must hold sections such as 'dataset:', it holds {type(values).__name__}"
        )
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r}: give section.key=value, such as --set proposals.max_per_image=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override!r}: the value is not valid YAML") from error
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.setdefault(section, {})
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override!r}: {section!r} is a value, not a section")
        place = inner
    place[last] = value


def _explain(error: dict[str, Any]) -> str:
    """One pydantic error as one readable clause."""
    path = [str(part) for part in error["loc"] if not str(part).startswith(("function-", "literal["))]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        allowed = _keys_of(path[:-1])
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {name!r}; {hint}allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"key {name!r} is missing" + (
            " (the data set: --set dataset.path=...)" if name.startswith("dataset") else ""
        )
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if not isinstance(given, (dict, BaseModel)) else ""
    return f"{name}: {message[0].lower()}{message[1:]}{shown}"


def _keys_of(path: Sequence[str]) -> list[str]:
    """Allowed keys of the section at ``path``."""
    model: type[BaseModel] = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
