"""spp pretrain on embedded Ray: a folder of labelled images becomes a network, its curve, and a weights file."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from torch import nn

import storage
from jobs.config.run_config import RunConfig
from jobs.dataset.objects import is_held_out
from jobs.features.body import load_body
from jobs.pretrain import worker as network_training
from jobs.pretrain.worker import LabelledFiles, TrainNetwork, train_network
from pipeline.bodies import body_spec, load_classifier
from pipeline.bodies.weights import read_metadata, read_state
from pipeline.spp.receptive_field import Layer
from storage.tensors import read_tensors
from tests.project import CONFIG, Project, sets
from tests.small_body import SMALL_BODY

pytestmark = pytest.mark.slow

CLASSES = ("blue", "green", "red")
BODY = "squeezenet1_1"


def picture(number: int) -> bytes:
    """A JPEG image of class ``number % 3``."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 110, (10, 12 + number % 3, 3), np.uint8)
    pixels[:, :, 2 - number % 3] += 120
    data = io.BytesIO()
    Image.fromarray(pixels.repeat(10, 0).repeat(10, 1)).save(data, "JPEG")
    return data.getvalue()


def folder(path: Path, count: int = 30) -> Path:
    for number in range(count):
        place = path / CLASSES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"im{number:03d}.jpg").write_bytes(picture(number))
    return path


def task_in(place: Path, **dataset) -> Project:
    """A config and a root, to train a small network on a data set."""
    sections = {
        "dataset": {"layout": "folder", **dataset},
        "features": {"body": BODY, "pyramid": [3, 1]},
        "pretrain": {
            "epochs": 2,
            "batch": 12,
            "fc_sizes": [24, 16],
            "initial": "he",
            "sizes": "multi",
            "held_out": 0.3,
            "views": ["1-crop", "2-full"],
        },
        "execution": CONFIG["execution"],
    }
    config = place / "net.yaml"
    config.write_text(yaml.safe_dump(sections))
    return Project(None, config, place / "root")


def curve_of(task: Project) -> list[dict]:
    return task.table("pretraining_curve").to_pylist()


def files_of(task: Project) -> set[str]:
    return {str(path) for path in task.folder.rglob("*") if path.is_file() and "runs" not in path.parts}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Project:
    path = tmp_path_factory.mktemp("pretrained")
    made = task_in(path, path=str(folder(path / "images")))
    assert made.spp("pretrain", "--export", str(exported(made))) == 0
    return made


def exported(task: Project) -> Path:
    return task.config.with_suffix(".safetensors")


def test_a_folder_of_images_becomes_a_network_and_its_curve(task):
    curve = curve_of(task)
    assert [(row["epoch"], row["size"], row["learning_rate"]) for row in curve] == [(1, 224, 0.01), (2, 180, 0.01)]
    assert all(row["loss"] > 0 and 0 <= row["top1"] <= row["top5"] == 1 for row in curve)
    assert task.states() == dict.fromkeys(("images", "objects", "pretraining_curve", "network"), "complete")
    assert task.spp("verify") == 0
    assert list((task.root / "checkpoints").rglob("*.parquet")) == []
    assert task.spp("gc", "--grace-hours", "0", "--yes") == 0
    assert task.spp("verify") == 0


def test_what_is_done_is_not_done_again_and_another_view_is_only_tested(task):
    before = files_of(task)
    first = task.answer("pretrain")["network"]
    assert first["tested_on"] == "held-out images"
    assert list(first["views"]) == ["1-crop", "2-full"]
    second = task.answer("pretrain", *sets("pretrain.views=[1-crop, 10-crop]"))["network"]
    assert second["views"].keys() == {"1-crop", "2-full", "10-crop"}
    assert {view: second["views"][view] for view in first["views"]} == first["views"]
    assert files_of(task) == before


def test_the_exported_file_is_weights_of_a_body_with_a_digest_of_its_own(task):
    state = read_state(exported(task))
    for name, values in task.tensors("network").items():
        np.testing.assert_array_equal(state[name].numpy(), values, err_msg=name)
    assert json.loads(read_metadata(exported(task))["spp.classes"]) == list(CLASSES)
    dataset = {"path": "nowhere"}
    loaded, random = (
        load_body(RunConfig(dataset=dataset, features={"body": BODY, "weights": weights}).features)
        for weights in (str(exported(task)), "random")
    )
    assert loaded.digest != random.digest
    assert loaded.classifier
    classifier = load_classifier(body_spec(BODY), str(exported(task)))
    assert classifier is not None
    assert (classifier.levels, classifier.order) == ((3, 1), "bin-major")


def test_test_splits_are_tested_on_and_choose_nothing(tmp_path):
    """Whatever is in them, the network is the same."""
    data = tmp_path / "images"
    folder(data / "train", 15)
    folder(data / "val", 6)
    task = task_in(tmp_path, path=str(data), train_splits=["train"], test_splits=["val"])
    quick = sets("pretrain.epochs=1", "pretrain.views=[1-crop]")
    first = task.answer("pretrain", *quick)["network"]
    assert (first["tested_on"], first["views"]["1-crop"]["images"]) == ("splits val", 6)
    network, files = task.tensors("network"), len(list(task.root.glob("network/*/data/*")))
    moved = data / "val" / "red" / "im002.jpg"
    moved.rename(data / "val" / "blue" / "im002.jpg")
    second = task.answer("pretrain", *quick)["network"]
    assert second["identity"] != first["identity"]
    assert len(list(task.root.glob("network/*/data/*"))) == files
    np.testing.assert_array_equal(task.tensors("network")["fc6.weight"], network["fc6.weight"])


@pytest.mark.parametrize("held_out", ["0", "0.3"])
def test_images_that_cannot_be_decoded_are_in_the_ledger(tmp_path, capsys, held_out):
    """Those to train on as those held out, which nothing else looks at here."""
    data = folder(tmp_path / "images", 18)
    ids = sorted(f"{path.parent.name}/{path.stem}" for path in data.rglob("*.jpg"))
    measured = [is_held_out(float(held_out), 0, image_id) for image_id in ids]
    broken = [ids[measured.index(False)], *([ids[measured.index(True)]] if any(measured) else [])]
    assert len(broken) == 1 + (held_out != "0")
    for image_id in broken:
        path = data / f"{image_id}.jpg"
        path.write_bytes(path.read_bytes()[:-600])  # its header is whole
    task = task_in(tmp_path, path=str(data))
    changes = ("pretrain.epochs=1", f"pretrain.held_out={held_out}", "pretrain.views=[]", "pretrain.batch=1")
    assert task.spp("pretrain", *sets(*changes)) == 3
    printed = capsys.readouterr().out
    assert all(f"failed image {image_id}" in printed for image_id in broken)
    assert (curve_of(task)[0]["top1"] is None) == (held_out == "0")


def test_what_cannot_be_trained_on_is_refused(tmp_path, capsys):
    data = folder(tmp_path / "images", 6)
    task = task_in(tmp_path, path=str(data))
    for changes, says in (
        (("execution.train_workers=5",), "does not divide the 12 images"),
        (("pretrain.pooling=fixed",), "takes images of 224 x 224 only, so sizes cannot be multi"),
        (("pretrain.pooling=fixed", "pretrain.sizes=single"), "can be tested on 1-crop, 10-crop, not on 2-full"),
        (("pretrain.held_out=0.99999",), "0 images are left to train on"),
        (("features.body=zf6",), "did you mean 'zf5'?"),
    ):
        capsys.readouterr()
        assert task.spp("pretrain", *sets(*changes)) == 2
        assert says in capsys.readouterr().err
    assert task.spp("pretrain", "--export", str(tmp_path / "net.pt")) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    for name in ("blue", "green"):
        for path in (data / name).iterdir():
            path.unlink()
        (data / name).rmdir()
    assert task.spp("pretrain") == 2
    assert "are of 1 classes" in capsys.readouterr().err


COARSE_BODY = dataclasses.replace(
    SMALL_BODY,
    layers=(Layer(9, stride=8),),
    channels=8,
    build=lambda: nn.Sequential(nn.Conv2d(3, 8, 9, 8), nn.BatchNorm2d(8), nn.ReLU()),
)


def test_a_worker_that_is_killed_goes_on_where_the_last_checkpoint_was(tmp_path, monkeypatch):
    """Killed in the epoch of 180 pixels; checkpoints are files. The weights are those of one that was not."""
    monkeypatch.setattr(network_training, "body_spec", lambda name: COARSE_BODY)
    config = RunConfig.model_validate(yaml.safe_load(task_in(tmp_path, path=".").config.read_text())).pretrain
    config = config.model_copy(update={"epochs": 3, "batch": 4})
    paths = sorted(folder(tmp_path / "images", 16).rglob("*.jpg"))
    rows = [
        {"image_id": path.stem, "uri": str(path), "digest": "listing:", "height": height, "width": width}
        for path in paths
        for width, height in [Image.open(path).size]
    ]
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    files = LabelledFiles(pa.Table.from_pylist(rows), labels, {})
    found = []
    for name in ("whole", "killed"):
        root = storage.open_root(str(tmp_path / name))
        work = TrainNetwork(
            root=root,
            method="0" * 12,
            body="coarse",
            levels=(3, 1),
            classes=3,
            config=config,
            device="cpu",
            threads=1,
            decode_threads=2,
            checkpoint_seconds=0.0,
            most_failed=0.5,
            metadata={},
        )
        if name == "killed":
            steps = []
            taken = network_training.StoredCheckpoints.save

            def save(self, saved, steps=steps, taken=taken):
                steps.append(taken(self, saved))
                if len(steps) == 6:  # of 4 in an epoch
                    raise KeyboardInterrupt

            monkeypatch.setattr(network_training.StoredCheckpoints, "save", save)
            with pytest.raises(KeyboardInterrupt):
                train_network(work, (files, files.part(np.arange(3))))
            assert len(list((tmp_path / name / "checkpoints").rglob("commit/*.json"))) == 2
        train_network(work, (files, files.part(np.arange(3))))
        (network,) = (tmp_path / name / "network").rglob("*.parquet")
        (curve,) = (tmp_path / name / "pretraining_curve").rglob("*.parquet")
        assert not list((tmp_path / name / "checkpoints").rglob("*.parquet"))
        found.append((read_tensors(root, str(network.relative_to(tmp_path / name))), pq.read_table(curve)))
    (whole, curve), (again, other) = found
    assert whole.keys() == again.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    assert curve.equals(other)


def test_two_workers_train_on_a_table_of_images(tmp_path, capsys):
    tables = tmp_path / "tables"
    tables.mkdir()
    for part in range(2):
        numbers = range(part * 24, part * 24 + 24)
        images = [picture(n)[: -600 if n % 8 == 5 else None] for n in numbers]  # some are cut off
        columns = {"image": images, "label": [CLASSES[n % 3] for n in numbers]}
        pq.write_table(pa.table(columns), tables / f"train-{part}.parquet", row_group_size=6)
    task = task_in(tmp_path, path=str(tables), layout="table", train_splits=["train"], test_splits=[])
    changes = (
        *("execution.train_workers=2", "execution.train_threads=1", "execution.max_failed=0.2"),
        *("pretrain.views=[]", "pretrain.batch=2"),  # so that an epoch leaves out one image at most
    )
    assert task.spp("pretrain", *sets(*changes)) == 3
    assert all(np.isfinite(values).all() for values in task.tensors("network").values())
    assert [row["epoch"] for row in curve_of(task)] == [1, 2]
    printed = capsys.readouterr().out
    rows = [row for part in range(2) for row in range(24) if (part * 24 + row) % 8 == 5]
    assert printed.count("failed image ") == len(rows) == 6  # whichever of the two met them
