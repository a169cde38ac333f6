"""The section ``execution``: how and where the work runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config.settings import Settings


class ExecutionConfig(Settings):
    """The ``execution:`` section of the config."""

    workers: int | Literal["auto"] = Field("auto")
    """Extraction actors. auto: one per GPU; without GPUs, as many as cores and memory allow."""
    threads: int = Field(1, ge=1)
    """CPU cores of one extraction actor on a CPU, which computes so many images at once, each in one thread. Actors of
    one core each are as fast; larger ones hold the body's weights once for all their cores."""
    cpus_per_gpu: int = Field(4, ge=1)
    """CPU cores that one extraction actor on a GPU reserves: it decodes and encodes beside the GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has some."""
    shards_per_actor: int = Field(2, ge=1, le=8)
    """Shards that an actor has in hand at once, so that one is written while the next is computed; at least one for
    each of its ``threads``."""
    decode_threads: int = Field(2, ge=1)
    """Threads of one shard, or of a worker that trains a network, that read and decode images ahead."""
    decode_ahead: int = Field(4, ge=1)
    """Images decoded ahead, at most."""
    retries: int = Field(4, ge=0)
    """How often an attempt at a shard that failed for want of a disk, a network or memory is repeated."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the first repetition; doubled for each further one."""
    max_deaths: int = Field(3, ge=1)
    """How many workers a shard may bring down before its images are tried one by one, and an image alone before it
    goes to the ledger."""
    shard_deadline: float = Field(3600, gt=0)
    """Seconds after which a worker that still has the same shard is taken to hang, and is ended."""
    stall_seconds: float = Field(120, gt=0)
    """Seconds without any shard ended after which progress says who has what in hand and which resource is missing."""
    max_failed: float = Field(0.01, ge=0, le=1)
    """Share of failed images, looked at from 50 images on, above which the run stops."""
    max_failed_ok: int = Field(0, ge=0)
    """Failed images that a run may have and still exit with code 0."""
    train_workers: int = Field(1, ge=1)
    """Workers that train the head, or a network, together, a GPU each (DistributedDataParallel). One part of the batch
    is each one's, and so their number changes what is trained as another seed would, and its method id."""
    train_threads: int | Literal["auto"] = "auto"
    """CPU threads of a worker that trains. auto: 4 beside a GPU, else all cores. Beside a GPU they also decode images,
    so that ``pretrain`` wants as many as there are cores for it. On CPUs their number changes the last digits of what
    ``pretrain`` trains, and so its method id; auto takes a network that the run has, whatever trained it."""
    checkpoint_seconds: float = Field(300, ge=0)
    """Seconds between two checkpoints of a training; the last two are kept until it is through."""
    shared_fs: bool = False
    """true: all nodes of the cluster see the same folders under local paths, so that root and data set may be some."""
    num_cpus: int | None = Field(None, ge=1)
    """CPU cores of the embedded Ray; all of them by default."""
    object_store_mb: int = Field(256, ge=80)
    """Object store of the embedded Ray: body weights and mined negatives. What does not fit goes to the disk."""
    progress_seconds: float = Field(5.0, gt=0)
    """Seconds between two progress lines where there is no terminal."""
    index_threads: int = Field(8, ge=1)
    """Threads that read headers and annotations while indexing."""
