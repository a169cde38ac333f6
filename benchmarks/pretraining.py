"""Training with and without SPP, at one size and at two, from the same seed on the same images (paper Table 2).

    python -m benchmarks.pretraining --data ../shared/data/caltech12

A folder per class. For each row of the paper's table a ZF-5 is trained from scratch on the CPU: without SPP, with SPP
at 224, and with SPP in epochs of 224 and 180 in turn. Shown are the last epoch's training loss, and the share of
held-out images that are named rightly: of the centre crop at 224, of the same at 180, and of the whole image, its short
side 256. Without SPP a network takes nothing but 224. A row is good when its loss is below half of that of guessing,
ln(classes), and each share at least three times that of guessing; the exit code says whether all are.

Decoded images stay in memory. On two cores 40 epochs of 580 images took some 22 minutes a row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from jobs.console.tables import print_table
from jobs.dataset.objects import is_held_out
from pipeline.bodies import body_spec
from pipeline.images.decode import RGB, decode_image
from pipeline.network.spp_network import new_network
from pipeline.training.mini_batches import LabelledImages
from pipeline.training.pretraining import EpochPoint, Recipe, hits, train
from pipeline.training.scored_views import score_views

ROWS = {
    "no SPP": ("fixed", "single"),
    "SPP single-size": ("spp", "single"),
    "SPP multi-size": ("spp", "multi"),
}
VIEWS = {"224": "1-crop", "180": "1-crop-180", "full": "1-full"}


@dataclass(frozen=True)
class Outcome:
    """A row: last training loss, share named rightly by size (None: that cannot be), seconds of training."""

    loss: float
    shares: dict[str, float | None]
    seconds: float
    good: bool


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    paths = sorted(path for path in options.data.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = sorted({path.parent.name for path in paths})
    ids = {path: f"{path.parent.name}/{path.stem}" for path in paths}  # as jobs.dataset.index names them
    held_out = [path for path in paths if is_held_out(options.held_out, options.seed, ids[path])]
    trained_on = sorted(set(paths).difference(held_out))
    images, tested = _images(trained_on, names), _images(held_out, names)
    best_loss, best_share = math.log(len(names)) / 2, 3 / len(names)
    found: dict[str, Outcome] = {}
    for row in options.rows:
        pooling, sizes = ROWS[row]
        network = new_network(
            body_spec(options.body),
            pooling,  # type: ignore[arg-type]
            options.pyramid,
            len(names),
            sizes=(options.fc, options.fc),
            initial=options.initial,
            seed=options.seed,
        )
        recipe = Recipe(
            epochs=options.epochs,
            batch=options.batch,
            rate=options.rate,
            patience=options.epochs,  # as many epochs for each
            sizes=sizes,  # type: ignore[arg-type]
            seed=options.seed,
        )

        def watch(point: EpochPoint, row: str = row) -> None:
            print(f"{row}: epoch {point.epoch}, {point.size} px: loss {point.loss:.3f}", file=sys.stderr, flush=True)

        start = time.perf_counter()
        curve = train(network, images, recipe, threads=options.threads, cache_bytes=10**10, watch=watch).curve
        seconds = time.perf_counter() - start
        shares: dict[str, float | None] = {}
        for size, view in VIEWS.items():
            shares[size] = None
            if pooling == "spp" or size == "224":
                scores = score_views(network, [tested.read(i, 256) for i in range(len(tested))], view)  # type: ignore[arg-type]
                right = hits(torch.from_numpy(scores), torch.from_numpy(tested.labels))[0]
                shares[size] = float(right.float().mean())
        good = curve[-1].loss < best_loss and all(s is None or s >= best_share for s in shares.values())
        found[row] = Outcome(curve[-1].loss, shares, seconds, good)
    print(
        f"{options.body} on {len(images)} images of {len(names)} classes, {len(tested)} held out; {options.epochs} "
        f"epochs of batch {options.batch} at {options.rate:g}, {options.initial} initialisation, fc6 and fc7 of "
        f"{options.fc}, pyramid {list(options.pyramid)}, seed {options.seed}"
    )
    cells = [
        (
            row,
            f"{outcome.loss:.3f}",
            *("-" if share is None else f"{100 * share:.1f}" for share in outcome.shares.values()),
            f"{outcome.seconds / 60:.0f}",
            "yes" if outcome.good else "no",
        )
        for row, outcome in found.items()
    ]
    print_table(("network", "training loss", *(f"top-1 % at {size}" for size in VIEWS), "minutes", "good"), cells, 1)
    print(f"needed: loss below {best_loss:.3f} (half of ln {len(names)}), shares from {100 * best_share:.1f} %")
    if options.json:
        rows = {row: asdict(outcome) for row, outcome in found.items()}
        print(json.dumps({"rows": rows, "loss_limit": best_loss, "share_limit": best_share}))
    return 0 if all(outcome.good for outcome in found.values()) else 1


def _images(paths: list[Path], names: list[str]) -> LabelledImages:
    def read(number: int, least: int) -> RGB:
        return decode_image(paths[number].read_bytes(), least=least)

    return LabelledImages(np.array([names.index(path.parent.name) for path in paths], np.int64), read)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder of images per class")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--body", default="zf5")
    parser.add_argument("--pyramid", type=int, nargs="+", default=(6, 3, 2, 1))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--fc", type=int, default=512)
    parser.add_argument("--initial", choices=("gaussian", "he"), default="he")
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
