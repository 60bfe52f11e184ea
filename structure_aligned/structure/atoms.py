"""The coordinates and B-factors of backbone atoms."""

from __future__ import annotations

from typing import NamedTuple

import gemmi
import numpy as np

from .chain import BACKBONE_ATOMS
from .parsed import MergedResiduesError


class Backbone(NamedTuple):
    """
    Columns of the residues of a model.

    Args:
        coords (`np.ndarray` of shape `(length, 5, 3)`): NaN where an atom is missing.
        b_factors (`np.ndarray` of shape `(length,)`): Of CA, else of another atom.
        has_atoms (`np.ndarray` of shape `(length,)`): Whether any atom has coordinates.
        has_backbone (`np.ndarray` of shape `(length,)`): Whether any backbone atom has coordinates other than zeros.
        lost (`float`): The share of atoms without coordinates.
    """

    coords: np.ndarray
    b_factors: np.ndarray
    has_atoms: np.ndarray
    has_backbone: np.ndarray
    lost: float


def read_backbone(structure: gemmi.Structure, rows: list[int]) -> Backbone:
    """
    Takes the backbone from all atoms of a model at once. Chain and residue names are lost on the way.

    Args:
        structure (`gemmi.Structure`): Of one model.
        rows (`list[int]`): For each residue of the model its row in the result, -1 for those left out.
    """
    length = max(rows, default=-1) + 1
    atom_counts = [len(residue) for chain in structure[0] for residue in chain]
    for chain in structure[0]:
        # FlatStructure refuses names of more than 7 characters, and only atom names are needed from here on.
        chain.name = ""
        for residue in chain:
            residue.name = residue.subchain = residue.entity_id = ""
    atoms = gemmi.FlatStructure(structure)
    residue = np.repeat(np.arange(len(rows)), atom_counts)
    row = np.array(rows, dtype=int)[residue]
    with np.errstate(over="ignore", invalid="ignore"):
        position = atoms.pos.astype(np.float32)  # beyond the range of float32: infinite, so missing
        finite = np.isfinite(position[:, 0] + position[:, 1] + position[:, 2])
    names = np.array(atoms.atom_names).view(np.uint64).ravel()  # eight bytes each, compared as one number
    used = row >= 0
    present = used & finite

    coords = np.full((length, len(BACKBONE_ATOMS), 3), np.nan, dtype=np.float32)
    with_ca = None
    for slot, name in enumerate(BACKBONE_ATOMS):
        atom = np.flatnonzero(names == _as_number(name))
        owner = residue[atom]
        if (owner[1:] == owner[:-1]).any():
            with_ca = residue[names == _as_number("CA")] if with_ca is None else with_ca
            repeated = np.intersect1d(owner[1:][owner[1:] == owner[:-1]], with_ca)
            _check_alternatives(atoms, atom[np.isin(owner, repeated)], residue)
        atom = atom[present[atom]]
        coords[row[atom], slot] = position[atom]  # of repeated rows the last one stays: the last-listed altloc
    has_backbone = (np.isfinite(coords) & (coords != 0)).any(axis=(1, 2))
    _drop_placeholders(coords)

    # Each line overrides the one before it: any atom, the first present atom, the last-listed CA.
    b_factors = np.full(length, np.nan, dtype=np.float32)
    for atom in (
        np.flatnonzero(used)[::-1],
        np.flatnonzero(present)[::-1],
        np.flatnonzero(present & (names == _as_number("CA"))),
    ):
        b_factors[row[atom]] = atoms.b_iso[atom]
    has_atoms = np.zeros(length, dtype=bool)
    has_atoms[row[present]] = True
    lost = 1 - present.sum() / max(1, used.sum())
    return Backbone(coords, b_factors, has_atoms, has_backbone, float(lost))


def _as_number(name: str) -> np.uint64:
    return np.frombuffer(name.encode().ljust(8, b"\0"), np.uint64)[0]


def _check_alternatives(atoms: gemmi.FlatStructure, found: np.ndarray, residue: np.ndarray) -> None:
    """Raises where an atom comes twice in a residue, at two places, without being marked as an alternative."""
    altlocs, positions = np.array(atoms.altlocs)[found], np.array(atoms.pos)[found]
    seen: dict[tuple, tuple] = {}
    for index, altloc, position in zip(residue[found].tolist(), altlocs.tolist(), map(tuple, positions.tolist())):
        if seen.setdefault((index, altloc), position) != position and not np.isnan(position[0]):
            raise MergedResiduesError


def _drop_placeholders(coords: np.ndarray) -> None:
    """
    Makes coordinates NaN, in place, that stand for missing atoms: several atoms of a residue at one point, and an atom
    at the origin, or another point such as (9999, 9999, 9999), that lies nowhere near the rest of its residue.
    """
    # Atoms at one point have one sum of coordinates, and few others have.
    ordered = np.sort(coords.sum(axis=-1), axis=-1)
    same = (coords == coords[..., :1]).all(axis=-1) & ((coords[..., 0] == 0) | (np.abs(coords[..., 0]) >= 999))
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=-1) | same.any(axis=-1)):
        distances = np.linalg.norm(coords[row, :, None] - coords[row, None], axis=-1)
        np.fill_diagonal(distances, np.nan)
        alone = np.isfinite(distances).any(axis=-1) & ~(distances < 5).any(axis=-1)
        coords[row, (distances == 0).any(axis=-1) | (same[row] & alone)] = np.nan
