"""Parses mmCIF files, which may lack any column that the mmCIF dictionary does not ask for."""

from __future__ import annotations

import math
import re

import gemmi
import numpy as np

from .parsed import (
    AtomLine,
    ParsedStructure,
    keep_first_model,
    name_standard_residues,
    number_residues,
)


_MMCIF_START = re.compile(rb"\s*(?:#[^\n]*\n\s*)*data_", re.IGNORECASE)
_PDB_START = re.compile(
    rb"\s*(?:HEADER|TITLE |REMARK|CRYST1|MODEL |ATOM  |HETATM|EXPDTA|COMPND|SEQRES)", re.IGNORECASE
)
# Read by gemmi, of no use here, and a source of errors in files that somebody cut down by hand.
_UNUSED_CATEGORIES = ("_atom_site_anisotrop.", "_pdbx_sifts_xref_db.", "_struct_conn.", "_struct_mon_prot_cis.")
# What gemmi cannot do without, and what stands in for a column that the file does not have: another column, a value.
_NEEDED_COLUMNS = ("Cartn_x", "Cartn_y", "Cartn_z")
_OPTIONAL_COLUMNS = {
    "id": (None, "1"),
    "group_PDB": (None, "ATOM"),
    "type_symbol": (None, "?"),
    "label_atom_id": ("auth_atom_id", None),
    "label_comp_id": ("auth_comp_id", None),
    "label_alt_id": (None, "."),
    "auth_asym_id": ("label_asym_id", "A"),
    "label_asym_id": ("auth_asym_id", "A"),
    "label_seq_id": (None, "."),
    "auth_seq_id": ("label_seq_id", None),
    "pdbx_PDB_ins_code": (None, "?"),
    "occupancy": (None, "1.00"),
    "B_iso_or_equiv": (None, "?"),
    "pdbx_PDB_model_num": (None, "1"),
}
# gemmi looks for equal names among all data blocks, pair by pair.
_MAX_BLOCKS = 1000


def parse_mmcif(data: bytes, number_again: bool = False) -> ParsedStructure:
    """
    Parses mmCIF text.

    Args:
        data (`bytes`): Its lines end in LF.
        number_again (`bool`, *optional*, defaults to `False`): Tell residues apart by their atoms, not their numbers.

    Raises:
        ValueError, RuntimeError: The text is not mmCIF, or has no atoms with coordinates.
    """
    if not _MMCIF_START.match(data) and _PDB_START.match(data):
        raise ValueError("its content is PDB (it starts with a PDB record), rename it to .pdb")
    # Setting one bit makes lower-case letters of all, ten times as fast as `lower()` (and `_` a DEL).
    lowered = (np.frombuffer(data, np.uint8) | 0x20).tobytes()
    may_be_model_cif = b"\x7fma\x7f" in lowered
    if lowered.count(b"data\x7f") > _MAX_BLOCKS:
        blocks = len(re.findall(rb"(?<!\S)data_", data.lower()))
        if blocks > _MAX_BLOCKS:
            raise ValueError(f"it has {blocks:,} data blocks; expected one structure, so split the file")
    del lowered  # as large as the file
    block = _atom_block(data)
    _add_optional_columns(block)
    # gemmi's own list of categories takes a time that grows with the square of their number.
    tags = (item.pair[0] if item.pair else item.loop.tags[0] for item in block if item.pair or item.loop)
    model_cif = may_be_model_cif and any(tag.lower().startswith("_ma_") for tag in tags)
    for category in _UNUSED_CATEGORIES:
        block.find_mmcif_category(category).erase()
    numbers, places = _number_mmcif_residues(block) if number_again else (None, None)
    structure = gemmi.make_structure_from_block(block)
    keep_first_model(structure)
    parents = {
        gemmi.cif.as_string(row[0]): gemmi.cif.as_string(row[1])
        for row in block.find("_chem_comp.", ["id", "mon_nstd_parent_comp_id"])
    }
    resolution = structure.resolution
    if not resolution > 0:
        # Electron microscopy has no _refine.
        values = block.find_values("_em_3d_reconstruction.resolution")
        resolution = gemmi.cif.as_number(values[0]) if values else 0.0
    parsed = ParsedStructure(
        structure,
        parents,
        labelled=True,
        numbers=numbers,
        places=places,
        resolution=resolution,
        model_cif=model_cif,
        # From the text again, because the document would take up memory until then.
        unread=lambda marked: _first_unread_row(data, marked),
    )
    name_standard_residues(structure)
    return parsed


def _add_optional_columns(block: gemmi.cif.Block) -> None:
    """Gives `_atom_site` the columns that gemmi reads and the mmCIF dictionary lets files leave out."""
    column = block.find_loop("_atom_site.Cartn_x")
    loop = column.get_loop() if column else None
    present = set(loop.tags) if loop else {f"_atom_site.{name}" for name in _OPTIONAL_COLUMNS}
    absent = [name for name in _NEEDED_COLUMNS if not block.find_values(f"_atom_site.{name}")]
    for name, (twin, default) in _OPTIONAL_COLUMNS.items():
        if f"_atom_site.{name}" in present:
            continue
        loop.add_columns([f"_atom_site.{name}"], default or "?")
        if twin and f"_atom_site.{twin}" in present:
            for row in block.find("_atom_site.", [name, twin]):
                row[0] = row[1]
        if default is None and set(block.find_values(f"_atom_site.{name}")) <= {"?", "."}:
            absent.append(name)
    if absent:
        raise ValueError(f"_atom_site lacks the column(s) {', '.join(absent)}")


def _number_mmcif_residues(block: gemmi.cif.Block) -> tuple[list[str], list[str]]:
    """Numbers the residues of `_atom_site` from 1 in file order; returns their numbers in the file and first rows."""
    names = ["auth_seq_id", "pdbx_PDB_ins_code", "label_seq_id", "auth_asym_id", "label_asym_id"]
    names += ["pdbx_PDB_model_num", "label_comp_id", "label_alt_id", "label_atom_id", "Cartn_x", "Cartn_y", "Cartn_z"]
    table = block.find("_atom_site.", names)
    atoms = []
    for index, row in enumerate(table, start=1):
        *site, component, altloc, name = (gemmi.cif.as_string(row[i]) for i in range(9))
        position = (row[9], row[10], row[11])
        atoms.append(AtomLine(tuple(site), component, altloc, name, position, f"row {index} of _atom_site"))
    numbers, places = [], []
    for residue, row, atom in zip(number_residues(atoms), table, atoms):
        number, insertion, label, *_ = atom.site
        if residue > len(numbers):
            numbers.append(number + insertion if number else label)
            places.append(atom.line)
        row[0], row[1] = str(residue), "?"
    return numbers, places


def _atom_block(data: bytes) -> gemmi.cif.Block:
    """The first block with atoms."""
    document = gemmi.cif.read_string(data)
    block = next((block for block in document if block.find_mmcif_category("_atom_site.")), None)
    if block is None:
        raise ValueError("no atoms (_atom_site is missing or empty)")
    return block


def _first_unread_row(data: bytes, marked: bool) -> str | None:
    block = _atom_block(data)
    missing = {"?", "."} if marked else {"?", ".", "nan"}
    for index, row in enumerate(block.find("_atom_site.", ["Cartn_x", "Cartn_y", "Cartn_z"]), start=1):
        values = [row[i] for i in range(3)]
        if not all(value.lower() in missing or math.isfinite(gemmi.cif.as_number(value)) for value in values):
            return f"row {index} of _atom_site ({' '.join(values)!r})"
    return None
