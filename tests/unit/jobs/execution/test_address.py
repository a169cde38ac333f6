"""Which Ray RAY_ADDRESS means. No Ray is started or joined."""

from __future__ import annotations

import socket

import pytest

from jobs.errors import RunFailed, UsageError
from jobs.execution.address import cluster_address


@pytest.mark.parametrize("unset", [None, "", " ", "local"])
def test_without_an_address_ray_is_embedded(unset, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if unset is not None:
        monkeypatch.setenv("RAY_ADDRESS", unset)
    assert cluster_address() is None


def test_an_address_at_which_somebody_listens(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for given, meant in ((address, address), (f" {address}\n", address), (f"ray://{address}", f"ray://{address}")):
            monkeypatch.setenv("RAY_ADDRESS", given)
            assert cluster_address() == meant
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_address() == "auto"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head.example:443/ray/"])
def test_the_address_of_the_job_api_is_told_from_that_of_a_cluster(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=r"where `ray job submit` sends its jobs; .* give HOST:PORT .* or unset it"):
        cluster_address()


@pytest.mark.parametrize(
    "address",
    [
        *("garbage", "host:", ":6379", "host:port", "host:99999", "host:0", "host:-1", "1.2.3.4:6379/ray"),
        *("s3://bucket", "ray://", "two hosts:6379", "::1:6379", "a..b:6379", f"{'a' * 64}.example:6379"),
    ],
)
def test_what_is_no_address_is_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=r"^RAY_ADDRESS is '.*', .* give HOST:PORT .*6379"):
        cluster_address()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_is_gone(form, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunFailed, match=f"^cannot start on {address}: Connection refused; if it is up, RAY_ADDRESS"):
        cluster_address()
