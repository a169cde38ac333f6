"""What there is to do: the shards of the map datasets of a config, and which of them are committed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from storage.commits import CommitName, read_commits, winners
from storage.root import Root
from storage.shards import Shard, shards


@dataclass(frozen=True)
class MapDataset:
    """A dataset that a map stage makes shard by shard.

    ``upstream``: the map dataset that it reads, if any; every shard then lies within one shard of that. ``companion``:
    a dataset of the same method and shards that is committed just before it (maps, before windows). ``partial``: it
    leaves out some of the images.
    """

    stage: str
    name: str
    method: str
    bytes_per_image: int
    shards: tuple[Shard, ...]
    upstream: MapDataset | None = None
    companion: str | None = None
    partial: bool = False
    _source: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Its own name, and that of its companion, which is written first."""
        return (self.companion, self.name) if self.companion else (self.name,)

    @property
    def images(self) -> int:
        """Images of all shards."""
        return sum(len(shard.image_ids) for shard in self.shards)

    def source(self, shard: Shard) -> str | None:
        """Key of the upstream shard that holds the shard's images."""
        return self._source.get(shard.key)


def map_dataset(
    stage: str,
    name: str,
    method: str,
    digests: dict[str, str],
    bytes_per_image: int,
    upstream: MapDataset | None = None,
    companion: str | None = None,
    only: Collection[str] | None = None,
) -> MapDataset:
    """The dataset of the images in ``digests`` (image id to digest), or ``only`` of some of them."""
    cut = tuple(shards(digests, bytes_per_image, only))
    source: dict[str, str] = {}
    if upstream is not None:
        holder = {image_id: shard.key for shard in upstream.shards for image_id in shard.image_ids}
        for shard in cut:
            holders = {holder[image_id] for image_id in shard.image_ids}
            if len(holders) != 1:
                raise ValueError(f"shard {shard.key} of {name} lies in {len(holders)} shards of {upstream.name}")
            source[shard.key] = holders.pop()
    return MapDataset(stage, name, method, bytes_per_image, cut, upstream, companion, only is not None, source)


@dataclass(frozen=True)
class Survey:
    """What of a map dataset is there.

    ``done``: shard to commit. ``todo``: shard and the revision to write. ``earlier``: shard to the commit whose rows
    that revision takes over, where there is one.
    """

    dataset: MapDataset
    done: dict[str, CommitName]
    todo: tuple[tuple[Shard, int], ...]
    earlier: dict[str, CommitName]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.todo


def survey(
    root: Root,
    dataset: MapDataset,
    upstream_done: Mapping[str, CommitName] | None = None,
    upstream_todo: Collection[str] = (),
    retry: bool = False,
) -> Survey:
    """One listing tells what is committed.

    To do again, as a new revision: a shard made from an older revision of its upstream than ``upstream_done`` has, or
    from one that is in ``upstream_todo`` itself; with ``retry``, a shard in which an image failed.
    """
    there = winners(root, dataset.name, dataset.method)
    done = {shard.key: there[shard.key] for shard in dataset.shards if shard.key in there}
    renewed = _made_from_older(root, dataset, done, upstream_done or {})
    if upstream_todo:
        renewed |= {key for key in done if dataset._source.get(key) in upstream_todo}
    if retry:
        commits = read_commits(root, dataset.name, dataset.method, done.values())
        renewed |= {commit.shard for commit in commits if commit.failed}
    todo = tuple(
        (shard, done[shard.key].revision + 1 if shard.key in done else 0)
        for shard in dataset.shards
        if shard.key not in done or shard.key in renewed
    )
    kept = {key: name for key, name in done.items() if key not in renewed}
    return Survey(dataset, kept, todo, {key: done[key] for key in renewed})


def survey_after(root: Root, dataset: MapDataset, surveys: Mapping[str, Survey], retry: bool = False) -> Survey:
    """The survey of a dataset after that of its upstream, which is among ``surveys``."""
    if dataset.upstream is None:
        return survey(root, dataset, retry=retry)
    upstream = surveys[dataset.upstream.name]
    renewed = {shard.key for shard, revision in upstream.todo if revision > 0}
    return survey(root, dataset, upstream.done, renewed, retry)


def _made_from_older(
    root: Root, dataset: MapDataset, done: Mapping[str, CommitName], upstream: Mapping[str, CommitName]
) -> set[str]:
    """Shards whose commit names an older upstream revision than today's. Only revisions above 0 can be newer."""
    revised = {key: name.revision for key, name in upstream.items() if name.revision > 0}
    source: Callable[[str], str | None] = dataset._source.get
    suspects = [name for key, name in done.items() if source(key) in revised]
    older = set()
    for commit in read_commits(root, dataset.name, dataset.method, suspects):
        made_from = {origin.shard: origin.revision for origin in commit.upstream}
        origin = source(commit.shard)
        if origin is not None and made_from.get(origin, -1) < revised[origin]:
            older.add(commit.shard)
    return older
