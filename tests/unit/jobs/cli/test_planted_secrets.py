"""Secrets planted wherever one can be given, and looked for in all that is printed, logged and stored. No Ray."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.cli.main import main, show_fault
from jobs.config.run_config import RunConfig
from jobs.console.log import configure
from jobs.record.invocation import Invocation
from jobs.record.recording import recorded_run
from storage import open_root
from tests.stored import store_run
from tests.voc_folder import small_data_set

SECRET = "hunter2-5f0c9e"
URL = f"ftp://me:{SECRET}@127.0.0.1:1/x"
SIGNED = f"https://127.0.0.1:1/x?X-Amz-Signature={SECRET}"


@pytest.fixture
def spp(tmp_path, capfd):
    """Run a command; returns its exit code and what it said, in which there is no secret, nor in any file it left."""

    def run(*arguments: str, config: dict | None = None) -> tuple[int, str]:
        config_file = tmp_path / "config" / "c.yaml"
        config_file.parent.mkdir(exist_ok=True)
        config_file.write_text(yaml.safe_dump(config or {"dataset": {"path": str(tmp_path / "data")}}))
        words = [word.format(config=config_file, root=tmp_path / "root") for word in arguments]
        code = main(words)
        captured = capfd.readouterr()
        said = captured.out + captured.err
        assert "Traceback" not in said
        assert SECRET not in said
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.parent != config_file.parent:
                assert SECRET.encode() not in path.read_bytes(), path
        return code, said

    return run


COMMON = ("--config", "{config}", "--root", "{root}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "--config", "{config}", "--root", "URL"),
        ("plan", *COMMON, "--set", "dataset.path=URL"),
        ("run", *COMMON, "--set", "proposals.file=URL"),
        ("index", *COMMON, "--set", "features.weights=URL"),
        ("index", *COMMON, "--set", "classify.no_spp_weights=URL"),
        ("index", *COMMON, "--set", "dataset.storage_options.endpoint_url=URL"),
        ("index", *COMMON, "--set", "storage_options.client_kwargs={{endpoint_url: 'URL'}}"),
        ("index", *COMMON, "--set", "storage_options.password='URL"),
        ("index", *COMMON, "--set", "URL"),
        ("index", "--config", "URL", "--root", "{root}"),
        ("index", *COMMON, "URL"),
        ("index", *COMMON, "--run", "URL"),
        ("detect", *COMMON, "--voc", "URL"),
        ("detect", *COMMON, "--coco", "URL"),
        ("evaluate", *COMMON, "--detections", "URL"),
        ("pretrain", *COMMON, "--export", "URL"),
        ("table", *COMMON, "--csv", "URL"),
        ("table", *COMMON, "--markdown", "URL"),
        ("combine", "a", "b", "--root", "{root}", "--set", "storage_options.key=URL"),
        ("status", "--root", "URL"),
        ("query", "select 1", "--root", "URL"),
        ("files", "images", "--root", "URL"),
        ("demo", "--root", "URL"),
        ("run", *COMMON, "--until", "URL"),
        ("URL",),
    ],
    ids=" ".join,
)
def test_a_secret_in_the_open_is_refused_and_nothing_is_written(arguments, spp, tmp_path):
    url = SIGNED if len(arguments) % 2 else URL
    code, said = spp(*(word.replace("URL", url) for word in arguments))
    assert code == 2
    assert said.startswith("spp: error: ")
    assert not (tmp_path / "root").exists()


def test_a_secret_in_the_environment_variable_of_the_root(spp, monkeypatch):
    monkeypatch.setenv("SPP_ROOT", URL)
    assert spp("status")[0] == 2


OPTIONS = [
    {"connection_string": f"AccountName=a;AccountKey={SECRET};EndpointSuffix=x"},
    {"headers": {"Authorization": f"Bearer {SECRET}"}},
    {"passwd": SECRET},
    {"pass": SECRET},
    {"auth": ["me", SECRET]},
    {"unheard_of": {"deep": [{"er": SECRET}]}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_an_option_in_the_open_is_refused_and_nothing_is_written(options, spp, tmp_path):
    data = {"path": str(tmp_path / "data")}
    for config in ({"dataset": {**data, "storage_options": options}}, {"dataset": data, "storage_options": options}):
        for verb in ("index", "plan"):
            code, said = spp(verb, *COMMON, config=config)
            assert code == 2
            assert "env:NAME" in said
    assert not (tmp_path / "root").exists()


def test_what_is_made_with_secrets_of_the_environment_holds_none(spp, tmp_path, monkeypatch):
    monkeypatch.setenv("SPP_PLANTED", SECRET)
    small_data_set(tmp_path / "data", train=2, test=1)
    hidden = {"password": "env:SPP_PLANTED", "headers": {"Authorization": ["env:SPP_PLANTED"]}}
    config = {
        "dataset": {"path": str(tmp_path / "data"), "storage_options": hidden},
        "features": {"weights": "random", "body": "squeezenet1_1"},
        "storage_options": hidden,
    }
    for arguments in (
        ("--verbose", "index", *COMMON, "--json"),
        ("plan", *COMMON, "--json"),
        ("status", *COMMON, "--json"),
        ("query", "select * from images", *COMMON, "--json"),
        ("files", "images", *COMMON, "--json"),
        ("verify", *COMMON, "--json"),
    ):
        code, said = spp(*arguments, config=config)
        assert code == 0, said
    record = json.loads((tmp_path / "root" / "runs" / "c.json").read_text())
    assert record["config"]["storage_options"]["password"] == "env:SPP_PLANTED"


class _Repeats(http.server.BaseHTTPRequestHandler):
    """Refuses, and repeats what it was given to be let in, as some servers do."""

    def do_GET(self) -> None:
        self.send_error(403, f"no entry with {self.headers.get('X-Key')}")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Repeats) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["repeats", "unreachable"])
def test_a_store_that_refuses_or_cannot_be_reached(kind, server, spp, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("SPP_PLANTED", SECRET)
    place = server if kind == "repeats" else "http://127.0.0.1:1"
    options = {"headers": {"X-Key": "env:SPP_PLANTED"}}
    config = {"dataset": {"path": f"{place}/voc", "storage_options": options}, "storage_options": options}
    for verb in ("index", "plan"):
        code, said = spp("--verbose", verb, *COMMON, config={**config, "storage_options": {}})
        assert code in (1, 2), said
    record = json.loads((tmp_path / "root" / "runs" / "c.json").read_text())
    assert record["status"] == "failed"
    assert ("no entry with ***" in record["error"]) == (kind == "repeats")
    code, said = spp("status", "--config", "{config}", "--root", f"{place}/root", config=config)
    assert code in (1, 2), said
    given = ["--set", f"proposals.file={place}/boxes.mat", "--set", "proposals.method=file"]
    given += ["--set", "proposals.order=xyxy", "--set", "proposals.base=0", "--set", "proposals.inclusive=true"]
    small_data_set(tmp_path / "data", train=2, test=1)
    local = {"dataset": {"path": str(tmp_path / "data"), "storage_options": options}}
    code, said = spp("plan", *COMMON, *given, config=local)
    assert code in (1, 2), said


def test_an_old_record_with_a_secret_is_shown_without(tmp_path, capfd):
    root = open_root(str(tmp_path / "root"))
    store_run(root)
    (path,) = Path(root.path("runs")).iterdir()
    record = json.loads(path.read_text())
    del record["digest"]  # version 0.1.0 wrote none
    record["config"] = {
        "dataset": {"path": URL, "storage_options": {"connection_string": f"AccountKey={SECRET};x"}},
        "proposals": {"method": "file", "file": f"{SIGNED}#b.mat", "order": "xyxy", "base": 0, "inclusive": True},
    }
    record["argv"] = ["spp", "run", "--set", f"dataset.path={URL}"]
    record["error"], record["status"] = f"dataset.path: '{URL}' cannot be read ({SIGNED})", "failed"
    path.write_text(json.dumps(record))
    for arguments in (("status", "--json"), ("status",), ("query", "select * from images", "--json"), ("gc", "--json")):
        code = main([*arguments, "--root", root.url])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        assert SECRET not in captured.out + captured.err


def test_what_an_old_record_asks_for_is_recorded_without(tmp_path):
    """As `spp combine` does, which takes the config of the first of its runs."""
    root = open_root(str(tmp_path / "root"))
    config = RunConfig.model_validate(
        {"dataset": {"path": URL, "storage_options": {"auth": ["me", SECRET]}}, "storage_options": OPTIONS[0]}
    )
    argv = ("spp", f"--set=dataset.path={URL}", "--voc", SIGNED)
    with pytest.raises(OSError), recorded_run(Invocation(config, root, "a", argv)):
        raise OSError(f"{URL} does not answer")
    text = Path(root.path("runs/a.json")).read_text()
    assert SECRET not in text
    assert text.count("***") == 7
    recorded = RunConfig.model_validate(json.loads(text)["config"])
    assert recorded.dataset.path == "ftp://***@127.0.0.1:1/x"


def test_logs_and_tracebacks_show_none(capfd):
    configure(logging.DEBUG)
    logging.getLogger("spp").warning("the store at %s is slow", URL)
    try:
        raise ValueError(f"cannot connect to {SIGNED}")
    except ValueError as error:
        logging.getLogger("spp").exception("again")
        show_fault(type(error), error, error.__traceback__)
    told = capfd.readouterr().err
    configure(logging.INFO)
    assert "the store at ftp://***@127.0.0.1:1/x is slow" in told
    assert told.count("X-Amz-Signature=***") >= 2
    assert SECRET not in told
