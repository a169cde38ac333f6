import hashlib
import json

import pytest
from pydantic import BaseModel

from storage.damage import DamagedFileError
from storage.records import dump_record, read_record
from storage.root import StorageError
from storage.schemas import SCHEMA_VERSION


class Record(BaseModel):
    schema_version: int
    count: int


GOOD = Record(schema_version=1, count=3)


def test_a_record_is_read():
    assert read_record(Record, dump_record(GOOD), "x") == GOOD
    assert read_record(Record, b'{"schema_version": 1, "count": 3}', "x") == GOOD  # as version 0.1.0 wrote it


def test_a_digest_vouches_for_fields_that_are_not_known():
    class Wider(Record):
        more: float

    data = dump_record(Wider(schema_version=1, count=3, more=0.25))
    assert read_record(Record, data, "x") == GOOD
    with pytest.raises(DamagedFileError, match=r"^x is damaged: there is no field 'more'"):
        read_record(Record, b'{"schema_version": 1, "count": 3, "more": 0}', "x")


def test_every_flipped_bit_is_found():
    data = dump_record(GOOD)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(StorageError, match=r"^x "):
            read_record(Record, bytes(flipped), "x")


def test_the_digest_is_that_of_the_canonical_json():
    fields = json.loads(dump_record(GOOD))
    text = '{"count":3,"schema_version":1}'
    assert fields == {"schema_version": 1, "count": 3, "digest": hashlib.sha256(text.encode()).hexdigest()}


def test_a_newer_record_is_refused_by_its_version_whatever_it_holds():
    data = json.dumps({"schema_version": SCHEMA_VERSION + 1, "count": {"by": "split"}}).encode()
    with pytest.raises(StorageError, match=rf"x\.json has schema version {SCHEMA_VERSION + 1}"):
        read_record(Record, data, "x.json")


DAMAGED = [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b'{"schema_ver', b'{"count": 1}', b'{"schema_version": 1}']


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_record_is_named_in_one_line(data):
    with pytest.raises(StorageError, match=r"^x\.json is damaged: .+") as error:
        read_record(Record, data, "x.json")
    assert "\n" not in str(error.value)
