"""Hostile and unlucky structure files."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from structure_aligned.structure.io import read_chains
from tests.structure.pdb_text import NUCLEOTIDES, as_mmcif, atom, residue
from tests.structure.test_io_marks import NAMES, SEQUENCE, molecule

from .hostile import check, refused, write


def edited(text, edit, rows=slice(None)):
    """The text with `edit` applied to some of its atom lines."""
    lines = text.splitlines()
    atoms = [i for i, line in enumerate(lines) if line.startswith(("ATOM", "HETATM"))]
    for i in atoms[rows]:
        lines[i] = edit(lines[i])
    return "\n".join(lines) + "\n"


def columns(start, end, value):
    """An edit that puts `value` into the columns of a line, counted from 0."""
    return lambda line: line[:start] + f"{value:{end - start}}" + line[end:]


def field(index, value):
    """An edit that puts `value` into one of the fields of an mmCIF row."""
    return lambda line: " ".join([*(parts := line.split())[:index], value, *parts[index + 1 :]])


def interleaved(step):
    """Two chains of which `step` lines follow one another."""
    one, other = (text.splitlines(True) for text in (molecule(ter=False), molecule(chain="B", shift=60, ter=False)))
    return "".join("".join(one[i : i + step] + other[i : i + step]) for i in range(0, len(one), step))


def renumbered(*numbers):
    """The peptide with these residue numbers."""
    lines = molecule(ter=False).splitlines()
    return "".join(f"{line[:22]}{numbers[i // 5]:>4}{line[26:]}\n" for i, line in enumerate(lines))


def packed(*files):
    """A .tar.gz of these texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i, text in enumerate(files):
            info = tarfile.TarInfo(f"{i}.pdb")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.pdb", molecule())
    return buffer.getvalue()


P, C = molecule(), as_mmcif(molecule())
ONE = [("A", SEQUENCE)]
TWO = [("A", SEQUENCE), ("B", SEQUENCE)]
X, Y, Z, B = (30, 38), (38, 46), (46, 54), (60, 66)
NO_BACKBONE = "chain 'A' has 10 residues but not one backbone atom"
PAGE = "<!DOCTYPE html>\n<html><title>503 ATOM service</title></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

# What is one chain -----------------------------------------------------------------------------------------------
MOLECULES = {
    "three molecules of one id without TER": (
        "x.pdb",
        molecule(ter=False) + molecule(shift=60, ter=False) + molecule(shift=120),
        [("A", SEQUENCE), ("A-2", SEQUENCE), ("A-3", SEQUENCE)],
    ),
    "a homodimer of one label": ("x.cif", as_mmcif(P + molecule(shift=60)), [("A", SEQUENCE), ("A-2", SEQUENCE)]),
    "two chains whose atoms take turns": (
        "x.pdb",
        interleaved(1),
        refused("residue MET 1 of chain 'A'", "sort the atoms"),
    ),
    "two chains whose atoms take turns in mmCIF": (
        "x.cif",
        as_mmcif(interleaved(1)),
        refused("residue MET 1 of chain 'A'", "sort the atoms"),
    ),
    "two chains whose residues take turns": ("x.pdb", interleaved(5), TWO),
    "two chains whose residues take turns in mmCIF": ("x.cif", as_mmcif(interleaved(5)), TWO),
    "ids that differ in their case": ("x.pdb", P + molecule(chain="a", shift=60), [("A", SEQUENCE), ("a", SEQUENCE)]),
    "ids that are punctuation": (
        "x.pdb",
        P.replace(" A ", " / ") + molecule(chain="*", shift=60),
        [("/", SEQUENCE), ("*", SEQUENCE)],
    ),
    "segments under a blank id": (
        "x.pdb",
        molecule(chain=" ", segment="P1") + molecule(chain=" ", segment="P2", shift=60),
        [("", SEQUENCE), ("-2", SEQUENCE)],
    ),
    "TER between neighbours": (
        "x.pdb",
        molecule(NAMES[:5]) + "".join(edited(molecule(ter=False), lambda line: line).splitlines(keepends=True)[25:]),
        ONE,
    ),
    "ter in small letters": (
        "x.pdb",
        P.replace("TER", "ter") + molecule(shift=60).replace("TER", "ter"),
        [("A", SEQUENCE), ("A-2", SEQUENCE)],
    ),
    "TER without a line end": ("x.pdb", P.rstrip("\n"), ONE),
    "numbers that count down": ("x.pdb", renumbered(*range(10, 0, -1)), ONE),
    "a tag with numbers of its own": ("x.pdb", renumbered(1, 2, 3, 1001, 1002, 1003, 4, 5, 6, 7), ONE),
    "a number that comes again far behind, bonded": ("x.pdb", renumbered(1, 2, 3, 4, 5, 1, 2, 3, 4, 5), ONE),
    "negative numbers of four columns": ("x.pdb", renumbered(*range(-999, -989)), ONE),
    "insertion codes that count down": (
        "x.pdb",
        "".join(residue("ALA", 52, insertion=i) for i in "BA ") + "TER\n",
        [("A", "AAA")],
    ),
    "a chain id of a thousand letters": ("x.cif", C.replace(" A 1\n", f" {'A' * 1000} 1\n"), [("A" * 1000, SEQUENCE)]),
    "a chain id that is a path": ("x.cif", C.replace(" A 1\n", " ../../up 1\n"), [("../../up", SEQUENCE)]),
    "a chain id beyond ASCII": ("x.cif", C.replace(" A 1\n", " Å 1\n"), refused("x.cif")),
    "water and ions between the residues": (
        "x.pdb",
        edited(P, lambda line: line, slice(0)).replace("TER\n", "")
        + atom("O", "HOH", 201, (1, 1, 1), record="HETATM")
        + atom("CA", "CA", 202, (9, 9, 9), record="HETATM"),
        ONE,
    ),
}

RESIDUES = {
    "amino acids of the other hand": ("x.pdb", molecule(["DAL", "DVA", "DLE", "DAR", "DLY"]), [("A", "AVLRK")]),
    "rare and ambiguous amino acids": (
        "x.pdb",
        molecule(["ALA", "SEC", "PYL", "ASX", "GLX", "UNK"]),
        [("A", "AUOBZX")],
    ),
    "phosphorylated amino acids": ("x.pdb", molecule(["ALA", "SEP", "TPO", "PTR", "ALA"]), [("A", "ASTYA")]),
    "selenomethionine as HETATM": (
        "x.pdb",
        molecule(["ALA", "MSE", "ALA"]).replace("ATOM      1  N   MSE", "HETATM    1  N   MSE"),
        [("A", "AMA")],
    ),
    "residue names in small letters": (
        "x.pdb",
        edited(P, lambda line: line[:17] + line[17:20].lower() + line[20:]),
        ONE,
    ),
    "residue names in small letters in mmCIF": (
        "x.cif",
        edited(C, lambda line: field(5, line.split()[5].lower())(line)),
        ONE,
    ),
    "two components at one site": (
        "x.pdb",
        residue("ALA", 1) + residue("SER", 2, altloc="A") + residue("THR", 2, altloc="B") + residue("GLY", 3),
        [("A", "ASG")],
    ),
    "alternatives that are called 1 and 2": (
        "x.pdb",
        residue("ALA", 1) + residue("SER", 2, altloc="1") + residue("SER", 2, altloc="2") + residue("GLY", 3),
        [("A", "ASG")],
    ),
    "an ion that is called CA": ("x.pdb", molecule(ter=False) + atom("CA", "CA", 11, (40, 0, 0)), ONE),
    "nothing but CA": ("x.pdb", "".join(line + "\n" for line in P.splitlines() if line[13:15] == "CA"), ONE),
    "nothing but side chains": (
        "x.pdb",
        "".join(line[:13] + "CG " + line[16:] + "\n" for line in P.splitlines() if line[13:15] == "CB"),
        refused(NO_BACKBONE),
    ),
    "one residue name for the whole file": ("x.pdb", edited(P, columns(17, 20, "UNL")), [("A", "X" * 10)]),
    "no residue names": ("x.pdb", edited(P, columns(17, 20, "   ")), [("A", "X" * 10)]),
    "caps on both ends": (
        "x.pdb",
        molecule(["ACE", *NAMES, "NME"]).replace(" CA  ACE", " CH3 ACE").replace(" CA  NME", " CH3 NME"),
        ONE,
    ),
    "protein and DNA under one id": ("x.pdb", P + NUCLEOTIDES.replace(" N ", " A "), ONE),
}

COORDINATES = {
    "an exponent": ("x.pdb", edited(P, columns(*X, "1.00e+01")), refused("line 1")),
    "underscores between the digits": ("x.pdb", edited(P, columns(*X, "  1_00.0")), refused("line 1")),
    "infinity": ("x.pdb", edited(P, columns(*Y, "     inf")), refused("line 1")),
    "no decimal point at all": ("x.pdb", edited(P, columns(*Z, "      12")), ONE),
    "stars": ("x.pdb", edited(P, columns(*X, "********")), refused("line 1")),
    "coordinates beyond their columns": (
        "x.pdb",
        edited(P, lambda line: line[:30] + "10000.000" + line[38:]),
        refused("line 1"),
    ),
    "letters behind the digits": ("x.pdb", edited(P, columns(*X, "  1.000a")), refused("line 1")),
    "blanks within a number": ("x.pdb", edited(P, columns(*X, "  1 .000")), refused("line 1")),
    "two minus signs": ("x.pdb", edited(P, columns(*X, " --1.000")), refused("line 1")),
    "hexadecimal numbers": ("x.pdb", edited(P, columns(*X, "    0x1F")), refused("line 1")),
    "digits beyond ASCII": ("x.pdb", edited(P, columns(*X, "   ١.٠٠٠")), refused("line 1")),
    "tabs between the columns": ("x.pdb", edited(P, lambda line: "\t".join(line.split())), refused("x.pdb")),
    "one atom at infinity in mmCIF": ("x.cif", edited(C, field(10, "1e999")), refused("row 1 of _atom_site")),
    "underscores between the digits in mmCIF": (
        "x.cif",
        edited(C, field(10, "1_0.0")),
        refused("row 1 of _atom_site"),
    ),
    "standard uncertainties": ("x.cif", edited(C, lambda line: field(12, f"{line.split()[12]}(3)")(line)), ONE),
    "plus signs": ("x.cif", edited(C, field(12, "+1.5")), ONE),
    "coordinates of quoted text": ("x.cif", edited(C, field(10, "'1.0 Å'")), refused("row 1 of _atom_site")),
}

LINES = {
    "a file without line ends": ("x.pdb", P.replace("\n", ""), refused("line 1")),
    "files joined without a line end": (
        "x.pdb",
        P.rstrip("\n") + molecule(chain="B", shift=60),
        refused("line 51 holds more than one record"),
    ),
    "two atoms on one line": ("x.pdb", P.replace("\nATOM", "ATOM", 1), refused("line 1")),
    "lines of 54 columns": ("x.pdb", edited(P, lambda line: line[:54]), ONE),
    "a line that is cut": ("x.pdb", edited(P, lambda line: line[:40], slice(7, 8)), refused("8")),
    "records in small letters": ("x.pdb", P.replace("ATOM", "atom").replace("TER", "ter"), ONE),
    "a file in small letters": ("x.pdb", P.lower(), refused("has 10 residues but not one backbone atom", "line 1")),
    "lines that are indented": ("x.pdb", edited(P, lambda line: " " + line), refused("x.pdb")),
    "lines of a thousand columns": ("x.pdb", edited(P, lambda line: line + " " * 1000 + "x"), ONE),
    "blank lines and comments": ("x.pdb", "# made by hand\n\n" + edited(P, lambda line: line + "\n\n# note"), ONE),
    "NUL bytes between the lines": ("x.pdb", P.replace("\n", "\n\0\n"), refused("only 1 of its 50 atom lines")),
    "only NUL bytes": ("x.pdb", b"\0" * 10_000, refused("is empty")),
    "UTF-16": ("x.pdb", P.encode("utf-16"), refused("x.pdb")),
    "UTF-16 mmCIF": ("x.cif", C.encode("utf-16"), refused("x.cif")),
    "Latin-1 in a remark": ("x.pdb", b"REMARK   1 \xc5ngstr\xf6m\n" + P.encode(), ONE),
    "two models without ENDMDL": (
        "x.pdb",
        "MODEL        1\n" + P + "MODEL        2\n" + molecule(shift=60),
        refused("only 50 of its 100 atom lines"),
    ),
    "two models of one number": ("x.pdb", ("MODEL        1\n" + P + "ENDMDL\n") * 2, ONE),
    "frames with END between them": ("x.pdb", (P + "END\n") * 3, refused("line")),
    "ENDMDL before all atoms": ("x.pdb", "ENDMDL\n" + P, refused("x.pdb")),
    "a second model of other chains": ("x.pdb", P + "ENDMDL\n" + molecule(chain="B"), ONE),
    "models in mmCIF that take turns": (
        "x.cif",
        C + "".join(line[:-1] + "2\n" for line in C.splitlines() if line.startswith("ATOM")),
        ONE,
    ),
}

CONTENTS = {
    "a page of a server that is down": ("x.pdb", PAGE, refused("no ATOM")),
    "a page as mmCIF": ("x.cif", PAGE, refused("cannot be read as .cif")),
    "an answer in JSON": ("x.cif", '{"message": "not found"}', refused("cannot be read as .cif")),
    "a pointer of git-lfs": ("x.pdb", POINTER, refused("no ATOM")),
    "a zip archive": ("x.pdb", zipped(), refused("x.pdb")),
    "a tar archive of two structures": ("x.pdb.gz", packed(P, P), refused("x.pdb.gz")),
    "gzip data within gzip data": ("x.pdb.gz", gzip.compress(gzip.compress(P.encode())), refused("x.pdb.gz")),
    "gzip data in two members": ("x.pdb.gz", gzip.compress(P[:500].encode()) + gzip.compress(P[500:].encode()), ONE),
    "gzip data with a tail": ("x.pdb.gz", gzip.compress(P.encode()) + b"tail", refused("x.pdb.gz")),
    "gzip data with flags that do not exist": (
        "x.pdb.gz",
        gzip.compress(P.encode())[:3] + b"\xe0" + gzip.compress(P.encode())[4:],
        refused("x.pdb.gz"),
    ),
    "random bytes": ("x.cif", np.random.default_rng(0).bytes(20_000), refused("x.cif")),
    "a text that is never closed": ("x.cif", C + ";\nnever closed\n", refused("x.cif")),
    "a row that lacks a value": ("x.cif", C.rstrip("\n")[:-2] + "\n", refused("x.cif")),
    "a tag that comes twice": ("x.cif", C.replace("_atom_site.id\n", "_atom_site.Cartn_x\n"), refused("x.cif")),
    "tags in capital letters": (
        "x.cif",
        C.replace("_atom_site.Cartn_", "_ATOM_SITE.CARTN_").replace("_atom_site", "_ATOM_SITE"),
        ONE,
    ),
    "a dictionary": ("x.cif", "data_d\nsave_a\n_item.name a\nsave_\n", refused("_atom_site is missing")),
    "atoms in the second block": ("x.cif", "data_one\n_cell.length_a 1\n" + C, ONE),
    "no values at all": ("x.cif", C.split("ATOM")[0], refused("x.cif")),
    "no author's chain ids": ("x.cif", edited(C, field(16, "?")), ONE),
    "a category that is a single atom": (
        "x.cif",
        "data_x\n"
        + "".join(f"_atom_site.{tag} {value}\n" for tag, value in [("Cartn_x", 1), ("Cartn_y", 2), ("Cartn_z", 3)]),
        refused("x.cif"),
    ),
}

ATTACKS = {**MOLECULES, **RESIDUES, **COORDINATES, **LINES, **CONTENTS}


@pytest.mark.parametrize("name", ATTACKS)
def test_structure(tmp_path, name):
    file_name, content, expected = ATTACKS[name]
    path = write(tmp_path, file_name, content)
    found = []

    def read():
        found.extend(read_chains(path))
        return [(chain.chain_id, chain.sequence) for chain in found]

    check(read, expected, path)
    for chain in found:
        assert np.isfinite(chain.ca).all(), "a CA is lost"
        if name not in JUMPS:
            np.testing.assert_allclose(np.linalg.norm(np.diff(chain.ca, axis=0), axis=1), 3.8, atol=0.01)


VALUES = {
    # What is not a number is missing; it is never 0, and never the number that its first letters spell.
    "b factors that are words": (edited(P, columns(*B, "   nan")), lambda chain: np.isnan(chain.b_factors).all()),
    "one atom of stars": (
        edited(P, columns(*X, "********"), slice(6, 7)),
        lambda chain: np.isnan(chain.coords).any(-1).sum() == 1 and np.isnan(chain.coords[1, 1]).all(),
    ),
    "one atom with an exponent": (
        edited(P, columns(*X, "1.00e+01"), slice(6, 7)),
        lambda chain: np.isnan(chain.coords[1, 1]).all() and np.isnan(chain.coords).any(-1).sum() == 1,
    ),
    "neighbours without a blank": (
        edited(P, lambda line: line[:30] + "-100.000-100.000-100.000" + line[54:], slice(6, 7)),
        lambda chain: chain.coords[1, 1].tolist() == [-100] * 3,
    ),
    "a residue that repeats 5,000 times": (
        P.replace("TER\n", "") + "".join(P.splitlines(True)[45:50]) * 5_000,
        lambda chain: len(chain) == 10,
    ),
    "a hundred alternatives": (
        residue("ALA", 1)
        + "".join(atom("CA", "GLY", 2, (4 + i / 100, 0, 0), altloc=chr(33 + i)) for i in range(90))
        + residue("ALA", 3),
        lambda chain: chain.sequence == "AGA" and chain.ca[1, 0] == np.float32(4.89),
    ),
    "a resolution that is not a number": (
        "REMARK   2 RESOLUTION.    nan ANGSTROMS.\n" + P,
        lambda chain: chain.resolution is None,
    ),
    "a resolution below zero": (
        "REMARK   2 RESOLUTION.  -1.50 ANGSTROMS.\n" + P,
        lambda chain: chain.resolution is None,
    ),
    "a day that does not exist": (
        "HEADER    HYDROLASE                               31-FEB-20   1ABC\n" + P,
        lambda chain: chain.deposition_date is None and chain.entry_id == "1abc",
    ),
    "a title of 10 MB": (
        "".join(f"TITLE   {i % 100:2d} {'A' * 60}\n" for i in range(140_000)) + P,
        lambda chain: chain.sequence == SEQUENCE,
    ),
}
JUMPS = ("insertion codes that count down", "numbers that count down")


@pytest.mark.parametrize("name", VALUES)
def test_values(tmp_path, name):
    text, holds = VALUES[name]
    (chain,) = read_chains(write(tmp_path, "x.pdb", text))
    assert holds(chain), (chain.sequence, chain.coords[:3], chain.b_factors)
