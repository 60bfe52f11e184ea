"""The coordinates and B-factors of backbone atoms."""

from __future__ import annotations

from typing import NamedTuple

import gemmi
import numpy as np

from .chain import BACKBONE_ATOMS
from .parsed import MergedResiduesError


_CA = BACKBONE_ATOMS.index("CA")
_NAMES = np.array(BACKBONE_ATOMS, dtype="S8").view(np.uint64)


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
    try:
        atoms = gemmi.FlatStructure(structure)
    except (RuntimeError, ValueError):
        # It refuses names of more than 7 characters, and only atom names are needed from here on.
        for chain in structure[0]:
            chain.name = ""
            for residue in chain:
                residue.name = residue.subchain = residue.entity_id = ""
        atoms = gemmi.FlatStructure(structure)
    residue = np.repeat(np.arange(len(rows)), atom_counts)
    row = np.array(rows, dtype=int)[residue]
    with np.errstate(over="ignore", invalid="ignore"):
        position = atoms.pos.astype(np.float32)  # beyond the range of float32: infinite, so missing
        finite = np.isfinite(position[:, 0] + position[:, 1] + position[:, 2])
    complete = finite.all()
    names = np.asarray(atoms.atom_names).view(np.uint64).ravel()  # eight bytes each, compared as one number
    found = [np.flatnonzero(names == name) for name in _NAMES]
    _check_alternatives(atoms, found, residue)

    coords = np.full((length + 1, len(BACKBONE_ATOMS), 3), np.nan, dtype=np.float32)  # the last one is for row -1
    b_factors = np.full(length + 1, np.nan, dtype=np.float32)
    for slot, atom in enumerate(found):
        atom = atom if complete else atom[finite[atom]]
        coords[row[atom], slot] = position[atom]  # of repeated rows the last one stays: the last-listed altloc
        if slot == _CA:
            b_factors[row[atom]] = atoms.b_iso[atom]
    coords, b_factors = coords[:-1], b_factors[:-1]
    has_backbone = _drop_placeholders(coords)
    if np.isnan(b_factors).any():  # no CA: the first atom with coordinates, else the first of all
        without = (row >= 0) & np.isnan(b_factors)[row]
        for atom in (np.flatnonzero(without)[::-1], np.flatnonzero(without & finite)[::-1]):
            b_factors[row[atom]] = atoms.b_iso[atom]
    has_atoms = has_backbone
    if not has_backbone.all():
        has_atoms = np.zeros(length, dtype=bool)
        has_atoms[row[(row >= 0) & finite]] = True
    lost = 0.0 if complete else 1 - finite[row >= 0].sum() / max(1, (row >= 0).sum())
    return Backbone(coords, b_factors, has_atoms, has_backbone, float(lost))


def _check_alternatives(atoms: gemmi.FlatStructure, found: list[np.ndarray], residue: np.ndarray) -> None:
    """
    Raises where one of the `found` atoms comes twice in a residue that has a CA, at two places, without being marked
    as an alternative.
    """
    owners = residue[np.concatenate(found)]
    if not (owners[1:] == owners[:-1]).any():
        return
    altlocs, positions = np.asarray(atoms.altlocs), np.asarray(atoms.pos)
    with_ca = residue[found[_CA]]
    for atom in found:
        owner = residue[atom]
        repeated = np.intersect1d(owner[1:][owner[1:] == owner[:-1]], with_ca)
        atom = atom[np.isin(owner, repeated)]
        seen: dict[tuple, tuple] = {}
        for key, position in zip(zip(residue[atom].tolist(), altlocs[atom].tolist()), positions[atom].tolist()):
            if seen.setdefault(key, position) != position and not np.isnan(position[0]):
                raise MergedResiduesError


def _drop_placeholders(coords: np.ndarray) -> np.ndarray:
    """
    Makes coordinates NaN, in place, that stand for missing atoms: several atoms of a residue at one point, and an atom
    at the origin, or another point such as (9999, 9999, 9999), that lies nowhere near the rest of its residue.

    Returns:
        `np.ndarray` of shape `(length,)`: Whether a residue had coordinates other than zeros.
    """
    sums = coords.sum(axis=-1)
    has_any = ~np.isnan(sums).all(axis=-1)
    # Atoms at one point have one sum of coordinates, and few others have.
    ordered = np.sort(sums, axis=-1)
    x = coords[..., 0]
    suspects = (ordered[:, 1:] == ordered[:, :-1]) | (x[:, 1:] == 0) | (np.abs(x[:, 1:]) >= 999)
    first = (x[:, 0] == 0) | (np.abs(x[:, 0]) >= 999)
    for row in np.flatnonzero(suspects.any(axis=-1) | first):
        has_any[row] = (np.isfinite(coords[row]) & (coords[row] != 0)).any()
        distances = np.linalg.norm(coords[row, :, None] - coords[row, None], axis=-1)
        np.fill_diagonal(distances, np.nan)
        same = (coords[row] == coords[row, :, :1]).all(axis=-1) & ((x[row] == 0) | (np.abs(x[row]) >= 999))
        alone = np.isfinite(distances).any(axis=-1) & ~(distances < 5).any(axis=-1)
        coords[row, (distances == 0).any(axis=-1) | (same & alone)] = np.nan
    return has_any
