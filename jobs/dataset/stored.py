"""How others read the index of a run."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from jobs.dataset.image_file import ImageFile
from jobs.dataset.index import TABLES, Index
from jobs.errors import UsageError
from storage.columns import no_rows
from storage.manifest import read_manifest
from storage.root import Root
from storage.runs import RunRecord
from storage.scan import read_whole
from storage.schemas import schema


def recorded_index(root: Root, record: RunRecord) -> Index:
    """The index of a run. UsageError if it has none yet, DamagedFileError if a file of it is not as it was written."""
    tables = {}
    for name in TABLES:
        entry = record.datasets.get(name)
        if entry is None or entry.manifest is None:
            raise UsageError(f"run {record.name!r} has no index yet; run `spp index` first")
        manifest = read_manifest(root, name, entry.method, entry.manifest)
        tables[name] = _sorted(read_whole(root, manifest), schema(name))
        if name == "images":
            ledger = tuple(manifest.ledger)
    return Index(tables["images"], tables["objects"], ledger)


def image_files(index: Index) -> dict[str, ImageFile]:
    """Image id to where its bytes are."""
    rows = index.images.select(["image_id", "uri", "digest", "height", "width"]).to_pydict()
    return {i: ImageFile(i, u, d, (h, w)) for i, u, d, h, w in zip(*rows.values(), strict=True)}


def _sorted(parts: Iterable[pa.Table], layout: pa.Schema) -> pa.Table:
    table = pa.concat_tables([no_rows(layout), *(part.cast(layout) for part in parts)])
    order = [("image_id", "ascending"), *([("object_id", "ascending")] if "object_id" in layout.names else [])]
    return table.sort_by(order)
