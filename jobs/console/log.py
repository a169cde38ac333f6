"""Where the lines of a running command go: standard error, plain, one each.

Everything says what it does through ``logging.getLogger("spp")``: progress is INFO, what a user should look into is a
WARNING, what helps to find a fault is DEBUG. A program that uses the package as a library attaches handlers of its own.
"""

from __future__ import annotations

import logging
import sys


class _Stderr(logging.Handler):
    """Writes to the standard error of the moment: a progress bar puts itself in its place while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        from storage.secrets import redacted  # the store's package, which the help does without

        print(redacted(self.format(record)), file=sys.stderr, flush=True)


def configure(level: int = logging.INFO) -> None:
    """Send lines of ``level`` and above to standard error; below INFO with the time and where they come from."""
    logger = logging.getLogger("spp")
    handler = next((one for one in logger.handlers if isinstance(one, _Stderr)), None)
    if handler is None:
        handler = _Stderr()
        logger.addHandler(handler)
        logger.propagate = False
    told = "%(asctime)s %(module)s: %(message)s" if level < logging.INFO else "%(message)s"
    handler.setFormatter(logging.Formatter(told))
    logger.setLevel(level)
