"""The config of a run: one section per stage, read from YAML and the command line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from jobs.config.yaml_text import YamlError, read_value, read_yaml
from jobs.errors import UsageError
from storage.root import StorageError, check_options, check_url
from storage.secrets import redacted_value

_LONGEST = 1 << 18
"""Bytes of a config, at most: PyYAML takes seconds for so many."""
_OPTIONS = ("storage_options", "dataset.storage_options")
_NOT_OF_A_KEY = re.compile(r"function-|literal\[|tuple\[|int$|float$|str$|bool$|constrained-")
"""Parts of a place in pydantic's errors that name no key but one of several types."""


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
    """For the file system of the root; as ``env:NAME`` all but what is known to hold no secret (docs/operations.md), or
    by the store's own profiles and variables."""

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

    Raises UsageError, in one line, for a missing or broken file, a key that stands twice, an unknown key, a wrong type,
    a secret in the open or an impossible combination, naming the key and what is allowed.
    """
    values = _read_file(path)
    for override in overrides:
        _set(values, override)
    _check_sections(path, values)
    _check_secrets(path, values)
    try:
        # as JSON: lists become tuples, and nothing else changes its type on the way (true is not 1, nor "1")
        return RunConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(_explain_all(error))}") from None  # it holds all values


def _read_file(path: str) -> dict[str, Any]:
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(_LONGEST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, UnicodeDecodeError):
            line = error.object[: error.start].count(b"\n") + 1
            reason = f"line {line} is no UTF-8 text"
        raise UsageError(f"config file {path!r} cannot be read: {reason}") from None
    if len(data) > _LONGEST:
        raise UsageError(f"config file {path!r} has more than {_LONGEST:,} bytes, which no config needs")
    try:
        values = read_yaml(text)
    except YamlError as error:
        raise UsageError(f"config file {path!r} {error}") from error
    if not isinstance(values, dict):
        kind = "nothing" if values is None else _KINDS[type(values)]
        raise UsageError(f"config file {path!r} must hold sections such as 'dataset:', it holds {kind}")
    return values


_KINDS = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


def _set(values: dict[str, Any], override: str) -> None:
    """Change a key; of several values the last one counts, as on other command lines."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        named = re.match(r"\w+(\.\w+)+", override)  # and not what follows, which may be a secret
        raise UsageError(
            f"--set{' ' + named[0] if named else ''}: give section.key=value, such as --set proposals.max_per_image=500"
        )
    try:
        value = read_value(text)
    except YamlError as error:
        raise UsageError(f"--set {key}=...: the value {error}") from error
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.setdefault(section, {})
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {key}=...: {section!r} is a value, not a section")
        place = inner
    if not sections and _is_section(last):
        raise UsageError(f"--set {key}=...: a section has keys; give one of them, --set {key}.KEY=...")
    place[last] = value


def _is_section(name: str) -> bool:
    field = RunConfig.model_fields.get(name)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Settings)


def _check_sections(path: str, values: Mapping[str, Any]) -> None:
    """UsageError for a section that is none. With nothing in it, its keys may stand a level too far left."""
    for name, value in values.items():
        if not (_is_section(name) or name in _OPTIONS) or isinstance(value, dict):
            continue
        if value is None:
            raise UsageError(f"{path}: section {name!r} is empty; indent its keys below it, or leave it out")
        raise UsageError(f"{path}: {name!r} must be a section of keys, not {_KINDS[type(value)]}")


def _check_secrets(path: str, values: Mapping[str, Any]) -> None:
    """UsageError, which does not repeat it, for a secret in the open: a config is written beside the data."""
    try:
        for key, value in _leaves(values):
            if key in _OPTIONS and isinstance(value, dict):
                check_options(value, key)
            elif isinstance(value, str):
                check_url(key, value)
    except StorageError as error:
        raise UsageError(f"{path}: {error}") from error


def _leaves(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of all that is no section; storage options as one value."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    for name, value in pairs:
        key = f"{prefix}{name}"
        if key not in _OPTIONS and isinstance(value, (dict, list)):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _explain_all(error: ValidationError) -> list[str]:
    """A clause for each key; what several types of one key say goes into one."""
    clauses: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_context=True):
        name, told = _explain(dict(one))
        if told not in clauses.setdefault(name, []):
            clauses[name].append(told)
    return [f"{name}{', or '.join(told)}" for name, told in clauses.items()]


def _explain(error: dict[str, Any]) -> tuple[str, str]:
    """What a pydantic error is about, and what it says, in words that a reader of YAML knows."""
    path = [str(part) for part in error["loc"] if not _NOT_OF_A_KEY.match(str(part))]
    name = ".".join(path)
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys_of(path[:-1])
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return "", f"unknown key {name[:100]!r}; {hint}allowed: {', '.join(allowed)}"
    if kind == "missing" and path[-1].isdigit():
        return f"{'.'.join(path[:-1])}: ", "the list is too short"
    if kind == "missing":
        told = " (the data set: --set dataset.path=...)" if name.startswith("dataset") else ""
        return "", f"key {name!r} is missing{told}"
    given = error.get("input")
    if kind == "tuple_type":
        message = "must be a list, such as [1, 2]"
    elif kind in ("too_short", "too_long"):
        few = "at least" if kind == "too_short" else "at most"
        message = f"must be a list of {few} {limits.get('min_length', limits.get('max_length'))} values"
    elif kind == "dict_type":
        message = "must be a mapping of keys"
    else:
        message = error["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
    if isinstance(given, (dict, BaseModel)) or name.startswith(_OPTIONS):
        return f"{name}: ", message
    return f"{name}: ", f"{message}, not {_shown(given)}{_hint(kind, given)}"


def _shown(given: Any) -> str:
    """A value as a config has it, cut where it is long."""
    words = {True: "true", False: "false", None: "nothing"}
    text = words[given] if given is None or isinstance(given, bool) else repr(redacted_value(given))
    return text if len(text) <= 100 else f"{text[:100]}..."


def _hint(kind: str, given: Any) -> str:
    """What to do about a value of another type."""
    if kind in ("int_type", "float_type", "bool_type") and isinstance(given, str):
        return " (text; take it out of its quotes if it is none)" if given.strip() else ""
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return " (put it into quotes if it is text)"
    return ""


def _keys_of(path: Sequence[str]) -> list[str]:
    """Allowed keys of the section at ``path``."""
    model: type[BaseModel] = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
