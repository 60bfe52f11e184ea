"""`read_chains` gives back what `write_mmcif` wrote."""

import os

import numpy as np
import pytest

from structure_aligned.structure.chain import ProteinChain
from structure_aligned.structure.io import read_chains, write_mmcif


def chain_to_write(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "entry_id": "fold-7",
        "chain_id": "b'c",
        "sequence": "MXUKGA",
        "coords": rng.normal(scale=30, size=(6, 5, 3)).astype(np.float32),
        "residue_numbers": ("-3", "1", "52", "52A", "53", "900"),
        "b_factors": rng.uniform(0, 100, 6).astype(np.float32),
        "resolution": 1.85,
        "r_free": 0.213,
        "method": "X-RAY DIFFRACTION",
        "deposition_date": "2001-02-03",
        "predicted": True,
    }
    fields["coords"][2, [0, 4]] = fields["coords"][3] = fields["coords"][4, 1] = np.nan
    return ProteinChain(**fields | changes)


@pytest.mark.parametrize("name", ["x.cif", "x.mmcif.gz"])
@pytest.mark.parametrize("bare", [False, True])
def test_write_and_read_again(tmp_path, name, bare):
    unknown = dict.fromkeys(("resolution", "r_free", "method", "deposition_date")) | {
        "chain_id": "A",
        "entry_id": "1abc",
        "predicted": False,
    }
    chain = chain_to_write(**(unknown if bare else {}))
    write_mmcif(chain, tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    if name.endswith(".gz"):
        assert (tmp_path / name).read_bytes()[4:8] == bytes(4)  # no time stamp
    (copy,) = read_chains(tmp_path / name)
    fields = ("id", "sequence", "residue_numbers", "resolution", "r_free", "method", "deposition_date", "predicted")
    for field in fields:
        assert getattr(copy, field) == getattr(chain, field), field
    np.testing.assert_allclose(copy.coords, chain.coords, atol=5.1e-4)
    np.testing.assert_array_equal(copy.b_factors, chain.b_factors)


@pytest.mark.parametrize("sequence", ["X" * 6, "A" * 6])
def test_write_without_any_atom(tmp_path, sequence):
    chain = chain_to_write(sequence=sequence, coords=np.full((6, 5, 3), np.nan, dtype=np.float32))
    write_mmcif(chain, tmp_path / "x.cif")
    (copy,) = read_chains(tmp_path / "x.cif")
    assert copy.sequence == sequence
    assert np.isnan(copy.coords).all()


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "x.pdb", "expects .cif"),
        ({"sequence": "MXUKGJ"}, "x.cif", "letter 'J'"),
        ({"residue_numbers": ("1", "1", "2", "3", "4", "5")}, "x.cif", "repeat"),
        ({"residue_numbers": ("1", "1AB", "2", "3", "4", "5")}, "x.cif", "'1AB'"),
    ],
)
def test_write_refuses(tmp_path, changes, name, message):
    with pytest.raises(ValueError, match=message):
        write_mmcif(chain_to_write(**changes), tmp_path / name)
    assert os.listdir(tmp_path) == []
