"""Errors of the jobs, and how a user gets to see them."""


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked: exit code 2. One line: what, where, what is allowed."""


class RunFailed(RuntimeError):
    """The run had to stop: exit code 1. One line: why, and what to do; the same command goes on where it stopped."""


_LONGEST_REASON = 1000


def reason(error: BaseException) -> str:
    """What another library's error says, in one line: all of it, for the reason seldom stands first; its type if
    nothing."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= _LONGEST_REASON else f"{told[:_LONGEST_REASON]} ..."
