"""A body on an actor's device, and the ring of buffers that bounds what is in hand."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.config.features import FeaturesConfig
from jobs.features.shard import ActorSettings
from pipeline.bodies import Body, body_spec
from pipeline.boxes import Boxes
from pipeline.errors import ContentError
from pipeline.features.regions import RegionExtractor, RegionFeatures, Wanted
from pipeline.features.warping import WarpExtractor
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid

BUFFERS = 3
"""One being filled, one being encoded, one waiting; one more for each further image that is computed at once."""


class ExtractionRing:
    """Extractors, one for each image that is computed at once, and buffers for their vectors.

    ``state``: the body's weights by name. ``extractor``: what all extractors are copies of, for what it knows.
    """

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray]) -> None:
        torch.set_num_threads(settings.threads)
        cv2.setNumThreads(settings.threads)
        pyramid.warm_up()
        weights = {name: torch.from_numpy(np.array(values)) for name, values in state.items()}
        body = Body(
            body_spec(settings.config.body),
            weights,
            settings.device,
            engine=settings.config.engine,
            precision=settings.config.precision,
            at_once=settings.images_at_once,
        )
        self.extractor = _extractor(body, settings.config)
        self._max_boxes = settings.max_boxes
        self._extractors: queue.SimpleQueue[RegionExtractor | WarpExtractor] = queue.SimpleQueue()
        for _ in range(settings.images_at_once):
            self._extractors.put(replace(self.extractor))  # the same body; each serves one image at a time
        self._buffers: queue.SimpleQueue[NDArray[np.float16]] = queue.SimpleQueue()
        for _ in range(BUFFERS - 1 + settings.images_at_once):
            self._buffers.put(np.empty((0, self.extractor.dim), np.float16))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.extractor.dim

    def features(self, image: RGB, boxes: Boxes, clock: PhaseClock) -> tuple[RegionFeatures, NDArray[np.float16]]:
        """Features of one image, and the buffer that their vectors lie in; it must be given back."""
        with self.buffer(len(boxes), clock) as buffer, self.computing(clock) as extractor:
            return extractor(image, boxes, out=buffer), buffer

    def features_and(
        self,
        image: RGB,
        boxes: Boxes,
        others: Sequence[Wanted],
        clock: PhaseClock,
        maps: Mapping[int, NDArray[np.float16]],
    ) -> tuple[RegionFeatures, list[RegionFeatures | ContentError], NDArray[np.float16]]:
        """The same, and features of other boxes from the same maps, in memory of their own.

        ``maps``: those that need not be made, by scale.
        """
        with self.buffer(len(boxes), clock) as buffer, self.computing(clock) as extractor:
            assert isinstance(extractor, RegionExtractor)
            features, *beside = extractor.together(image, [Wanted(boxes, out=buffer), *others], maps)
            if isinstance(features, ContentError):
                raise features
            return features, beside, buffer

    @contextmanager
    def buffer(self, count: int, clock: PhaseClock) -> Iterator[NDArray[np.float16]]:
        """A buffer for ``count`` vectors, float16 (>= count, dim). It must be given back; after an error it is."""
        with clock.phase("wait"):
            buffer = self._buffers.get()
        try:
            if len(buffer) < count:
                buffer = np.empty((max(count, self._max_boxes), self.extractor.dim), np.float16)
            yield buffer
        except BaseException:
            self.give_back(buffer)
            raise

    def give_back(self, buffer: NDArray[np.float16]) -> None:
        """The vectors in a buffer are not needed any more."""
        self._buffers.put(buffer)

    @contextmanager
    def computing(self, clock: PhaseClock) -> Iterator[RegionExtractor | WarpExtractor]:
        """An extractor that is ours, and counts its seconds for us."""
        with clock.phase("wait"):
            extractor = self._extractors.get()
        try:
            extractor.clock = clock
            yield extractor
        finally:
            self._extractors.put(extractor)


def _extractor(body: Body, config: FeaturesConfig) -> RegionExtractor | WarpExtractor:
    if config.source == "warp":
        return WarpExtractor(body, levels=config.pyramid)
    return RegionExtractor(
        body,
        scales=config.scales,
        scale_rule=config.scale_rule,
        mapping=config.mapping,
        levels=config.pyramid,
        max_scaled_pixels=config.max_scaled_pixels,
    )
