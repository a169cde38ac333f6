import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from jobs.config.features import FeaturesConfig
from jobs.errors import UsageError
from jobs.features import known_bodies
from jobs.features.body import identify_body, load_body
from jobs.features.driver import check_unchanged
from jobs.features.known_bodies import BodyIdentity, body_key, recall, remember
from jobs.features.method import truth_method
from jobs.shards.survey import ShardedDataset
from pipeline.bodies import BODIES, load_state
from pipeline.published_weights import checkpoint_folder, published_file
from tests import REPOSITORY

MADE_UP = BodyIdentity(7, "d" * 64, "c" * 64)
"""Of no body: who says this has read no weights."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of what is known, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spp" / "bodies"


@pytest.fixture
def an_hour_later(monkeypatch):
    """Files that a test writes are old enough to be known."""
    monkeypatch.setattr(known_bodies, "time", SimpleNamespace(time=lambda: time.time() + 3600))


@pytest.fixture
def weights(tmp_path):
    """Weights of alexnet in a file."""
    path = tmp_path / "alexnet.pt"
    torch.save(load_state(BODIES["alexnet"], "random", seed=1), path)
    return path


@pytest.fixture
def from_file(weights):
    return FeaturesConfig(body="alexnet", weights=str(weights))


@pytest.fixture(params=["file", "random", "default"])
def config(request, from_file):
    """Weights of each kind."""
    if request.param == "default":
        return FeaturesConfig(body="efficientnet_lite0")
    return from_file if request.param == "file" else FeaturesConfig(body="alexnet", weights="random", seed=3)


def rewritten(path, stamp):
    """Other bytes in the same file, of the same number, and with the same modification time."""
    path.write_bytes(bytes(len(path.read_bytes())))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def replaced(path, stamp):
    """Another file in its place, of the same size and modification time."""
    other = path.with_suffix(".new")
    other.write_bytes(bytes(stamp.st_size))
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, path)


# --- what is known ---


def test_a_body_is_known_once_it_was_read(config, cache, an_hour_later):
    assert recall(body_key(config)) is None
    body = load_body(config)
    assert recall(body_key(config)) == body.identity == identify_body(config)
    assert body.identity.channels == BODIES[config.body].channels


def test_who_knows_a_body_reads_no_weights(config, cache, an_hour_later):
    remember(body_key(config), MADE_UP)
    assert identify_body(config) == MADE_UP


def test_what_is_known_is_compared_when_the_weights_are_read(config, cache, an_hour_later):
    remember(body_key(config), MADE_UP)
    known = identify_body(config)

    def named(identity: BodyIdentity) -> ShardedDataset:
        method = truth_method(config, identity.digest, "0123456789ab")
        return ShardedDataset(
            stage="extract", name="truth_features", method=method, cut=list, classifier=identity.classifier
        )

    body = load_body(config)
    with pytest.raises(UsageError, match="have changed since this command looked at them; run it again"):
        check_unchanged(config, body, named(known), "0123456789ab")
    assert body.identity == identify_body(config) != MADE_UP  # mended
    check_unchanged(config, body, named(identify_body(config)), "0123456789ab")


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_a_changed_file_is_noticed(change, from_file, weights, cache, an_hour_later):
    key, stamp = body_key(from_file), weights.stat()
    remember(key, MADE_UP)
    change(weights, stamp)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    assert body_key(from_file) not in (None, key)
    with pytest.raises(UsageError, match=r"weights file .*alexnet\.pt"):
        identify_body(from_file)


def test_a_file_just_written_is_not_known(from_file, cache):
    """Within the granularity of its clock, a file system shows no second change."""
    assert body_key(from_file) is None
    assert identify_body(from_file) == load_body(from_file).identity
    assert not cache.exists()


def test_a_file_from_the_future_is_not_known(from_file, weights, cache, an_hour_later):
    os.utime(weights, (time.time() + 7200,) * 2)
    assert body_key(from_file) is None


@pytest.mark.parametrize("weights", ["nowhere.pt", ".", "/dev/null"])
def test_what_is_no_file_is_not_known(weights, cache):
    assert body_key(FeaturesConfig(body="alexnet", weights=weights)) is None


def test_published_weights_that_are_not_there_are_not_known(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert [body_key(FeaturesConfig(body=body)) for body in ("alexnet", "zf5", "timm:resnet18")] == [None] * 3


def test_another_body_seed_or_kind_of_weights_is_another(from_file, weights, monkeypatch, an_hour_later):
    configs = [
        from_file,
        FeaturesConfig(body="vgg16", weights=str(weights)),
        FeaturesConfig(body="efficientnet_lite0"),
        *(FeaturesConfig(body=body, weights="random", seed=seed) for body in ("alexnet", "vgg16") for seed in (0, 1)),
    ]
    keys = [body_key(config) for config in configs]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    keys.append(body_key(FeaturesConfig(body="alexnet", weights="random")))
    monkeypatch.setattr(known_bodies, "_code", lambda: "changed")
    keys += [body_key(config) for config in configs]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_what_has_no_say_in_the_weights_changes_nothing():
    config = FeaturesConfig(body="alexnet", weights="random")
    for change in ({"scales": (480,)}, {"store": "maps"}, {"pyramid": (4, 1)}):
        assert body_key(config.model_copy(update=change)) == body_key(config)


def test_the_code_that_reads_weights_is_looked_at():
    home = REPOSITORY
    assert all(list(home.glob(pattern)) for pattern in known_bodies._SOURCES)


# --- a cache that is not as it should be ---


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"channels": 256, "digest": "ab',
        b"[]",
        b"null",
        b'{"channels": 256}',
        b'{"channels": "256", "digest": "", "classifier": ""}',
        b'{"channels": 256, "digest": "", "classifier": "", "more": 1}',
    ],
)
def test_a_damaged_cache_is_ignored_and_mended(content, cache):
    config = FeaturesConfig(body="alexnet", weights="random")
    expected = identify_body(config)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert recall(body_key(config)) is None
    assert identify_body(config) == expected == recall(body_key(config))


def test_where_nothing_can_be_written_nothing_is_known(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = FeaturesConfig(body="alexnet", weights="random")
    assert identify_body(config) == load_body(config).identity
    assert recall(body_key(config)) is None


def test_a_folder_that_cannot_be_written_to_is_left_alone(cache):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    config = FeaturesConfig(body="alexnet", weights="random")
    assert identify_body(config) == load_body(config).identity
    assert not list(cache.iterdir())


def test_a_file_of_another_user_is_not_believed(cache, monkeypatch):
    key = body_key(FeaturesConfig(body="alexnet", weights="random"))
    remember(key, MADE_UP)
    assert recall(key) == MADE_UP
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert recall(key) is None


def test_what_is_known_has_no_secrets(from_file, cache, an_hour_later):
    load_body(from_file)
    (file,) = cache.iterdir()
    assert json.loads(file.read_text()).keys() == {"channels", "digest", "classifier", "engine"}
    assert file.stat().st_mode & 0o077 == 0


def test_the_cache_keeps_to_its_size(cache, monkeypatch):
    monkeypatch.setattr(known_bodies, "_MOST", 3)
    for number in range(5):
        remember(f"{number}", MADE_UP)
        os.utime(cache / f"{number}.json", (number, number))
    assert sorted(file.name for file in cache.iterdir()) == ["2.json", "3.json", "4.json"]


BUSY = """
import sys
from pathlib import Path
from jobs.features.known_bodies import BodyIdentity, recall, remember
from tests import REPOSITORY

identity = BodyIdentity(256, "d" * 64, "c" * 10_000)
for number in range(300):
    remember("same", identity if number % 2 else BodyIdentity(256, "e" * 64))
    assert recall("same") in (identity, BodyIdentity(256, "e" * 64)), number
"""


def test_processes_that_write_at_once_never_show_a_part(cache):
    home = str(REPOSITORY)
    environment = {**os.environ, "PYTHONPATH": home}
    running = [subprocess.Popen([sys.executable, "-c", BUSY], cwd=home, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert [file.name for file in cache.iterdir()] == ["same.json"]


# --- where published weights are ---


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_the_folder_of_downloads_is_torchs(variable, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)  # as in a process where no test has set another
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert str(checkpoint_folder()) == os.path.join(torch.hub.get_dir(), "checkpoints")


def test_every_body_with_published_weights_has_a_place_for_them():
    unpublished = {"zf5", "convnet5", "overfeat5", "overfeat7"}
    assert {name for name in BODIES if published_file(name) is None} == unpublished
