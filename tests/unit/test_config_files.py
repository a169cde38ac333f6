"""The config files that are delivered."""

from pathlib import Path

import pytest

from jobs.config import load_config
from jobs.demo import CONFIG

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_there_are_three():
    assert [path.stem for path in CONFIGS] == ["demo", "raccoon_kangaroo", "voc2007"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_is_valid(path):
    assert load_config(str(path)).dataset.path


def test_there_is_one_copy_of_the_demo():
    assert (CONFIGS[0]).resolve() == CONFIG.resolve()
