"""What all tests share."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from filelock import FileLock
from hypothesis import settings

from tests import faulty_store

# Of the same function for other types two processes at once could store one's code under the other's name, so each
# has a cache of its own. numba reads this when it is imported.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "numba" / os.environ.get("PYTEST_XDIST_WORKER", "gw0")
os.environ["NUMBA_CACHE_DIR"] = str(_CACHE)

# The same examples in every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


LONG = (
    *("test_s3", "test_reruns", "test_faults", "test_products"),
    *("test_finetune", "test_classify", "test_pretrain", "test_run"),
)
"""Files that take longest, in the order in which they begin, so that two processes end together. Those that read the
same finished project do not stand side by side: one would wait until the other has made it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; what needs the shared data is marked by what it asks for."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
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
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


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
def embedded_ray(run_folder: Path, aws_files: Path) -> Iterator[None]:
    """One Ray with two cores for all tests of a process that ask for it; its workers know the faulty store, and where
    AWS's files will be."""
    faulty_store.register()
    _compile_search()
    with FileLock(run_folder / "ray.lock"):  # one that starts picks free ports, which another's start would pick too
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


def _compile_search() -> None:
    """Have numba compile the search for proposals once, and not in each worker of Ray."""
    from pipeline.proposals.methods import propose
    from pipeline.proposals.selective_search import SelectiveSearch

    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    propose(SelectiveSearch(), image, seed=0, min_side=10, max_boxes=60)


@pytest.fixture(scope="session")
def made_once(run_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Have a folder of this name filled once in a test run: by the process that first asks, and for all of them.

    Nobody may change what is in it.
    """

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = run_folder / "made_once" / name, run_folder / "made_once" / f"{name}.whole"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a test that failed has left
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return made
