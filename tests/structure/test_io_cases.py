"""`read_chains` on the odd files of the shared folder, where they are present."""

import numpy as np
import pytest

from structure_aligned.inference.fasta import read_fasta
from structure_aligned.structure.fetch import split_ids
from structure_aligned.structure.io import read_chains
from tests.conftest import shared_path


PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"
# File: the chains' ids and sequences, or the words of the error.
CASES = {
    "all_coordinates_nan.pdb": "line 1 .* has no three numbers",
    "byte_order_mark.pdb": [("A", PROTEIN)],
    "decimal_comma.pdb": "line 1 .* has no three numbers",
    "dna_before_protein_blank_id.pdb": [("", PROTEIN)],
    "four_letter_residue_name.pdb": [("A", PROTEIN)],
    "free_amino_acids_after_ter.pdb": [("A", PROTEIN)],
    "insertion_codes_removed.pdb": [("A", "ASGGWA")],
    "md_residue_names.pdb": [("A", "AHHHHHHCCDEKKG")],
    "one_author_chain_two_polymers.cif": [("A", PROTEIN), ("A-2", "MATSYIDLQWERTY")],
    "pymol_without_auth_seq_id.cif": [("A", PROTEIN)],
    "residue_numbers_unknown.cif": [("A", PROTEIN)],
    "six_digit_serials.pdb": [("A", PROTEIN)],
    "two_molecules_blank_id.pdb": [("", PROTEIN), ("-2", PROTEIN)],
    "two_molecules_one_chain_id.pdb": [("A", PROTEIN), ("A-2", "MATSYIDLQ")],
    "two_segments_one_chain_id.pdb": [("", PROTEIN), ("-2", PROTEIN)],
    "unknown_residue_no_element.pdb": [("A", "AAXAA")],
}


@pytest.mark.parametrize("name", CASES)
def test_odd_structures(name):
    path = shared_path("cases", "structures", name)
    if isinstance(CASES[name], str):
        with pytest.raises(ValueError, match=CASES[name]) as error:
            read_chains(path)
        assert str(path) in str(error.value)
        return
    chains = read_chains(path)
    assert [(chain.chain_id, chain.sequence) for chain in chains] == CASES[name]
    for chain in chains:
        # Neighbours of one molecule: no chain was put together from two.
        distances = np.linalg.norm(np.diff(chain.ca, axis=0), axis=1)
        assert np.isfinite(chain.ca).all() and (distances < 4.2).all()


def test_every_odd_structure_is_tested():
    assert {path.name for path in shared_path("cases", "structures").iterdir()} == set(CASES)


def test_odd_texts():
    folder = shared_path("cases", "other")
    assert [(one.id, one.sequence) for one in read_fasta(folder / "byte_order_mark.fasta")] == [("a", "MKTAY")]
    records = [(one.id, one.sequence) for one in read_fasta(folder / "cr_line_ends.fasta")]
    assert records == [("a", "MKTAY"), ("b", "MKT")]
    text = (folder / "comma_separated_ids.txt").read_text()
    assert split_ids(text) == ["1ABC", "2DEF", "3GHI", "4HHB"]
