"""Runs of a root against the first of them: mean AP, with paired bootstrap intervals, and seconds of the body.

    python -m benchmarks.paired ROOT RUN OTHER [OTHER ...] [--samples N]

What another engine or precision costs in mAP, in three commands (``dataset.path`` and scales as you like):

    spp run --config configs/raccoon_kangaroo.yaml --root R --run float32
    spp run --config configs/raccoon_kangaroo.yaml --root R --run bfloat16 --set features.engine=openvino \
        --set features.precision=bfloat16
    python -m benchmarks.paired R float32 bfloat16

Index and proposals are shared. ``conv`` is in worker seconds an image, of the features as the runs' commits have them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jobs.compare.measured_run import check_same, matched_detections, read_measured
from pipeline.measures.bootstrap import SAMPLES, bootstrap_maps, difference_interval, interval
from storage.root import open_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs; UsageError or StorageError if they cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N")
    options = parser.parse_args(arguments)
    root = open_root(options.root)
    first, *others = runs = [read_measured(root, name) for name in options.runs]
    for other in others:
        check_same(first, other)
    images = first.image_ids
    matched = [matched_detections(root, run.record, run.config, first.index, images) for run in runs]
    thresholds = first.config.evaluate.thresholds
    whole = bootstrap_maps(matched, len(images), samples=options.samples, thresholds=thresholds).map_11
    table = Table(title=f"mean AP (11-point, %) on {len(images)} test images, 95% intervals", title_justify="left")
    table.add_column("run", no_wrap=True)
    for heading in ("mAP", "interval", f"less {first.name}", "interval", "conv s/image"):
        table.add_column(heading, justify="right", no_wrap=True)
    values = [run.record.datasets["metrics"].quality.map_11 for run in runs]  # type: ignore[union-attr]
    for run, value, resampled in zip(runs, values, whole, strict=True):
        low, high = difference_interval(resampled, whole[0])
        features = next(run.record.datasets[name] for name in ("windows", "features") if name in run.record.datasets)
        table.add_row(
            run.name,
            f"{100 * value:.2f}",
            "{:.1f} to {:.1f}".format(*(100 * end for end in interval(resampled))),
            "" if run is first else f"{100 * (value - values[0]):+.2f}",
            "" if run is first else f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{features.seconds.get('conv', 0.0) / max(1, features.images):.4f}",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
