"""What is one residue, one chain and one coordinate in files whose ids do not tell."""

import contextlib
import time

import numpy as np
import pytest

from structure_aligned.structure.io import read_chains
from structure_aligned.structure.molecules import _LONGEST_LOOP

from .pdb_text import NUCLEOTIDES, OFFSETS, as_mmcif, atom, residue


NAMES = ["MET", "LYS", "THR", "ALA", "TYR", "ILE", "ALA", "LYS", "GLN", "ARG"]
SEQUENCE = "MKTAYIAKQR"


def molecule(names=NAMES, start=1, shift=0.0, chain="A", segment="", record="ATOM", ter=True):
    """A peptide, its neighbours bonded, moved by `shift` Å along y; ended by TER."""
    lines = []
    for i, name in enumerate(names):
        for part, offset in OFFSETS.items():
            line = atom(part, name, start + i, np.add(offset, (3.8 * i, shift, 0)), chain, record).rstrip("\n")
            lines.append(line[:72] + f"{segment:4}" + line[76:] + "\n")
    return "".join(lines) + "TER\n" * ter


def sequences(chains):
    return [(chain.chain_id, chain.sequence) for chain in chains]


def distances(chain):
    return np.linalg.norm(np.diff(chain.ca, axis=0), axis=1)


# --- Molecules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["A", " "])
@pytest.mark.parametrize("ter", [True, False])
@pytest.mark.parametrize("other", [NAMES, NAMES[::-1], NAMES[:4]], ids=["homodimer", "other", "shorter"])
def test_two_molecules_under_one_chain_id(read_text, chain, ter, other):
    text = molecule(chain=chain, ter=ter) + molecule(other, shift=60, chain=chain, ter=ter)
    first, second = read_text(text)
    assert (first.sequence, len(second)) == (SEQUENCE, len(other))
    assert (first.chain_id, second.chain_id) == (chain.strip(), f"{chain.strip()}-2")
    for part, shift in ((first, 0), (second, 60)):
        np.testing.assert_allclose(distances(part), 3.8, atol=1e-3)
        np.testing.assert_allclose(part.ca[:, 1], shift, atol=1e-3)
        assert np.isfinite(part.coords).all()


def test_a_third_molecule_and_an_id_that_is_taken(read_text):
    text = molecule() + molecule(shift=60) + molecule(shift=120) + molecule(chain="B", shift=180)
    assert [chain.chain_id for chain in read_text(text)] == ["A", "A-2", "A-3", "B"]
    text = as_mmcif(molecule() + molecule(shift=60) + molecule(shift=120, chain="B"))
    assert [chain.chain_id for chain in read_text(text.replace(" B 1", " A-2 1"), "x.cif")] == ["A", "A-3", "A-2"]


def test_one_author_chain_of_two_polymers(read_text):
    first, second = molecule(), molecule(NAMES[:6], shift=60, chain="B")
    text = as_mmcif(first + second).replace(" B 1\n", " A 1\n")
    assert sequences(read_text(text, "x.cif")) == [("A", SEQUENCE), ("A-2", SEQUENCE[:6])]


@pytest.mark.parametrize("ter", [True, False])
@pytest.mark.parametrize("start", [1, 11])
def test_two_segments_under_one_chain_id(read_text, start, ter):
    text = molecule(segment="PROA", ter=ter) + molecule(segment="PROB", start=start, shift=40, ter=ter)
    assert sequences(read_text(text)) == [("A", SEQUENCE), ("A-2", SEQUENCE)]


def test_a_segment_that_is_the_same_everywhere_says_nothing(read_text):
    text = molecule(segment="1ABC") + molecule(segment="1ABC", chain="B", shift=40)
    assert sequences(read_text(text)) == [("A", SEQUENCE), ("B", SEQUENCE)]


def test_molecules_that_are_numbered_through(read_text):
    text = molecule() + molecule(start=11, shift=40)
    assert sequences(read_text(text)) == [("A", SEQUENCE), ("A-2", SEQUENCE)]


@pytest.mark.parametrize("missing", [3, _LONGEST_LOOP - 1, _LONGEST_LOOP])
def test_ter_at_a_gap_that_a_loop_spans(read_text, missing):
    text = molecule() + molecule(start=11 + missing, shift=-5.0)
    # The second part begins where the first one began, 35 Å from its end: four residues do not reach so far.
    joined = 3 < missing < _LONGEST_LOOP
    assert sequences(read_text(text)) == ([("A", SEQUENCE * 2)] if joined else [("A", SEQUENCE), ("A-2", SEQUENCE)])


def test_dna_before_protein_under_a_blank_id(read_text):
    dna = "".join(line[:21] + " " + line[22:] + "\n" for line in NUCLEOTIDES.splitlines()) + "TER\n"
    (chain,) = read_text(dna + molecule(chain=" ", start=101))
    assert (chain.chain_id, chain.sequence) == ("", SEQUENCE)


@pytest.mark.parametrize("record", ["ATOM", "HETATM"])
@pytest.mark.parametrize("start", [11, 301])
@pytest.mark.parametrize("shift", [15.0, 60.0])
def test_free_amino_acids_after_ter(read_text, record, start, shift):
    free = residue("GLU", start, record=record) + residue("GLU", start + 4, record=record)
    free = "".join(f"{line[:38]}{shift:8.3f}{line[46:]}\n" for line in free.splitlines())
    (chain,) = read_text(molecule() + free)
    assert chain.sequence == SEQUENCE


@pytest.mark.parametrize("ter", [True, False])
@pytest.mark.parametrize("start", [11, 60, 301])
def test_a_peptide_after_ter_is_a_chain_of_its_own(read_text, start, ter):
    chains = read_text(molecule() + molecule(NAMES[:5], start=start, shift=15, ter=ter))
    assert sequences(chains) == [("A", SEQUENCE), ("A-2", SEQUENCE[:5])]


def test_a_peptide_ligand_of_hetatm_records_is_left_out(read_text):
    assert sequences(read_text(molecule() + molecule(NAMES[:5], 301, 15, record="HETATM", ter=False))) == [
        ("A", SEQUENCE)
    ]


def test_chain_ids_of_two_letters_stay(read_text):
    text = molecule() + molecule(chain="B", shift=60)
    text = text.replace(" A ", "XA ").replace(" B ", "XB ")
    assert sequences(read_text(text)) == [("XA", SEQUENCE), ("XB", SEQUENCE)]


def test_chain_ids_with_white_space(read_text):
    text = as_mmcif(molecule()).replace(" A 1\n", " 'A\t_1' 1\n")
    (chain,) = read_text(text, "x.cif")
    assert (chain.entry_id, chain.chain_id) == ("x", "A\t_1")


# --- Residues ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["   7", "    ", "****"])
@pytest.mark.parametrize("names", [NAMES, ["ALA"] * 10], ids=["names differ", "names repeat"])
def test_pdb_files_without_residue_numbers(read_text, number, names):
    text = "".join(line[:22] + number + line[26:] + "\n" for line in molecule(names, ter=False).splitlines())
    (chain,) = read_text(text)
    assert len(chain) == 10 and np.isfinite(chain.coords).all()
    np.testing.assert_allclose(distances(chain), 3.8, atol=1e-3)
    given = number.strip().strip("*")
    assert chain.residue_numbers == (tuple(given * 10) if given else tuple(map(str, range(1, 11))))


@pytest.mark.parametrize("value", [".", "?", "7"])
def test_mmcif_files_without_residue_numbers(read_text, value):
    lines = as_mmcif(molecule()).splitlines()
    lines = [
        " ".join([*line.split()[:-3], value, *line.split()[-2:]]) if "ATOM" in line[:4] else line for line in lines
    ]
    (chain,) = read_text("\n".join(lines) + "\n", "x.cif")
    assert chain.sequence == SEQUENCE
    np.testing.assert_allclose(distances(chain), 3.8, atol=1e-3)


def test_insertion_codes_that_were_removed(read):
    names = ["ALA", "SER", "GLY", "GLY", "TRP"]
    text = molecule(names, ter=False)
    lines = text.splitlines(keepends=True)
    for i in (2, 3):
        for line in range(5 * i, 5 * i + 5):
            lines[line] = lines[line][:22] + "   2" + lines[line][26:]
    (chain,) = read("".join(lines))
    assert (chain.sequence, chain.residue_numbers) == ("ASGGW", ("1", "2", "2", "2", "5"))
    np.testing.assert_allclose(distances(chain), 3.8, atol=1e-3)


def test_an_atom_that_comes_twice_for_no_reason(read_text):
    lines = molecule(ter=False).splitlines(keepends=True)
    lines.insert(8, lines[6].replace("   0.000", "   1.000", 1))  # another CA of LYS 2
    with pytest.raises(ValueError, match=r"line 9: the atom CA of residue LYS"):
        read_text("".join(lines))
    lines[8] = lines[6]  # the same line again says nothing new
    assert read_text("".join(lines))[0].sequence == SEQUENCE


def test_hydrogens_of_one_name_are_no_residues(read_text):
    hydrogens = "".join(atom("H", "MET", 1, (i, 1, 1)) for i in range(4))
    assert read_text(hydrogens + molecule())[0].sequence == SEQUENCE


def test_numbers_beyond_9999(read_text):
    text = molecule(start=9996, ter=False).splitlines(keepends=True)
    text = [line if line[22] != "1" else line[:22] + "A00" + line[26:] for line in text]
    assert read_text("".join(text))[0].residue_numbers[-2:] == ("10004", "10005")
    hexadecimal = ["270f", "2710", "2711", "271a"]
    lines = molecule(NAMES[:4], ter=False).splitlines(keepends=True)
    lines = [line[:22] + hexadecimal[i // 5] + line[26:] for i, line in enumerate(lines)]
    with pytest.raises(ValueError, match=r"line 1 .*'270f' in the columns of the residue number"):
        read_text("".join(lines))


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        *((name, "H") for name in ("HID", "HIE", "HIP", "HSD", "HSE", "HSP")),
        *(
            ("CYX", "C"),
            ("CYM", "C"),
            ("ASH", "D"),
            ("GLH", "E"),
            ("LYN", "K"),
            ("LYP", "K"),
            ("ARN", "R"),
            ("TYM", "Y"),
        ),
    ],
)
def test_names_of_simulations(read, name, letter):
    assert read(molecule([name, *NAMES, name], ter=False))[0].sequence == letter + SEQUENCE + letter
    assert read(molecule([name] * 5, ter=False))[0].sequence == letter * 5


@pytest.mark.parametrize(
    ("name", "letter"),
    [("NMET", "M"), ("CGLY", "G"), ("NHIE", "H"), ("CCYX", "C"), ("LYSH", "K"), ("HISD", "H"), ("ASPP", "D")],
)
def test_residue_names_of_four_letters(read_text, name, letter):
    text = molecule().replace("MET A", f"{name}A")
    assert sequences(read_text(text)) == [("A", letter + SEQUENCE[1:])]
    text = as_mmcif(molecule()).replace(" MET ", f" {name} ")
    assert sequences(read_text(text, "x.cif")) == [("A", letter + SEQUENCE[1:])]


@pytest.mark.parametrize("ter", [True, False])
@pytest.mark.parametrize("left", [True, False], ids=["names from column 13", "names from column 14"])
def test_unknown_residues_without_elements(read_text, ter, left):
    lines = []
    for line in molecule([*NAMES[:4], "QQ2", *NAMES[4:]], ter=ter).splitlines():
        if line.startswith("ATOM"):
            line = line[:12] + (f"{line[12:16].strip():4}" if left else line[12:16]) + line[16:76]
        lines.append(line)
    assert read_text("\n".join(lines) + "\n")[0].sequence == "MKTAXYIAKQR"


@pytest.mark.parametrize("symbol", ["?", ".", "X"])
def test_unknown_residues_without_elements_in_mmcif(read_text, symbol):
    lines = as_mmcif(molecule([*NAMES[:4], "QQ2", *NAMES[4:]])).splitlines()
    lines = [" ".join([*(p := line.split())[:2], symbol, *p[3:]]) if line[:4] == "ATOM" else line for line in lines]
    assert read_text("\n".join(lines) + "\n", "x.cif")[0].sequence == "MKTAXYIAKQR"


# --- Lines and columns -------------------------------------------------------------------------------------------


def without_columns(text, *names):
    header, *rows = text.split("loop_\n")[0], *text.split("loop_\n")[1].splitlines()
    tags = [row for row in rows if row.startswith("_atom_site.")]
    keep = [i for i, tag in enumerate(tags) if tag.removeprefix("_atom_site.") not in names]
    body = [" ".join(row.split()[i] for i in keep) for row in rows[len(tags) :]]
    return header + "loop_\n" + "\n".join([*(tags[i] for i in keep), *body]) + "\n"


OPTIONAL = ["group_PDB", "id", "type_symbol", "label_alt_id", "label_asym_id", "label_entity_id", "label_seq_id"]
OPTIONAL += ["pdbx_PDB_ins_code", "occupancy", "B_iso_or_equiv", "auth_asym_id", "pdbx_PDB_model_num"]


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_optional_column_may_be_absent(read_text, name):
    (chain,) = read_text(without_columns(as_mmcif(molecule()), name), "x.cif")
    assert (chain.chain_id, chain.sequence) == ("A", SEQUENCE)
    assert np.isfinite(chain.coords).all()


def test_all_optional_columns_may_be_absent(read_text):
    text = as_mmcif(molecule()).replace("label_atom_id", "auth_atom_id").replace("label_comp_id", "auth_comp_id")
    (chain,) = read_text(without_columns(text, *OPTIONAL), "x.cif")
    assert (chain.chain_id, chain.sequence) == ("A", SEQUENCE)


def test_numbers_of_label_seq_id_where_the_author_gives_none(read_text):
    lines = [line.split() for line in as_mmcif(molecule()).splitlines()]
    lines = [[*p[:8], p[15], *p[9:]] if p[:1] == ["ATOM"] else p for p in lines]
    text = "\n".join(" ".join(parts) for parts in lines) + "\n"
    (chain,) = read_text(without_columns(text, "auth_seq_id"), "x.cif")
    assert (chain.sequence, chain.residue_numbers) == (SEQUENCE, tuple(map(str, range(1, 11))))


@pytest.mark.parametrize("name", ["x.pdb", "x.cif"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_byte_order_marks_and_line_ends(read_text, name, mark, end):
    text = molecule() if name == "x.pdb" else as_mmcif(molecule())
    (chain,) = read_text(mark + text.encode().replace(b"\n", end), name)
    assert chain.sequence == SEQUENCE and np.isfinite(chain.coords).all()


@pytest.mark.parametrize("first", [99_990, 100_000, 1_000_000])
def test_serial_numbers_of_six_and_more_digits(read_text, first):
    lines = [
        f"ATOM  {first + i:5d} {line[12:]}" if line.startswith("ATOM") else line
        for i, line in enumerate(molecule().splitlines())
    ]
    (chain,) = read_text("\n".join(lines) + "\n")
    assert chain.sequence == SEQUENCE and np.isfinite(chain.coords).all()
    np.testing.assert_allclose(distances(chain), 3.8, atol=1e-3)


def test_atoms_behind_the_end(read_text):
    with pytest.raises(ValueError, match=r"only 50 of its 100 atom lines .* after the END in line 52"):
        read_text(molecule() + "END\n" + molecule(chain="B", shift=60))


def shifted(by):
    return "".join(
        (line[:30] + " " * by + line[30:] if by > 0 else line[:26] + line[26 - by :]) + "\n"
        for line in molecule(ter=False).splitlines()
    )


UNREADABLE = {
    "nan": "".join(line[:30] + "     nan" * 3 + line[54:] + "\n" for line in molecule(ter=False).splitlines()),
    "blank": "".join(line[:30] + "        " * 3 + line[54:] + "\n" for line in molecule(ter=False).splitlines()),
    "decimal comma": "".join(
        line[:30] + line[30:54].replace(".", ",") + line[54:] + "\n" for line in molecule(ter=False).splitlines()
    ),
    "columns to the right": shifted(2),
    "zeros": "".join(line[:30] + "   0.000" * 3 + line[54:] + "\n" for line in molecule(ter=False).splitlines()),
    "lower-case atom names": "".join(
        line[:12] + line[12:16].lower() + line[16:] + "\n" for line in molecule(ter=False).splitlines()
    ),
    "PQR": "".join(
        " ".join([*line[:26].split(), *line[30:54].split(), "-0.30", "1.85"]) + "\n"
        for line in molecule(ter=False).splitlines()
    ),
}


def test_columns_to_the_left_by_less_than_their_blanks(read_text):
    (chain,) = read_text(shifted(-2))  # the element comes to stand in the columns of the segment
    assert chain.sequence == SEQUENCE and np.isfinite(chain.coords).all()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_files_without_a_coordinate_that_can_be_read(read_text, kind):
    with pytest.raises(ValueError, match=r"line 1\b"):
        read_text(UNREADABLE[kind])


@pytest.mark.parametrize("value", ["nan", "1,5"])
def test_mmcif_files_without_a_coordinate_that_can_be_read(read_text, value):
    lines = [line.split() for line in as_mmcif(molecule()).splitlines()]
    lines = [[*p[:10], value, value, value, *p[13:]] if p[:1] == ["ATOM"] else p for p in lines]
    with pytest.raises(ValueError, match="row 1 of _atom_site"):
        read_text("\n".join(" ".join(parts) for parts in lines) + "\n", "x.cif")


def test_one_chain_without_coordinates_is_refused_with_the_others(read_text):
    text = molecule(chain="B", shift=60)
    text = molecule() + "".join(
        line[:30] + "     nan" * 3 + line[54:] + "\n" if line.startswith("ATOM") else line + "\n"
        for line in text.splitlines()
    )
    with pytest.raises(ValueError, match=r"chain 'B' has 10 residues but not one backbone atom"):
        read_text(text)


def test_missing_atoms_written_as_zeros(read):
    lines = molecule(shift=30, ter=False).splitlines(keepends=True)
    for i in (7, 8, 9, 14):  # C, O and CB of residue 2; CB of residue 3
        lines[i] = lines[i][:30] + "   0.000" * 3 + lines[i][54:]
    (chain,) = read("".join(lines))
    missing = np.isnan(chain.coords).all(axis=-1)
    assert missing[1].tolist() == [False, False, True, True, True]
    assert missing[2].tolist() == [False, False, False, False, True]
    assert missing.sum() == 4


def test_an_atom_at_the_origin_stays(read):
    (chain,) = read(molecule(ter=False))  # the first CA lies there
    assert chain.coords[0, 1].tolist() == [0, 0, 0]


# --- Work --------------------------------------------------------------------------------------------------------


def seconds(path):
    start = time.process_time()
    with contextlib.suppress(ValueError):
        read_chains(path)
    return time.process_time() - start


HOSTILE = {
    "title.pdb": lambda n: "".join(f"TITLE    {i % 99:2d} {'ALPHAFOLD ' * 6}\n" for i in range(n)) + molecule(),
    "title.cif": lambda n: as_mmcif(molecule(), f"_struct.title '{'ALPHAFOLD ' * 6 * n}'\n"),
    "blocks.cif": lambda n: "".join(f"data_{i}\n_a.b 1\n" for i in range(20 * n)),
    "ters.pdb": lambda n: molecule() + "TER\n" * 20 * n,
    "models.pdb": lambda n: (molecule() + "ENDMDL\n") * (n // 4),
    "comments.cif": lambda n: "#\n" * 20 * n + as_mmcif(molecule()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_work_grows_no_faster_than_the_input(tmp_path, name):
    path = tmp_path / name
    for size in (2_000, 16_000):
        path.write_text(HOSTILE[name](size))
        taken = seconds(path)
    # Not a measure of speed: the work takes a fraction of a second, and many minutes where it grows with the square.
    assert taken < 30
