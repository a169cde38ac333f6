"""What proposals hang on."""

from __future__ import annotations

from jobs.config.proposals import ProposalsConfig
from storage.identity import method_id

VERSION = 2
BYTES_PER_BOX = 40


def propose_method(config: ProposalsConfig, upstream: str, content: str | None = None) -> str:
    """The method id of ``proposals``; ``upstream`` is that of ``images``, ``content`` the file's digest, if any."""
    given = {"content": content} if content is not None else {}
    return method_id("propose", VERSION, {**config.identity(), **given}, upstream=[upstream])
