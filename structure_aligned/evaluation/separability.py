"""How far residue embeddings of different labels lie apart, in numbers."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import silhouette_samples


_BLOCK = 2**24  # similarities at once


def silhouettes(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Silhouette of each residue by cosine distance (Rousseeuw, doi:10.1016/0377-0427(87)90125-7): from −1 to 1, and
    above 0 where a residue is nearer to those of its own label than to those of any other.

    Args:
        embeddings (`np.ndarray` of shape `(N, hidden_size)`): Of residues of any proteins.
        labels (`np.ndarray` of shape `(N,)`): Their labels.

    Returns:
        `np.ndarray` of shape `(N,)`: NaN where it is not defined, with one label only or one residue per label.
    """
    if not 2 <= len(np.unique(labels)) < len(labels):
        return np.full(len(labels), np.nan)
    return silhouette_samples(embeddings, labels, metric="cosine")


def neighbour_purity(
    embeddings: np.ndarray, labels: np.ndarray, proteins: np.ndarray, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """
    Of each residue's `k` nearest neighbours by cosine, the fraction that have its label.

    Only residues of **other proteins** are neighbours. Those beside it in the sequence are near in any language model
    and mostly have its label, so that with them a high purity would say nothing about the label.

    Args:
        embeddings, labels: As for [`silhouettes`].
        proteins (`np.ndarray` of shape `(N,)`): Which protein each residue belongs to.
        k (`int`, *optional*, defaults to 10): Neighbours; all of them where other proteins have fewer residues.

    Returns:
        `tuple[np.ndarray, np.ndarray]`, each of shape `(N,)`: The purity, and what neighbours drawn at random would
        give: the fraction of residues of other proteins that have the label. NaN with one protein only.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbour.")
    count = len(labels)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    purity, chance = np.full(count, np.nan), np.full(count, np.nan)
    step = max(1, _BLOCK // max(count, 1))
    for start in range(0, count, step):
        rows = np.arange(start, min(count, start + step))
        foreign = proteins[rows, None] != proteins
        same = labels[rows, None] == labels
        similarity = np.where(foreign, unit[rows] @ unit.T, -np.inf)
        nearest = np.argpartition(-similarity, min(k, count) - 1, axis=1)[:, :k]
        counted = np.take_along_axis(foreign, nearest, axis=1)  # where others are few, its own are among them
        hits = np.take_along_axis(same, nearest, axis=1) & counted
        available, taken = foreign.sum(axis=1), counted.sum(axis=1)
        known = available > 0
        purity[rows[known]] = hits[known].sum(axis=1) / taken[known]
        chance[rows[known]] = (same & foreign)[known].sum(axis=1) / available[known]
    return purity, chance
