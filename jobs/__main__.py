"""``python -m jobs`` and ``spp``: the check that our own code will run comes before any import of it."""

import sys

from jobs import preflight
from jobs.console import streams


def main() -> None:
    """Run the command line; exits with its code."""
    streams.prepare()
    preflight.check()
    from jobs.cli.main import main as command_line
    from jobs.cli.main import show_fault

    sys.excepthook = show_fault
    raise SystemExit(streams.code_at_the_end(command_line()))


if __name__ == "__main__":
    main()
