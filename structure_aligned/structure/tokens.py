"""
Foldseek's 3Di structure tokens.

Definition: van Kempen et al., "Fast and accurate protein structure search with Foldseek", Nature Biotechnology 2024.
Virtual centres and the trained encoder come from mini3di (BSD-3). Partners are found with a k-d tree, so that time and
memory grow linearly with the chain instead of quadratically.
"""

from __future__ import annotations

from functools import cache

import mini3di
import numpy as np
import torch
from scipy.spatial import cKDTree

from .chain import BACKBONE_ATOMS


STRUCTURE_ALPHABET_3DI = "ACDEFGHIKLMNPQRSTVWY"
"""Letter of each token, by index."""

INVALID_TOKEN = STRUCTURE_ALPHABET_3DI.index("D")
"""What Foldseek writes where no token is defined. It is a genuine token as well: look at `valid`, not at this."""

_NEIGHBOURS = 4
# Distances this close may be one distance up to rounding: which is smaller is then decided by one formula for all.
_TIE = 1e-9


def encode_3di(coords: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """
    Encodes the backbone of one chain as 3Di tokens, as Foldseek does.

    A token describes a residue, its neighbours in the chain and the residue nearest in space. It is undefined for the
    first and the last residue, where N, CA or C of one of the residues involved is missing, and where no other residue
    could be the nearest one. A missing CB (glycine) is placed tetrahedrally. Neighbours are neighbours in the array,
    also across a break of the chain.

    Args:
        coords (`np.ndarray` or `torch.Tensor` of shape `(L, 5, 3)`): N, CA, C, O, CB in Å, NaN where missing.
            Computed in float64 whatever the type.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `tokens` (uint8, shape `(L,)`), indices into `STRUCTURE_ALPHABET_3DI`, and
        `valid` (bool, shape `(L,)`), False where the token is undefined (`tokens` is `INVALID_TOKEN` there).

    Raises:
        ValueError: `coords` has another shape.
    """
    if isinstance(coords, torch.Tensor):
        coords = coords.detach().to("cpu", torch.float64).numpy()
    coords = np.array(coords, dtype=np.float64)
    if coords.shape[1:] != (len(BACKBONE_ATOMS), 3):
        raise ValueError(
            f"coords have shape {coords.shape}; expected (L, {len(BACKBONE_ATOMS)}, 3), atoms ordered "
            f"{', '.join(BACKBONE_ATOMS)}. Encode one chain at a time."
        )
    length = len(coords)
    tokens = np.full(length, INVALID_TOKEN, dtype=np.uint8)
    valid = np.zeros(length, dtype=bool)
    coords[~np.isfinite(coords).all(axis=-1)] = np.nan
    n, ca, c, _, cb = coords.swapaxes(0, 1)
    complete = ~np.isnan(coords[:, :3]).any(axis=(1, 2))

    inner = np.arange(1, length - 1)
    candidates = inner[complete[inner]]
    if len(candidates) < 2:
        return tokens, valid
    centres = mini3di.VirtualCenterEncoder().encode_atoms(ca, cb, n, c).data
    partners = candidates[_nearest_other(centres[candidates])]
    whole = complete[:-2] & complete[1:-1] & complete[2:]  # with both neighbours; by inner residue
    defined = whole[candidates - 1] & whole[partners - 1]
    residue, partner = candidates[defined], partners[defined]
    if len(residue):
        tokens[residue] = _encoder().vae_encoder(_features(ca, residue, partner))
        valid[residue] = True
    return tokens, valid


def structure_tokens_to_string(tokens: np.ndarray, valid: np.ndarray | None = None, invalid: str = "D") -> str:
    """
    Writes tokens as letters of `STRUCTURE_ALPHABET_3DI`.

    Args:
        tokens (`np.ndarray` of shape `(L,)`): Indices, 0 to 19 where `valid`.
        valid (`np.ndarray` of shape `(L,)`, *optional*): Where tokens are defined; everywhere by default.
        invalid (`str`, *optional*, defaults to `"D"`): The character for undefined tokens; Foldseek's own is D.

    Raises:
        ValueError: Shapes differ, a valid token is not one of the 20, or `invalid` is not one character.
    """
    tokens = np.asarray(tokens)
    valid = np.ones(tokens.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if tokens.ndim != 1 or valid.shape != tokens.shape:
        raise ValueError(f"tokens have shape {tokens.shape} and valid {valid.shape}; expected (L,) for both.")
    if len(invalid) != 1:
        raise ValueError(f"invalid is {invalid!r}; expected one character, so that the string has one per residue.")
    size = len(STRUCTURE_ALPHABET_3DI)
    if ((tokens < 0) | (tokens >= size))[valid].any():
        raise ValueError(
            f"tokens reach from {tokens[valid].min()} to {tokens[valid].max()}; expected 0 to {size - 1}. "
            "Give `valid` where undefined tokens carry another value."
        )
    letters = np.array([*STRUCTURE_ALPHABET_3DI, invalid])
    return "".join(letters[np.where(valid, tokens, size).astype(int)])


@cache
def _encoder() -> mini3di.Encoder:
    return mini3di.Encoder()


def _nearest_other(points: np.ndarray) -> np.ndarray:
    """Index of the nearest other point of each of `points` `(N, 3)`, N > 1; the lowest index of equally near ones."""
    count = len(points)
    _, found = cKDTree(points).query(points, k=min(_NEIGHBOURS, count))
    found.sort(axis=1)  # so that argmin takes the lowest index of equals
    squared = ((points[:, None] - points[found]) ** 2).sum(axis=-1)
    furthest = squared.max(axis=1)
    squared[found == np.arange(count)[:, None]] = np.inf
    best = squared.argmin(axis=1)
    nearest = found[np.arange(count), best]
    if count > _NEIGHBOURS:
        # Where all found are equally near there may be more of them, with lower indices.
        smallest = squared[np.arange(count), best]
        for i in np.flatnonzero(furthest <= smallest * (1 + _TIE)):
            every = ((points - points[i]) ** 2).sum(axis=-1)
            every[i] = np.inf
            nearest[i] = every.argmin()
    return nearest


def _features(ca: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The ten features `(N, 10)` of residues `i` and their partners `j`: seven cosines, a distance, two offsets."""
    steps, _ = _normalize(np.diff(ca, axis=0))  # step k leads from residue k to k + 1
    between, distance = _normalize(ca[j] - ca[i])
    to_i, from_i, to_j, from_j = steps[i - 1], steps[i], steps[j - 1], steps[j]
    pairs = [(to_i, from_i), (to_j, from_j), (to_i, between), (to_j, between)]
    pairs += [(to_i, from_j), (from_i, to_j), (to_i, to_j)]
    offset = j - i
    features = np.empty((len(i), 10), dtype=np.float32)  # as the trained network
    for column, (a, b) in enumerate(pairs):
        features[:, column] = np.einsum("nd,nd->n", a, b)
    features[:, 7] = distance
    features[:, 8] = np.clip(offset, -4, 4)
    features[:, 9] = np.sign(offset) * np.log(np.abs(offset) + 1)
    return features


def _normalize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (zero where the vector is) and lengths."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return vectors / np.where(lengths > 0, lengths, 1)[:, None], lengths
