"""What a worker of pretrain does: it trains a network on labelled images and publishes it, and it tests one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from jobs.config.pretrain import PretrainConfig
from jobs.dataset.image_file import ImageFile, block_of, read_image
from jobs.execution.checkpoints import StoredCheckpoints
from jobs.execution.training import tell_driver
from jobs.record.publish import publish
from jobs.record.versions import PRODUCER
from pipeline.bodies import body_spec
from pipeline.bodies.classifier import over_array
from pipeline.errors import ContentError, ImageError
from pipeline.images.decode import RGB
from pipeline.network.spp_network import SppNetwork, network_of, new_network, pooling_levels
from pipeline.phases import PhaseClock
from pipeline.training.augmentation import SHORT_SIDE
from pipeline.training.mini_batches import LabelledImages
from pipeline.training.pretraining import EpochPoint, hits, train
from pipeline.training.scored_views import ScoredView, needed_side, score_views
from storage.commits import LedgerRow
from storage.root import Root
from storage.schemas import schema
from storage.tensors import drop_checkpoints, read_tensors, write_tensors

Counts = dict[ScoredView, tuple[int, int]]

PHASE = "train"
"""The unit that the curve's rows count under."""

_SCORED = 32
"""Images that are decoded, and then scored, together."""


@dataclass(frozen=True)
class LabelledFiles:
    """Images of the index with their classes. It can be sent to another process, however many there are.

    ``table`` has the columns image_id, uri, digest, height and width; ``labels`` is int64 (N,).
    """

    table: pa.Table
    labels: NDArray[np.int64]
    storage_options: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: NDArray[np.int64]) -> LabelledFiles:
        """Some of them, in the order of ``rows``."""
        return LabelledFiles(self.table.take(pa.array(rows)), self.labels[rows], self.storage_options)

    def file(self, number: int) -> ImageFile:
        """One of them."""
        row = {name: self.table[name][number].as_py() for name in self.table.column_names}
        return ImageFile(row["image_id"], row["uri"], row["digest"], (row["height"], row["width"]))

    def read(self, number: int, least: int) -> RGB:
        """The pixels of one of them, decoded at a short side of ``least`` or more."""
        return read_image(self.file(number), self.storage_options, least)

    def images(self) -> LabelledImages:
        """What a training sees of them."""
        blocks = [block_of(uri) for uri in self.table["uri"].to_pylist()]
        if None in blocks:
            return LabelledImages(self.labels, self.read)
        return LabelledImages(self.labels, self.read, np.unique(np.array(blocks), return_inverse=True)[1])

    def ledger(self, failed: Mapping[int, ContentError]) -> list[LedgerRow]:
        """The ledger rows of images that could not be read."""
        return [self.file(number).ledger_row("pretrain", error) for number, error in sorted(failed.items())]

    def looked_into(self, unread: Sequence[int]) -> list[LedgerRow]:
        """The same of images that some worker could not read: each is read once more, to say why."""
        return self.ledger({number: self._why_unread(number) for number in unread})

    def _why_unread(self, number: int) -> ContentError:
        try:
            self.read(number, SHORT_SIDE)
        except ContentError as error:
            return error
        return ImageError("it could not be read at some time of the training, and can be now")


@dataclass(frozen=True, kw_only=True)
class TrainNetwork:
    """All that a worker needs to know, but for the images. ``body`` and ``levels``: of the network."""

    root: Root
    method: str
    body: str
    levels: tuple[int, ...]
    classes: int
    config: PretrainConfig
    device: str
    threads: int
    decode_threads: int
    checkpoint_seconds: float
    most_failed: float
    metadata: dict[str, str]


def train_network(
    work: TrainNetwork,
    files: tuple[LabelledFiles, LabelledFiles],
    rank: int = 0,
    workers: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> None:
    """Train and publish the network, on the first of ``files``, measured on the second; one of ``workers``.

    Raises TrainingError, for which another attempt is of no use.
    """
    torch.set_num_threads(work.threads)
    cv2.setNumThreads(1)  # images are decoded side by side
    clock, config = PhaseClock(), work.config
    own, held_out = files
    network = new_network(
        body_spec(work.body),
        config.pooling,
        work.levels,
        work.classes,
        sizes=config.fc_sizes,
        initial=config.initial,
        dropout=config.dropout,
        seed=config.seed,
    )

    def watch(point: EpochPoint) -> None:
        if rank == 0:
            tell_driver(work, asdict(point))

    with clock.phase("train"):
        trained = train(
            network,
            own.images(),
            config.recipe(),
            held_out=held_out.images(),
            checkpoints=StoredCheckpoints(work.root, work.method, work.device, work.checkpoint_seconds, rank, workers),
            wrap=wrap,
            rank=rank,
            workers=workers,
            device=work.device,
            threads=work.decode_threads,
            cache_bytes=config.cache_mb * 1_000_000,
            most_failed=work.most_failed,
            watch=watch,
        )
    if rank == 0:
        ledger = own.looked_into(trained.unread) + held_out.looked_into(trained.held_out_unread)
        _publish(work, network, trained.curve, ledger, clock.seconds)
        drop_checkpoints(work.root, work.method)


def described(point: Mapping[str, Any]) -> str:
    """A point of the curve in words."""
    size = f"{point['size']} px" if point["size"] else "sizes from 180 to 224 px"
    held_out = ""
    if point["top1"] is not None:
        held_out = f", held-out loss {point['held_out_loss']:.4f}, top-1 {point['top1']:.3f}, top-5 {point['top5']:.3f}"
    return f"epoch {point['epoch']}, {size}, at {point['rate']:g}: loss {point['loss']:.4f}{held_out}"


def _publish(
    work: TrainNetwork,
    network: SppNetwork,
    curve: Sequence[EpochPoint],
    ledger: Sequence[LedgerRow],
    seconds: Mapping[str, float],
) -> None:
    """Write the curve and the network; the network last: with it the training is done."""
    rows = [
        {
            "phase": PHASE,
            "epoch": point.epoch,
            "size": point.size,
            "learning_rate": point.rate,
            "loss": point.loss,
            "held_out_loss": point.held_out_loss,
            "top1": point.top1,
            "top5": point.top5,
        }
        for point in curve
    ]
    table = pa.Table.from_pylist(rows, schema=schema("pretraining_curve", metadata={"method": work.method}))
    root, method = work.root, work.method
    counts = {PHASE: len(rows)}
    publish(root, "pretraining_curve", method, table, counts, ledger=ledger, seconds={})
    tensors = {name: values.float().numpy() for name, values in network.exported().items()}
    write_tensors(root, "network", method, method, tensors, work.metadata, seconds=seconds, producer=PRODUCER)


def stored_network(root: Root, key: str, body: str, levels: Sequence[int], *, fixed: bool) -> SppNetwork:
    """The network in a data file of the dataset ``network``."""
    state = {name: over_array(values) for name, values in read_tensors(root, key).items()}
    return network_of(body_spec(body), state, pooling_levels("fixed" if fixed else "spp", levels), fixed=fixed)


@dataclass(frozen=True, kw_only=True)
class ScoreNetwork:
    """A network to be tested: the file of it, and how."""

    root: Root
    key: str
    body: str
    levels: tuple[int, ...]
    fixed: bool
    mapping: str
    views: tuple[ScoredView, ...]
    device: str
    threads: int
    decode_threads: int


def score_network(work: ScoreNetwork, files: LabelledFiles) -> tuple[Counts, list[LedgerRow]]:
    """View to how many images' classes are the first, and among the first five; and the images that cannot be read."""
    torch.set_num_threads(work.threads)
    cv2.setNumThreads(1)
    network = stored_network(work.root, work.key, work.body, work.levels, fixed=work.fixed).to(work.device)
    counts = {view: np.zeros(2, np.int64) for view in work.views}
    failed: dict[int, ContentError] = {}
    least = max(needed_side(view) for view in work.views)

    def decoded(number: int) -> RGB | None:
        try:
            return files.read(number, least)
        except ContentError as error:
            failed[number] = error
            return None

    with ThreadPoolExecutor(work.decode_threads) as pool:
        parts = [range(start, min(start + _SCORED, len(files))) for start in range(0, len(files), _SCORED)]
        waiting = [pool.submit(decoded, number) for number in parts[0]] if parts else []
        for part, following in zip(parts, [*parts[1:], range(0)], strict=True):
            images = [future.result() for future in waiting]
            waiting = [pool.submit(decoded, number) for number in following]
            kept = [(image, number) for image, number in zip(images, part, strict=True) if image is not None]
            labels = torch.from_numpy(files.labels[[number for _, number in kept]])
            for view in work.views:
                scores = score_views(network, [image for image, _ in kept], view, mapping=work.mapping)  # type: ignore[arg-type]
                first, five = hits(torch.from_numpy(scores), labels)
                counts[view] += [int(first.sum()), int(five.sum())]
    found = {view: (int(first), int(five)) for view, (first, five) in counts.items()}
    return found, files.ledger(failed)
