"""The common ground of all config models: frozen, no unknown keys, and an identity."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of the config. A field marked ``NOT_IDENTITY`` does not change what a stage's output is, one marked
    ``ADDED_LATER`` only where it is not at its default."""

    # A key's docstring is for readers and for docs/config.md (jobs/config/reference.py): to have pydantic look for it,
    # with use_attribute_docstrings, would parse the sources anew in every command.
    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """The values that a stage's method id hashes, as JSON values."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            identity = extra.get("identity", True) if isinstance(extra, dict) else True
            if identity is False or (identity == "unless default" and getattr(self, name) == field.default):
                del values[name]
        return values


NOT_IDENTITY: dict[str, Any] = {"identity": False}

ADDED_LATER: dict[str, Any] = {"identity": "unless default"}
"""For a key that a release adds, whose default does what was done before: what older ones made keeps its name."""
