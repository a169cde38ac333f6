"""Why Ray did not start, in one line. No Ray is started."""

from __future__ import annotations

import pytest
import ray.exceptions

from jobs.errors import RunFailed
from jobs.execution.session import _Connecting


def test_the_reason_is_told_whatever_line_of_ray_it_stands_in():
    long = "Failed to start.\n\n  The object store needs 4 GB;\n\t/dev/shm has 64 MB.\n"
    for error in (ValueError(long), OSError(long), ConnectionError(long), Exception(long)):
        with pytest.raises(RunFailed) as told, _Connecting(None):
            raise error
        says = "Failed to start. The object store needs 4 GB; /dev/shm has 64 MB."
        assert str(told.value) == f"cannot start on the embedded Ray: {says}"


def test_of_an_error_without_words_the_type_is_told():
    with (
        pytest.raises(
            RunFailed, match=r"^cannot start on 1\.2\.3\.4:6379: TimeoutError, though somebody listens there"
        ),
        _Connecting("1.2.3.4:6379"),
    ):
        raise TimeoutError


def test_a_refusal_names_the_token():
    with pytest.raises(RunFailed, match=r"refused us: no token.*RAY_AUTH_TOKEN"), _Connecting("1.2.3.4:6379"):
        raise ray.exceptions.AuthenticationError("no token")


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError, SystemExit])
def test_what_is_no_failure_of_ray_is_left_alone(error):
    with pytest.raises(error), _Connecting(None):
        raise error
