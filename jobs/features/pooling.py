"""materialise: vectors of stored conv maps, for who wants to query them.

    spp extract --set features.store=vectors    (on a run that stores maps)

Touches neither images nor a body.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from jobs.features.shard import ExtractShard
from jobs.features.stored import pool_maps, with_vectors
from pipeline.phases import PhaseClock
from storage.commits import Commit, data_key, read_commits
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import schema
from storage.writer import ShardWriter


@dataclass(frozen=True)
class MaterialiseShard:
    """A shard of ``features`` to make from stored windows and maps."""

    root: Root
    work: ExtractShard
    producer: str


def materialise_shard(shard: MaterialiseShard) -> Commit | None:
    """Vectors of one shard from its windows and maps; touches neither images nor a body."""
    root, work = shard.root, shard.work
    assert work.windows is not None
    assert work.maps is not None
    clock = PhaseClock()
    (stored,) = read_commits(root, "windows", work.method, [work.windows])
    windows_key = data_key("windows", work.method, work.windows)
    maps_key = data_key("maps", work.method, work.maps)
    levels = [int(level) for level in work.metadata["levels"].split(",")]
    layout = schema("features", work.dim, work.metadata)
    with ShardWriter(root, "features", work.method, work.shard, layout, revision=work.revision) as writer:
        for image_id, count in stored.images.items():
            if not count:
                writer.write_image(image_id, None)
                continue
            with clock.phase("read"):
                windows = pa.concat_tables(scan_file(root, windows_key, None, [image_id])).combine_chunks()
                maps = pa.concat_tables(scan_file(root, maps_key, None, [image_id]))
            with clock.phase("pool"):
                vectors = pool_maps(windows, maps, levels)
            with clock.phase("encode"):
                writer.write_image(image_id, with_vectors(windows, vectors).cast(layout))
        return writer.commit(
            ledger=stored.ledger,
            skipped=stored.skipped,
            upstream=stored.upstream,
            seconds=clock.seconds,
            producer=shard.producer,
        )
