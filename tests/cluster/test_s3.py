"""The whole pipeline on an S3 server: data set, root, every verb. No rename, no folder, no credential left behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest
import yaml
from PIL import Image

import storage
from pipeline.bodies.weights import read_state
from storage.commits import winners
from tests.cluster.commands import SPP, content, kill_tree, wait_until
from tests.voc_folder import small_data_set

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.s3]

KEY, SECRET = "AKIASPPTESTKEY000000", "spp/very+secret/key0123456789ABCDEFGHIJ"
BUCKET = "spp-test"
RUN = "small"
MODELS = ("svms", "regressors", "detections", "metrics")


@dataclass
class Store:
    """An S3 server and one bucket of it. ``environment``: how its users, as all users of S3, tell where and who."""

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
def store(tmp_path_factory) -> Iterator[Store]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        **os.environ,
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
        wait_until(answers, 60)
        made.client.create_bucket(Bucket=BUCKET)
        yield made
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def config(store, tmp_path_factory) -> Path:
    """A data set in the bucket, and a config that names it."""
    folder = tmp_path_factory.mktemp("data")
    small_data_set(folder / "data", train=14, test=8)
    store.upload(folder / "data", "data")
    path = folder / "small.yaml"
    sections = {
        "dataset": {"path": f"s3://{BUCKET}/data"},
        "proposals": {"max_per_image": 60, "min_side": 10},
        "features": {"body": "alexnet", "weights": "random", "scales": [128]},
        "execution": {"progress_seconds": 1, "num_cpus": 2},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="module")
def finished(store, config) -> str:
    """A root in the bucket with a finished run; the output of making it is kept beside the config."""
    root = f"s3://{BUCKET}/root"
    done = store.spp("run", "--config", str(config), "--root", root)
    (config.parent / "log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def in_a_folder(store, config) -> Path:
    """The same run into a folder of this machine."""
    root = config.parent / "local"
    done = store.spp("run", "--config", str(config), "--root", str(root))
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def credentials(store, monkeypatch) -> None:
    """For reading from this process."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, store.environment[name])


@pytest.mark.usefixtures("credentials")
def test_every_dataset_equals_that_of_a_run_into_a_folder(finished, in_a_folder):
    for dataset in ("proposals", "features", "truth_features", *MODELS):
        assert content(finished, dataset, RUN).equals(content(in_a_folder, dataset, RUN)), dataset


def test_the_verbs_work_on_it(store, config, finished):
    at = ["--root", finished, "--run", "small"]
    verified = store.spp("verify", *at)
    assert verified.returncode == 0, verified.stdout
    assert "features: good" in verified.stdout
    assert "complete" in store.spp("status", *at).stdout
    count = store.spp("query", "select count(distinct image_id) as n from features", *at, "--json")
    assert json.loads(count.stdout.splitlines()[-1])["rows"] == [[22]]
    paths = store.spp("files", "features", *at).stdout.split()
    assert paths
    assert all(path.startswith(f"s3://{BUCKET}/root/features/") for path in paths)
    again = store.spp("run", "--config", str(config), "--root", finished, "--json")
    assert again.returncode == 0, again.stderr
    planned = store.spp("plan", "--config", str(config), "--root", finished, "--json")
    datasets = json.loads(planned.stdout.splitlines()[-1])["datasets"]
    assert all(entry["shards_done"] == entry["shards"] for entry in datasets)


@pytest.mark.usefixtures("credentials")
def test_a_run_that_is_killed_goes_on_and_nothing_that_is_half_written_is_seen(store, config, finished):
    """A store without renames: what has no commit does not exist, whatever lies under data/."""
    root = f"s3://{BUCKET}/killed"
    arguments = ["run", "--config", str(config), "--root", root, "--until", "extract"]
    process = subprocess.Popen([SPP, *arguments], env=store.environment, start_new_session=True)
    wait_until(lambda: any("/commit/" in key for key in store.keys("killed/features")), 200)
    kill_tree(process)
    assert store.spp(*arguments).returncode == 0
    for dataset in ("proposals", "features", "truth_features"):
        assert content(root, dataset, RUN).equals(content(finished, dataset, RUN)), dataset


@pytest.mark.usefixtures("credentials")
def test_each_injected_damage_is_found(store, config, finished):
    """A flipped byte, a short file, a missing shard, an image that stands twice."""
    root = f"s3://{BUCKET}/damaged"
    assert store.spp("run", "--config", str(config), "--root", root, "--until", "propose").returncode == 0
    at = ["verify", "--root", root, "--run", "small"]
    place = storage.open_root(root)
    method = storage.read_run(place, "small").datasets["proposals"].method
    names = sorted(winners(place, "proposals", method).values())
    data = [f"damaged/proposals/{method}/data/{name.stem}.parquet" for name in names]
    whole = store.read(data[0])
    put = store.client.put_object

    put(Bucket=BUCKET, Key=data[0], Body=whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert "its SHA-256 is not the one in its commit" in store.spp(*at).stdout
    put(Bucket=BUCKET, Key=data[0], Body=whole[:-10])
    assert f"{len(whole) - 10} bytes, its commit says {len(whole)}" in store.spp(*at).stdout
    store.client.delete_object(Bucket=BUCKET, Key=data[0])
    found = store.spp(*at)
    assert found.returncode == 1
    assert "the file is missing" in found.stdout
    put(Bucket=BUCKET, Key=data[0], Body=whole)
    assert store.spp(*at).returncode == 0

    commit = f"damaged/proposals/{method}/commit/{names[0].stem}.json"
    record = json.loads(store.read(commit))
    image_id, rows = next(iter(record["images"].items()))
    other = f"damaged/proposals/{method}/commit/{names[1].stem}.json"
    twice = json.loads(store.read(other))
    put(Bucket=BUCKET, Key=other, Body=json.dumps({**twice, "images": {**twice["images"], image_id: rows}}).encode())
    assert f"image {image_id!r} stands in 2 shards" in store.spp(*at).stdout


@pytest.mark.usefixtures("credentials")
def test_many_commits_are_listed_by_their_first_digits_at_once_and_none_is_missed(store, finished, monkeypatch):
    place = storage.open_root(finished)
    method = storage.read_run(place, "small").datasets["features"].method
    folder = f"features/{method}/commit"
    one_after_the_other = place.names(folder)
    monkeypatch.setattr("storage.root._MANY_NAMES", 0)
    assert place.hashed_names(folder) == one_after_the_other
    assert len(one_after_the_other) > 1


def test_gc_and_forget_work_without_folders_or_renames(store, config, finished):
    root = f"s3://{BUCKET}/shared"
    mine = ["--config", str(config), "--root", root, "--until", "propose", "--run"]
    assert store.spp("run", *mine, "one").returncode == 0
    before = set(store.keys("shared"))
    assert store.spp("run", *mine, "two", "--set", "proposals.max_per_image=40").returncode == 0
    assert store.spp("forget", "two", "--root", root).returncode == 0
    shown = store.spp("gc", "--root", root, "--grace-hours", "0")
    assert "--yes deletes them" in shown.stdout, shown.stdout + shown.stderr
    assert store.spp("gc", "--root", root, "--grace-hours", "0", "--yes").returncode == 0
    assert set(store.keys("shared")) == before
    assert store.spp("verify", "--root", root).returncode == 0


def test_credentials_stand_in_no_log_plan_record_or_file(store, config, finished):
    """They come by the usual variables, and go nowhere."""
    refused = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    texts = [
        (config.parent / "log").read_text(),
        store.spp("plan", "--config", str(config), "--root", finished, "--json").stdout,
        store.spp("status", "--root", finished, "--json").stdout,
        store.spp("run", "--config", str(config), "--root", f"s3://{BUCKET}/none", **refused).stderr,
    ]
    assert "spp: error:" in texts[-1]
    assert not any(KEY in text or SECRET in text for text in texts)
    keys = store.keys("root")
    assert len(keys) > 30
    for key in keys:
        data = store.read(key)
        assert KEY.encode() not in data, key
        assert SECRET.encode() not in data, key


def test_an_open_secret_in_a_config_is_refused_before_anything_is_written(store, config):
    text = config.read_text() + f"storage_options:\n  secret: {SECRET}\n  key: {KEY}\n"
    path = config.with_name("open.yaml")
    path.write_text(text)
    found = store.spp("run", "--config", str(path), "--root", f"s3://{BUCKET}/open")
    assert found.returncode == 2
    assert re.search(r"storage_options\.(secret|key) looks like a secret", found.stderr)
    assert SECRET not in found.stderr
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
        "execution": {"progress_seconds": 1, "num_cpus": 2},
    }
    path = folder / "coloured.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.mark.usefixtures("credentials")
def test_whole_images_are_classified_as_in_a_folder(store, coloured):
    """The features to the bit; what is measured of them equally."""
    roots = f"s3://{BUCKET}/classified", str(coloured.parent / "classified")
    shown = [store.spp("classify", "--config", str(coloured), "--root", root, "--json") for root in roots]
    assert [one.returncode for one in shown] == [0, 0], shown[0].stderr
    there, here = (json.loads(one.stdout.splitlines()[-1])["classification"] for one in shown)
    assert there == here
    assert content(roots[0], "image_features", "coloured").equals(content(roots[1], "image_features", "coloured"))


def test_a_network_is_trained_tested_and_exported(store, coloured):
    """Its checkpoints lie in the bucket, too, and are gone in the end."""
    root, export = f"s3://{BUCKET}/trained", coloured.with_name("network.safetensors")
    sets = ("--set", "execution.checkpoint_seconds=0")
    done = store.spp("pretrain", "--config", str(coloured), "--root", root, "--export", str(export), *sets)
    assert done.returncode == 0, done.stderr
    assert "1-crop" in done.stdout
    assert {"fc8.weight", "fc8.bias"} < read_state(export).keys()
    assert any("/data/" in key for key in store.keys("trained/network"))
    assert not any("/data/" in key for key in store.keys("trained/checkpoints"))
    assert store.spp("verify", "--root", root).returncode == 0
