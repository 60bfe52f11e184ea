"""Molecules, conformers and lines that a file does not mark: read for what they are, or refused with the line."""

import numpy as np
import pytest

from .pdb_text import NUCLEOTIDES, as_mmcif, atom
from .test_io_marks import NAMES, SEQUENCE, molecule, sequences


WATERS = "".join(atom("O", "HOH", 300 + i, (9, 9, 3 * i), record="HETATM") for i in range(3))


def lines_of(text):
    return text.splitlines(keepends=True)


def both(read_text, text):
    """What the PDB text gives, and the same atoms as mmCIF."""
    chains = sequences(read_text(text))
    assert sequences(read_text(as_mmcif(text), "x.cif")) == chains
    return chains


@pytest.mark.parametrize("atoms", [0, 25], ids=["before", "within"])
def test_waters_do_not_end_a_chain(read_text, atoms):
    lines = lines_of(molecule(ter=False))
    assert both(read_text, "".join([*lines[:atoms], WATERS, *lines[atoms:]])) == [("A", SEQUENCE)]


@pytest.mark.parametrize("start", [1, 501])
def test_a_molecule_behind_waters(read_text, start):
    text = molecule(ter=False) + WATERS + molecule(NAMES[:6], start=start, shift=60, ter=False) + WATERS
    assert both(read_text, text) == [("A", SEQUENCE), ("A-2", SEQUENCE[:6])]


@pytest.mark.parametrize("place", [0, 4, 9])
def test_unknown_residues_of_hetatm_records_stay_in_the_chain(read_text, place):
    lines = lines_of(molecule([*NAMES[:place], "UNK", *NAMES[place + 1 :]], ter=False))
    for i in range(5 * place, 5 * place + 5):
        lines[i] = "HETATM" + lines[i][6:]
    assert both(read_text, "".join(lines)) == [("A", SEQUENCE[:place] + "X" + SEQUENCE[place + 1 :])]


def test_molecules_of_ca_atoms_after_ter(read_text):
    text = molecule() + molecule(shift=60, ter=False)
    text = "".join(line for line in lines_of(text) if line[12:16].strip() == "CA" or line[:3] == "TER")
    assert sequences(read_text(text)) == [("A", SEQUENCE), ("A-2", SEQUENCE)]


def test_numbers_that_go_back(read_text):
    text = molecule(start=101, ter=False) + molecule(NAMES[:6], start=1, shift=60, ter=False)
    assert both(read_text, text) == [("A", SEQUENCE), ("A-2", SEQUENCE[:6])]
    lines = lines_of(molecule(start=101, ter=False))  # numbers of a domain that somebody inserted
    lines[25:] = [line[:22] + f"{int(line[22:26]) - 100:4d}" + line[26:] for line in lines[25:]]
    assert both(read_text, "".join(lines)) == [("A", SEQUENCE)]


def test_places_in_the_sequence_that_start_again(read_text):
    text = as_mmcif(molecule() + molecule(start=501, shift=60))
    for i in range(10):
        for number in (1 + i, 501 + i):
            text = "\n".join(
                line.replace(" A 1 . ", f" A 1 {i + 1} ") if line.split()[-3:-2] == [str(number)] else line
                for line in text.splitlines()
            )
    assert sequences(read_text(text, "x.cif")) == [("A", SEQUENCE), ("A-2", SEQUENCE)]


@pytest.mark.parametrize("before", [True, False])
def test_dna_of_more_residues_under_the_id_of_a_protein(read_text, before):
    dna = "".join(line[:21] + "A" + line[22:] for line in lines_of(NUCLEOTIDES))
    dna = "".join(
        line[:22] + f"{int(line[22:26]) + 4 * k:4d}" + line[26:] for k in range(50, 55) for line in lines_of(dna)
    )
    protein = molecule(ter=False)
    assert sequences(read_text(dna + protein if before else protein + dna)) == [("A", SEQUENCE)]


@pytest.mark.parametrize("shift", [0.5, 8.0, 60.0], ids=["conformers", "near", "far"])
def test_residues_listed_twice_without_a_mark(read_text, shift):
    lines, others = lines_of(molecule(ter=False)), lines_of(molecule(shift=shift, ter=False))
    text = "".join("".join(lines[i : i + 5] + others[i : i + 5]) for i in range(0, 50, 5))
    with pytest.raises(ValueError, match=r"line 6: residue 1 of chain 'A' comes twice"):
        read_text(text)
    with pytest.raises(ValueError, match=r"row 6 of _atom_site: residue 1 of chain 'A' comes twice"):
        read_text(as_mmcif(text), "x.cif")


def test_free_amino_acids_before_the_chain(read_text):
    free = "".join("HETATM" + line[6:] for line in lines_of(molecule(["GLU"], start=301, shift=30, ter=False)))
    assert both(read_text, free + molecule(ter=False)) == [("A", SEQUENCE)]


@pytest.mark.parametrize("other", ["TIP3W", "POPCL"])
def test_four_letter_names_beside_waters_and_lipids_of_four_letters(read_text, other):
    text = molecule().replace("MET A", "NMETA")
    text += "".join(line.replace("HOH A", other) for line in lines_of(WATERS))
    assert sequences(read_text(text)) == [("A", SEQUENCE)]


@pytest.mark.parametrize("column", [22, 30], ids=["from the residue number", "from x"])
def test_a_line_that_is_shifted(read_text, column):
    lines = lines_of(molecule(ter=False))
    lines[7] = lines[7][:column] + " " + lines[7][column:]
    lines[7] = lines[7].replace("0.000", "1.234")
    with pytest.raises(ValueError, match=r"line 8 .* has no three numbers in the columns of the coordinates"):
        read_text("".join(lines))


@pytest.mark.parametrize("start", [" ", "> ", "\t"])
def test_atom_lines_that_do_not_begin_with_their_record(read_text, start):
    lines = lines_of(molecule(ter=False))
    lines[30:] = [start + line for line in lines[30:]]
    with pytest.raises(ValueError, match=r"line 31 .* does not begin with the name of its record"):
        read_text("".join(lines))


def test_files_of_which_many_coordinates_cannot_be_read(read_text):
    lines = lines_of(molecule(ter=False))
    half = [line[:30] + "     abc" + line[38:] if i % 2 else line for i, line in enumerate(lines)]
    with pytest.raises(ValueError, match=r"50% of its protein atoms have no coordinates; line 2 "):
        read_text("".join(half))
    rows = [line.split() for line in as_mmcif(molecule()).splitlines()]
    rows = [[*row[:10], "abc", *row[11:]] if row[:1] == ["ATOM"] and i % 2 else row for i, row in enumerate(rows)]
    with pytest.raises(ValueError, match=r"50% of its protein atoms have no coordinates; row \d of _atom_site"):
        read_text("\n".join(" ".join(row) for row in rows) + "\n", "x.cif")


def test_exponents_are_not_read_as_other_numbers(read_text):
    lines = lines_of(molecule(ter=False))
    lines[6] = lines[6][:30] + "  1.5e+1" + lines[6][38:]  # gemmi takes it for 1.5
    (chain,) = read_text("".join(lines))
    assert np.isnan(chain.ca).all(axis=1).tolist() == [False, True] + [False] * 8


@pytest.mark.parametrize("value", ["9999.000", "9999.999", " 999.999"])
def test_missing_atoms_written_far_away(read, value):
    lines = lines_of(molecule(ter=False))
    lines[9] = lines[9][:30] + value * 3 + lines[9][54:]  # CB of residue 2
    (chain,) = read("".join(lines))
    assert np.isnan(chain.coords).all(axis=-1).sum() == 1 and np.isnan(chain.coords[1, 4]).all()
