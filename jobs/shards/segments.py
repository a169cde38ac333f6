"""What the driver writes down as it goes: segments, so that no manifest is folded from a million small files."""

from __future__ import annotations

import logging
from collections import defaultdict

from jobs.shards.loop import Listener, Work
from storage.commits import Commit
from storage.manifest import rows_of
from storage.root import Root, store_errors
from storage.segments import SIZE, write_segment

_log = logging.getLogger("spp")


class Bookkeeper(Listener):
    """A listener of the shard loop. What is left at its end, less than a segment, is read from the commits."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._seen: dict[tuple[str, str], list[Commit]] = defaultdict(list)

    def committed(self, work: Work, commit: Commit) -> None:
        """Remember a commit, and write a segment when there are enough."""
        seen = self._seen[commit.dataset, commit.method]
        seen.append(commit)
        if len(seen) < SIZE:
            return
        try:
            write_segment(self._root, commit.dataset, commit.method, rows_of(seen))
        except store_errors() as error:  # a cache: the commits themselves are there
            _log.warning("note: a segment of %s was not written: %s", commit.dataset, error)
        seen.clear()
