"""Training the head: mini-batches to the window, gradient descent against plain NumPy, schedules, and resuming."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from pipeline.bodies import Body, body_spec, load_state
from pipeline.network.head import head_of, new_head
from pipeline.training.descent import Diverged, Saved, TrainingError
from pipeline.training.finetuning import PAPER, MiniBatches, Plateau, Rules, Step, TrainingWindows, measure, train

DIM, SIZES, CLASSES = 24, (12, 10), 3


def windows(count: int = 200, seed: int = 0) -> TrainingWindows:
    """Windows whose class can be told from their vector, a third of them foreground."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(count) < 0.33, random.integers(1, CLASSES + 1, count), 0)
    vectors = random.random((count, DIM)) + np.eye(CLASSES + 1, DIM)[labels]
    return TrainingWindows(vectors.astype(np.float16), labels)


def head(seed: int = 0, dropout: float = 0.5):
    return new_head(DIM, SIZES, CLASSES + 1, seed=seed, rms=0.6, dropout=dropout)


def weights(trained) -> dict[str, np.ndarray]:
    return {name: values.detach().numpy().copy() for name, values in trained.state_dict().items()}


class Kept:
    """Checkpoints in memory, taken after the iterations ``at``; ``stop`` is raised after that one."""

    def __init__(self, at=(), stop: int | None = None, saved: Saved | None = None) -> None:
        self.saved, self._at, self._stop, self._calls = saved, set(at), stop, 0
        self._first = saved.iteration if saved else 0

    def last(self) -> Saved | None:
        return self.saved

    def due(self) -> bool:
        self._calls += 1
        if self._stop is not None and self._first + self._calls > self._stop:
            raise KeyboardInterrupt
        return self._first + self._calls in self._at

    def save(self, saved) -> None:
        found = saved()
        # what lies in a file does not change any more
        self.saved = Saved(found.iteration, {n: v.clone() for n, v in found.tensors.items()}, found.progress)


def test_every_mini_batch_has_a_quarter_foreground_and_epochs_leave_no_window_out():
    labels = np.repeat([0, 1, 2, -1], [500, 50, 46, 30])
    batches = MiniBatches(labels, Rules(seed=3))
    taken = np.concatenate([batches.rows(i) for i in range(60)]).reshape(60, 128)
    kinds = labels[taken]
    assert ((kinds > 0).sum(axis=1) == 32).all()
    assert ((kinds == 0).sum(axis=1) == 96).all()
    for part, size in ((taken[:, :32], 96), (taken[:, 32:], 500)):
        order = part.reshape(-1)
        epochs = [set(order[i : i + size].tolist()) for i in range(0, len(order) - size + 1, size)]
        assert all(len(epoch) == size for epoch in epochs)  # each window once in an epoch
        first, second = order[:size].tolist(), order[size : 2 * size].tolist()
        assert first != second


def test_a_mini_batch_depends_on_its_iteration_alone():
    labels = windows().labels
    forwards = [MiniBatches(labels, Rules()).rows(i) for i in range(20)]
    batches = MiniBatches(labels, Rules())
    for iteration in (13, 2, 19, 0):
        np.testing.assert_array_equal(batches.rows(iteration), forwards[iteration])
    assert not np.array_equal(MiniBatches(labels, Rules(seed=1)).rows(0), forwards[0])
    assert not np.array_equal(MiniBatches(labels, Rules(), rank=1, workers=2).rows(0), forwards[0][:64])


def test_workers_take_equal_parts_of_both_kinds():
    labels = windows().labels
    for rank in range(4):
        kinds = labels[MiniBatches(labels, Rules(), rank, 4).rows(5)]
        assert ((kinds > 0).sum(), (kinds == 0).sum()) == (8, 24)
    with pytest.raises(ValueError, match="cannot be shared out evenly to 5"):
        MiniBatches(labels, Rules(), 0, 5)


@pytest.mark.parametrize(("labels", "name"), [([0, 0], "foreground"), ([1, 2], "background"), ([-1], "foreground")])
def test_a_kind_that_is_missing_is_named(labels, name):
    with pytest.raises(TrainingError, match=f"no {name} window"):
        MiniBatches(np.array(labels), Rules())


def reference(start: dict[str, np.ndarray], data: TrainingWindows, steps, rules: Rules) -> dict[str, np.ndarray]:
    """Gradient descent with momentum written out, in float64: biases at twice the rate, no decay on fc8's."""
    state = {name: values.astype(np.float64) for name, values in start.items()}
    momenta = {name: np.zeros_like(values) for name, values in state.items() if name != "scale"}
    batches = MiniBatches(data.labels, rules)
    iteration = 0
    for step in steps:
        for _ in range(step.iterations):
            rows = batches.rows(iteration)
            inputs = [data.vectors[rows].astype(np.float64) * state["scale"]]
            for layer in ("fc6", "fc7"):
                inputs.append(np.maximum(inputs[-1] @ state[f"{layer}.weight"].T + state[f"{layer}.bias"], 0))
            logits = inputs[-1] @ state["fc8.weight"].T + state["fc8.bias"]
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            back = odds / odds.sum(axis=1, keepdims=True) - np.eye(CLASSES + 1)[data.labels[rows]]
            back /= len(rows)
            slopes = {}
            for layer, given in zip(("fc8", "fc7", "fc6"), reversed(inputs), strict=True):
                slopes[f"{layer}.weight"], slopes[f"{layer}.bias"] = back.T @ given, back.sum(axis=0)
                back = back @ state[f"{layer}.weight"] * (given > 0)
            for name, slope in slopes.items():
                decay = 0.0 if name == "fc8.bias" else rules.weight_decay
                factor = 2.0 if name.endswith("bias") else 1.0
                momenta[name] = rules.momentum * momenta[name] + slope + decay * state[name]
                state[name] -= step.rate * factor * momenta[name]
            iteration += 1
    return state


def test_training_is_gradient_descent_with_momentum_and_decay():
    rules = Rules(batch=32, weight_decay=0.01, measure_every=7)
    steps = (Step(0.05, 9), Step(0.01, 6))
    trained = head(dropout=0.0)
    wanted = reference(weights(trained), windows(), steps, rules)
    found = train(trained, windows(), steps, rules)
    for name, values in weights(trained).items():
        np.testing.assert_allclose(values, wanted[name], rtol=2e-4, atol=2e-6, err_msg=name)
    assert [(p.iteration, p.rate) for p in found.curve] == [(7, 0.05), (14, 0.01), (15, 0.01)]
    assert found.steps == list(steps)


def test_gradients_reach_the_head_and_nothing_else():
    body = Body(body_spec("alexnet"), load_state(body_spec("alexnet"), "random"))
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    vector = body.conv_map(image, 96).amax(dim=(1, 2)).clone()
    assert not vector.requires_grad
    trained = new_head(256, SIZES, CLASSES + 1, seed=0, rms=1.0)
    before = weights(trained)
    body_before = {name: values.clone() for name, values in body._network.state_dict().items()}
    data = TrainingWindows(np.stack([vector.half().numpy()] * 4), np.array([0, 1, 0, 2]))
    train(trained, data, [Step(0.1, 3)], Rules(batch=8))
    changed = {name for name, values in weights(trained).items() if not np.array_equal(values, before[name])}
    assert changed == {f"fc{n}.{kind}" for n in (6, 7, 8) for kind in ("weight", "bias")}
    assert all(torch.equal(values, body_before[name]) for name, values in body._network.state_dict().items())
    assert all(parameter.grad is None for parameter in body._network.parameters())


def test_what_can_be_learned_is_learned():
    data, held_out = windows(600), windows(200, seed=1)
    trained = head(dropout=0.1)
    found = train(trained, data, [Step(0.05, 400)], Rules(batch=64, measure_every=50), held_out=held_out)
    assert found.curve[-1].loss < 0.5 * found.curve[0].loss
    assert found.curve[-1].held_out_accuracy > 0.95
    assert found.best().held_out_loss == min(point.held_out_loss for point in found.curve)
    assert not trained.training


@pytest.mark.parametrize("stop", [1, 17, 36])
@pytest.mark.parametrize("kind", ["steps", "plateau"])
def test_a_training_taken_up_again_ends_with_the_same_weights(kind, stop):
    schedule = [Step(0.05, 23), Step(0.005, 17)] if kind == "steps" else Plateau(0.05, 40, patience=1, drops=5)
    rules = Rules(batch=32, measure_every=6, seed=5)
    whole = head()
    wanted = train(whole, windows(), schedule, rules, held_out=windows(60, seed=1))
    assert wanted.curve[-1].iteration == 40
    kept = Kept(at=range(0, 40, 1 if stop == 1 else 5), stop=stop)
    with pytest.raises(KeyboardInterrupt):
        train(head(), windows(), schedule, rules, held_out=windows(60, seed=1), checkpoints=kept)
    assert kept.saved is not None
    assert stop - 5 <= kept.saved.iteration <= stop
    torch.manual_seed(99)  # what other code drew does not matter
    again = head(seed=7)  # nor what the weights were
    found = train(again, windows(), schedule, rules, held_out=windows(60, seed=1), checkpoints=Kept(saved=kept.saved))
    for name, values in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], values, err_msg=name)
    assert found == wanted


def test_the_rate_falls_when_the_held_out_loss_stands_still_and_then_the_training_ends():
    data = windows()
    held_out = TrainingWindows(data.vectors, np.roll(data.labels, 1))  # nothing learned helps here
    rules = Rules(batch=32, measure_every=10)
    found = train(head(), data, Plateau(0.1, 10_000, patience=3, drops=2), rules, held_out=held_out)
    rates = [point.rate for point in found.curve]
    assert sorted({round(math.log10(rate)) for rate in rates}) == [-3, -2, -1]
    assert found.curve[-1].iteration < 2_000
    assert sum(step.iterations for step in found.steps) == found.curve[-1].iteration
    # a reference of the rule: count measures without improvement by a thousandth
    best, bad, rate, wanted = math.inf, 0, 0.1, []
    for point in found.curve:
        wanted.append(rate)
        if point.held_out_loss < best * (1 - 1e-3):
            best, bad = point.held_out_loss, 0
        else:
            bad += 1
        if bad == 3:
            rate, bad = rate * 0.1, 0
    assert rates == pytest.approx(wanted)
    cut = found.steps_until(found.best().iteration)
    assert sum(step.iterations for step in cut) == found.best().iteration


def test_a_plateau_needs_held_out_windows():
    with pytest.raises(ValueError, match="held_out"):
        train(head(), windows(), Plateau(0.1, 10), Rules())


def test_a_rate_that_is_too_high_is_named():
    with pytest.raises(Diverged, match="at a learning rate of 1e\\+30"):
        train(head(), windows(), [Step(1e30, 20)], Rules(batch=32, measure_every=5))


def test_measures_weigh_foreground_and_background_as_a_mini_batch_does():
    data = windows(300)
    model = head().eval()
    logits = model(torch.from_numpy(data.vectors).float()).detach().double()
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none").numpy()
    right = logits.argmax(dim=1).numpy() == data.labels
    loss, accuracy = measure(model, data, 0.25, torch.device("cpu"))
    fore, back = data.labels > 0, data.labels == 0
    assert loss == pytest.approx(0.25 * losses[fore].mean() + 0.75 * losses[back].mean(), rel=1e-5)
    assert accuracy == pytest.approx(0.25 * right[fore].mean() + 0.75 * right[back].mean())
    only = TrainingWindows(data.vectors[back], data.labels[back])
    assert measure(model, only, 0.25, torch.device("cpu"))[0] == pytest.approx(losses[back].mean(), rel=1e-5)


def test_training_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    train(head(), windows(), [Step(0.01, 3)], Rules(batch=32))
    assert torch.equal(torch.rand(3), wanted)


def test_the_papers_schedule_is_the_preset():
    assert [(step.rate, step.iterations) for step in PAPER] == [(1e-4, 250_000), (1e-5, 50_000)]
    rules = Rules()
    assert (rules.batch, rules.foreground, rules.momentum, rules.weight_decay) == (128, 0.25, 0.9, 5e-4)


def test_a_checkpoint_holds_plain_numbers_and_tensors():
    kept = Kept(at=[7])
    train(head(), windows(), Plateau(0.05, 10), Rules(batch=32, measure_every=3), held_out=windows(), checkpoints=kept)
    assert json.loads(json.dumps(kept.saved.progress)) == kept.saved.progress
    assert {name.split(".")[0] for name in kept.saved.tensors} == {"head", "momentum"}
    assert head_of({n.removeprefix("head."): v for n, v in kept.saved.tensors.items() if n.startswith("head.")})
