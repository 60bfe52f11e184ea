"""Readers of texts for the tests of `read_chains`."""

import gzip

import pytest

from structure_aligned.structure.io import read_chains

from .pdb_text import as_mmcif


@pytest.fixture(params=["pdb", "cif"])
def read(request, tmp_path):
    """`read(pdb)`: the chains of a PDB text, read as PDB and as mmCIF."""

    def run(pdb):
        path = tmp_path / f"model.{request.param}"
        path.write_text(pdb if request.param == "pdb" else as_mmcif(pdb))
        return read_chains(path)

    return run


@pytest.fixture
def read_text(tmp_path):
    def run(text, name="model.pdb"):
        path = tmp_path / name
        data = text.encode() if isinstance(text, str) else text
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return read_chains(path)

    return run
