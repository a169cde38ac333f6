"""The last revision of a shard: what a new one takes over from it instead of computing it again."""

from __future__ import annotations

import pyarrow as pa

from jobs.shards.attempt import Trial
from storage.commits import data_key, read_commits
from storage.root import Root
from storage.scan import scan_file


class Earlier:
    """``images`` are those that the last revision has rows, or rightly none, of; ``rows`` reads them."""

    def __init__(self, root: Root, method: str, trial: Trial) -> None:
        self._root = root
        self._keys = {dataset: data_key(dataset, method, name) for dataset, name in trial.earlier.items()}
        self._counts = {
            dataset: read_commits(root, dataset, method, [name])[0].images for dataset, name in trial.earlier.items()
        }
        counts = list(self._counts.values())
        self.images: frozenset[str] = frozenset(counts[0]).intersection(*counts) if counts else frozenset()

    def rows(self, dataset: str, image_id: str) -> pa.Table | None:
        """The rows of one image; None if it has none."""
        if not self._counts[dataset][image_id]:
            return None
        return pa.concat_tables(scan_file(self._root, self._keys[dataset], None, [image_id]))
