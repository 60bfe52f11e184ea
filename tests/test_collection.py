"""Test ids are the same in every process: pytest-xdist's workers must collect the same tests."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import pytest_make_parametrize_id


ROOT = Path(__file__).parents[1]


def collect(hash_seed):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "--assert=plain"]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Without xdist's own variables, which would make the process one of its workers.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen([*command, "tests"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_collect_the_same_tests():
    """Begun more than a second apart, and with other orders of sets."""
    first = collect(1)
    time.sleep(1.5)
    second = collect(2)
    one, other = (
        [line for line in process.communicate(timeout=600)[0].splitlines() if "::" in line]
        for process in (first, second)
    )
    assert first.returncode == second.returncode == 0
    assert len(one) > 1000
    assert one == other


def test_bytes_are_not_part_of_an_id():
    assert pytest_make_parametrize_id(None, gzip.compress(b"some"), "data") == "data"
    assert pytest_make_parametrize_id(None, "some", "data") is None
