"""Reads the protein chains of PDB and mmCIF files. gemmi parses; `write_mmcif` is the way back."""

from __future__ import annotations

import codecs
import datetime
import math
import os
import re
from pathlib import Path

import gemmi

from ..utils.files import MAX_BYTES, is_gzipped, read_bytes
from .chain import ProteinChain
from .mmcif import parse_mmcif
from .molecules import extract_chains
from .parsed import MergedResiduesError, ParsedStructure
from .pdb import parse_pdb
from .write import write_mmcif


__all__ = ["MAX_BYTES", "read_chains", "write_mmcif"]


_PDB_SUFFIXES = (".pdb", ".ent")
_MMCIF_SUFFIXES = (".cif", ".mmcif")
_EXPECTED = "a .pdb, .ent, .cif or .mmcif file, plain or with .gz"

# Letters of texts that are not UTF-8, which stand in titles and remarks; one for one, so that the columns stay.
_UNKNOWN_LETTERS = bytes(range(128)) + b"?" * 128
_ENTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Names and titles of files that AlphaFold DB, ColabFold and the ESM Atlas give out.
_PREDICTED_NAME = re.compile(r"AF-\w+(?:-\d+)?-F\d+\b.*|.*_(?:un)?relaxed_rank_\d+_alphafold.*", re.IGNORECASE)
_PREDICTOR = re.compile(r"\b(?:ALPHAFOLD|ESMFOLD)\b", re.IGNORECASE)
_PREDICTION = re.compile(r"\bPREDICTION\b", re.IGNORECASE)
_PLACEHOLDER_IDS = ("XXXX", "UNNAMED", "UNKNOWN", "DEFAULT", "MODEL", "NULL", "NONE", "0000")


def read_chains(path: str | os.PathLike) -> list[ProteinChain]:
    """
    Reads all protein chains of the first model of a structure file.

    The residues are the polymer residues the file has atoms for, in file order: water, ligands (free amino acids too)
    and nucleic acids are dropped, and gaps are not filled in. An amino acid without any backbone atom stays, with
    missing coordinates; caps such as ACE and NH2, which are no amino acid and have no CA, are left out. Of alternative
    conformations the residues of the first are taken and, per atom, the location listed last, as Foldseek does.
    Modified residues get the letter of their parent (MSE is M): from gemmi's table of components, else from the
    file's own statement (`MODRES`, `_pdbx_struct_mod_residue`, `_chem_comp.mon_nstd_parent_comp_id`), else `X`. The
    names of simulation programs (HIE, CYX, ASPP, NMET and their like) stand for their amino acid.

    A chain is one molecule under one chain id. Several molecules under one id are told apart by the file's own marks:
    label_asym_id in mmCIF; in PDB files a segment id, a TER record, waters, and residue numbers that come again or go
    back. The first keeps the id, the others are called `A-2`, `A-3`, … Across a TER record a chain goes on only where
    a peptide bond does, or where a loop of as many residues as the numbers leave out (at most 30) can span the gap.
    Free amino acids after a TER are left out. Neighbouring residues of one number that no alternative location and no
    insertion code tells apart are residues of their own. A residue without a number gets the one after its
    predecessor's.

    Coordinates that are not numbers are missing (NaN), and so are those that stand for missing atoms: several atoms of
    a residue at one point, or an atom at the origin (or at 999 and more in all directions) far from its residue.

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
        ValueError: The file is broken, is not what its extension says, or holds no protein; a line does not fit the
            columns of a PDB file, residues cannot be told apart, a chain has no backbone atom whose coordinates can be
            read, or more than a tenth of the coordinates are garbled. The message names the file and, where there is
            one, the line.
    """
    path = Path(path)
    suffix, stem = _split_name(path)
    data = _read_bytes(path)
    try:
        parse = parse_pdb if suffix in _PDB_SUFFIXES else parse_mmcif
        parsed = parse(data)
        count = len({chain.name for chain in parsed.structure[0]})
        metadata = _metadata(parsed, stem)
        try:
            chains = extract_chains(parsed, metadata)
        except MergedResiduesError:
            chains = extract_chains(parse(data, number_again=True), metadata)
    # gemmi reports broken files as RuntimeError or ValueError (UnicodeDecodeError among them) and numbers out of
    # range as OverflowError or IndexError.
    except (RuntimeError, ValueError, OverflowError, IndexError) as error:
        cause = str(error).strip().rstrip(".")
        raise ValueError(
            f"{path}: cannot be read as {suffix}: {cause}. Expected a complete {suffix} file; fetch or export it "
            "again."
        ) from error
    if not chains:
        raise ValueError(
            f"{path}: none of its {count} chains is a protein; expected at least one. Leave the file out."
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
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: there is no such file; expected {_EXPECTED}.")
        raise ValueError(f"{path}: is not a file; expected {_EXPECTED}. For a folder, call once per file in it.")
    data = read_bytes(path, _EXPECTED, MAX_BYTES)
    if path.name.lower().endswith(".gz") and not is_gzipped(path):
        raise ValueError(f"{path}: is named .gz but is not gzipped; expected gzip data. Remove .gz from its name.")
    if not data.strip(b"\0 \t\r\n"):
        raise ValueError(f"{path}: is empty; expected {_EXPECTED}. Fetch it again.")
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.translate(_UNKNOWN_LETTERS)
    # gemmi knows LF and CRLF, but takes a file whose lines end in CR for a single line.
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _metadata(parsed: ParsedStructure, stem: str) -> dict:
    """The fields of `ProteinChain` that all chains of a file share."""
    structure, resolution, names_predictor = parsed.structure, parsed.resolution, parsed.names_predictor
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
        # One search after the other: a pattern of both would try each mention of a predictor with the whole title.
        title = _info(info, "_struct.title")
        mention = _PREDICTOR.search(title)
        names_predictor |= mention is not None and _PREDICTION.search(title, mention.end()) is not None
        names_predictor |= any(_PREDICTED_NAME.fullmatch(name) for name in (entry_id, stem))
    return {
        "entry_id": entry_id,
        "resolution": resolution if 0 < resolution < math.inf and not only_nmr else None,
        "r_free": r_free,
        "method": method,
        "deposition_date": deposition_date,
        "predicted": parsed.model_cif or method == "THEORETICAL MODEL" or (method is None and names_predictor),
    }


def _info(info: gemmi.InfoMap, key: str) -> str:
    return info[key].strip() if key in info else ""


def _entry_id(given: str, stem: str) -> str:
    """The file's own id where it is one that can stand in a file name and is no placeholder, else the stem."""
    if not _ENTRY_ID.fullmatch(given) or given.upper() in _PLACEHOLDER_IDS:
        given = re.sub(r"^pdb(?=\d\w{3}$)", "", stem)  # the PDB's own file names: pdb1abc.ent.gz
    return given.lower() if gemmi.is_pdb_code(given) else given
