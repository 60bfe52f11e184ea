"""Shared fixtures: where the outside data lies, and one thread per test process."""

import os
from pathlib import Path

import pytest
import torch


# pytest-xdist runs one process per core; more threads than that only fight each other.
torch.set_num_threads(1)

SHARED = Path(os.environ.get("STRUCTURE_ALIGNED_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_make_parametrize_id(config, val, argname):
    """Ids without the content of bytes, which may hold the time of a compression: workers must collect the same."""
    return argname if isinstance(val, bytes) else None


def shared_path(*parts: str) -> Path:
    """A path below the shared data folder; the calling test is skipped, saying why, where it does not exist."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here: set STRUCTURE_ALIGNED_SHARED to the folder with golden/ and data/")
    return path


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: folder of outputs made by other people's code."""
    return lambda *parts: shared_path("golden", *parts)


@pytest.fixture(scope="session")
def real_data():
    """`real_data(name)`: folder of real proteins."""
    return lambda *parts: shared_path("data", *parts)
