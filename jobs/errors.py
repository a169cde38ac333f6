"""Errors of the jobs, and how a user gets to see them."""


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked: exit code 2. One line: what, where, what is allowed."""


class RunFailed(RuntimeError):
    """The run had to stop: exit code 1. One line: why, and what to do; the same command goes on where it stopped."""
