"""Paths that a library would take for something else than a name."""

import pytest
import yaml

from jobs.cli.main import main
from tests.voc_folder import VocFolder

DETECTION = "a 0.9 1 1 20 20\n"


def project(folder) -> str:
    """A data set of one image in a folder, and a config that names it."""
    VocFolder(folder).add("a", "test", [("dog", 1, 1, 20, 20)])
    config = folder / "c.yaml"
    dataset = {"path": str(folder), "train_splits": [], "test_splits": ["test"]}
    config.write_text(yaml.safe_dump({"dataset": dataset}))
    return str(config)


@pytest.mark.parametrize("name", ["[1]", "a*", "a?b", "class_name=dog", "it's ü", "x.gz", "~", "_a", ".a"])
def test_a_folder_of_any_name_holds_data_and_results(name, tmp_path, capsys):
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "comp4_det_test_dog.txt"
    file.write_text(DETECTION)
    assert main(["evaluate", "--config", project(folder), "--detections", str(file)]) == 0
    assert "dog" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a::b", "zip::x", "a::"])
def test_a_name_that_would_be_cut_is_refused(name, tmp_path, capsys):
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "comp4_det_test_dog.txt"
    file.write_text(DETECTION)
    config = project(folder)
    assert main(["evaluate", "--config", config, "--detections", str(tmp_path)]) == 2
    assert "dataset.path: " in capsys.readouterr().err
    (tmp_path / "good").mkdir()
    assert main(["evaluate", "--config", project(tmp_path / "good"), "--detections", str(file)]) == 2
    assert "--detections: " in capsys.readouterr().err
    assert main(["status", "--root", str(folder)]) == 2
    assert "a path must not hold '::', which separates URLs" in capsys.readouterr().err
