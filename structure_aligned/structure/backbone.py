"""
Protein backbones of ideal bond lengths and angles, built from their torsions by natural extension of the reference
frame. A residue is a frame at its C; a chain is frames composed one after the other.
"""

from __future__ import annotations

import numpy as np


# Ideal geometry in Å and degrees (Engh & Huber, 1991); every peptide bond is trans.
N_CA, CA_C, C_N, C_O, CA_CB = 1.458, 1.525, 1.329, 1.231, 1.530
N_CA_C, CA_C_N, C_N_CA, CA_C_O, N_CA_CB, C_CA_CB = 111.0, 117.2, 121.7, 120.1, 110.5, 110.1

SIDE_CHAIN_REACH = 2.4  # CA to the side chain's centre, of an average residue


def _bend(torsion: np.ndarray, angle: float, length: float) -> tuple[np.ndarray, np.ndarray]:
    """
    The step from one atom's frame to the next one's: the natural extension of the reference frame.

    A frame's x axis is the bond that ends in the atom; y points to the side of the atom before that bond. Returns the
    rotations `(..., 3, 3)`, whose columns are the new axes, and the shifts `(..., 3)`.
    """
    t, a = np.radians(torsion), np.radians(angle)
    cos_t, sin_t, cos_a, sin_a = np.cos(t), np.sin(t), np.cos(a), np.sin(a)
    rotation = np.zeros((*np.shape(t), 3, 3))
    rotation[..., 0, 0], rotation[..., 1, 0], rotation[..., 2, 0] = -cos_a, cos_t * sin_a, sin_t * sin_a
    rotation[..., 0, 1], rotation[..., 1, 1], rotation[..., 2, 1] = -sin_a, -cos_t * cos_a, -sin_t * cos_a
    rotation[..., 1, 2], rotation[..., 2, 2] = -sin_t, cos_t
    return rotation, rotation[..., 0] * length


def walk(torsions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Frames at C of the residues after the first, seen from the first: rotations `(..., n - 1, 3, 3)` and positions
    `(..., n - 1, 3)`, from phi and psi `(..., n, 2)` in degrees.
    """
    phi, psi = torsions[..., 1:, 0], torsions[..., :-1, 1]
    turn, shift = _bend(psi, CA_C_N, C_N)
    for rotation, offset in (_bend(np.array(180.0), C_N_CA, N_CA), _bend(phi, N_CA_C, CA_C)):
        shift = shift + _apply(turn, offset)
        turn = turn @ rotation
    for i in range(1, phi.shape[-1]):
        shift[..., i, :] = shift[..., i - 1, :] + _apply(turn[..., i - 1, :, :], shift[..., i, :])
        turn[..., i, :, :] = turn[..., i - 1, :, :] @ turn[..., i, :, :]
    return turn, shift


def walk_from_origin(torsions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames `(n, 3, 3)` and `(n, 3)` of all residues `(n, 2)`, the first at the origin."""
    rotations, origins = walk(torsions)
    return np.concatenate([np.eye(3)[None], rotations]), np.concatenate([np.zeros((1, 3)), origins])


def _apply(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (rotation @ vector[..., None])[..., 0]


def _residue_template() -> np.ndarray:
    """N, CA, C, O and CB `(5, 3)` in the frame at C; O is left at the origin, since psi places it."""
    ca = np.array([-CA_C, 0.0, 0.0])
    to_n = np.array([np.cos(np.radians(N_CA_C)), np.sin(np.radians(N_CA_C)), 0.0])
    # Two angles fix the direction of CB up to a mirror image; this side makes L amino acids.
    x = np.cos(np.radians(C_CA_CB))
    y = (np.cos(np.radians(N_CA_CB)) - x * to_n[0]) / to_n[1]
    to_cb = np.array([x, y, -np.sqrt(1 - x * x - y * y)])
    return np.stack([ca + N_CA * to_n, ca, np.zeros(3), np.zeros(3), ca + CA_CB * to_cb])


_TEMPLATE = _residue_template()
CA_POINT = _TEMPLATE[1]
SIDE_CHAIN_POINT = CA_POINT + SIDE_CHAIN_REACH / CA_CB * (_TEMPLATE[4] - CA_POINT)


def place_atoms(rotations: np.ndarray, origins: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Backbone atoms `(n, 5, 3)` of residues with the given frames."""
    local = np.repeat(_TEMPLATE[None], len(psi), axis=0)
    local[:, 3] = _bend(psi + 180.0, CA_C_O, C_O)[1]  # O lies opposite the next N
    return local @ rotations.swapaxes(-1, -2) + origins[:, None]


def side_chain_points(atoms: np.ndarray) -> np.ndarray:
    """Side-chain centres `(n, 3)` in Å, from atoms `(n, 5, 3)` with CB."""
    return atoms[:, 1] + SIDE_CHAIN_REACH / CA_CB * (atoms[:, 4] - atoms[:, 1])


def place_point(rotations: np.ndarray, origins: np.ndarray, local: np.ndarray) -> np.ndarray:
    """One point of each residue `(..., n, 3)`, from its place in the residue's frame."""
    return rotations @ local + origins


def backbone_from_torsions(torsions: np.ndarray) -> np.ndarray:
    """
    Builds an ideal backbone from its torsions, with trans peptide bonds.

    Args:
        torsions (`np.ndarray` of shape `(L, 2)`): phi and psi in degrees. The first phi is not used, as it needs a
            residue before it; the last psi places O only.

    Returns:
        `np.ndarray` of shape `(L, 5, 3)`, float64: N, CA, C, O, CB in Å, with CB for every residue.

    Raises:
        `ValueError`: For any other shape, or values that are not finite.
    """
    torsions = np.asarray(torsions, dtype=np.float64)
    if torsions.ndim != 2 or torsions.shape[1] != 2 or not len(torsions) or not np.isfinite(torsions).all():
        raise ValueError(
            f"torsions have shape {torsions.shape}; expected finite phi and psi in degrees, of shape (L, 2) with L of "
            "1 or more."
        )
    return place_atoms(*walk_from_origin(torsions), torsions[:, 1])
