"""Configs drawn from a grammar of YAML, its oddities among them: a config, or one line that says what is wrong."""

from __future__ import annotations

import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.config.run_config import RunConfig, load_config
from jobs.errors import UsageError

EXAMPLES = int(os.environ.get("SPP_FUZZ", "100"))

SECTIONS = {name: field.annotation for name, field in RunConfig.model_fields.items()}
KEYS = sorted({key for section in SECTIONS.values() for key in getattr(section, "model_fields", {})})
_SOUND = r"""
1 0 -1 1.0 1e-3 1E5 1e999 .inf -.INF .nan 017 0x1F 0b11 12:30 2026-11-27 2026-11-27T10:00:00Z true FALSE yes on
null ~ "1" 'true' "" "\0" "\ud800" "\x85" = << alexnet file auto plateau 99999999999999999999 1.7976931348623157e308
!!int_x !!float_x !!bool_x !!null_x !!str_5 !!binary_aGk= !!timestamp_x !!python/name:os.system !foo_x !_x &a_1 &a
[] {} [1,2] [true] [[1e-3,10]] [0.1,0.5] {a:_1,a:_2} s3://b/x http://u:p@h/x env:HOME env: 5e-324
"""
_BREAKING = r"""*a {<<:_*a} [*a] {?_[a]_:_b} | > @ ` % - : ? , # [ { "x 'x"""
SOUND, BREAKING = ([word.replace("_", " ") for word in text.split()] for text in (_SOUND, _BREAKING))
BREAKING += ["\u202e", "\ufeff", "\u2028", "\a", "\t", "---", "\n"]
sound = st.sampled_from([*SOUND, "1_000"]) | st.integers().map(str) | st.text(max_size=4).map(json.dumps)


def _mostly(usual, odd):
    """One in thirty is odd: where most are, a file breaks at its first fault, and the others are never reached."""
    return st.integers(0, 29).flatmap(lambda turn: odd if turn == 7 else usual)


scalars = _mostly(sound, st.sampled_from(BREAKING) | st.text(max_size=4))
sound_keys = st.sampled_from([*KEYS, *SECTIONS])
odd_keys = st.sampled_from(["<<", "&b a", "*a", "? a", "1", "yes", "''", "!!str a", "a b", "[a]"])
keys = _mostly(sound_keys, odd_keys)


def _flow(children):
    lists = st.lists(children, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")
    maps = st.lists(st.tuples(keys, children), max_size=4).map(
        lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    )
    return lists | maps | lists.map(lambda text: f"&a {text}") | maps.map(lambda text: f"!!map {text}")


values = st.recursive(scalars, _flow, max_leaves=8)


@st.composite
def sections(draw) -> str:
    """A section with keys of its own, or of others, or with none, perhaps twice."""
    name = draw(st.sampled_from(list(SECTIONS)) | keys)
    own = list(getattr(SECTIONS.get(name), "model_fields", {})) or KEYS
    lines = [f"{draw(st.sampled_from([''] * 12 + ['&s ', '!!map ', '{}', '[]']))}"]
    for key in draw(st.lists(st.sampled_from(own) | keys, max_size=4)):
        indent = draw(st.sampled_from(["  "] * 20 + ["    ", "\t", ""]))
        lines.append(f"{indent}{key}:{draw(st.sampled_from([' '] * 20 + ['', chr(9), ' # ']))}{draw(values)}")
    return f"{name}: " + "\n".join(lines)


@st.composite
def configs(draw) -> bytes:
    """A file: sections, often with a data set, now and then with a piece cut out or put in."""
    parts = draw(st.lists(sections(), max_size=4))
    if draw(st.booleans()):
        parts.insert(0, "dataset: {path: data}")
    ends = st.sampled_from(["\n"] * 20 + ["\r\n", "\r", "\n---\n", "\n...\n", "\n# x\n", "\u2028"])
    text = "".join(part + draw(ends) for part in parts).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 2]))):
        place = draw(st.integers(0, len(text)))
        new = draw(st.binary(max_size=3) | st.sampled_from(SOUND + BREAKING).map(str.encode))
        text = text[:place] + new + text[place + draw(st.integers(0, 3)) :]
    return text


overrides = st.lists(
    st.tuples(st.sampled_from([f"{s}.{k}" for s in SECTIONS for k in KEYS[::5]]) | keys, values).map("=".join)
    | st.text(max_size=12),
    max_size=2,
)


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(configs(), overrides)
def test_any_config_is_taken_or_refused_in_one_line(tmp_path_factory, data, changes):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    try:
        loaded = load_config(str(path), changes)
    except UsageError as error:
        told = str(error)
        assert "\n" not in told
        assert len(told) < 5000
        assert "http://u:p@" not in told
    else:
        assert RunConfig.model_validate_json(loaded.model_dump_json()) == loaded, "it is recorded, and read again"
