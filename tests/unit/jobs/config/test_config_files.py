"""The config files that are delivered."""

import pytest

from jobs.config.run_config import load_config
from jobs.demo.driver import CONFIG
from tests import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def test_there_are_these():
    assert [path.stem for path in CONFIGS] == [
        "caltech101",
        "demo",
        "pretrain_imagenet",
        "raccoon_kangaroo",
        "voc2007",
        "voc2007_classification",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_is_valid(path):
    assert load_config(str(path)).dataset.path


def test_there_is_one_copy_of_the_demo():
    (delivered,) = (path for path in CONFIGS if path.stem == "demo")
    assert delivered.resolve() == CONFIG.resolve()
