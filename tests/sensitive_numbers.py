"""Numbers that a kind of processor, or a number of threads, could change: every product that the package makes.

A program: ``python -m tests.sensitive_numbers FILE.npz`` computes them as this process is set up (``OMP_NUM_THREADS``,
``ATEN_CPU_CAPABILITY`` and the like are read when the libraries are loaded). ``computed()`` does the same in a test.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bodies import BODIES, Body, load_state
from pipeline.detection import box_regression
from pipeline.detection.gram import gram
from pipeline.detection.scoring import LinearScorer, mean_norm
from pipeline.detection.svm import DualSolver, LinearSvcSolver, SvmProblem, solve_products
from pipeline.features.regions import RegionExtractor
from pipeline.features.warping import WarpExtractor
from pipeline.measures.classification import products
from pipeline.network.head import Embedder, compressed, new_head
from pipeline.network.spp_network import new_network
from pipeline.proposals.methods import propose, seed_of
from pipeline.proposals.selective_search import SelectiveSearch
from pipeline.training import finetuning
from pipeline.training.scored_views import score_views

Numbers = dict[str, NDArray]

EXACT = ("proposals",)
"""The same on every kind of processor: whole numbers, computed in whole numbers."""

SOLVED = ("dual svm", "dual svm of many", "linear svc", "shared svms")
"""By solvers that stop at a gap of 1e-4, to which other last digits take other steps."""


def tolerance(name: str, values: NDArray) -> float:
    """By how much of the largest number kinds of processor may differ. The last digit of a float16 is 1e-3 of it."""
    return 1e-3 if name in SOLVED else 2e-3 if values.dtype == np.float16 else 1e-5


def vectors(count: int, dim: int, seed: int = 0) -> NDArray[np.float16]:
    """Vectors as after a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((count, dim)), 0).astype(np.float16)


def picture(height: int = 150, width: int = 211) -> NDArray[np.uint8]:
    """Patches of colour with noise."""
    random = np.random.default_rng(5)
    patches = random.integers(0, 200, (height // 25 + 1, width // 25 + 1, 3)).repeat(25, 0).repeat(25, 1)
    return (patches[:height, :width] + random.integers(0, 56, (height, width, 3))).astype(np.uint8)


def of_scores() -> Numbers:
    """Scores of windows of a length at which MKL cuts a product across its sum."""
    weights = np.random.default_rng(1).standard_normal((20, 1600)) / 40
    rows = vectors(150, 1600)
    return {"scores": LinearScorer(weights, np.zeros(20), 1.0)(rows), "norm": np.array([mean_norm(rows)])}


def of_the_head() -> Numbers:
    """Layers of a head with more columns than a block, whole and truncated, and its weights after some training."""
    rows, found = vectors(200, 1600), {}
    head = new_head(1600, (700, 64), 4, seed=0, rms=1.0)
    for name, network in {"": head, ", truncated": compressed(head, (100, 16))}.items():
        for layer in ("fc6", "fc7", "fc8"):
            found[f"{layer}{name}"] = Embedder(copy.deepcopy(network), layer)(rows)
    rules = finetuning.Rules(batch=32, measure_every=4)
    windows = finetuning.TrainingWindows(rows, np.arange(200) % 4)
    finetuning.train(head.requires_grad_(True), windows, (finetuning.Step(0.01, 4),), rules)
    return found | {f"trained {name}": values.detach().numpy() for name, values in head.state_dict().items()}


def of_gram() -> Numbers:
    """Products of examples, and the same of examples in another order: two names for the same numbers."""
    rows, order = vectors(500, 1601, 3).astype(np.float32), np.random.default_rng(4).permutation(500)
    back = np.argsort(order)
    return {"gram": gram(rows), "gram in another order": gram(rows[order])[np.ix_(back, back)]}


def of_svms() -> Numbers:
    """Weights of SVMs by each solver, of vectors so long that BLAS shares out a product of two."""
    rows, positive = vectors(120, 12_800), np.arange(120) % 5 == 0
    scaled = (rows.astype(np.float32) * 20 / mean_norm(rows)).astype(np.float32)
    of_products = DualSolver().fit(scaled, positive, SvmProblem())
    many = vectors(3200, 4000).astype(np.float32)
    of_examples = DualSolver().fit(many, np.arange(3200) % 5 == 0, SvmProblem())
    linear = LinearSvcSolver().fit(scaled.astype(np.float64), positive, SvmProblem())
    kernel = products(rows)
    both = np.stack([positive, ~positive], axis=1)
    shared, _ = solve_products(kernel, both, SvmProblem(C=1.0), threads=torch.get_num_threads())
    return {
        "dual svm": np.append(of_products.weight, [of_products.bias, of_products.objective.total]),
        "dual svm of many": np.append(of_examples.weight, [of_examples.bias, of_examples.objective.total]),
        "linear svc": np.append(linear.weight, [linear.bias, linear.objective.total]),
        "products": np.concatenate([kernel, products(vectors(600, 5000))[:120, :120]]),
        "shared svms": shared,
    }


def of_box_regression() -> Numbers:
    """Both forms, and what they predict."""
    rows = vectors(160, 2000)
    deltas = np.random.default_rng(2).standard_normal((160, 4))
    found = {}
    for form in ("primal", "dual"):
        regressor = box_regression.fit(rows, deltas, 1000.0, form=form)
        found[f"{form} regressor"] = np.append(regressor.weights.ravel(), regressor.bias)
        found[f"{form} deltas"] = regressor.predict_deltas(rows)
    return found


def of_bodies() -> Numbers:
    """Maps, vectors and layers, of bodies with convolutions of every kind."""
    image, found = picture(), {}
    boxes = np.array([[0, 0, 211, 150], [10, 20, 90, 140], [100, 5, 200, 60]], np.float32)
    for name in ("zf5", "squeezenet1_1", "efficientnet_lite0", "resnet50"):
        spec = BODIES[name]
        body = Body(spec, load_state(spec, "random"))
        found[f"map {name}"] = body.conv_map(image, 150).numpy()
        if name == "squeezenet1_1":
            found["vectors"] = RegionExtractor(body, (96, 150))(image, boxes).vectors
            found["warped"] = WarpExtractor(body, (3, 1), batch=2)(image, boxes).vectors
            found["fewer warped"] = WarpExtractor(body, (3, 1), batch=2)(image, boxes[:1]).vectors
    network = new_network(
        BODIES["squeezenet1_1"], "spp", (3, 1), 3, sizes=(16, 8), initial="he", dropout=0.5, seed=0
    ).eval()
    for view in ("1-crop", "2-full"):
        found[f"said of {view}"] = score_views(network, [image, image[::-1]], view)
    return found


def of_engines() -> Numbers:
    """Maps by OpenVINO, where it is installed, of a body that computes as many at once as there are threads."""
    found: Numbers = {}
    if importlib.util.find_spec("openvino") is None:
        return found
    for name in ("zf5", "squeezenet1_1", "efficientnet_lite0", "resnet50"):
        spec = BODIES[name]
        body = Body(spec, load_state(spec, "random"), engine="openvino", at_once=torch.get_num_threads())
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            maps = pool.map(lambda scale, body=body: body.conv_map(picture(), scale), (150, 97, 120))
            found |= {f"openvino map {name} {i}": conv_map.numpy() for i, conv_map in enumerate(maps)}
    return found


def of_proposals() -> Numbers:
    """Boxes of selective search."""
    return {"proposals": propose(SelectiveSearch(), picture(), seed_of("a", 0)).boxes}


PIECES: tuple[Callable[[], Numbers], ...] = (
    of_scores,
    of_the_head,
    of_gram,
    of_svms,
    of_box_regression,
    of_bodies,
    of_engines,
    of_proposals,
)


def computed() -> Numbers:
    """All of them."""
    return {name: values for piece in PIECES for name, values in piece().items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], **computed())
