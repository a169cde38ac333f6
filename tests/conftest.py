"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples in every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


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
