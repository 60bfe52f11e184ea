"""
Secondary structure of a chain from its backbone, in three states.

Definition: Kabsch & Sander, "Dictionary of protein secondary structure", Biopolymers 1983, doi:10.1002/bip.360221211.
Their H is kept; bridges and ladders (B and E) are E; everything else, 3-10 and pi helices too, is C. Partners are
found with a k-d tree, so that time and memory grow linearly with the chain.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


SECONDARY_STATES = "HEC"
"""Alpha helix, strand, and the rest."""

_COUPLING = 27.89  # kcal/mol · Å: 0.42 e · 0.20 e · 332
_MAX_ENERGY = -0.5  # kcal/mol
_N_H = 1.0
_MAX_PEPTIDE_BOND = 2.5
_REACH = 9.0  # CA to CA, beyond which DSSP looks for no bond
_PARTNERS = 2  # a donor's best acceptors, as many as DSSP remembers
_MIN_DISTANCE = 0.5  # closer atoms are an error of the file; DSSP counts them as a bond of the lowest energy
_LOWEST_ENERGY = -9.9
# Steps between two bridges of one ladder: 1 and 1, or a bulge of up to one more residue on one strand and four on the
# other.
_LADDER_STEPS = [(a, b) for a in range(1, 6) for b in range(1, 6) if min(a, b) < 3]


def assign_secondary_structure(coords: np.ndarray, sequence: str | None = None) -> str:
    """
    Assigns alpha helices and strands by backbone hydrogen bonds, as DSSP does.

    The chain is judged alone: strands that pair only with another chain's are no strands here. It is broken where C
    and the next N are more than 2.5 Å apart or one of them is missing; no helix or bridge runs over a break.

    Args:
        coords (`np.ndarray` of shape `(L, 4, 3)` or `(L, 5, 3)`): N, CA, C, O (and CB, which is not looked at) in Å,
            NaN where missing.
        sequence (`str`, *optional*): One letter per residue; prolines (`P`) then donate no hydrogen bond. Their place
            has room for few anyway: without the sequence about 3 residues of 1,000 change.

    Returns:
        `str`: L letters, `H` (alpha helix), `E` (in a bridge or ladder) or `C` (neither; residues without N, CA, C
        and O too).

    Raises:
        ValueError: `coords` has another shape, or `sequence` another length.
    """
    coords = np.asarray(coords, dtype=np.float64)
    if coords.ndim != 3 or coords.shape[1] not in (4, 5) or coords.shape[2] != 3:
        raise ValueError(
            f"coords have shape {coords.shape}; expected (L, 4, 3) or (L, 5, 3), atoms ordered N, CA, C, O, CB. Give "
            "one chain at a time, such as ProteinChain.coords."
        )
    length = len(coords)
    if sequence is not None and len(sequence) != length:
        raise ValueError(f"coords have {length} residues but the sequence has {len(sequence)}; give one letter each.")
    complete = np.isfinite(coords[:, :4]).all(axis=(1, 2))
    if complete.sum() < 2:
        return "C" * length
    segment = _segments(coords, complete)
    donors = complete & np.append(False, segment[1:] == segment[:-1])
    if sequence is not None:
        donors &= np.array([letter != "P" for letter in sequence])
    bonds = _Bonds(coords, complete, donors)
    states = np.full(length, "C")
    states[_strands(bonds, segment)] = "E"
    states[_helices(bonds, segment)] = "H"  # a residue that is both is a helix
    return "".join(states)


def _segments(coords: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """Number `(L,)` of the unbroken stretch that each residue lies in."""
    bond = np.full(len(coords) - 1, np.inf)
    both = complete[:-1] & complete[1:]
    bond[both] = np.linalg.norm(coords[1:, 0][both] - coords[:-1, 2][both], axis=1)
    return np.append(0, np.cumsum(bond > _MAX_PEPTIDE_BOND))


class _Bonds:
    """
    Hydrogen bonds of a chain, from N-H of `donor` to C=O of `acceptor`, both `(num_bonds,)`.

    Args:
        coords (`np.ndarray` of shape `(L, 4 or 5, 3)`): In Å.
        complete, donors (`np.ndarray` of shape `(L,)`): Which residues have a whole backbone, and a hydrogen on N;
            the latter have a bonded predecessor.
    """

    def __init__(self, coords: np.ndarray, complete: np.ndarray, donors: np.ndarray) -> None:
        self.length = len(coords)
        known = np.flatnonzero(complete)
        pairs = known[cKDTree(coords[known, 1]).query_pairs(_REACH, output_type="ndarray")].reshape(-1, 2)
        donor, acceptor = np.concatenate([pairs, pairs[:, ::-1]]).T
        # The carbonyl that N itself is bound to is no partner.
        possible = donors[donor] & (acceptor != donor - 1)
        donor, acceptor = donor[possible], acceptor[possible]
        energy = _energies(coords, donor, acceptor)
        bound = energy < _MAX_ENERGY
        donor, acceptor, energy = donor[bound], acceptor[bound], energy[bound]
        order = np.lexsort((acceptor, energy, donor))
        donor, acceptor = donor[order], acceptor[order]
        best = np.arange(len(donor)) - np.searchsorted(donor, donor) < _PARTNERS
        self.donor, self.acceptor = donor[best], acceptor[best]
        self._keys = self.donor * self.length + self.acceptor

    def __call__(self, donor: np.ndarray, acceptor: np.ndarray) -> np.ndarray:
        """Whether there is a bond from N-H of `donor` to C=O of `acceptor`; False outside the chain."""
        inside = (donor >= 0) & (donor < self.length) & (acceptor >= 0) & (acceptor < self.length)
        return inside & np.isin(donor * self.length + acceptor, self._keys)


def _energies(coords: np.ndarray, donor: np.ndarray, acceptor: np.ndarray) -> np.ndarray:
    """Electrostatic energies `(num_pairs,)` in kcal/mol, eq. (1) of Kabsch & Sander."""
    carbonyl = coords[donor - 1, 2] - coords[donor - 1, 3]
    n = coords[donor, 0]
    # N-H lies in the peptide plane, antiparallel to the C=O before it.
    h = n + _N_H * carbonyl / np.linalg.norm(carbonyl, axis=1, keepdims=True).clip(min=1e-6)
    c, o = coords[acceptor, 2], coords[acceptor, 3]
    on, ch, oh, cn = (np.linalg.norm(a - b, axis=1) for a, b in ((o, n), (c, h), (o, h), (c, n)))
    closest = np.minimum.reduce([on, ch, oh, cn])
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = _COUPLING * (1 / on + 1 / ch - 1 / oh - 1 / cn)
    return np.where(closest < _MIN_DISTANCE, _LOWEST_ENERGY, energy)


def _helices(bonds: _Bonds, segment: np.ndarray) -> np.ndarray:
    """Residues `(L,)` inside alpha helices: behind two successive turns, where C=O of i binds N-H of i + 4."""
    length = len(segment)
    start = bonds.acceptor[bonds.donor == bonds.acceptor + 4]
    start = start[segment[start] == segment[start + 4]]
    turn = np.zeros(length, dtype=bool)
    turn[start] = True
    first = np.flatnonzero(turn[:-1] & turn[1:]) + 1
    return _covered(first, first + 3, length)


def _strands(bonds: _Bonds, segment: np.ndarray) -> np.ndarray:
    """Residues `(L,)` in bridges, and those between two bridges of a ladder."""
    length = len(segment)
    donor, acceptor = bonds.donor, bonds.acceptor
    # Of every pair (i, j) of residues that bridge, one of the bonds between their neighbours is this one.
    parallel = acceptor + 1, donor, bonds(acceptor + 2, donor)
    opposite = acceptor, donor, bonds(acceptor, donor)
    wide = acceptor + 1, donor - 1, bonds(acceptor + 2, donor - 2)
    pairs = (parallel,), (opposite, wide)
    strands = np.zeros(length, dtype=bool)
    for direction, found in zip((1, -1), pairs):
        i, j, bridged = (np.concatenate(parts) for parts in zip(*found))
        i, j = i[bridged], j[bridged]
        inner = (np.minimum(i, j) > 0) & (np.maximum(i, j) < length - 1) & (np.abs(i - j) >= 3)
        i, j = i[inner], j[inner]
        whole = (segment[i - 1] == segment[i + 1]) & (segment[j - 1] == segment[j + 1])
        keys = np.unique(np.append(i[whole] * length + j[whole], j[whole] * length + i[whole]))
        i, j = keys // length, keys % length
        strands[i] = True
        for step_i, step_j in _LADDER_STEPS:
            end_i, end_j = i + step_i, j + direction * step_j
            linked = (end_i < length) & (end_j >= 0) & (end_j < length)
            linked &= np.isin(end_i * length + end_j, keys)
            linked[linked] = (segment[i[linked]] == segment[end_i[linked]]) & (
                segment[j[linked]] == segment[end_j[linked]]
            )
            # The other strand is filled by the same bridges seen from there.
            strands |= _covered(i[linked], end_i[linked], length)
    return strands


def _covered(first: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
    """Which of `length` residues lie in a stretch from one of `first` to the `last` beside it, both included."""
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, last + 1, -1)
    return np.cumsum(edges)[:-1] > 0
