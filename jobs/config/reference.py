"""The page ``docs/config.md``, from the config models themselves: every key, what it may be, its default, its meaning.

python -m jobs.config.reference > docs/config.md
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from jobs.config.run_config import RunConfig
from jobs.config.settings import Settings

_HEAD = """\
# Keys of a config

Made by `python -m jobs.config.reference > docs/config.md`; do not edit it by hand.

A config is a YAML file with one section per stage. `--set section.key=value` changes a key for one command, the value
being YAML: `--set features.scales=[480,688]`. An unknown key or an impossible value is refused before anything starts;
what YAML would drop or take for something else too: [input.md](input.md#a-config).
"""

_INTRODUCTIONS = {
    "dataset": "Only `digest` is part of a result's identity: a data set may move, and splits and classes may change.",
    "proposals": "A key that belongs to another method is refused. Each key changes what `propose` makes.",
    "features": "Each key but `store` changes the vectors. Of the weights their content counts, not their name.",
    "head": "The fully connected layers. All keys but the last change what `finetune` makes.",
    "finetune": "How the head is trained: each key changes it, unless it belongs to a schedule that is not used.",
    "svm": "Each key changes the SVMs, and so the detections and metrics.",
    "bbox": "Each key changes the box regressors, and so the detections and metrics.",
    "detect": "Each key changes the detections.",
    "evaluate": "Each key changes the metrics.",
    "classify": "Whole images. `views` and `layers` change what is stored of an image, the others what is measured of "
    "that, but for `memory_mb`, which may choose the solver, and `no_spp_weights`.",
    "pretrain": "Training a body on whole images; each key changes the network, but for those that say otherwise.",
    "execution": "How and where the work runs. Nothing here changes any result.",
}


def page() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD]
    meanings = _meanings(RunConfig)
    top: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            fields, own = field.annotation.model_fields, _meanings(field.annotation)
            parts.append(f"## {name}\n\n{_INTRODUCTIONS[name]}\n\n{_table(name + '.', fields, own)}")
        else:
            top[name] = field
    parts.append(f"## At the top\n\n{_table('', top, meanings)}")
    return "\n".join(parts)


def _meanings(model: type[Settings]) -> dict[str, str]:
    """Key to the docstring that follows it in the source of its model."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


def _table(prefix: str, fields: dict[str, FieldInfo], meanings: dict[str, str]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = " ".join(meanings.get(name, "").replace("``", "`").split())
        cells = (f"`{prefix}{name}`", _values(field), _default(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _values(field: FieldInfo) -> str:
    """The type in words, with its limits."""
    limits = []
    for constraint in field.metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if hasattr(constraint, attribute):
                limits.append(f"{sign} {getattr(constraint, attribute)}")
    return _kind(field.annotation) + (f", {', '.join(limits)}" if limits else "")


def _kind(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if part is type(None) else _kind(part) for part in arguments)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is tuple:
        element = _kind(arguments[0])
        if arguments[-1] is not Ellipsis:
            return f"pair of {element}s"
        if element.startswith("pair"):
            return f"list of pairs{element.removeprefix('pair')}"
        return f"list of ({element})" if element.endswith("`") else f"list of {element}s"
    if origin is dict:
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "nothing"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    print(page(), end="")
