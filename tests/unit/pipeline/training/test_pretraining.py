"""Training a whole network: epochs and sizes, mini-batches, resuming across a size switch, what is measured."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ImageError
from pipeline.network.spp_network import new_network
from pipeline.spp.receptive_field import Layer
from pipeline.training.augmentation import PLAIN, at_short_side, choose, shown
from pipeline.training.descent import Diverged, Saved, TrainingError
from pipeline.training.mini_batches import BROKEN, Decoded, LabelledImages, MiniBatches
from pipeline.training.pretraining import Recipe, hits, measure, train
from tests.small_body import SMALL_BODY

CLASSES = 3


def coloured(count: int = 18, seed: int = 0, blocks=None, broken=()) -> LabelledImages:
    """Images of which a third each is red, green and blue on the whole."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = random.integers(0, 120, (count, 8, 9, 3), np.uint8)
    pixels[np.arange(count), :, :, labels] += 100

    def read(number: int, least: int) -> np.ndarray:
        if number in broken:
            raise ImageError(f"image {number} is no image")
        return pixels[number].repeat(32, 0).repeat(32, 1)

    return LabelledImages(labels, read, blocks)


COARSE_BODY = dataclasses.replace(
    SMALL_BODY,
    name="coarse",
    layers=(Layer(9, stride=8),),
    channels=8,
    build=lambda: nn.Sequential(nn.Conv2d(3, 8, 9, 8), nn.ReLU()),
)
"""Of few cells, so that an epoch takes no time."""


def network(seed: int = 0, pooling="spp", sizes=(12, 8), dropout=0.5):
    return new_network(COARSE_BODY, pooling, (3, 1), CLASSES, sizes=sizes, initial="he", seed=seed, dropout=dropout)


def weights(trained) -> dict[str, np.ndarray]:
    return {name: values.detach().numpy().copy() for name, values in trained.state_dict().items()}


class Kept:
    """Checkpoints in memory, one taken after iteration ``at``; ``stop``: interrupted after that one."""

    def __init__(self, at: int = -1, stop: int = -1, saved: Saved | None = None) -> None:
        self.saved, self._at, self._stop = saved, at, stop
        self._iteration = saved.iteration if saved else 0

    def last(self) -> Saved | None:
        return self.saved

    def due(self) -> bool:
        self._iteration += 1
        if self._iteration == self._stop:
            raise KeyboardInterrupt
        return self._iteration == self._at

    def save(self, saved) -> None:
        found = saved()
        tensors = {n: v.clone() for n, v in found.tensors.items()}  # what lies in a file changes no more
        self.saved = Saved(found.iteration, tensors, json.loads(json.dumps(found.progress)))


def test_the_papers_recipe_is_the_preset():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch, recipe.rate, recipe.factor, recipe.drops) == (70, 128, 0.01, 0.1, 2)
    assert (recipe.momentum, recipe.weight_decay, recipe.flips, recipe.colour) == (0.9, 5e-4, True, True)


def test_sizes_change_with_whole_epochs_or_are_drawn_for_every_mini_batch():
    assert [Recipe(sizes="multi").side(epoch, 9) for epoch in range(4)] == [224, 180, 224, 180]
    assert {Recipe(sizes="single").side(epoch, 9) for epoch in range(4)} == {224}
    drawn = [Recipe(sizes="random", seed=1).side(0, i) for i in range(2000)]
    assert set(drawn) == set(range(180, 225))
    assert drawn == [Recipe(sizes="random", seed=1).side(7, i) for i in range(2000)]
    assert drawn != [Recipe(sizes="random", seed=2).side(0, i) for i in range(2000)]


@pytest.mark.parametrize("blocks", [None, np.repeat(np.arange(10), [9, 3, 1, 17, 8, 30, 11, 2, 10, 12])])
@pytest.mark.parametrize("workers", [1, 4])
def test_an_epoch_shows_every_image_once_to_one_of_the_workers(blocks, workers):
    images = LabelledImages(np.zeros(103, np.int64), lambda number, least: None, blocks)  # type: ignore[arg-type, return-value]
    batches = [MiniBatches(images, 8, 4, rank, workers) for rank in range(workers)]
    per_epoch = batches[0].per_epoch
    assert per_epoch == (103 // workers) // (8 // workers)
    epochs = []
    for epoch in range(3):
        taken = [[one.rows(epoch * per_epoch + i) for i in range(per_epoch)] for one in batches]
        assert {len(rows) for one in taken for rows in one} == {8 // workers}
        shown_to = np.concatenate([rows for one in taken for rows in one])
        assert len(set(shown_to.tolist())) == len(shown_to) > 103 - 8 - workers
        epochs.append(shown_to.tolist())
    assert epochs[0] != epochs[1] != epochs[2]
    late = MiniBatches(images, 8, 4, workers - 1, workers)
    np.testing.assert_array_equal(late.rows(2 * per_epoch + 1), batches[-1].rows(2 * per_epoch + 1))


def test_images_in_blocks_are_read_a_few_blocks_at_a_time():
    blocks = np.repeat(np.arange(40), 25)
    images = LabelledImages(np.zeros(1000, np.int64), lambda number, least: None, blocks)  # type: ignore[arg-type, return-value]
    for rank in range(2):
        batches = MiniBatches(images, 10, 0, rank, 2)
        order = blocks[np.concatenate([batches.rows(i) for i in range(batches.per_epoch)])]
        groups = [set(order[start : start + 100].tolist()) for start in range(0, len(order), 100)]
        assert all(len(group) == 4 for group in groups)  # four blocks of 25, mixed
        assert len(set.union(*groups)) == 20  # each by one worker only
        assert not np.array_equal(order, np.sort(order))


def test_few_images_make_small_batches_and_too_few_none():
    images = coloured(6)
    assert MiniBatches(images, 128, 0).per_epoch == 1
    assert len(MiniBatches(images, 128, 0).rows(3)) == 6
    with pytest.raises(TrainingError, match="6 training images are too few for 8 workers"):
        MiniBatches(images, 128, 0, 0, 8)
    with pytest.raises(ValueError, match="cannot be shared out evenly to 3 workers"):
        MiniBatches(images, 128, 0, 0, 3)


def test_an_epoch_is_gradient_descent_on_the_images_as_they_are_drawn():
    """Against the plainest loop: each image read, shown and shifted by itself; SGD of its own."""
    images, recipe = coloured(), Recipe(epochs=2, batch=6, sizes="multi", rate=0.02, seed=3)
    trained, plain = network(), network()
    plain.head.dropout.p = trained.head.dropout.p = 0.0
    curve = train(trained, images, recipe, threads=3).curve
    batches = MiniBatches(images, recipe.batch, recipe.seed)
    momenta = {name: torch.zeros_like(values) for name, values in plain.named_parameters()}
    losses = []
    for iteration in range(6):
        epoch, side = iteration // 3, (224, 180)[iteration // 3]
        logits, labels = [], []
        for number in batches.rows(iteration).tolist():
            choice = choose(3, epoch, number)
            pixels = shown(at_short_side(images.read(number, 256)), choice, side)
            logits.append(plain(torch.from_numpy(pixels)[None], torch.from_numpy(choice.shift)[None]))
            labels.append(images.labels[number])
        plain.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(labels))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, values in plain.named_parameters():
                bias = name.endswith("bias")
                momenta[name] = 0.9 * momenta[name] + values.grad + (0 if bias else 5e-4) * values
                values -= 0.02 * (2 if bias else 1) * momenta[name]
    for name, values in weights(trained).items():
        np.testing.assert_allclose(values, weights(plain)[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert [point.loss for point in curve] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-5)
    assert [(p.epoch, p.size, p.rate, p.top1) for p in curve] == [(1, 224, 0.02, None), (2, 180, 0.02, None)]


@pytest.mark.parametrize(("at", "stop"), [(3, 5), (3, 4), (5, 6), (7, 8)])
@pytest.mark.parametrize("sizes", ["multi", "random"])
def test_a_training_taken_up_again_ends_with_the_same_weights(sizes, at, stop):
    """Epochs have 3 iterations: saved at the switch from 224 to 180, in the middle of an epoch, after the next."""
    images, held_out = coloured(), coloured(6, seed=1)
    recipe = Recipe(epochs=4, batch=6, sizes=sizes, rate=0.05, patience=1, drops=9, seed=5)
    whole = network()
    wanted = train(whole, images, recipe, held_out=held_out)
    kept = Kept(at=at, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        train(network(), images, recipe, held_out=held_out, checkpoints=kept)
    assert kept.saved is not None
    assert kept.saved.iteration == at
    torch.manual_seed(99)  # what other code drew does not matter
    again = network(seed=7)  # nor what the weights were
    found = train(again, images, recipe, held_out=held_out, checkpoints=Kept(saved=kept.saved), threads=2)
    for name, values in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], values, err_msg=name)
    assert found == wanted
    assert [point.epoch for point in found.curve] == [1, 2, 3, 4]


@pytest.mark.parametrize(("pooling", "sizes"), [("fixed", "single"), ("spp", "single"), ("spp", "multi")])
def test_what_can_be_learned_is_learned(pooling, sizes):
    trained = network(pooling=pooling, sizes=(48, 48), dropout=0.2)
    recipe = Recipe(epochs=20, batch=6, rate=0.01, sizes=sizes)
    curve = train(trained, coloured(), recipe, held_out=coloured(9, seed=1), cache_bytes=10**8).curve
    assert curve[-1].loss < 0.5 * math.log(CLASSES)
    assert curve[-1].top1 > 0.9
    assert not trained.training


def test_the_rate_falls_twice_when_the_held_out_error_stands_still_and_then_the_training_ends():
    stuck = coloured(9, seed=1)
    stuck = LabelledImages(np.roll(stuck.labels, 1), stuck.read)
    recipe = Recipe(epochs=60, batch=9, rate=1e-4, patience=2)
    curve = train(network(), coloured(9), recipe, held_out=stuck).curve
    assert len(curve) < 60
    rates = [point.rate for point in curve]
    assert sorted(set(rates), reverse=True) == pytest.approx([1e-4, 1e-5, 1e-6])
    best, bad, rate, wanted = math.inf, 0, 1e-4, []
    for point in curve:
        wanted.append(rate)
        error = 1 - point.top1
        best, bad = (error, 0) if error < best * (1 - 1e-3) else (best, bad + 1)
        if bad == 2:
            rate, bad = rate / 10, 0
    assert rates == pytest.approx(wanted)
    assert rate == pytest.approx(1e-7)


def test_a_rate_that_is_too_high_is_named():
    with pytest.raises(Diverged, match="at a learning rate of 1e\\+30"):
        train(network(), coloured(), Recipe(epochs=3, batch=6, rate=1e30))


def test_images_that_cannot_be_read_count_for_nothing():
    """The weights are those of a training in which the loss of these images is left out."""
    images, recipe = coloured(broken=(2, 11)), Recipe(epochs=1, batch=6, rate=0.02)
    trained = network()
    found = train(trained, images, recipe, held_out=coloured(6, seed=1, broken=(5,)))
    assert (found.unread, found.held_out_unread) == ([2, 11], [5])
    labels = coloured().labels.copy()
    labels[[2, 11]] = BROKEN
    other = network()
    train(other, LabelledImages(labels, coloured().read), recipe)
    for name, values in weights(trained).items():
        np.testing.assert_allclose(values, weights(other)[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("at", "held_out"), [(2, []), (4, [1])])
def test_an_image_that_could_not_be_read_before_an_interruption_is_still_known(at, held_out):
    """Saved in the first epoch or after it; the images are whole when the training is taken up again."""
    recipe, kept = Recipe(epochs=2, batch=6), Kept(at=at, stop=5)
    with pytest.raises(KeyboardInterrupt):
        train(network(), coloured(broken=(7,)), recipe, held_out=coloured(6, broken=(1,)), checkpoints=kept)
    found = train(network(), coloured(), recipe, held_out=coloured(6), checkpoints=Kept(saved=kept.saved))
    assert (found.unread, found.held_out_unread) == ([7], held_out)


def test_images_that_are_gone_in_the_middle_of_a_training_end_it():
    """A file system that is no longer there: nothing more is learned of images that count for nothing."""
    images, reads, lock = coloured(60), Counter(), threading.Lock()

    def read(number: int, least: int) -> np.ndarray:
        with lock:
            reads["all"] += 1
        if reads["all"] > 150:
            raise ImageError("gone")
        return images.read(number, least)

    curve = []
    with pytest.raises(TrainingError, match="of 60 training images cannot be read; the first: gone"):
        train(
            network(),
            LabelledImages(images.labels, read),
            Recipe(epochs=9, batch=10),
            most_failed=0.1,
            watch=curve.append,
        )
    assert 1 <= len(curve) <= 3


def test_too_many_of_them_end_the_training():
    with pytest.raises(TrainingError, match="18 of 18 training images cannot be read; the first: image"):
        train(network(), coloured(broken=range(18)), Recipe(epochs=2, batch=6))
    with pytest.raises(TrainingError, match="of 12 training images cannot be read"):  # of an epoch, 8 are left out
        train(network(), coloured(20, broken=range(20)), Recipe(epochs=2, batch=12))
    many = coloured(60, broken=range(20))
    with pytest.raises(TrainingError, match="20 of 60 training images"):
        train(network(), many, Recipe(epochs=2, batch=10), most_failed=0.3)
    train(network(), many, Recipe(epochs=1, batch=10), most_failed=0.4)
    with pytest.raises(TrainingError, match="no held-out image can be read"):
        train(network(), coloured(), Recipe(epochs=1, batch=6), held_out=coloured(3, broken=range(3)))


def test_held_out_images_are_measured_on_their_centre_crops():
    images, measured = coloured(20, seed=2, broken=(4,)), network().eval()
    kept = [n for n in range(20) if n != 4]
    crops = np.stack([shown(at_short_side(images.read(n, 256)), PLAIN, 224) for n in kept])
    with torch.inference_mode():
        logits = measured(torch.from_numpy(crops)).double()
    labels = torch.from_numpy(images.labels[kept])
    loss, top1, top5 = measure(measured, images, Decoded(images, 0), torch.device("cpu"))
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert top5 == 1  # of three classes


def test_the_first_and_the_first_five_are_counted():
    scores = torch.tensor([[9.0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    first, five = hits(scores, torch.tensor([0, 0, 1]))
    assert first.tolist() == [True, False, False]
    assert five.tolist() == [True, False, True]


def test_images_are_decoded_once_while_the_cache_has_room():
    images, calls, lock = coloured(6), Counter(), threading.Lock()

    def read(number: int, least: int) -> np.ndarray:
        assert least == 256
        with lock:
            calls[number] += 1
        return images.read(number, least)

    counted = LabelledImages(images.labels, read)
    each = 256 * 288 * 3
    for room, wanted in ((6, 6), (2, 2 + 3 * 4), (0, 18)):
        calls.clear()
        train(network(), counted, Recipe(epochs=3, batch=6), threads=2, cache_bytes=room * each)
        assert sum(calls.values()) == wanted


def test_training_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    train(network(), coloured(6), Recipe(epochs=1, batch=6))
    assert torch.equal(torch.rand(3), wanted)
