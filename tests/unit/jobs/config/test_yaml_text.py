"""What YAML is taken for, and what of it is refused."""

import pytest
import yaml

from jobs.config.yaml_text import YamlError, read_value, read_yaml

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("svm:\n  C: 0.01\n  C: 1.0\n", "the key 'C' stands twice, in lines 2 and 3"),
        ("svm: {C: 1}\nbbox:\n  seed: 1\nsvm: {rounds: 2}\n", "the key 'svm' stands twice, in lines 1 and 4"),
        ("a: {b: [{c: 1}, {c: 1,\n 'c': 2}]}", "the key 'c' stands twice, in lines 1 and 2"),
        ("a: 1\nb: 2\na: 3\na: 4\n", "the key 'a' stands 3 times, in lines 1, 3 and 4"),
        ("&x a: 1\n*x : 2\n", "the key 'a' stands twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "the key '<<' stands twice"),
        ("features: {x: 1, x: 2}\nfeatures: {}\n", "'x' stands twice, in lines 1 and 1; the key 'features' stands"),
    ],
)
def test_a_key_that_stands_twice(text, says):
    with pytest.raises(YamlError) as error:
        read_yaml(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 017", "line 1: no decimal number"),
        ("b: 1\na: 0x1F", "line 2: no decimal number"),
        ("a: 0b11", "no decimal number"),
        ("a: 12:30", "no decimal number"),
        ("a: !!int x", "no decimal number"),
        ("a: !!float x", "no decimal number"),
        ("a: !!bool x", "neither true nor false"),
        ("a: !!null x", "said to be nothing"),
        ("a: 2026-11-27", "a date"),
        ("a: !!timestamp x", "a date"),
        ("a: .inf", "infinity"),
        ("a: -.Inf", "infinity"),
        ("a: .nan", "infinity, or not a number"),
        ("a: 1e999", "infinity"),
        ("a: 99999999999999999999", "more than 64 bits"),
        (f"a: {'9' * 5000}", "more than 64 bits"),
        ("a: !!binary aGk=", "kind 'binary'"),
        ("a: !!python/object:os.system x", "no key takes"),
        ("a: !!set {x}", "kind 'set'"),
        ('a: "\\0"', "no path and no name"),
        ('a: "\\ud800"', "no path and no name"),
        ("1: a", "a key must be text"),
        ("no: a", "a key must be text"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {<<: *a}", "holds itself"),
        ("[" * 5000, "more than 30 levels"),
        ("a: {<<: 3}", "for merging"),
        ("a: =", "no key takes"),
    ],
)
def test_what_is_valid_and_not_taken(text, says):
    with pytest.raises(YamlError, match=r"^cannot be taken: line ") as error:
        read_yaml(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n---\nb: 2\n", "line 2: there is a second document"),
        ("a:\n\tb: 1\n", "line 2: a tab"),
        ("a: [", "line 1"),
        ("a: \x01", "U+0001"),
        ("a: *b", "undefined alias"),
        (f"password: {SECRET}: x", "line 1: mapping values are not allowed here"),
        (f"x: 1\npassword: '{SECRET}", "line 2"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line_and_without_its_text(text, says):
    with pytest.raises(YamlError, match=r"^is not valid YAML: ") as error:
        read_yaml(text)
    assert says in str(error.value)
    assert SECRET not in str(error.value)


def test_anchors_that_multiply_are_refused_at_once():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    with pytest.raises(YamlError, match="more than 100000 values"):
        read_yaml("\n".join(lines))


def test_anchors_and_merge_keys_work():
    text = "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [*x, {q: 9, r: 4}], p: *n}\n"
    with pytest.raises(YamlError, match="undefined alias 'n'"):
        read_yaml(text)
    assert read_yaml(text.replace("*n", "[5]")) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": [5], "q": 2, "r": 4},
    }
    nested = "x: {y: &a {<<: &b {k: 1}, k: 2}}\nc: {<<: *a}\n"  # the merged key is no second one
    assert read_yaml(nested) == {"x": {"y": {"k": 2}}, "c": {"k": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-20_000", -20000),
        ("1e-3", 0.001),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("true", True),
        ("yes", True),
        ("null", None),
        ("", None),
        ("'017'", "017"),
        ("'2026-11-27'", "2026-11-27"),
        ("!!str 5", "5"),
        ("[480, 688]", [480, 688]),
        ("a#b", "a#b"),
        ("'a # b'", "a # b"),
    ],
)
def test_values_are_what_they_look_like(text, value):
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["0.1 # as before", "/data/a #1", "# nothing", "--- 1", "1\n...\n", "%TAG ! a\n--- 1"])
def test_nothing_stands_beside_the_value_of_an_override(text):
    with pytest.raises(YamlError, match="holds more than one value"):
        read_value(text)


@pytest.mark.parametrize("text", ["[480] 688", "{a: 1} b", "'a' b", "1\n...\n2"])
def test_text_after_a_closed_value_is_no_yaml(text):
    with pytest.raises(YamlError, match="is not valid YAML"):
        read_value(text)


def test_it_reads_what_yaml_writes():
    values = {"a": {"b": [1, 2.5e-7, "x: y", None, True, "017", "12:30", ""]}, "c": [1e30, -1]}
    assert read_yaml(yaml.safe_dump(values)) == values
