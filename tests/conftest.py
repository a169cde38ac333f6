"""What all tests share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from hypothesis import settings

from tests import faulty_store

# The same examples in every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the shared data by what it asks for."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("data")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    """Small tensors gain nothing from more, and the same count gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and oracles: $SPP_SHARED, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("SPP_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared data are needed, and {folder} is no folder; set SPP_SHARED to theirs")
    return folder


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[None]:
    """One Ray with two cores for all tests that ask for it; its workers know the faulty store."""
    faulty_store.register()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 1024 * 1024,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": faulty_store.register,
            # the hook runs before a worker's import path has the working folder
            "env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])},
        },
    )
    yield
    ray.shutdown()
