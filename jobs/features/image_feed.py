"""Images of a shard, one after the other, read and decoded ahead by threads; what cannot be used is a ledger row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jobs.dataset.image_file import ImageFile, read_image
from pipeline.errors import ContentError
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.commits import LedgerRow


class ImageFeed:
    """``ahead`` images are read by ``threads`` before they are asked for."""

    def __init__(self, storage_options: Mapping[str, Any], threads: int, ahead: int) -> None:
        self._options = dict(storage_options)
        self._threads = threads
        self._ahead = ahead

    def each(
        self,
        files: Sequence[ImageFile],
        make: Callable[[ImageFile, RGB], None],
        *,
        stage: str,
        ledger: list[LedgerRow],
        clock: PhaseClock,
        unread: Collection[str] = (),
    ) -> None:
        """Call ``make`` for each image, in order.

        A ContentError, of the image or of ``make``, becomes a row of ``ledger``, and the next image follows. Of the
        ids in ``unread`` no pixel is wanted: a blank one comes in their place.
        """
        for file, image in self._decoded(files, unread, clock):
            try:
                if isinstance(image, ContentError):
                    raise image
                make(file, image)
            except ContentError as error:
                ledger.append(file.ledger_row(stage, error))

    def _decoded(
        self, files: Sequence[ImageFile], unread: Collection[str], clock: PhaseClock
    ) -> Iterator[tuple[ImageFile, RGB | ContentError]]:
        def load(file: ImageFile) -> RGB | ContentError:
            if file.image_id in unread:
                return np.zeros((1, 1, 3), np.uint8)
            with clock.phase("decode"):
                try:
                    return read_image(file, self._options)
                except ContentError as error:
                    return error

        def first() -> tuple[ImageFile, RGB | ContentError]:
            file, future = ahead.popleft()
            with clock.phase("wait"):
                return file, future.result()

        ahead: deque[tuple[ImageFile, Future[RGB | ContentError]]] = deque()
        with ThreadPoolExecutor(self._threads) as readers:
            for file in files:
                ahead.append((file, readers.submit(load, file)))
                if len(ahead) >= self._ahead:
                    yield first()
            while ahead:
                yield first()
