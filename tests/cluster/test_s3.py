"""The whole pipeline on an S3 server: data set, root, every verb. No rename, no folder, no credential left behind.

Commands run in this process, on its Ray, which find the server by AWS's files. Three that users see whole are processes
and find it by the usual variables: a run, the search for credentials, an export.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.cli.main import main
from pipeline.bodies.weights import read_state
from storage.commits import winners
from tests.cluster.commands import MODELS, SPP, disturbed_project, wait_until
from tests.project import EXTRACT, Project, config_with, sets
from tests.voc_folder import VocFolder

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.s3, pytest.mark.usefixtures("embedded_ray")]

KEY, SECRET = "AKIASPPTESTKEY000000", "spp/very+secret/key0123456789ABCDEFGHIJ"
BUCKET = "spp-test"


@dataclass
class Store:
    """An S3 server and one bucket of it. ``environment``: of processes whose users tell where and who by variables."""

    endpoint: str
    environment: dict[str, str]

    @property
    def client(self):
        """A client that owes nothing to our own code."""
        return boto3.client("s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET)

    def keys(self, prefix: str) -> list[str]:
        """Every key under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def upload(self, folder: Path, prefix: str) -> None:
        """All files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")

    def spp(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command as a user gives it."""
        return subprocess.run(
            [SPP, *arguments], env={**self.environment, **more}, capture_output=True, text=True, timeout=500
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory, aws_files) -> Iterator[Store]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    config, credentials = aws_files / "config", aws_files / "credentials"
    config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = {endpoint}\n")
    credentials.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": str(tmp_path_factory.mktemp("home")),
    }
    made = Store(endpoint, environment)

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=1).status == 200
        except OSError:
            return False

    try:
        wait_until(answers)
        made.client.create_bucket(Bucket=BUCKET)
        yield made
    finally:
        server.terminate()
        server.wait(timeout=30)
        config.unlink()
        credentials.unlink()


@pytest.fixture(scope="module")
def project(store, scenes: VocFolder, tmp_path_factory) -> Project:
    """The scenes in the bucket, and a config that names them."""
    store.upload(scenes.path.parent, "data")
    sections = config_with(
        dataset={"path": f"s3://{BUCKET}/data"}, features={"scales": [96]}, execution={"num_cpus": 2}
    )
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(sections))
    return Project(scenes, path, f"s3://{BUCKET}/root")


@pytest.fixture(scope="module")
def finished(store, project) -> Project:
    """With a finished run; the output of making it is kept beside the config."""
    done = store.spp("run", "--config", str(project.config), "--root", project.root)
    project.config.with_name("log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def in_a_folder(project) -> Project:
    """The same run into a folder of this machine."""
    local = replace(project, root=project.config.with_name("local"))
    assert local.spp("run") == 0
    return local


def test_every_dataset_equals_that_of_a_run_into_a_folder(finished, in_a_folder):
    for dataset in ("proposals", "features", "truth_features", *MODELS):
        assert finished.table(dataset).equals(in_a_folder.table(dataset)), dataset


def test_the_verbs_work_on_it(finished, capsys):
    assert finished.spp("verify") == 0
    assert "features: good" in capsys.readouterr().out
    assert set(finished.states().values()) == {"complete"}
    count = "select count(distinct image_id) as n from features"
    assert finished.answer("query", count)["rows"] == [[20]]
    assert finished.spp("files", "features") == 0
    paths = capsys.readouterr().out.split()
    assert paths
    assert all(path.startswith(f"s3://{BUCKET}/root/features/") for path in paths)


def test_the_same_run_again_makes_nothing(store, finished):
    before = {key for key in store.keys("root") if "/commit/" in key}
    assert finished.planned() == set()
    assert finished.spp("run") == 0
    assert {key for key in store.keys("root") if "/commit/" in key} == before


def test_a_run_that_is_killed_goes_on_and_nothing_that_is_half_written_is_seen(
    store, scenes, finished, begin, tmp_path
):
    """A store without renames: what has no commit does not exist, whatever lies under data/."""
    killed = disturbed_project(tmp_path, scenes, f"s3://{BUCKET}/killed")

    def commits() -> set[str]:
        return {key for key in store.keys("killed/features") if "/commit/" in key}

    killed.hold_extraction()
    command = begin(killed)
    command.wait_until(lambda: bool(killed.held()) and bool(commits()))
    command.kill_tree()
    before = commits()
    killed.disturb()
    assert killed.spp("run", *EXTRACT) == 0
    assert before < commits()
    for dataset in ("proposals", "features", "truth_features"):
        assert killed.table(dataset).equals(finished.table(dataset)), dataset


def test_each_injected_damage_is_found(store, project, capsys):
    """A flipped byte, a short file, a missing shard, an image that stands twice."""
    damaged = replace(project, root=f"s3://{BUCKET}/damaged")
    assert damaged.spp("run", "--until", "propose") == 0
    method = damaged.record().datasets["proposals"].method
    names = sorted(winners(damaged.place(), "proposals", method).values())
    data = [f"damaged/proposals/{method}/data/{name.stem}.parquet" for name in names]
    whole = store.read(data[0])
    put = store.client.put_object

    def found(code: int) -> str:
        capsys.readouterr()
        assert damaged.spp("verify") == code
        return capsys.readouterr().out

    put(Bucket=BUCKET, Key=data[0], Body=whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert "its SHA-256 is not the one in its commit" in found(1)
    put(Bucket=BUCKET, Key=data[0], Body=whole[:-10])
    assert f"{len(whole) - 10} bytes, its commit says {len(whole)}" in found(1)
    store.client.delete_object(Bucket=BUCKET, Key=data[0])
    assert "the file is missing" in found(1)
    put(Bucket=BUCKET, Key=data[0], Body=whole)
    found(0)

    commit = f"damaged/proposals/{method}/commit/{names[0].stem}.json"
    record = json.loads(store.read(commit))
    image_id, rows = next(iter(record["images"].items()))
    other = f"damaged/proposals/{method}/commit/{names[1].stem}.json"
    twice = json.loads(store.read(other))
    del twice["digest"]  # version 0.1.0 wrote none
    put(Bucket=BUCKET, Key=other, Body=json.dumps({**twice, "images": {**twice["images"], image_id: rows}}).encode())
    assert f"image {image_id!r} stands in 2 shards" in found(1)


def test_many_commits_are_listed_by_their_first_digits_at_once_and_none_is_missed(finished, monkeypatch):
    place = finished.place()
    folder = f"features/{finished.record().datasets['features'].method}/commit"
    one_after_the_other = place.names(folder)
    monkeypatch.setattr("storage.root._MANY_NAMES", 0)
    assert place.hashed_names(folder) == one_after_the_other
    assert len(one_after_the_other) > 1


def test_gc_and_forget_work_without_folders_or_renames(store, project, capsys):
    shared = replace(project, root=f"s3://{BUCKET}/shared")
    at = ("--root", f"s3://{BUCKET}/shared")
    mine = ("--until", "propose", "--run")
    assert shared.spp("run", *mine, "one") == 0
    before = set(store.keys("shared"))
    assert shared.spp("run", *mine, "two", *sets("proposals.max_per_image=40")) == 0
    assert main(["forget", "two", *at]) == 0
    assert main(["gc", *at, "--grace-hours", "0"]) == 0
    assert "--yes deletes them" in capsys.readouterr().out
    assert main(["gc", *at, "--grace-hours", "0", "--yes"]) == 0
    assert set(store.keys("shared")) == before
    assert main(["verify", *at]) == 0


def test_credentials_stand_in_no_log_plan_record_or_file(store, finished):
    """They come by the usual variables, and go nowhere."""
    config = ("--config", str(finished.config))
    refused = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    texts = [
        finished.config.with_name("log").read_text(),
        store.spp("plan", *config, "--root", finished.root, "--json").stdout,
        store.spp("status", "--root", finished.root, "--json").stdout,
        store.spp("run", *config, "--root", f"s3://{BUCKET}/none", **refused).stderr,
    ]
    assert "spp: error:" in texts[-1]
    assert not any(KEY in text or SECRET in text for text in texts)
    keys = store.keys("root")
    assert len(keys) > 30
    for key in keys:
        data = store.read(key)
        assert KEY.encode() not in data, key
        assert SECRET.encode() not in data, key


def test_an_open_secret_in_a_config_is_refused_before_anything_is_written(store, project, tmp_path, capsys):
    path = tmp_path / "open.yaml"
    path.write_text(project.config.read_text() + f"storage_options:\n  secret: {SECRET}\n  key: {KEY}\n")
    assert replace(project, config=path, root=f"s3://{BUCKET}/open").spp("run") == 2
    told = capsys.readouterr().err
    assert re.search(r"storage_options\.(secret|key) looks like a secret", told)
    assert SECRET not in told
    assert store.keys("open") == []


@pytest.fixture(scope="module")
def coloured(store, tmp_path_factory) -> Path:
    """A config of whole images: a folder per class in the bucket, as classify and pretrain read it."""
    folder = tmp_path_factory.mktemp("coloured")
    for label, name in enumerate(("red", "green", "blue")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng([label, number]).integers(0, 120, (70, 80 + number, 3), np.uint8)
            pixels[:, :, label] += 120
            Image.fromarray(pixels).save(folder / "images" / name / f"im{number}.jpg")
    store.upload(folder / "images", "coloured")
    sections = {
        "dataset": {"path": f"s3://{BUCKET}/coloured", "layout": "folder"},
        "features": {"body": "squeezenet1_1", "weights": "random", "pyramid": [3, 1]},
        "classify": {"views": ["crop"], "layers": ["spp"], "train_per_class": 4, "splits": 2},
        "pretrain": {"epochs": 1, "batch": 6, "fc_sizes": [12, 8], "initial": "he", "held_out": 0.3},
        "execution": {"progress_seconds": 1, "num_cpus": 2, "workers": 1},
    }
    path = folder / "coloured.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_whole_images_are_classified_as_in_a_folder(project, coloured):
    """The features to the bit; what is measured of them equally."""
    roots = f"s3://{BUCKET}/classified", coloured.with_name("classified")
    there, here = (replace(project, config=coloured, root=root) for root in roots)
    assert there.answer("classify")["classification"] == here.answer("classify")["classification"]
    assert there.table("image_features").equals(here.table("image_features"))


def test_a_network_is_trained_tested_and_exported(store, project, coloured):
    """Its checkpoints lie in the bucket, too, and are gone in the end."""
    trained = replace(project, config=coloured, root=f"s3://{BUCKET}/trained")
    export = coloured.with_name("network.safetensors")
    arguments = ("--config", str(coloured), "--root", str(trained.root), "--export", str(export))
    done = store.spp("pretrain", *arguments, *sets("execution.checkpoint_seconds=0"))
    assert done.returncode == 0, done.stderr
    assert "1-crop" in done.stdout
    assert {"fc8.weight", "fc8.bias"} < read_state(export).keys()
    assert any("/data/" in key for key in store.keys("trained/network"))
    assert not any("/data/" in key for key in store.keys("trained/checkpoints"))
    assert trained.spp("verify") == 0
