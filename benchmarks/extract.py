"""The whole extraction actor against a bare loop of conv and pooling with nothing read, decoded or written.

    python -m benchmarks.extract [--data DIR] [--images N] [--body NAME] [--rounds N] [--json]

Ours: ``jobs.features.actor.FeatureActor`` in this process, two shards in hand as under Ray: reads proposals and images,
decodes, runs the body once per image and scale, pools, encodes Parquet with zstd, hashes, publishes, commits.
Peer: the same body and pooling on decoded images, into a reused buffer, one image after the other.
The ratio is the share of the bare loop's images/s that the actor keeps; with a second core it can exceed the share
that encoding would leave of one. The phases are the actor's own seconds, over all its threads.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.comparison import report, take_turns, timed_case
from benchmarks.pooling import VOC_SUBSET
from jobs.config.features import FeaturesConfig
from jobs.config.proposals import ProposalsConfig
from jobs.dataset.image_file import ImageFile, read_image
from jobs.features.actor import FeatureActor
from jobs.features.body import load_body
from jobs.features.method import file_metadata, vector_length
from jobs.features.shard import ActorSettings, ExtractShard
from jobs.proposals.task import ProposeShard, propose_shard
from pipeline.boxes import Boxes
from pipeline.phases import PhaseClock
from storage.columns import boxes_of, vectors_of
from storage.commits import Commit
from storage.identity import sha256
from storage.root import Root, open_root
from storage.scan import scan_file
from storage.shards import shard_key

METHOD = "0123456789ab"


@dataclass(frozen=True)
class Prepared:
    """Images with their committed proposals, in shards as ``spp run`` would cut them."""

    root: Root
    shards: list[tuple[tuple[ImageFile, ...], Commit]]

    def boxes(self) -> dict[str, Boxes]:
        """Image id to its proposals."""
        found = {}
        for _, commit in self.shards:
            for table in scan_file(self.root, f"proposals/{METHOD}/{commit.data}"):
                found[table["image_id"][0].as_py()] = boxes_of(table["box"])
        return found


def prepare(root: Root, pictures: list[Path], per_shard: int) -> Prepared:
    """Propose windows for the pictures: up to 2,000 an image by selective search."""
    files = [ImageFile(p.stem, str(p), f"sha256:{sha256(p.read_bytes())}") for p in pictures]
    shards = []
    for start in range(0, len(files), per_shard):
        part = tuple(files[start : start + per_shard])
        key = shard_key([(file.image_id, file.digest) for file in part])
        work = ProposeShard(
            root=root,
            method=METHOD,
            shard=key,
            revision=0,
            images=part,
            storage_options={},
            config=ProposalsConfig(),
            producer="benchmark",
        )
        commit = propose_shard(work)
        assert commit is not None
        shards.append((part, commit))
    return Prepared(root, shards)


def main() -> int:
    """Run the benchmark; returns 1 if both sides pooled different numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=VOC_SUBSET, help="folder of JPEG images")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--body", default="efficientnet_lite0")
    parser.add_argument("--scales", type=int, nargs="+", default=[480])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    weights = "default" if options.body == "efficientnet_lite0" else "random"
    config = FeaturesConfig(body=options.body, weights=weights, scales=tuple(options.scales))
    loaded = load_body(config)
    with tempfile.TemporaryDirectory(prefix="spp-benchmark-") as folder:
        root = open_root(folder)
        prepared = prepare(root, sorted(options.data.glob("*.jpg"))[: options.images], per_shard=4)
        settings = ActorSettings(
            root=root,
            config=config,
            device="cpu",
            threads=1,
            decode_threads=2,
            decode_ahead=4,
            max_boxes=2000,
            storage_options={},
            producer="benchmark",
        )
        actor = FeatureActor(settings, {name: values.numpy() for name, values in loaded.state.items()})
        metadata = file_metadata(config, loaded, METHOD, "benchmark")
        boxes = prepared.boxes()
        images = {file.image_id: read_image(file, {}) for part, _ in prepared.shards for file in part}
        buffer = np.empty((2000, vector_length(config, loaded.identity)), np.float16)
        extractor = actor._ring.extractor
        phases: list[dict[str, float]] = []

        def ours() -> list[Commit]:
            shutil.rmtree(Path(folder) / "features", ignore_errors=True)
            works = [
                ExtractShard(
                    dataset="features",
                    method=METHOD,
                    shard=commit.shard,
                    revision=0,
                    images=part,
                    metadata=metadata,
                    proposals=commit.name,
                    proposals_method=METHOD,
                )
                for part, commit in prepared.shards
            ]
            with ThreadPoolExecutor(2) as hands:
                commits = [commit for commit in hands.map(actor.extract, works) if commit is not None]
            phases.append(_sum(commits))
            return commits

        def peer() -> None:
            extractor.clock = PhaseClock()
            for image_id, image in images.items():
                extractor(image, boxes[image_id], out=buffer)

        samples = take_turns({"ours": ours, "peer": peer}, options.rounds)
        equal = all(
            np.array_equal(
                np.concatenate([_bits(table["feature"]) for table in tables]),
                extractor(images[image_id], boxes[image_id]).vectors.view(np.uint16),
            )
            for image_id, tables in _stored(root, ours()).items()
        )
        case = timed_case(f"{len(images)} images", samples, equal)
        seconds = phases[len(phases) // 2]
        each = ", ".join(f"{phase} {value / len(images):.3f}" for phase, value in sorted(seconds.items()))
        windows = np.mean([len(b) for b in boxes.values()])
        notes = [
            f"{options.body}, scales {options.scales}, {windows:,.0f} windows an image",
            f"actor {len(images) / case.ours:.2f} images/s, bare loop {len(images) / (case.peer or 1):.2f} images/s",
            f"the actor's seconds an image: {each}",
        ]
        return report("extraction: whole actor against bare conv + pool", notes, [case], options.json)


def _sum(commits: list[Commit]) -> dict[str, float]:
    total: dict[str, float] = {}
    for commit in commits:
        for phase, value in commit.seconds.items():
            total[phase] = total.get(phase, 0.0) + value
    return total


def _stored(root: Root, commits: list[Commit]) -> dict[str, list]:
    tables: dict[str, list] = {}
    for commit in commits:
        for table in scan_file(root, f"features/{METHOD}/{commit.data}", ["image_id", "feature"]):
            tables.setdefault(table["image_id"][0].as_py(), []).append(table)
    return tables


def _bits(column) -> np.ndarray:
    return vectors_of(column).view(np.uint16)


if __name__ == "__main__":
    raise SystemExit(main())
