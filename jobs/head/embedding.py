"""How a layer's outputs are stored: the work of embed, one shard of features after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray

from jobs.execution.session import RaySession
from jobs.features.stored import FeatureShard, feature_shards
from jobs.head.stored import StoredHead, network_layer, read_head
from jobs.record.invocation import Invocation
from jobs.record.stage import Assignment
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import ShardAttempt
from jobs.shards.crews import TaskCrew
from jobs.shards.make import ShardMaker, works_on
from jobs.shards.survey import Survey
from pipeline.network.head import Embedder
from pipeline.phases import PhaseClock
from storage.columns import vector_column, vectors_of
from storage.commits import Commit
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN, schema
from storage.shards import Shard


@dataclass(frozen=True, kw_only=True)
class EmbedShard(ShardAttempt):
    """The images of one shard, and where their vectors are: features, or a file of truth_features."""

    dataset: str
    images: tuple[str, ...]
    source: FeatureShard | str
    layer: str

    def scan(self, image_ids: list[str]) -> Iterator[pa.Table]:
        """Rows with pooled vectors, row group by row group."""
        if isinstance(self.source, FeatureShard):
            return self.source.scan(image_ids)
        return scan_file(self.root, self.source, None, image_ids)


def makers_of(assignment: Assignment, surveys: Sequence[Survey]) -> list[ShardMaker]:
    """How the missing shards of both datasets are made: by tasks, each with the run's head."""
    invocation, record, layer = assignment.invocation, assignment.record, assignment.context.config.svm.layer
    root = invocation.root
    sources = _sources(root, record)

    def make(dataset: str, shard: Shard, attempt: ShardAttempt) -> EmbedShard:
        source = sources[dataset][shard.key]
        return EmbedShard(**vars(attempt), dataset=dataset, images=shard.image_ids, source=source, layer=layer)

    crews = {"embed": lambda: _crew(invocation, record, assignment.session)}
    return [
        ShardMaker(found, partial(works_on, root, "embed", partial(make, found.dataset.name)), crews)
        for found in surveys
    ]


def embed_shard(work: EmbedShard, head: StoredHead, device: str) -> Commit | None:
    """The layer's outputs of one shard, committed (in a trial of one image alone: made, and dropped)."""
    clock = PhaseClock()
    embedder = head.embedder(network_layer(work.layer), device)
    metadata = {"method": work.method, "layer": work.layer, "dtype": "float16", "producer": PRODUCER}
    layout = schema(work.dataset, embedder.size, metadata)
    images = [i for i in work.images if i not in work.trial.excluded and work.trial.alone in (None, i)]
    with work.writer(work.dataset, layout) as writer:
        found = itertools.groupby(work.scan(images), key=lambda table: table["image_id"][0].as_py())
        waiting = iter(images)
        for image_id, tables in found:
            for without in itertools.takewhile(lambda name, here=image_id: name != here, waiting):  # type: ignore[misc]
                writer.write_image(without, None)
            rows = pa.concat_tables([_embedded(table, embedder, layout, clock) for table in tables])
            with clock.phase("encode"):
                writer.write_image(image_id, rows)
        for without in waiting:
            writer.write_image(without, None)
        if work.trial.alone is not None:
            return None
        return writer.commit(ledger=work.trial.ledger("embed"), seconds=clock.seconds, producer=PRODUCER)


def _embedded(table: pa.Table, embedder: Embedder, layout: pa.Schema, clock: PhaseClock) -> pa.Table:
    with clock.phase("fc"):
        outputs = embedder(vectors_of(table[VECTOR_COLUMN])).astype(np.float16)
    column = table.schema.get_field_index(VECTOR_COLUMN)
    return table.remove_column(column).append_column(layout.field(VECTOR_COLUMN), vector_column(outputs)).cast(layout)


def _sources(root: Root, record: RunRecord) -> dict[str, dict[str, FeatureShard | str]]:
    """Dataset to make, to shard, to where the vectors are."""
    manifest = recorded_manifest(root, record, "truth_features")
    return {
        "embeddings": {shard.shard: shard for shard in feature_shards(root, record)},
        "truth_embeddings": {file.shard: file.key for file in manifest.files},
    }


def _crew(invocation: Invocation, record: RunRecord, session: RaySession) -> TaskCrew:
    resources = session.ready()
    on_gpu = resources.use_gpus(invocation.config.execution)
    head = ray.put(read_head(invocation.root, record))
    gpus = resources.gpu_share if on_gpu else 0
    return TaskCrew(embed_shard, session.cores, head, "cuda" if on_gpu else "cpu", gpus=gpus)
