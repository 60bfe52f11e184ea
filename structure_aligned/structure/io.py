"""Reads the protein chains of PDB and mmCIF files. gemmi parses; `write_mmcif` is the way back."""

from __future__ import annotations

import datetime
import math
import os
import re
import zlib
from pathlib import Path

import gemmi
import numpy as np

from .chain import BACKBONE_ATOMS, ProteinChain
from .write import write_mmcif


__all__ = ["MAX_BYTES", "read_chains", "write_mmcif"]


MAX_BYTES = 2 * 1024**3
"""Files that are larger than this after decompression are refused, so that a gz bomb cannot fill the memory."""

_PDB_SUFFIXES = (".pdb", ".ent")
_MMCIF_SUFFIXES = (".cif", ".mmcif")
_EXPECTED = "a .pdb, .ent, .cif or .mmcif file, plain or with .gz"

_PEPTIDES = (
    gemmi.PolymerType.PeptideL,
    gemmi.PolymerType.PeptideD,
    gemmi.PolymerType.CyclicPseudoPeptide,
)

_MMCIF_START = re.compile(rb"\s*(?:#[^\n]*\n\s*)*data_", re.IGNORECASE)
_PDB_START = re.compile(
    rb"\s*(?:HEADER|TITLE |REMARK|CRYST1|MODEL |ATOM  |HETATM|EXPDTA|COMPND|SEQRES)", re.IGNORECASE
)
_PDB_ATOM = re.compile(rb"^(?:ATOM|HETA)", re.IGNORECASE | re.MULTILINE)
# Atom lines whose coordinate columns are not three numbers of the form 1234.678. A case-insensitive, multi-line
# pattern would take three times as long.
_PDB_ODD_ATOM = re.compile(rb"\n(?:[Aa][Tt][Oo][Mm]|[Hh][Ee][Tt][Aa]).{26}(?!(?:[ \-\d]{3}\d\.\d{3}){3})[^\n]*")
# Read by gemmi, of no use here, and a source of errors in files that somebody cut down by hand.
_UNUSED_CATEGORIES = ("_atom_site_anisotrop.", "_pdbx_sifts_xref_db.", "_struct_conn.", "_struct_mon_prot_cis.")
_REQUIRED_COLUMNS = ("id", "type_symbol", "label_alt_id", "label_asym_id", "Cartn_x", "Cartn_y", "Cartn_z")
_REQUIRED_COLUMNS += ("occupancy", "B_iso_or_equiv", "auth_seq_id")
_ENTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Names and titles of files that AlphaFold DB, ColabFold and the ESM Atlas give out.
_PREDICTED_NAME = re.compile(r"AF-\w+(?:-\d+)?-F\d+\b.*|.*_(?:un)?relaxed_rank_\d+_alphafold.*", re.IGNORECASE)
_PREDICTED_TITLE = re.compile(r"\b(?:ALPHAFOLD|ESMFOLD)\b.*\bPREDICTION\b", re.IGNORECASE)
_PLACEHOLDER_IDS = ("XXXX", "UNNAMED", "UNKNOWN", "DEFAULT", "MODEL", "NULL", "NONE", "0000")


def read_chains(path: str | os.PathLike) -> list[ProteinChain]:
    """
    Reads all protein chains of the first model of a structure file.

    The residues are the polymer residues the file has atoms for, in file order: water, ligands (free amino acids too)
    and nucleic acids are dropped, and gaps are not filled in. An amino acid without any backbone atom stays, with
    missing coordinates; caps such as ACE and NH2, which are no amino acid and have no CA, are left out. Of alternative
    conformations the residues of the first are taken and, per atom, the location listed last, as Foldseek does.
    Modified residues get the letter of their parent (MSE is M): from gemmi's table of components, else from the
    file's own statement (`MODRES`, `_pdbx_struct_mod_residue`, `_chem_comp.mon_nstd_parent_comp_id`), else `X`.

    A chain is `predicted` where the file has a ModelCIF category (`_ma_qa_metric`, `_ma_data`, `_ma_model_list`, …) or
    states the method THEORETICAL MODEL; and, in files that state no method, where the title says `ALPHAFOLD …
    PREDICTION` (or ESMFOLD), a remark names AlphaFold, or the file or entry has a name such as
    `AF-P00520-F1-model_v4`. Others, such as the files that ESMFold itself writes, say nothing of their origin: see
    `predicted` of [`StructureDatasetBuilder`].

    Args:
        path (`str` or `os.PathLike`): A .pdb, .ent, .cif or .mmcif file, each also with .gz. Gzipped data is
            recognised by its content, so a compressed file that lost its .gz is read too.

    Returns:
        `list[ProteinChain]`: At least one chain, in file order. `entry_id` is the file's own entry id (PDB ids in
        lower case) or, where it has none, the file name without its extensions.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is broken, is not what its extension says, or holds no protein. The message names it.
    """
    path = Path(path)
    suffix, stem = _split_name(path)
    data = _read_bytes(path)
    try:
        structure, parents, facts = (_parse_pdb if suffix in _PDB_SUFFIXES else _parse_mmcif)(data)
        chains = _extract_chains(structure, parents, _metadata(structure, stem, **facts))
    # gemmi reports broken files as RuntimeError or ValueError (UnicodeDecodeError among them) and numbers out of
    # range as OverflowError or IndexError.
    except (RuntimeError, ValueError, OverflowError, IndexError) as error:
        cause = str(error).strip().rstrip(".")
        raise ValueError(
            f"{path}: cannot be read as {suffix}: {cause}. Expected a complete {suffix} file; fetch or export it anew."
        ) from error
    if not chains:
        raise ValueError(
            f"{path}: none of its {len(structure[0])} chains is a protein; expected at least one. Leave the file out."
        )
    return chains


def _split_name(path: Path) -> tuple[str, str]:
    """Extension in lower case without .gz, and the file name without both."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in _PDB_SUFFIXES + _MMCIF_SUFFIXES:
        raise ValueError(f"{path}: has the extension {suffix!r}; expected {_EXPECTED}. Rename or convert it.")
    return suffix.lower(), stem


def _read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a file; expected {_EXPECTED}. For a folder, call once per file in it.")
    too_large = f"{path}: holds more than {MAX_BYTES:,} bytes; expected one structure. Split the file."
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(too_large)
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = _gunzip(data)
        except (zlib.error, EOFError) as error:
            raise ValueError(
                f"{path}: broken gzip data ({error}); expected a complete file. Fetch it anew."
            ) from error
        if len(data) > MAX_BYTES:
            raise ValueError(too_large)
    elif path.name.lower().endswith(".gz"):
        raise ValueError(f"{path}: is named .gz but is not gzipped; expected gzip data. Remove .gz from its name.")
    if not data.strip(b"\0 \t\r\n"):
        raise ValueError(f"{path}: is empty; expected {_EXPECTED}. Fetch it anew.")
    return data


def _gunzip(data: bytes) -> bytes:
    """All members of gzipped `data`; stops one byte after `MAX_BYTES`."""
    pieces, room = [], MAX_BYTES + 1
    while data and room > 0:
        member = zlib.decompressobj(wbits=31)
        pieces.append(member.decompress(data, room))
        room -= len(pieces[-1])
        if room > 0 and not member.eof:
            raise EOFError("it ends in the middle of the compressed stream")
        data = member.unused_data.lstrip(b"\0")  # padding after the last member is allowed
    return b"".join(pieces)


def _parse_pdb(data: bytes) -> tuple[gemmi.Structure, dict[str, str], dict]:
    """Structure with one model, parents of modified residues, what `_metadata` cannot read from the structure."""
    if _MMCIF_START.match(data):
        raise ValueError("its content is mmCIF (it starts with data_), rename it to .cif")
    end = data.find(b"\nENDMDL")
    if end >= 0:
        data = data[: end + 1]  # the other models of an NMR file need not be parsed
    if not _PDB_ATOM.search(data):
        raise ValueError("no ATOM or HETATM record")
    structure = gemmi.read_pdb_string(_PDB_ODD_ATOM.sub(_mark_missing_coordinates, b"\n" + data))
    _keep_first_model(structure)
    structure.merge_chain_parts()
    structure.add_entity_types()
    for chain in structure[0]:
        _restore_polymer_after_ter(chain)
    structure.assign_subchains(True)
    named = any("ALPHAFOLD" in remark.upper() for remark in structure.raw_remarks)
    return structure, {}, {"resolution": structure.resolution, "names_predictor": named}


def _mark_missing_coordinates(match: re.Match[bytes]) -> bytes:
    """The atom line with `nan` for coordinates that are no finite numbers: gemmi would read those as 0."""
    line = match.group()  # starts with the end of the line before
    fields = [line[start : start + 8] for start in (31, 39, 47)]
    try:
        readable = all(math.isfinite(float(field)) for field in fields)
    except ValueError:
        readable = False
    return line if readable else line[:31] + b"     nan" * 3 + line[55:]


def _restore_polymer_after_ter(chain: gemmi.Chain) -> None:
    """
    Marks amino acids after a TER as polymer where they are ATOM records.

    gemmi takes everything after the first TER of a chain for ligands, but some programs write TER at every break.
    """
    later = [i for i, residue in enumerate(chain) if _is_atom_record_peptide(residue)]
    if len(later) < 2:
        return
    for residue in chain[later[0] : later[-1] + 1]:
        if residue.entity_type == gemmi.EntityType.NonPolymer and _has_backbone(residue):
            residue.entity_type = gemmi.EntityType.Polymer


def _is_atom_record_peptide(residue: gemmi.Residue) -> bool:
    return residue.entity_type == gemmi.EntityType.NonPolymer and residue.het_flag == "A" and _has_backbone(residue)


def _has_backbone(residue: gemmi.Residue) -> bool:
    return {"N", "CA", "C"} <= {atom.name for atom in residue}


def _parse_mmcif(data: bytes) -> tuple[gemmi.Structure, dict[str, str], dict]:
    """Structure with one model, parents of modified residues, what `_metadata` cannot read from the structure."""
    if not _MMCIF_START.match(data) and _PDB_START.match(data):
        raise ValueError("its content is PDB (it starts with a PDB record), rename it to .pdb")
    document = gemmi.cif.read_string(data)
    block = next((block for block in document if block.find_mmcif_category("_atom_site.")), None)
    if block is None:
        raise ValueError("no atoms (_atom_site is missing or empty)")
    absent = [name for name in _REQUIRED_COLUMNS if not block.find_values(f"_atom_site.{name}")]
    if absent:
        raise ValueError(f"_atom_site lacks the column(s) {', '.join(absent)}")
    model_cif = any(name.lower().startswith("_ma_") for name in block.get_mmcif_category_names())
    for category in _UNUSED_CATEGORIES:
        block.find_mmcif_category(category).erase()
    structure = gemmi.make_structure_from_block(block)
    _keep_first_model(structure)
    structure.merge_chain_parts()
    structure.add_entity_types()
    parents = {
        gemmi.cif.as_string(row[0]): gemmi.cif.as_string(row[1])
        for row in block.find("_chem_comp.", ["id", "mon_nstd_parent_comp_id"])
    }
    resolution = structure.resolution
    if not resolution > 0:
        # Electron microscopy has no _refine.
        values = block.find_values("_em_3d_reconstruction.resolution")
        resolution = gemmi.cif.as_number(values[0]) if values else 0.0
    return structure, parents, {"resolution": resolution, "model_cif": model_cif}


def _keep_first_model(structure: gemmi.Structure) -> None:
    if len(structure) == 0:
        raise ValueError("no atoms")
    del structure[1:]


def _extract_chains(structure: gemmi.Structure, parents: dict[str, str], metadata: dict) -> list[ProteinChain]:
    parents = parents | {modified.res_id.name: modified.parent_comp_id for modified in structure.mod_residues}
    found: list[tuple[str, list[str], list[str]]] = []  # chain id, letters, residue numbers
    row_of_residue: list[int] = []  # over all residues of the model; -1 for those left out
    atom_counts: list[int] = []
    length = 0
    for chain in structure[0]:
        letters: list[str] = []
        numbers: list[str] = []
        for span in chain.subchains():
            protein = _is_protein(structure, span)
            previous = None
            for residue in span:
                # Neighbours that share these are conformers of one residue: the first is taken. label_seq (mmCIF only)
                # tells residues apart whose insertion codes somebody removed.
                site = (str(residue.seqid), residue.segment, residue.label_seq)
                letter = None
                if protein and residue.entity_type == gemmi.EntityType.Polymer and site != previous:
                    letter = _one_letter(residue, parents)
                previous = site
                row_of_residue.append(length + len(letters) if letter else -1)
                atom_counts.append(len(residue))
                if letter:
                    letters.append(letter)
                    numbers.append(site[0])
        if letters:
            found.append((chain.name, letters, numbers))
            length += len(letters)
    coords, b_factors = _backbone(
        structure, np.array(row_of_residue, dtype=int), np.array(atom_counts, dtype=int), length
    )
    chains, start = [], 0
    for chain_id, letters, numbers in found:
        rows = slice(start, start + len(letters))
        start = rows.stop
        chains.append(
            ProteinChain(
                chain_id=chain_id,
                sequence="".join(letters),
                coords=coords[rows].copy(),
                residue_numbers=tuple(numbers),
                b_factors=b_factors[rows].copy(),
                **metadata,
            )
        )
    return chains


def _is_protein(structure: gemmi.Structure, span: gemmi.ResidueSpan) -> bool:
    entity = structure.get_entity_of(span)
    kind = entity.polymer_type if entity else gemmi.PolymerType.Unknown
    if kind == gemmi.PolymerType.Unknown:
        kind = span.check_polymer_type()
    return kind in _PEPTIDES


def _one_letter(residue: gemmi.Residue, parents: dict[str, str]) -> str | None:
    """Letter of the residue or of its parent, `X` where neither is known, `None` for a cap."""
    for component in (residue.name, parents.get(residue.name, "")):
        info = gemmi.find_tabulated_residue(component)
        if info.found() and info.is_amino_acid() and info.one_letter_code.isalpha():
            return info.one_letter_code.upper()
    return "X" if residue.get_ca() else None


def _backbone(
    structure: gemmi.Structure, row_of_residue: np.ndarray, atom_counts: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `(length, 5, 3)` and B-factors `(length,)`, taken from all atoms at once."""
    for chain in structure[0]:
        # FlatStructure refuses names of more than 7 characters, and only atom names are needed from here on.
        chain.name = ""
        for residue in chain:
            residue.name = residue.subchain = residue.entity_id = ""
    atoms = gemmi.FlatStructure(structure)
    row = np.repeat(row_of_residue, atom_counts)
    with np.errstate(over="ignore"):
        position = atoms.pos.astype(np.float32)  # beyond the range of float32: infinite, so missing
    names = np.array(atoms.atom_names)
    names[np.logical_or.accumulate(names == 0, axis=1)] = 0  # gemmi before 0.7.5 leaves the bytes after the end as is
    names = names.view("S8").ravel()
    used = row >= 0
    present = used & np.isfinite(position).all(axis=1)

    coords = np.full((length, len(BACKBONE_ATOMS), 3), np.nan, dtype=np.float32)
    for slot, name in enumerate(BACKBONE_ATOMS):
        atom = np.flatnonzero(present & (names == name.encode()))
        coords[row[atom], slot] = position[atom]  # of repeated rows the last one stays: the last-listed altloc

    # Each line overrides the one before it: any atom, the first present atom, the last-listed CA.
    b_factors = np.full(length, np.nan, dtype=np.float32)
    for atom in (
        np.flatnonzero(used)[::-1],
        np.flatnonzero(present)[::-1],
        np.flatnonzero(present & (names == b"CA")),
    ):
        b_factors[row[atom]] = atoms.b_iso[atom]
    return coords, b_factors


def _metadata(
    structure: gemmi.Structure,
    stem: str,
    resolution: float,
    names_predictor: bool = False,
    model_cif: bool = False,
) -> dict:
    """The fields of `ProteinChain` that all chains of a file share."""
    info = structure.info
    method = _info(info, "_exptl.method").upper() or None
    # Some NMR files carry a resolution all the same; it means nothing.
    only_nmr = method is not None and "NMR" in method and "DIFFRACTION" not in method and "MICROSCOPY" not in method
    r_free = next((item.r_free for item in structure.meta.refinement if 0 < item.r_free < 1), None)
    date = _info(info, "_pdbx_database_status.recvd_initial_deposition_date")
    try:
        deposition_date = datetime.date.fromisoformat(date).isoformat()
    except ValueError:
        deposition_date = None
    entry_id = _entry_id(_info(info, "_entry.id"), stem)
    if method is None:
        # Experimental papers speak of AlphaFold too; so titles, remarks and names count only without a method.
        names_predictor |= _PREDICTED_TITLE.search(_info(info, "_struct.title")) is not None
        names_predictor |= any(_PREDICTED_NAME.fullmatch(name) for name in (entry_id, stem))
    return {
        "entry_id": entry_id,
        "resolution": resolution if 0 < resolution < math.inf and not only_nmr else None,
        "r_free": r_free,
        "method": method,
        "deposition_date": deposition_date,
        "predicted": model_cif or method == "THEORETICAL MODEL" or (method is None and names_predictor),
    }


def _info(info: gemmi.InfoMap, key: str) -> str:
    return info[key].strip() if key in info else ""


def _entry_id(given: str, stem: str) -> str:
    """The file's own id where it is one that can stand in a file name and is no placeholder, else the stem."""
    if not _ENTRY_ID.fullmatch(given) or given.upper() in _PLACEHOLDER_IDS:
        given = re.sub(r"^pdb(?=\d\w{3}$)", "", stem)  # the PDB's own file names: pdb1abc.ent.gz
    return given.lower() if gemmi.is_pdb_code(given) else given
