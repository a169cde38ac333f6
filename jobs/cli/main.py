"""Where the command line begins, and where what goes wrong becomes a line and an exit code."""

from __future__ import annotations

import difflib
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import typer

from jobs.cli import runs  # noqa: F401  (here and below the verbs join the application, in the order of its help)

# isort: split
from jobs.cli import reports, upkeep  # noqa: F401
from jobs.cli.app import app
from jobs.errors import RunFailed, UsageError
from jobs.run.stages import verb_that_makes

# typer brings its own copy of click or uses the installed one, depending on its version
_click = sys.modules[typer.BadParameter.__module__]

_INTERRUPT = 130
"""What typer makes of Ctrl-C."""
_INTERRUPTED = "interrupted; the same command goes on where it stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A user's mistake is one line on standard error."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as Ctrl-C ends it
    try:
        outcome = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        if outcome == _INTERRUPT:
            return _complain(_INTERRUPTED, 1)
        return outcome if isinstance(outcome, int) else 0
    except _click.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except _click.ClickException as error:
        return _complain(_usage_message(error), 2)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain(_INTERRUPTED, 1)
    except RunFailed as error:
        return _complain(str(error), 1)
    except _damages() as error:
        return _complain(f"{error}; `spp repair` shows what it would drop, and the next run makes it anew", 1)
    except UnicodeEncodeError as error:
        return _complain(_no_text(error), 2)
    except _mistakes() as error:
        return _complain(f"{error}{_hint(error)}", 2)
    except _outages() as error:
        return _complain(f"{type(error).__name__}: {error}; mend that and run the same command again", 1)


def _damages() -> tuple[type[Exception], ...]:
    """What is wrong with a root's files."""
    from storage.damage import DamagedFileError

    return (DamagedFileError,)


def show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what nobody caught, as Python does, but without secrets: for ``sys.excepthook``."""
    from storage.secrets import redacted

    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _mistakes() -> tuple[type[Exception], ...]:
    """What a user can mend."""
    from storage.root import StorageError

    return UsageError, StorageError


def _hint(error: Exception) -> str:
    """Which verb makes the dataset that is missing, if one is."""
    from storage.runs import MissingDatasetError

    verb = verb_that_makes(error.dataset) if isinstance(error, MissingDatasetError) else None
    return f"; `spp {verb}` makes it" if verb else ""


def _outages() -> tuple[type[Exception], ...]:
    """What a store raises that cannot be reached or refuses."""
    from storage.root import store_errors

    return store_errors()


def _usage_message(error: Any) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, _click.UsageError) and message.startswith("No such command"):
        typed = message.split("'")[1] if "'" in message else ""
        verbs = sorted(name for name in typer.main.get_command(app).commands)  # type: ignore[attr-defined]
        close = difflib.get_close_matches(typed, verbs, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        return f"unknown verb {typed!r};{hint} verbs: {', '.join(verbs)}"
    return message


def _no_text(error: UnicodeEncodeError) -> str:
    """What to do about a name, of a file or in one, that cannot be handed on as text."""
    encoding = sys.getfilesystemencoding()
    if encoding not in ("utf-8", "utf8"):
        return (
            f"{error.object!r} is no name that the locale's encoding, {encoding}, can write; set PYTHONUTF8=1, or "
            f"LC_ALL=C.UTF-8"
        )
    return f"the name {error.object!r} is not of UTF-8; rename what it stands for"


def _complain(message: str, code: int) -> int:
    from storage.secrets import redacted

    print(f"spp: error: {redacted(' '.join(message.split()))}", file=sys.stderr)
    return code
