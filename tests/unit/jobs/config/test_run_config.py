"""A config is what its text says, or one line that says what is wrong, without repeating a secret."""

import json

import pytest
import yaml

from jobs.config.run_config import RunConfig, load_config
from jobs.errors import UsageError
from tests import REPOSITORY

SECRET = "hunter2-5f0c"
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.fixture
def refused(tmp_path):
    """What is said of a config."""

    def told(text: str | bytes, *overrides: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UsageError) as error:
            load_config(str(path), overrides)
        assert "\n" not in str(error.value)
        assert SECRET not in str(error.value)
        return str(error.value).replace(str(path), "c.yaml")

    return told


def with_sections(**sections) -> str:
    return yaml.safe_dump({"dataset": {"path": "data"}, **sections})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_delivered_ones_are_what_they_were(path):
    assert load_config(str(path)) == RunConfig.model_validate(yaml.safe_load(path.read_text()))


def test_a_key_twice_is_named_with_both_lines(refused):
    told = refused("dataset:\n  path: d\nsvm:\n  C: 0.01\n  C: 1.0\ndataset:\n  path: e\n")
    assert told == (
        "config file 'c.yaml' is not valid YAML: the key 'C' stands twice, in lines 4 and 5; "
        "the key 'dataset' stands twice, in lines 1 and 6"
    )


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"svm": {"C": True}}, "svm.C: input should be a valid number, not true"),
        ({"svm": {"rounds": True}}, "svm.rounds: input should be a valid integer, not true"),
        ({"svm": {"passes": False}}, "svm.passes: input should be a valid integer, not false"),
        ({"features": {"scales": [480, True]}}, "features.scales.1: input should be a valid integer, not true"),
        ({"finetune": {"schedule": [[0.1, True]]}}, "finetune.schedule.0.1: input should be a valid integer"),
        ({"proposals": {"base": True}}, "proposals.base: give 0 or 1, not true"),
        ({"proposals": {"base": 1.0}}, "proposals.base: give 0 or 1, not 1.0"),
        ({"svm": {"C": "0.01"}}, "not '0.01' (text; take it out of its quotes"),
        ({"svm": {"rounds": "7"}}, "not '7' (text; take it out of its quotes"),
        (
            {"bbox": {"difficult_positive": "yes"}},
            "difficult_positive: input should be a valid boolean, not 'yes'",
        ),
        ({"bbox": {"difficult_positive": 1}}, "bbox.difficult_positive: input should be a valid boolean, not 1"),
        (
            {"dataset": {"path": "d", "classes": [False]}},
            "classes.0: input should be a valid string, not false ",
        ),
        ({"dataset": {"path": "d", "train_splits": [2007]}}, "not 2007 (put it into quotes if it is text)"),
        ({"dataset": {"path": ""}}, "dataset.path: "),
    ],
)
def test_a_value_of_another_type_is_refused(sections, says, refused):
    assert says in refused(with_sections(**sections))


@pytest.mark.parametrize(
    "sections",
    [
        {"features": {"scales": 480}},
        {"features": {"pyramid": "6"}},
        {"head": {"sizes": [512]}},
        {"head": {"svd_rank": [1, 2, 3]}},
        {"proposals": {"ks": []}},
        {"finetune": {"schedule": 5}},
        {"finetune": {"schedule": [[0.1]]}},
        {"dataset": {"path": "d", "classes": "dog"}},
    ],
)
def test_a_list_is_called_a_list(sections, refused):
    told = refused(with_sections(**sections))
    assert "list" in told
    assert not any(word in told.lower() for word in ("tuple", "array", "items", "pydantic", "field required"))


@pytest.mark.parametrize("section", ["features", "dataset", "execution"])
def test_an_empty_section_says_what_to_do(section, refused):
    told = refused(f"svm: {{}}\n{section}:\n")
    assert told == f"c.yaml: section {section!r} is empty; indent its keys below it, or leave it out"


@pytest.mark.parametrize("text", ["features: []", "features: alexnet", "features: 5", "storage_options: [a]"])
def test_a_section_has_keys(text, refused):
    assert "must be a section of keys, not" in refused(f"dataset: {{path: d}}\n{text}\n")


def test_a_file_that_is_no_config(refused, tmp_path):
    assert "line 2 is no UTF-8 text" in refused(b"dataset: {path: d}\n# \xff\n")
    assert "it holds nothing" in refused("")
    assert "it holds a list" in refused("- 1\n")
    assert "which no config needs" in refused("# x\n" * 300_000)
    with pytest.raises(UsageError, match="cannot be read"):
        load_config("c\0.yaml")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["svm.C=0.1 # as before"], "--set svm.C=...: the value holds more than one value, or a comment"),
        (["dataset.path=/data/a #1"], "--set dataset.path=...: the value holds more than one value, or a comment"),
        (["features.scales=[480] 688"], "--set features.scales=...: the value is not valid YAML"),
        (["svm.C=1 2"], "svm.C: input should be a valid number, not '1 2'"),
        (["svm.C=.inf"], "--set svm.C=...: the value cannot be taken: line 1: infinity"),
        (["svm.C=1e400"], "infinity"),
        (["svm.rounds=010"], "no decimal number"),
        (["svm.C=true"], "svm.C: input should be a valid number, not true"),
        (["svm.C=1", "svm.C=x"], "svm.C: input should be a valid number, not 'x'"),
        (["svm={C: 1}"], "--set svm=...: a section has keys; give one of them, --set svm.KEY=..."),
        (["storage_options.secret={a: 1, a: 2}"], "the key 'a' stands twice"),
        (["svm.C"], "--set svm.C: give section.key=value"),
        ([f"storage_options.secret {SECRET}"], "--set storage_options.secret: give section.key=value"),
        ([f"={SECRET}"], "give section.key=value"),
        ([f"storage_options.secret='{SECRET}"], "--set storage_options.secret=...: the value is not valid YAML"),
        ([f"storage_options.secret={SECRET}: x: y"], "--set storage_options.secret=...: the value is not valid YAML"),
        ([f"dataset.path.more={SECRET}"], "'path' is a value, not a section"),
    ],
)
def test_an_override_is_one_value_of_one_key(overrides, says, refused):
    assert says in refused(with_sections(), *overrides)


def test_the_same_value_twice_is_no_contradiction(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: {path: d}\nfeatures:\n")
    loaded = load_config(str(tmp_path / "c.yaml"), ["svm.C=1e-3", "svm.C=0.001", "features.scales=[96]"])
    assert (loaded.svm.C, loaded.features.scales) == (0.001, (96,))


@pytest.mark.parametrize(
    "sections",
    [
        {"dataset": {"path": f"http://me:{SECRET}@127.0.0.1:1/voc"}},
        {"proposals": {"file": f"https://host/boxes.mat?X-Amz-Signature={SECRET}"}},
        {"features": {"weights": f"https://host/w.pth?sig={SECRET}"}},
        {"classify": {"no_spp_weights": f"ftp://me:{SECRET}@host/w.pth"}},
        {"features": {"scales": [f"ftp://me:{SECRET}@host/x"]}},
        {"svm": {"C": f"ftp://me:{SECRET}@host/x"}},
        {"dataset": {"path": [f"ftp://me:{SECRET}@host/x"]}},
        {"dataset": {"path": {"url": f"ftp://me:{SECRET}@host/x"}}},
        {"dataset": {"path": "d", "password": SECRET}},
        {"storage_options": {"connection_string": SECRET}},
        {"storage_options": SECRET},
        {"storage_options": {"headers": {"Authorization": f"Bearer {SECRET}"}}},
        {"dataset": {"path": "d", "storage_options": {"passwd": SECRET}}},
        {"dataset": {"path": "d", "storage_options": {"auth": ["me", SECRET]}}},
        {"dataset": {"path": "d", "storage_options": [SECRET]}},
        {"dataset": {"path": "d", "storage_options": {"pass": 5_318_008}}},
    ],
    ids=json.dumps,
)
def test_a_secret_in_the_open_is_refused_and_not_repeated(sections, refused):
    assert refused(with_sections(**sections)).startswith("c.yaml: ")
    for name, section in sections.items():
        if isinstance(section, dict):
            sets = [f"{name}.{key}={json.dumps(value)}" for key, value in section.items()]
            assert refused(with_sections(), *sets).startswith("c.yaml: ")
