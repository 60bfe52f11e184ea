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
# What stands in columns 21 to 54 of an atom line: a blank before the chain id, a residue number, and three numbers of
# the form 1234.678. B is a blank, D a digit, S a digit, a minus or a blank, and x anything.
_COLUMNS = "BxSSSDxxxx" + 3 * "SSSD.DDD"
_BITS = {"D": 1, "S": 2, ".": 4, "B": 8}
_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b"0123456789")], _KINDS[list(b"-")] = _BITS["D"] | _BITS["S"], _BITS["S"]
_KINDS[list(b" ")], _KINDS[list(b".")] = _BITS["B"] | _BITS["S"], _BITS["."]
_CHECKED = np.array([20 + i for i, kind in enumerate(_COLUMNS) if kind != "x"])
_WANTED = np.array([_BITS[kind] for kind in _COLUMNS if kind != "x"], np.uint8)
# Of those, the neighbours SS: blanks come first, then a minus, then digits.
_KINDS_AT = [kind for kind in _COLUMNS if kind != "x"]
_PAIRS = np.array([i for i, kinds in enumerate(itertools.pairwise(_KINDS_AT)) if kinds == ("S", "S")])
# Names of records as numbers of four bytes.
_ATOM, _HETA, _TER, _END, _THREE = np.frombuffer(b"atomhetater\0end\0\xff\xff\xff\0", np.uint32)
_PDB_SEGMENT = re.compile(rb"(\n(?:ATOM|HETA).{68})[^\n]{1,4}", re.IGNORECASE)
_LONG_SERIAL = re.compile(rb"(\n(?:ATOM  |HETATM))\d*(\d{5})( .*)", re.IGNORECASE)
_RESIDUE_NUMBER = re.compile(rb"(?= *-?\d+\Z).{4}|[A-Za-z][\dA-Za-z]{3}|    ")
_COORDINATE = re.compile(rb" *[+-]?(?:\d+\.?\d*|\.\d+) *")
# What programs write for an atom that has no coordinates.
_NO_COORDINATE = re.compile(rb" *(?:[+-]?(?:nan|inf)|\?|\.|\*+|none|null|n/?a)? *", re.IGNORECASE)
_INDENTED_ATOM = re.compile(rb"[^\nA-Za-z]{1,8}(?:ATOM  |HETATM)", re.IGNORECASE)
_JOINED_ATOM = re.compile(rb"(?:ATOM|HETATM|TER|END)[^\n]*ATOM  [ \d]{5} ", re.IGNORECASE)


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
    atoms, odd, ends = _scan_lines(data)
    mend = _LineMender(data)
    data = mend.mend(odd)
    structure = _read_pdb(data, len(atoms))
    if _has_stray_segments(structure):
        data = _PDB_SEGMENT.sub(rb"\1    ", data)
        structure = _read_pdb(data, len(atoms))
    numbers = places = None
    if number_again:
        data, numbers, places = _number_pdb_residues(data)
        structure = _read_pdb(data, len(atoms))
    parsed = ParsedStructure(
        structure,
        ends=ends,
        numbers=numbers,
        places=places,
        resolution=structure.resolution,
        names_predictor=any("ALPHAFOLD" in remark.upper() for remark in structure.raw_remarks),
        unread=lambda marked: mend.unread if marked else mend.garbled,
        first_atom=f"line {_line_number(mend.data, atoms[0])}",
    )
    name_standard_residues(structure)
    return parsed


def _scan_lines(data: bytes) -> tuple[np.ndarray, np.ndarray, frozenset[int]]:
    """
    Where the atom lines begin, those of them that do not fit their columns, and the numbers of atoms before the TER
    records; from all lines at once. The text begins with an additional line end.

    Raises:
        ValueError: There are no atom lines, or one does not begin with its record, or holds more than one.
    """
    text = np.frombuffer(data + b"\n" * 60, np.uint8)  # a short line is looked at beyond its end
    starts = np.flatnonzero(text[: len(data)] == ord("\n")) + 1
    records = (text[starts[:, None] + np.arange(4)] | 0x20).view(np.uint32).ravel()  # the bit of lower-case letters
    atoms = starts[(records == _ATOM) | (records == _HETA)]
    if len(atoms) == 0:
        raise ValueError("no ATOM or HETATM record")
    kinds = _KINDS[text[atoms[:, None] + _CHECKED]]
    in_order = ((kinds[:, _PAIRS] & _BITS["B"]) | (kinds[:, _PAIRS + 1] & _BITS["D"])).all(axis=1)
    odd = atoms[~(in_order & (kinds & _WANTED).all(axis=1))]
    first = text[starts]
    strange = starts[((first | 0x20) < ord("a")) & (first != ord("\n"))]
    if (wrong := _first_match(data, strange, _INDENTED_ATOM)) is not None:
        raise ValueError(f"{_place(data, wrong)} does not begin with the name of its record")
    # Where a file that lacks its last line end was put before another.
    closing = (records & _THREE == _TER) | (records & _THREE == _END)
    long = np.append(np.diff(starts), len(data) - starts[-1]) > 100
    if (wrong := _first_match(data, starts[closing | long], _JOINED_ATOM)) is not None:
        raise ValueError(f"line {_line_number(data, wrong)} holds more than one record")
    return atoms, odd, frozenset(np.searchsorted(atoms, starts[records & _THREE == _TER]).tolist())


def _first_match(data: bytes, starts: np.ndarray, pattern: re.Pattern[bytes]) -> int | None:
    return next((start for start in starts.tolist() if pattern.match(data, start)), None)


def _read_pdb(data: bytes, expected: int) -> gemmi.Structure:
    structure = gemmi.read_pdb_string(data[1:], split_chain_on_ter=True)
    keep_first_model(structure)
    if (found := structure[0].count_atom_sites()) != expected:
        end = re.search(rb"\nEND[ \r\n]", data)
        where = f", the others stand after the END in line {_line_number(data, end.start() + 1)}" if end else ""
        raise ValueError(f"only {found} of its {expected} atom lines can be read{where}")
    return structure


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

    def mend(self, starts: np.ndarray) -> bytes:
        """The text with the lines that begin at `starts` in their columns."""
        pieces, done = [], 0
        for start in starts.tolist():
            end = self.data.find(b"\n", start)
            end = len(self.data) if end < 0 else end
            pieces += [self.data[done : start - 1], self._mended(self.data[start - 1 : end], start)]
            done = end
        return b"".join([*pieces, self.data[done:]]) if pieces else self.data

    def _mended(self, line: bytes, start: int) -> bytes:
        """The line, which starts with the end of the line before."""
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
                f"{_place(self.data, start)} has {line[23:27].decode('latin-1')!r} in the columns of the residue "
                "number, 23 to 26"
            )
        fields = [line[start : start + 8] for start in (31, 39, 47)]
        if all(_COORDINATE.fullmatch(part) for part in fields):
            return line
        garbled = sum(not _COORDINATE.fullmatch(part) and not _NO_COORDINATE.fullmatch(part) for part in fields)
        if garbled > 1:
            raise ValueError(
                f"{_place(self.data, start)} has no three numbers in the columns of the coordinates, 31 to 54"
            )
        self.unread = self.unread or _place(self.data, start)
        if garbled:
            self.garbled = self.garbled or _place(self.data, start)
        return line[:31] + b"     nan" * 3 + line[55:]

    def _has_four_letter_names(self) -> bool:
        if self._four_letter_names is None:
            found = set(re.findall(rb"\n(?:ATOM  |HETATM).{11}(...[^ ])", self.data))
            # Of other names only standard residues speak for chain ids: lipids and waters may have four letters too.
            names = {name for name in (name.decode("latin-1") for name in found) if not simulated_parent(name)}
            self._four_letter_names = not any(gemmi.find_tabulated_residue(name[:3]).is_standard() for name in names)
        return self._four_letter_names


def _place(data: bytes, start: int) -> str:
    text = data[start : start + 500].partition(b"\n")[0]
    return f"line {_line_number(data, start)} ({text.decode('latin-1').rstrip()!r})"


def _line_number(data: bytes, position: int) -> int:
    """The file's number of the line at `position`; the text begins with an additional line end."""
    return data.count(b"\n", 0, position)


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
