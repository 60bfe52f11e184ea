"""Parses PDB files, whose columns are checked first: gemmi reads what stands in them, whatever it is."""

from __future__ import annotations

import itertools
import re

import gemmi
import numpy as np

from .components import simulated_parent
from .parsed import (
    AtomLine,
    ParsedStructure,
    keep_first_model,
    name_standard_residues,
    number_residues,
)


_MMCIF_START = re.compile(rb"\s*(?:#[^\n]*\n\s*)*data_", re.IGNORECASE)
_PDB_ATOM = re.compile(rb"\n(?:ATOM|HETA)", re.IGNORECASE)
# Atom lines that do not have a blank before the chain id, a residue number, and three numbers of the form 1234.678 in
# their columns. A case-insensitive, multi-line pattern would take three times as long.
_PDB_ODD_ATOM = re.compile(
    rb"\n(?:[Aa][Tt][Oo][Mm]|[Hh][Ee][Tt][Aa]).{16}"
    rb"(?! .(?:(?:   |  [\-\d]| [\-\d]\d|[\-\d]\d\d)\d|[A-Za-z][\dA-Za-z]{3})...."
    rb"(?:(?:   |  [\-\d]| [\-\d]\d|[\-\d]\d\d)\d\.\d{3}){3})[^\n]*"
)
_PDB_SEGMENT = re.compile(rb"(\n(?:ATOM|HETA).{68})[^\n]{1,4}", re.IGNORECASE)
_LONG_SERIAL = re.compile(rb"(\n(?:ATOM  |HETATM))\d*(\d{5})( .*)", re.IGNORECASE)
_RESIDUE_NUMBER = re.compile(rb"(?= *-?\d+\Z).{4}|[A-Za-z][\dA-Za-z]{3}|    ")
_COORDINATE = re.compile(rb" *[+-]?(?:\d+\.?\d*|\.\d+) *")
# What programs write for an atom that has no coordinates.
_NO_COORDINATE = re.compile(rb" *(?:[+-]?(?:nan|inf)|\?|\.|\*+|none|null|n/?a)? *", re.IGNORECASE)
_INDENTED_ATOM = re.compile(rb"\n[^\nA-Za-z]{1,8}(?:ATOM  |HETATM)", re.IGNORECASE)


def parse_pdb(data: bytes, number_again: bool = False) -> ParsedStructure:
    """
    Parses PDB text.

    Args:
        data (`bytes`): Its lines end in LF.
        number_again (`bool`, *optional*, defaults to `False`): Tell residues apart by their atoms, not their numbers.

    Raises:
        ValueError, RuntimeError: The text is not PDB, or a line has not the columns of one; the message names it.
    """
    if _MMCIF_START.match(data):
        raise ValueError("its content is mmCIF (it starts with data_), rename it to .cif")
    data = b"\n" + data
    end = data.find(b"\nENDMDL")
    if end >= 0:
        data = data[: end + 1]  # the other models of an NMR file need not be parsed
    if indented := _INDENTED_ATOM.search(data):
        start = indented.start() + 1
        text = data[start : data.find(b"\n", start)].decode("latin-1").rstrip()
        raise ValueError(f"line {_line_number(data, start)} ({text!r}) does not begin with the name of its record")
    mend = _LineMender(data)
    data = _PDB_ODD_ATOM.sub(mend, data)
    structure, ends = _read_pdb(data)
    if _has_stray_segments(structure):
        data = _PDB_SEGMENT.sub(rb"\1    ", data)
        structure, ends = _read_pdb(data)
    numbers = places = None
    if number_again:
        data, numbers, places = _number_pdb_residues(data)
        structure, ends = _read_pdb(data)
    parsed = ParsedStructure(
        structure,
        ends=ends,
        numbers=numbers,
        places=places,
        resolution=structure.resolution,
        names_predictor=any("ALPHAFOLD" in remark.upper() for remark in structure.raw_remarks),
        unread=lambda marked: mend.unread if marked else mend.garbled,
        first_atom=f"line {_line_number(data, _PDB_ATOM.search(data).end())}",
    )
    name_standard_residues(structure)
    return parsed


def _read_pdb(data: bytes) -> tuple[gemmi.Structure, frozenset[int]]:
    """The structure, and the numbers of atoms before the TER records."""
    structure = gemmi.read_pdb_string(data[1:], split_chain_on_ter=True)
    keep_first_model(structure)
    found = structure[0].count_atom_sites()
    (*ends, expected), atom_records = _count_atoms(data)
    if found != expected:  # records may be written in lower case
        (*ends, expected), atom_records = _count_atoms(data.upper())
    if expected == 0:
        raise ValueError("no ATOM or HETATM record")
    if found != expected:
        end = re.search(rb"\nEND[ \r\n]", data)
        where = f", the others stand after the END in line {_line_number(data, end.start() + 1)}" if end else ""
        raise ValueError(f"only {found} of its {expected} atom lines can be read{where}")
    # Where a file that lacks its last line end was put before another; remarks may hold the word, too.
    if data.count(b"ATOM  ") > atom_records:
        joined = re.search(rb"\n(?:ATOM|HETATM|TER|END)[^\n]*ATOM  [ \d]{5} ", data)
        if joined:
            raise ValueError(f"line {_line_number(data, joined.start() + 1)} holds more than one record")
    return structure, frozenset(ends)


def _has_stray_segments(structure: gemmi.Structure) -> bool:
    """
    Whether the columns of the segment hold something else: atoms of one residue differ in them.

    In a few places two segments may end and begin with residues of one number and name.
    """
    if not any(residue.segment for chain in structure[0] for residue in (chain[0], chain[-1])):
        return False
    residues = [residue for chain in structure[0] for residue in chain]
    segments = {residue.segment for residue in residues}
    if len(segments) == 1:
        return False
    pairs = [(one, other) for one, other in itertools.pairwise(residues) if one.segment != other.segment]
    return sum(one.seqid == other.seqid and one.name == other.name for one, other in pairs) > len(segments)


class _LineMender:
    """
    Brings an atom line that does not fit its columns into them, or refuses it with its number.

    Args:
        data (`bytes`): The whole text, which begins with an additional line end.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.unread: str | None = None
        self.garbled: str | None = None
        # Either the fourth letter of a residue name or the first of a two-letter chain id stands before the chain id.
        self._four_letter_names: bool | None = None

    def __call__(self, match: re.Match[bytes]) -> bytes:
        line = match.group()  # starts with the end of the line before
        if shifted := _LONG_SERIAL.fullmatch(line):
            # One digit too many moves all that follows by one column; gemmi has no use for the serial number.
            moved = b"".join(shifted.groups())
            if len(shifted[0]) > len(moved):
                line = moved
        parent = simulated_parent(line[18:22].decode("latin-1")) if line[21:22].strip() else None
        if parent and self._has_four_letter_names():
            line = line[:18] + parent.encode() + b" " + line[22:]
        if len(line) < 55:
            return line  # gemmi says that it is too short
        if line[23:27] == b"****":  # a number of five digits
            line = line[:23] + b"    " + line[27:]
        if not _RESIDUE_NUMBER.fullmatch(line[23:27]):
            raise ValueError(
                f"{self._place(match)} has {line[23:27].decode('latin-1')!r} in the columns of the residue number, 23 "
                "to 26"
            )
        fields = [line[start : start + 8] for start in (31, 39, 47)]
        if all(_COORDINATE.fullmatch(part) for part in fields):
            return line
        garbled = sum(not _COORDINATE.fullmatch(part) and not _NO_COORDINATE.fullmatch(part) for part in fields)
        if garbled > 1:
            raise ValueError(f"{self._place(match)} has no three numbers in the columns of the coordinates, 31 to 54")
        self.unread = self.unread or self._place(match)
        if garbled:
            self.garbled = self.garbled or self._place(match)
        return line[:31] + b"     nan" * 3 + line[55:]

    def _has_four_letter_names(self) -> bool:
        if self._four_letter_names is None:
            found = set(re.findall(rb"\n(?:ATOM  |HETATM).{11}(...[^ ])", self.data))
            # Of other names only standard residues speak for chain ids: lipids and waters may have four letters too.
            names = {name for name in (name.decode("latin-1") for name in found) if not simulated_parent(name)}
            self._four_letter_names = not any(gemmi.find_tabulated_residue(name[:3]).is_standard() for name in names)
        return self._four_letter_names

    def _place(self, match: re.Match[bytes]) -> str:
        text = match.group()[1:].decode("latin-1").rstrip()
        return f"line {_line_number(self.data, match.start() + 1)} ({text!r})"


def _line_number(data: bytes, position: int) -> int:
    """The file's number of the line at `position`; the text begins with an additional line end."""
    return data.count(b"\n", 0, position)


def _count_atoms(data: bytes) -> tuple[list[int], int]:
    """The number of atom lines before each TER record, and before the end; and how many of them are ATOM records."""
    counts, start, atom_records = [0], 0, 0
    for end in [*(ter.start() for ter in re.finditer(rb"\n[Tt][Ee][Rr]", data)), len(data)]:
        found = data.count(b"\nATOM", start, end)
        atom_records += found
        counts.append(counts[-1] + found + data.count(b"\nHETA", start, end))
        start = end
    return counts[1:], atom_records


def _number_pdb_residues(data: bytes) -> tuple[bytes, list[str], list[str]]:
    """The text with residues numbered from 1 in file order, their numbers in the file, and their first lines."""
    lines = data.split(b"\n")
    atoms, indices, ters = [], [], 0
    for index, line in enumerate(lines):
        record = line[:4].upper()
        ters += record[:3] == b"TER"
        if record in (b"ATOM", b"HETA"):
            text = line.decode("latin-1").ljust(80)
            site = (ters, text[20:22], text[72:76].strip(), text[22:27])
            position = (text[30:38], text[38:46], text[46:54])
            # The text begins with an additional line end, so its index is the line's number in the file.
            altloc, name = text[16].strip(), text[12:16].strip()
            atoms.append(AtomLine(site, text[17:20], altloc, name, position, f"line {index}"))
            indices.append(index)
    numbers, places = [], []
    for residue, index, atom in zip(number_residues(atoms), indices, atoms):
        if residue > len(numbers):
            numbers.append(atom.site[-1].strip())
            places.append(atom.line)
        line = lines[index]
        lines[index] = line[:22] + _hybrid36(residue) + b" " + line[27:]
    return b"\n".join(lines), numbers, places


def _hybrid36(number: int) -> bytes:
    """A number in the four columns of PDB files: decimal up to 9999, then A000, A001, …"""
    if number > 9999:
        return np.base_repr(number - 10_000 + 10 * 36**3, 36).encode()
    return f"{number:4d}".encode()
