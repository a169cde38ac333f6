"""The actor of classify: it shows every image of a shard to the body, view by view, and stores the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.dataset.image_file import ImageFile
from jobs.features.ring import ExtractionRing
from jobs.features.shard import ActorSettings
from jobs.shards.attempt import ShardAttempt
from pipeline.bodies.classifier import over_array
from pipeline.features.whole_image import LayerValues, WholeImageExtractor, whole_layers
from pipeline.images.decode import RGB
from pipeline.images.view import View
from pipeline.network.head import head_of
from pipeline.phases import PhaseClock
from storage.columns import map_column
from storage.commits import Commit
from storage.schemas import VECTOR_COLUMN, schema


@dataclass(frozen=True, kw_only=True)
class ViewShard(ShardAttempt):
    """The images of one shard, and what is wanted of each. ``views``: as the config names them."""

    images: tuple[ImageFile, ...]
    views: tuple[str, ...]
    layers: tuple[str, ...]
    metadata: dict[str, str]


class ViewActor:
    """A body, and the head that came with it, if ``head`` (a state by name) is not empty."""

    def __init__(
        self, settings: ActorSettings, state: Mapping[str, NDArray], head: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._producer = settings.producer
        self._feed = settings.feed()
        self._ring = ExtractionRing(settings, state)
        body = self._ring.extractor.body
        network = head_of({name: over_array(values) for name, values in head.items()}) if head else None
        self._whole = WholeImageExtractor(
            body,
            settings.config.pyramid,
            network.to(settings.device).eval() if network is not None else None,
            settings.config.max_scaled_pixels,
        )

    def show(self, work: ViewShard) -> Commit | None:
        """The layers of one shard, committed (in a trial of one image alone: made, and dropped)."""
        clock = PhaseClock()
        ledger = work.trial.ledger("classify")
        files = work.trial.images(work.images)
        layout = schema("image_features", metadata=work.metadata)
        with work.writer("image_features", layout) as writer:

            def make(file: ImageFile, image: RGB) -> None:
                made = self._layers(work, image, clock)
                with clock.phase("encode"):
                    writer.write_image(file.image_id, _rows(file.image_id, made, layout), group_rows=1)

            self._feed.each(files, make, stage="classify", ledger=ledger, clock=clock)
            if work.trial.alone is not None:
                return None
            return writer.commit(ledger=ledger, seconds=clock.seconds, passes=clock.passes, producer=self._producer)

    def _layers(self, work: ViewShard, image: RGB, clock: PhaseClock) -> dict[tuple[str, str], LayerValues]:
        """(view, layer) to values."""
        made = {}
        with self._ring.computing(clock):
            for text in work.views:
                view = View.parse(text, self._whole.body.spec.input_size)
                layers = work.layers if view.fixed else whole_layers(work.layers)
                for layer, values in self._whole(image, view, layers, clock).items():
                    made[text, layer] = values
        return made


def _rows(image_id: str, made: Mapping[tuple[str, str], LayerValues], layout: pa.Schema) -> pa.Table:
    columns = {
        "image_id": [image_id] * len(made),
        "view": [view for view, _ in made],
        "layer": [layer for _, layer in made],
        **{name: [getattr(values, name) for values in made.values()] for name in ("height", "width", "channels")},
        VECTOR_COLUMN: map_column([values.values for values in made.values()]),
    }
    return pa.table([pa.array(columns[name], layout.field(name).type) for name in layout.names], schema=layout)
