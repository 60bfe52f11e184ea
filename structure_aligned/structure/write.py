"""Writes a protein chain as backbone-only mmCIF."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np

from ..utils.files import atomic_file
from .chain import BACKBONE_ATOMS, ProteinChain


_SUFFIXES = (".cif", ".mmcif", ".cif.gz", ".mmcif.gz")
_LETTERS = "ACDEFGHIKLMNPQRSTVWYBZUOX"
_COMPONENTS = dict(zip(_LETTERS, gemmi.expand_one_letter_sequence(_LETTERS, gemmi.ResidueKind.AA)))
# In the order in which a row is written below.
_COLUMNS = ("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id")
_COLUMNS += ("label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy")
_COLUMNS += ("B_iso_or_equiv", "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num")


def write_mmcif(chain: ProteinChain, path: str | os.PathLike) -> None:
    """
    Writes one chain as mmCIF (N, CA, C, O, CB), so that `read_chains` gives an equal chain.

    Coordinates keep three decimals; a residue without atoms is written as a CA without coordinates. The file appears
    complete or not at all.

    Args:
        chain (`ProteinChain`): Residue numbers must be unique integers with at most one insertion letter.
        path (`str` or `os.PathLike`): Ends in .cif or .mmcif, gzipped where .gz follows.

    Raises:
        ValueError: The extension is another one, the chain is empty, or a letter or residue number has no place in
            an mmCIF file.
    """
    path = Path(path)
    if not path.name.lower().endswith(_SUFFIXES):
        raise ValueError(f"{path}: got another extension; write_mmcif expects {', '.join(_SUFFIXES)}.")
    data = "\n".join(_mmcif_lines(chain)).encode() + b"\n"
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # no time stamp: equal chains give equal files
    with atomic_file(path, durable=False) as file:
        file.write(data)


def _mmcif_lines(chain: ProteinChain) -> Iterator[str]:
    if len(chain) == 0:
        raise ValueError(f"{chain.id}: the chain has no residues; write chains of at least one.")
    if len(set(chain.residue_numbers)) < len(chain):
        raise ValueError(f"{chain.id}: residue numbers repeat; number the residues anew before writing.")
    quote = gemmi.cif.quote

    def optional(value: object) -> str:
        return "?" if value is None else quote(str(value))

    yield f"data_{re.sub(r'[^A-Za-z0-9_.-]', '_', chain.entry_id) or 'chain'}"
    yield f"_entry.id {quote(chain.entry_id)}"
    yield f"_pdbx_database_status.recvd_initial_deposition_date {optional(chain.deposition_date)}"
    yield f"_exptl.method {optional(chain.method)}"
    if chain.predicted:
        yield "_ma_qa_metric.id 1\n_ma_qa_metric.mode local\n_ma_qa_metric.name pLDDT\n_ma_qa_metric.type pLDDT"
    yield "_refine.pdbx_refine_id 1"
    yield f"_refine.ls_d_res_high {optional(chain.resolution)}"
    yield f"_refine.ls_R_factor_R_free {optional(chain.r_free)}"
    # Without these three categories a reader has to guess which residues are polymer.
    yield "_entity.id 1\n_entity.type polymer"
    yield "_entity_poly.entity_id 1\n_entity_poly.type 'polypeptide(L)'"
    yield "_struct_asym.id A\n_struct_asym.entity_id 1"
    yield "loop_"
    yield from (f"_atom_site.{name}" for name in _COLUMNS)
    chain_id, serial = quote(chain.chain_id), 0
    present = np.isfinite(chain.coords).all(axis=-1)
    for i, (letter, number) in enumerate(zip(chain.sequence, chain.residue_numbers)):
        if letter not in _COMPONENTS:
            raise ValueError(
                f"{chain.id}: no component is known for the letter {letter!r} of residue {number}; use X."
            )
        parts = re.fullmatch(r"(-?\d+)([A-Za-z]?)", number)
        if parts is None:
            raise ValueError(
                f"{chain.id}: residue number {number!r} is no integer with at most one insertion letter; renumber."
            )
        slots = np.flatnonzero(present[i]).tolist()
        b_factor = str(chain.b_factors[i])
        for slot in slots or [BACKBONE_ATOMS.index("CA")]:
            serial += 1
            name = BACKBONE_ATOMS[slot]
            xyz = "{:.3f} {:.3f} {:.3f}".format(*chain.coords[i, slot].tolist()) if slots else "? ? ?"
            yield (
                f"ATOM {serial} {name[0]} {name} . {_COMPONENTS[letter]} A 1 {i + 1} {parts[2] or '?'} {xyz} 1.00 "
                f"{b_factor} {parts[1]} {chain_id} 1"
            )
