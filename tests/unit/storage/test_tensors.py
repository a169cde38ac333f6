"""Tensors as rows: what is written is read; checkpoints, of which two stay."""

from __future__ import annotations

import numpy as np
import pytest

from storage.commits import data_key, winners
from storage.root import Root, StorageError
from storage.tensors import drop_checkpoints, last_checkpoint, read_tensors, save_checkpoint, write_tensors

METHOD = "0123456789ab"


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "fc6.weight": random.standard_normal((30, 50)).astype(np.float32),
        "fc6.bias": np.array([np.nan, np.inf, -0.0], np.float32),
        "scale": np.array(0.25, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def same(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].shape == values.shape and found[name].tobytes() == values.tobytes()
        for name, values in wanted.items()
    )


def test_tensors_come_back_bit_for_bit(place: Root):
    commit = write_tensors(place, "head", METHOD, "aa", tensors(), {"classes": "[]"}, seconds={}, producer="test")
    assert commit.images == dict.fromkeys(sorted(tensors()), 1)
    assert same(read_tensors(place, data_key("head", METHOD, commit.name)), tensors())


def test_the_newest_checkpoint_is_found_and_two_are_kept(place: Root):
    assert last_checkpoint(place, METHOD) is None
    for phase, iteration in ((0, 300), (0, 4000), (1, 5), (1, 70)):
        save_checkpoint(place, METHOD, phase, iteration, tensors(iteration), {"at": iteration}, producer="test")
    phase, iteration, found, progress = last_checkpoint(place, METHOD)
    assert (phase, iteration, progress) == (1, 70, {"at": 70})
    assert same(found, tensors(70))
    assert len(winners(place, "checkpoints", METHOD)) == 2
    assert len(place.names(f"checkpoints/{METHOD}/data")) == 2
    drop_checkpoints(place, METHOD)
    assert last_checkpoint(place, METHOD) is None
    assert place.names(f"checkpoints/{METHOD}/data") == []


def test_a_checkpoint_without_its_commit_is_none(place: Root):
    save_checkpoint(place, METHOD, 0, 10, tensors(), {}, producer="test")
    save_checkpoint(place, METHOD, 0, 20, tensors(), {}, producer="test")
    newest = max(winners(place, "checkpoints", METHOD).values())
    place.delete(f"checkpoints/{METHOD}/commit/{newest.stem}.json")
    assert last_checkpoint(place, METHOD)[1] == 10


def test_a_damaged_checkpoint_gives_way_to_the_one_before(place: Root):
    save_checkpoint(place, METHOD, 0, 10, tensors(), {}, producer="test")
    save_checkpoint(place, METHOD, 1, 5, tensors(), {}, producer="test")
    newest = max(winners(place, "checkpoints", METHOD).values())
    key = data_key("checkpoints", METHOD, newest)
    place.write(key, place.read(key)[:100])
    assert last_checkpoint(place, METHOD)[:2] == (0, 10)
    assert last_checkpoint(place, METHOD, (0, 10))[:2] == (0, 10)
    with pytest.raises(StorageError, match="iteration 7"):
        last_checkpoint(place, METHOD, (0, 7))
