"""The task of propose: the proposals of one shard of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.config.proposals import ProposalsConfig
from jobs.dataset.image_file import ImageFile, read_image
from jobs.shards.attempt import ShardAttempt
from jobs.shards.last_revision import Earlier
from storage.columns import box_column
from storage.commits import Commit, LedgerRow
from storage.schemas import schema

if TYPE_CHECKING:
    from pipeline.boxes import Boxes
    from pipeline.proposals.ranked_boxes import RankedBoxes


@dataclass(frozen=True, kw_only=True)
class ProposeShard(ShardAttempt):
    """All that a task needs to know of its shard."""

    images: tuple[ImageFile, ...]
    storage_options: dict[str, Any]
    config: ProposalsConfig
    producer: str
    boxes: Mapping[str, Boxes] | None = None
    """Of method file: image id to its boxes, best first."""


def propose_shard(work: ProposeShard) -> Commit | None:
    """Propose boxes for the images of a shard and commit them (in a trial of one image alone: leave nothing)."""
    import cv2

    from pipeline.errors import ContentError
    from pipeline.phases import PhaseClock
    from pipeline.proposals.methods import keep_given, propose, seed_of
    from pipeline.proposals.ranked_boxes import RankedBoxes

    cv2.setNumThreads(1)
    clock = PhaseClock()
    config = work.config
    method = config.proposal_method() if work.boxes is None else None
    ledger: list[LedgerRow] = work.trial.ledger("propose")
    earlier = Earlier(work.root, work.method, work.trial)
    columns = schema("proposals", metadata={"method": work.method, "producer": work.producer})
    with work.writer("proposals", columns) as writer:
        if method is not None and not all(file.image_id in earlier.images for file in work.images):
            with clock.phase("warm up"):
                method.warm_up()
        for file in work.trial.images(work.images):
            if file.image_id in earlier.images:
                known = earlier.rows("proposals", file.image_id)
                writer.write_image(file.image_id, known)
                if known is None:
                    ledger.append(_no_boxes(file, config))
                continue
            try:
                if method is None:
                    assert work.boxes is not None
                    assert file.size is not None
                    given = work.boxes.get(file.image_id)
                    found = RankedBoxes(keep_given(given, *file.size, max_boxes=config.max_per_image))
                else:
                    with clock.phase("decode"):
                        image = read_image(file, work.storage_options)
                    with clock.phase("propose"):
                        found = propose(
                            method,
                            image,
                            seed_of(file.image_id, config.seed),
                            min_side=config.min_side,
                            max_boxes=config.max_per_image,
                            max_side=config.max_side,
                        )
            except ContentError as error:
                ledger.append(file.ledger_row("propose", error))
                continue
            if not len(found):
                ledger.append(_no_boxes(file, config))
            with clock.phase("encode"):
                writer.write_image(file.image_id, _rows(file.image_id, found, config.method, columns))
        if work.trial.alone is not None:
            return None
        return writer.commit(ledger=ledger, seconds=clock.seconds, producer=work.producer)


def _rows(image_id: str, found: RankedBoxes, method: str, columns: pa.Schema) -> pa.Table:
    count = len(found)
    places = pa.array(np.arange(count, dtype=np.int32))
    if found.strategies is None:
        strategies = pa.nulls(count, pa.string())
    else:
        strategies = pa.array(found.names, pa.string()).take(pa.array(found.strategies))
    levels = pa.nulls(count, pa.int32()) if found.levels is None else pa.array(found.levels)
    rows = {
        "image_id": pa.repeat(image_id, count),
        "proposal_id": places,
        "box": box_column(found.boxes),
        "method": pa.repeat(method, count),
        "rank": places,
        "strategy": strategies,
        "level": levels,
    }
    return pa.Table.from_pydict(rows, schema=columns)


def _no_boxes(file: ImageFile, config: ProposalsConfig) -> LedgerRow:
    source = f" in {config.file}" if config.method == "file" else ""
    text = f"{file.uri}: no proposals{source}, and so no features"
    return LedgerRow(image_id=file.image_id, stage="propose", type="NoProposals", message=text, level="note")
