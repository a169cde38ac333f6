"""What limits a run, and how long it takes at least."""

import pytest

from jobs.run.forecast import forecast

PHASES = {"decode": 20.0, "conv": 60.0, "pool": 20.0, "encode": 100.0, "wait": 1000.0}
LEFT = [("proposals", 0, 0, {}), ("features", 100, 5_000, PHASES), ("truth_features", 100, 100, {"conv": 20.0})]


def test_gpus_limit_where_there_are_few_and_cores_where_there_are_many():
    few, many = forecast(LEFT, 1, 16), forecast(LEFT, 8, 4)
    assert (few.limit, few.seconds) == ("GPUs", 100.0)
    assert few.shares == {"conv": 0.8, "pool": 0.2}
    assert (many.limit, many.seconds) == ("cores", 30.0)
    assert many.shares == {"encode": pytest.approx(0.833), "decode": pytest.approx(0.167)}
    assert few.bytes == many.bytes == 5_100


def test_without_gpus_cores_do_it_all():
    found = forecast(LEFT, 0, 2)
    assert (found.limit, found.seconds, found.worker_seconds) == ("cores", 110.0, 220.0)


def test_waiting_is_no_work():
    assert forecast([("features", 1, 1, {"wait": 9.0})], 0, 1).seconds is None


def test_what_was_never_measured_is_named_not_guessed():
    found = forecast([("proposals", 10, None, None), *LEFT], 1, 16)
    assert found.unmeasured == ("proposals",)
    assert found.seconds == 100.0


def test_nothing_left_takes_no_time():
    found = forecast([("features", 0, 0, {})], 4, 16)
    assert found.seconds is None
    assert found.unmeasured == ()
