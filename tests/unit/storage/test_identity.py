import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.identity import METHOD_LENGTH, canonical_json, digest, method_id, sha256

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)

CONFIG = {"body": "alexnet", "scales": [480, 688], "pyramid": [6, 3, 2, 1], "slack": 1.5, "name": "Schöne"}


def shuffled(value, draw):
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def test_the_canonical_text_never_changes():
    assert canonical_json(CONFIG).decode() == (
        '{"body":"alexnet","name":"Schöne","pyramid":[6,3,2,1],"scales":[480,688],"slack":1.5}'
    )


@given(st.data())
def test_the_order_of_keys_does_not_matter(data):
    value = data.draw(json_values)
    assert canonical_json(shuffled(value, data.draw)) == canonical_json(value)


@given(json_values)
def test_the_canonical_text_says_all_of_the_value(value):
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, {1, 2}, b"bytes"])
def test_what_is_no_json_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


@given(st.lists(st.binary(max_size=6), max_size=5), st.lists(st.binary(max_size=6), max_size=5))
def test_only_the_same_parts_have_the_same_digest(left, right):
    assert (digest(*left) == digest(*right)) == (left == right)


def test_the_digest_is_of_the_lengths_and_the_parts():
    expected = hashlib.sha256(b"\x02" + bytes(7) + b"ab" + b"\x01" + bytes(7) + b"c").hexdigest()
    assert digest(b"ab", b"c") == expected != digest(b"a", b"bc")


def test_sha256_is_the_plain_one():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_method_id_never_changes():
    """Whoever changes this makes every stored dataset unknown to its run."""
    assert method_id("extract", 1, CONFIG, weights="w" * 64, upstream=["0123456789ab"]) == "f657530e22b6"


def test_a_method_id_is_that_of_its_text():
    text = '{"config":{"a":1},"stage":"propose","upstream":["u"],"version":3,"weights":null}'
    assert method_id("propose", 3, {"a": 1}, upstream=["u"]) == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert METHOD_LENGTH == 12


def test_each_part_of_a_method_is_part_of_its_id():
    ids = [
        method_id("extract", 1, CONFIG),
        method_id("propose", 1, CONFIG),
        method_id("extract", 2, CONFIG),
        method_id("extract", 1, {**CONFIG, "slack": 0}),
        method_id("extract", 1, CONFIG, weights="a"),
        method_id("extract", 1, CONFIG, weights="b"),
        method_id("extract", 1, CONFIG, upstream=["a"]),
        method_id("extract", 1, CONFIG, upstream=["a", "b"]),
        method_id("extract", 1, CONFIG, upstream=["b", "a"]),
    ]
    assert len(set(ids)) == len(ids)


def test_a_tuple_is_a_list():
    assert method_id("extract", 1, {"scales": (480,)}) == method_id("extract", 1, {"scales": [480]})
