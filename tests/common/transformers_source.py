"""Transformers' own common model tests, which are in its source distribution and not in what pip installs."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock


FILE = "test_modeling_common.py"

PACKAGE = "transformers_common_tests"
"""The package it is imported under. In the source distribution that is `tests`, the name of our own folder."""

_NOT_DISTRIBUTED = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""What it imports from folders that the source distribution leaves out: mixins for exporters and for `generate`."""


def cached_file() -> Path:
    """Where the file of the installed version is kept, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "structure_aligned" / f"transformers-{transformers.__version__}-tests" / FILE


def fetch(path: Path) -> None:
    """
    Writes the file of the installed version to `path`, from the source distribution that pip downloads. The test that
    asks for it is skipped, saying why, where pip cannot get it.
    """
    requirement = f"transformers=={transformers.__version__}"
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--retries=1", "--timeout=15", "--no-deps", "--no-binary=transformers", f"--dest={download}"]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        archives = list(Path(download).glob("transformers-*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip() or "pip saved no archive").splitlines()[-1]
            pytest.skip(f"pip cannot get the source distribution of {requirement}: {reason}")
        with tarfile.open(archives[0]) as archive:
            # One member, by its name, to a path of our own: nothing in the archive says where anything is written.
            text = archive.extractfile(f"{archives[0].name.removesuffix('.tar.gz')}/tests/{FILE}").read()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(text)
    part.replace(path)


def load(config: pytest.Config) -> ModuleType:
    """The module of the common model tests, fetched once for every version of Transformers."""
    pytest.importorskip("parameterized", reason="Transformers' tests need parameterized, from the extra 'test'")
    path = cached_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            fetch(path)
    # With --strict-markers pytest refuses to make markers that it has not been told of.
    for name in set(re.findall(r"\bmark\.(\w+)", path.read_text(encoding="utf-8"))):
        config.addinivalue_line("markers", f"{name}: of Transformers")
    package = sys.modules[PACKAGE] = ModuleType(PACKAGE)
    package.__path__ = [str(path.parent)]
    for name, mixin in _NOT_DISTRIBUTED.items():
        module = sys.modules[f"{PACKAGE}.{name}"] = ModuleType(name)
        setattr(module, mixin, type(mixin, (), {}))
        parent = name.split(".")[0]
        sys.modules[f"{PACKAGE}.{parent}"] = ModuleType(parent)
    return importlib.import_module(f"{PACKAGE}.{path.stem}")
