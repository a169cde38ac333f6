"""What a stage refuses before it looks at anything: an index of other classes. No Ray is started."""

import pytest

from jobs.cli.main import main
from tests.voc_folder import small_data_set


@pytest.fixture
def indexed(tmp_path, capsys):
    """A stage's verb with today's classes, after an index of others; returns its code and what it said."""
    data = small_data_set(tmp_path / "data", train=2, test=1)  # of squares and slabs
    config = tmp_path / "c.yaml"
    config.write_text(f"dataset: {{path: {data.path}}}\nfeatures: {{weights: random}}\n")

    def after(verb: str, then: str, today: str) -> tuple[int, str]:
        place = ("--config", str(config), "--root", str(tmp_path / "root"), "--set")
        assert main(["index", *place, f"dataset.classes={then}"]) == 0
        capsys.readouterr()
        return main([verb, *place, f"dataset.classes={today}"]), capsys.readouterr().err

    return after


@pytest.mark.parametrize("verb", ["train-svm", "evaluate"])
@pytest.mark.parametrize(
    ("then", "today", "differ"),
    [("null", "[square]", "slab"), ("[square]", "[slab, square]", "slab"), ("[slab]", "[square]", "slab")],
)
def test_an_index_of_other_classes_than_the_config_s_is_refused(verb, then, today, differ, indexed):
    code, told = indexed(verb, then, today)
    assert code == 2
    assert f"dataset.classes are not those of the index of run 'c', which differ in {differ}; run `spp index`" in told


def test_the_same_classes_in_another_order_are_no_contradiction(indexed):
    code, told = indexed("detect", "[square, slab]", "[slab, square]")
    assert code == 2
    assert "dataset.classes" not in told, "what is missing is another thing"
