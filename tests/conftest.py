"""What all tests share."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from filelock import FileLock
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
def aws_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where this process, and what it starts from now on, looks for AWS's files ``config`` and
    ``credentials``: those of tests, never the account of who runs them. There are none until a test writes them."""
    folder = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        yield folder


@pytest.fixture(scope="session")
def embedded_ray(aws_files: Path) -> Iterator[None]:
    """One Ray with two cores for all tests that ask for it; its workers know the faulty store and where AWS's files
    will be."""
    faulty_store.register()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 1024 * 1024,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config={"worker_niceness": 0},  # else tests that compute beside it leave its workers no time
        runtime_env={
            "worker_process_setup_hook": faulty_store.register,
            # the hook runs before a worker's import path has the working folder
            "env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])},
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Have a folder of this name filled once in a test run: by the process that first asks, and for all of them.

    Nobody may change what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = base / "made_once" / name, base / "made_once" / f"{name}.whole"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a test that failed has left
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return made
