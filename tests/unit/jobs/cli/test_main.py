"""Every mistake at the command line is one clear line, exit code 2, and no traceback. No Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.cli.main import main
from storage import files, open_root
from tests import REPOSITORY
from tests.stored import store_run
from tests.voc_folder import small_data_set


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A good config of a good data set."""
    small_data_set(tmp_path / "data", train=2, test=1)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"dataset": {"path": str(tmp_path / "data")}, "features": {"weights": "random"}}))
    return path


def complaint(capsys) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    (line,) = (line for line in captured.err.splitlines() if not line.startswith("Downloading: "))
    assert line.startswith("spp: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runn"], "unknown verb 'runn'; did you mean 'run'?"),
        (["run", "--nonsense"], "No such option: --nonsense"),
        (["query"], "Missing argument 'SQL'"),
        (["run"], "--config FILE is needed"),
        (["run", "--config", "no-such.yaml", "--root", "r"], "'no-such.yaml' cannot be read: No such file"),
        (["status"], "--root URL is needed"),
        (["status", "--root", "foo://bar/baz"], "Protocol not known: foo"),
        (["query", "select 1", "--root", "/nonexistent"], "there is no run yet"),
        (["files", "features", "--root", "s3://bucket"], "cannot be read"),
    ],
)
def test_a_mistake_in_the_command(arguments, says, capsys, monkeypatch):
    monkeypatch.delenv("SPP_ROOT", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert main(arguments) == 2
    assert says in complaint(capsys)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("featurs.body=alexnet", "unknown key 'featurs'; did you mean 'features'?"),
        ("features.bdy=alexnet", "unknown key 'features.bdy'; did you mean 'body'?"),
        (
            "features.body=alexnett",
            "features.body: did you mean 'alexnet'? the bodies are alexnet, convnet5, efficientnet_lite0, ",
        ),
        ("features.body='timm:'", "zf5 and timm:NAME, not 'timm:'"),
        ("features.body=timm:resnet81", "features.body: timm "),
        ("features.body=timm:vit_tiny_patch16_224", "'timm:vit_tiny_patch16_224' cannot be used: "),
        ("features.scales=big", "features.scales"),
        ("features.scales=[480, 480]", "distinct"),
        ("features.pyramid=[0]", "features.pyramid"),
        ("proposals.max_per_image=many", "proposals.max_per_image: input should be a valid integer"),
        ("proposals.max_per_image=0", "greater than or equal to 1"),
        ("proposals.scale=3", "belongs to method selectivesearch, but method is fast"),
        ("dataset.path=/no/such/folder", "dataset.path: '/no/such/folder' does not exist"),
        ("dataset.train_splits=[trainvall]", "there is no split 'trainvall'"),
        ("dataset.classes=[sqare]", "no object of class 'sqare'"),
        ("features.weights=/no/such.pth", "features.weights: weights file '/no/such.pth' does not exist"),
        ("storage_options.secret=abc", "looks like a secret"),
        ("storage_options.secret=env:NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE"),
        ("nonsense", "give section.key=value"),
        ("dataset.path.more=1", "is a value, not a section"),
        ("execution.workers=two", "execution.workers"),
    ],
)
def test_a_mistake_in_the_config(override, says, config, tmp_path, capsys):
    assert main(["plan", "--config", str(config), "--root", str(tmp_path / "root"), "--set", override]) == 2
    assert says in complaint(capsys)


def test_the_class_that_was_meant_is_named(config, tmp_path, capsys):
    main(["plan", "--config", str(config), "--root", str(tmp_path), "--set", "dataset.classes=[sqare]"])
    assert "did you mean 'square'? (classes: slab, square)" in complaint(capsys)


def test_an_unknown_stage(config, tmp_path, capsys):
    assert main(["run", "--config", str(config), "--root", str(tmp_path), "--until", "train"]) == 2
    assert "the stages are index, propose, extract" in complaint(capsys)


def test_a_root_that_cannot_be_written(config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "--config", str(config), "--root", str(tmp_path / "file" / "root")]) == 2
    assert "cannot be written to" in complaint(capsys)


def test_names_that_are_no_utf8(config, tmp_path, capsys, monkeypatch):
    latin = os.fsdecode(b"\xe4")
    (tmp_path / latin).mkdir()
    config = config.rename(tmp_path / latin / "small.yaml")
    monkeypatch.setattr(sys, "argv", ["spp", "index", "--config", str(config)])
    assert main(["index", "--config", str(config), "--root", str(tmp_path / "root")]) == 0
    assert "\\\\udce4" in (tmp_path / "root" / "runs" / "small.json").read_text()
    capsys.readouterr()
    assert main(["index", "--config", str(config), "--root", str(tmp_path / latin / "root")]) == 2
    assert "is not of UTF-8; rename what it stands for" in complaint(capsys)


def test_a_folder_that_is_gone_is_left_in_one_line(tmp_path):
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); sys.path.insert(0, sys.argv.pop(1)); "
        "from jobs.__main__ import main; main()"
    )
    ended = _run([sys.executable, "-c", code, str(REPOSITORY), "status", "--root", "r"], cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line == "spp: error: the folder that you stand in cannot be used: No such file or directory; go to another"


def test_a_query_of_a_damaged_file(tmp_path, capsys):
    root = open_root(str(tmp_path / "out"))
    store_run(root)
    Path(files(root, "features")[0]).write_bytes(b"PAR1")
    assert main(["query", "select count(*) from images", "--root", root.url]) == 2
    assert "query: Invalid Input Error" in complaint(capsys)


def test_a_run_name_that_is_no_file_name(config, tmp_path, capsys):
    assert main(["run", "--config", str(config), "--root", str(tmp_path / "r"), "--run", "a/b"]) == 2
    assert "run name 'a/b'" in complaint(capsys)


def test_a_config_that_is_no_yaml(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("dataset: [")
    assert main(["plan", "--config", str(tmp_path / "bad.yaml"), "--root", "r"]) == 2
    assert "is not valid YAML" in complaint(capsys)
    (tmp_path / "list.yaml").write_text("- 1")
    assert main(["plan", "--config", str(tmp_path / "list.yaml"), "--root", "r"]) == 2
    assert "must hold sections" in complaint(capsys)


def test_weights_that_cannot_be_downloaded(config, tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    arguments = ["plan", "--config", str(config), "--root", "r", "--set", "features.weights=default"]
    assert main(arguments) == 2
    line = complaint(capsys)
    assert "alexnet-owt-7be5be79.pth" in line
    assert str(tmp_path / "hub") in line
    assert "weights: random" in line


@pytest.mark.parametrize("shadow", ["storage/__init__.py", "jobs/__init__.py", "pipeline/__init__.py", "storage.py"])
def test_a_folder_whose_code_ray_workers_would_run_instead_of_ours_is_refused(shadow, config, tmp_path):
    folder = tmp_path / "own"
    (folder / shadow).parent.mkdir(parents=True, exist_ok=True)
    (folder / shadow).write_text("raise SystemExit('the wrong code ran')")
    arguments = ["run", "--config", str(config), "--root", str(tmp_path / "root")]
    spp = [str(Path(sys.executable).with_name("spp")), *arguments]
    module = [sys.executable, "-m", "jobs", *arguments]
    for command in (spp, module) if shadow != "jobs/__init__.py" else (spp,):
        outcome = _run(command, cwd=folder)
        assert outcome.returncode == 2, outcome.stderr
        (line,) = outcome.stderr.splitlines()
        assert str(folder / shadow.split("/")[0]) in line
        assert "run from another folder" in line
    assert not (tmp_path / "root").exists()


def test_a_folder_of_data_is_refused_only_where_python_would_import_it(tmp_path):
    """A folder without __init__.py shadows nothing, unless ours is found by an import hook (an editable install)."""
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "data.parquet").write_bytes(b"")
    code = "import sys, importlib.util as u; sys.path.insert(0, sys.argv[1]); print(u.find_spec('storage').origin)"
    found = _run([sys.executable, "-c", code, str(tmp_path)], cwd=Path("/")).stdout.strip()
    outcome = _run([str(Path(sys.executable).with_name("spp")), "status", "--root", "nowhere"], cwd=tmp_path)
    assert ("run from another folder" in outcome.stderr) == (found == "None")
    assert outcome.returncode == 2


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
