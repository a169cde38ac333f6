"""What there is to do: the shards of a dataset, and which of them are committed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.record.publish import entry_of
from storage.commits import CommitName, read_commits, winners
from storage.manifest import Manifest, fold
from storage.root import Root
from storage.runs import DatasetRecord
from storage.shards import Shard


@dataclass(frozen=True, kw_only=True)
class ShardedDataset:
    """A dataset that a stage makes, shard by shard; many have one shard alone, named by their method.

    ``upstream``: the dataset whose shards it reads as they come, if any; every shard then lies within one shard of
    that. ``companion``: a dataset of the same method and shards that is committed just before it (maps, before
    windows). ``bytes_per_image``: what its shards were cut by, and what a forecast knows before anything is made; 0:
    nothing. ``partial``: it leaves out some of the images. ``classifier``: see ``DatasetRecord``.
    """

    stage: str
    name: str
    method: str
    cut: Callable[[], Sequence[Shard]] = field(repr=False)
    """Cuts the images into shards, when somebody asks: names of methods are often all that is wanted."""
    bytes_per_image: int = 0
    upstream: ShardedDataset | None = None
    companion: str | None = None
    partial: bool = False
    classifier: str = ""

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """Its shards. ValueError if one lies in several shards of ``upstream``."""
        cut = tuple(self.cut())
        for shard in cut if self.upstream is not None else ():
            holders = {self._holders[image_id] for image_id in shard.image_ids}
            if len(holders) != 1:
                raise ValueError(f"shard {shard.key} of {self.name} lies in {len(holders)} upstream shards")
        return cut

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
        return self._holders[shard.image_ids[0]] if self.upstream is not None else None

    @cached_property
    def _holders(self) -> dict[str, str]:
        """Image id to the upstream shard that holds it."""
        there = self.upstream.shards if self.upstream is not None else ()
        return {image_id: shard.key for shard in there for image_id in shard.image_ids}

    def entry(self, manifest: Manifest | None = None) -> DatasetRecord:
        """What a run's record says of it; without ``manifest``: that it is not complete."""
        known: dict[str, Any] = {"bytes_per_image": self.bytes_per_image, "partial": self.partial}
        if manifest is None:
            made = DatasetRecord(stage=self.stage, method=self.method, shards=len(self.shards), **known)
        else:
            made = entry_of(self.stage, manifest).model_copy(update=known)
        return made.model_copy(update={"classifier": self.classifier})


def one_shard(stage: str, name: str, method: str, image_ids: Sequence[str]) -> ShardedDataset:
    """A small dataset, made at once from all of ``image_ids``."""
    return ShardedDataset(stage=stage, name=name, method=method, cut=lambda: [Shard(method, tuple(image_ids))])


@dataclass(frozen=True)
class Survey:
    """What of a dataset is there.

    ``done``: shard to commit. ``todo``: shard and the revision to write. ``earlier``: shard to the commit whose rows
    that revision takes over, where there is one.
    """

    dataset: ShardedDataset
    done: dict[str, CommitName]
    todo: tuple[tuple[Shard, int], ...]
    earlier: dict[str, CommitName]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.todo


def survey(
    root: Root,
    dataset: ShardedDataset,
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
        sources = {shard.key: dataset.source(shard) for shard in dataset.shards}
        renewed |= {key for key in done if sources[key] in upstream_todo}
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


def survey_after(root: Root, dataset: ShardedDataset, surveys: Mapping[str, Survey], retry: bool = False) -> Survey:
    """The survey of a dataset after that of its upstream, which is among ``surveys``."""
    if dataset.upstream is None:
        return survey(root, dataset, retry=retry)
    upstream = surveys[dataset.upstream.name]
    renewed = {shard.key for shard, revision in upstream.todo if revision > 0}
    return survey(root, dataset, upstream.done, renewed, retry)


def _made_from_older(
    root: Root, dataset: ShardedDataset, done: Mapping[str, CommitName], upstream: Mapping[str, CommitName]
) -> set[str]:
    """Shards whose commit names an older upstream revision than today's. Only revisions above 0 can be newer."""
    revised = {key: name.revision for key, name in upstream.items() if name.revision > 0}
    if not revised:
        return set()
    source = {shard.key: dataset.source(shard) for shard in dataset.shards}
    suspects = [name for key, name in done.items() if source[key] in revised]
    older = set()
    for commit in read_commits(root, dataset.name, dataset.method, suspects):
        made_from = {origin.shard: origin.revision for origin in commit.upstream}
        origin = source[commit.shard]
        if origin is not None and made_from.get(origin, -1) < revised[origin]:
            older.add(commit.shard)
    return older


def settled(root: Root, dataset: ShardedDataset) -> dict[str, DatasetRecord]:
    """What is complete of a dataset and its companion, folded into manifests."""
    entries = {}
    for name in dataset.names:
        there = winners(root, name, dataset.method)
        names = [there[shard.key] for shard in dataset.shards if shard.key in there]
        if len(names) == len(dataset.shards):
            entries[name] = dataset.entry(fold(root, name, dataset.method, names))
    return entries
