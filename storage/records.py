"""Records: the small JSON files of a root, each with a digest of what it says, so that a flipped bit is seen."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError

from storage.damage import DamagedFileError
from storage.identity import canonical_json, sha256
from storage.root import StorageError
from storage.schemas import check_version

_Record = TypeVar("_Record", bound=BaseModel)

_DIGEST = "digest"


def dump_record(record: BaseModel) -> bytes:
    """A record as JSON, its last field the digest of all others."""
    text = record.model_dump_json(indent=1)
    seal = json.dumps(_digest(pydantic_core.from_json(text)))
    return f'{text[:-2]},\n "{_DIGEST}": {seal}\n}}'.encode()


def read_record(model: type[_Record], data: bytes, where: str) -> _Record:
    """The record of a JSON file. A newer version may have other fields, so it is looked at before them.

    A digest vouches for fields that this software does not know, too. A record without one was written by version
    0.1.0, which knew no more fields than ``model`` has; so another field is a name that has lost a bit.

    Raises StorageError if it is of a newer version, which may be seen by what it holds; DamagedFileError if this is no
    such record, or its digest is of another.
    """
    try:
        fields = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise DamagedFileError(where, str(error)) from error
    if not isinstance(fields, dict) or "schema_version" not in fields:
        raise DamagedFileError(where, "it is no record with a schema_version")
    stated = fields.pop(_DIGEST, None)
    if stated is not None and stated != _digest(fields):
        raise DamagedFileError(where, "it does not say what its digest is of")
    check_version(fields["schema_version"], where)
    unknown = sorted(fields.keys() - model.model_fields.keys())
    if stated is None and unknown:
        raise DamagedFileError(where, f"there is no field {unknown[0]!r}")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if stated is not None:  # it is as it was written
            raise StorageError(f"{where} is of another version: {reason}; update spp-pipeline") from error
        raise DamagedFileError(where, reason) from error


def _digest(fields: dict[str, Any]) -> str:
    return sha256(canonical_json(fields))
