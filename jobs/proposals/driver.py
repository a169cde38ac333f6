"""The driver of propose: what a task is given of a shard."""

from __future__ import annotations

import logging
from functools import partial

from jobs.dataset.stored import image_files
from jobs.proposals.box_file import given_boxes
from jobs.proposals.task import ProposeShard, propose_shard
from jobs.record.stage import Assignment
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import ShardAttempt
from jobs.shards.crews import TaskCrew
from jobs.shards.make import ShardMaker, works_on
from jobs.shards.survey import Survey
from storage.shards import Shard

_log = logging.getLogger("spp")


def maker_of(assignment: Assignment, found: Survey) -> ShardMaker:
    """How the missing shards of ``proposals`` are made: by tasks, one core each."""
    config, root = assignment.context.config, assignment.context.root
    options = config.dataset.storage_options
    files = image_files(assignment.index)
    given = None
    if found.todo and config.proposals.method == "file":
        given = given_boxes(config.proposals, options, list(files.values()))
        without = [image_id for image_id in files if not len(given.get(image_id, ()))]
        if without:
            told = len(without), len(files), config.proposals.file, without[0]
            _log.warning("note: propose: %d of %d images have no boxes in %s, such as %s", *told)

    def make(shard: Shard, attempt: ShardAttempt) -> ProposeShard:
        images = tuple(files[image_id] for image_id in shard.image_ids)
        boxes = None if given is None else {i: given[i] for i in shard.image_ids if i in given}
        return ProposeShard(
            **vars(attempt),
            images=images,
            storage_options=options,
            config=config.proposals,
            producer=PRODUCER,
            boxes=boxes,
        )

    crews = {"propose": lambda: TaskCrew(propose_shard, assignment.session.cores)}
    return ShardMaker(found, partial(works_on, root, "propose", make), crews)
