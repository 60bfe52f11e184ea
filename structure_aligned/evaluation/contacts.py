"""Contacts of a structure, and how well a predicted contact map finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from ..structure.chain import BACKBONE_ATOMS


CONTACT_THRESHOLD = 8.0
"""Distance in Å below which two residues are in contact."""

CONTACT_RANGES: dict[str, tuple[int, int | None]] = {
    "short": (6, 11),
    "medium": (12, 23),
    "long": (24, None),
    "all": (6, None),
}
"""Least and greatest sequence separation |i − j| of each range, both included."""

TOP_FRACTIONS = {"P@L": 1, "P@L/2": 2, "P@L/5": 5}
"""Metric and the number that L is divided by."""

PAPER_SEPARATION = 7
PAPER_METRIC = "paper_P@L/5"
"""What the structure-alignment paper reports: the top L/5 of all pairs with |i − j| ≥ 7."""


def contact_map(
    coords: np.ndarray, sequence: str, threshold: float = CONTACT_THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """
    Which residues of a chain are in contact: CB atoms (CA of glycine) less than `threshold` apart, as in CASP.

    Args:
        coords (`np.ndarray` of shape `(L, 5, 3)`): N, CA, C, O, CB in Å, NaN where missing, as in [`ProteinChain`].
        sequence (`str`): L one-letter codes, which say where glycine is.
        threshold (`float`, *optional*, defaults to 8.0): In Å.

    Returns:
        `tuple[np.ndarray, np.ndarray]`, bool and each of shape `(L, L)`: contacts, and which pairs have a label. A
        residue without its CB (glycine: CA) is unresolved and has none, neither as contact nor as non-contact. The
        diagonal is True for resolved residues in both.

    Raises:
        ValueError: Shapes that do not fit, or a threshold that is not positive.
    """
    coords = np.asarray(coords)
    if coords.shape != (len(sequence), len(BACKBONE_ATOMS), 3):
        raise ValueError(
            f"coords have shape {coords.shape} but the sequence has {len(sequence)} residues; expected "
            f"({len(sequence)}, {len(BACKBONE_ATOMS)}, 3), atoms ordered {', '.join(BACKBONE_ATOMS)}."
        )
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; expected a distance in Å above 0.")
    glycine = np.array([letter == "G" for letter in sequence], dtype=bool)[:, None]
    points = np.where(glycine, coords[:, BACKBONE_ATOMS.index("CA")], coords[:, BACKBONE_ATOMS.index("CB")])
    resolved = np.isfinite(points).all(axis=1)
    points = points.astype(np.float64)
    contacts = cdist(points, points) < threshold  # NaN compares as False
    return contacts, resolved[:, None] & resolved


def contact_precision(
    predictions: np.ndarray | torch.Tensor, contacts: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """
    How many of the pairs that a prediction ranks highest are contacts, by range of sequence separation.

    The rules, where the literature has several:

    * L is the number of residues with labels, those with a valid diagonal, as CASP counts assessed residues.
    * The top L/n pairs are `max(1, L // n)`; where a range has fewer pairs with labels, all of them, and precision is
      the fraction of contacts among the pairs taken.
    * Pairs of equal score share what is left of the top: each counts with the mean of its group, which is the
      expectation over their orders. So a constant prediction has the fraction of contacts as its precision.
    * A range without pairs has NaN, and average precision has NaN without contacts as well; [`contact_summary`]
      leaves them out of means and counts them.

    Args:
        predictions (`np.ndarray` or `torch.Tensor` of shape `(L, L)`): Scores, higher for contacts. An asymmetric one
            is averaged with its transpose.
        contacts, valid (`np.ndarray` of shape `(L, L)`, bool): As [`contact_map`] gives them, symmetric. `valid` is
            everything by default.

    Returns:
        `dict[str, float]`: `resolved` (L as above) and, for each `range` in `short` (6-11), `medium` (12-23), `long`
        (from 24) and `all` (from 6): `range_P@L`, `range_P@L/2`, `range_P@L/5`, `range_AP` (average precision),
        `range_pairs` and `range_contacts` (how many have a label, and are contacts); and `paper_P@L/5`.

    Raises:
        ValueError: Shapes that differ, labels that are not symmetric, or a pair with label but without a finite score.
    """
    if isinstance(predictions, torch.Tensor):
        predictions = predictions.detach().cpu().double().numpy()
    scores = np.asarray(predictions, dtype=np.float64)
    contacts = np.asarray(contacts, dtype=bool)
    valid = np.ones_like(contacts) if valid is None else np.asarray(valid, dtype=bool)
    if contacts.ndim != 2 or contacts.shape[0] != contacts.shape[1]:
        raise ValueError(f"contacts have shape {contacts.shape}; expected (L, L).")
    for name, values in (("predictions", scores), ("valid", valid)):
        if values.shape != contacts.shape:
            raise ValueError(f"{name} have shape {values.shape} but contacts {contacts.shape}; expected the same.")
    for name, values in (("contacts", contacts), ("valid", valid)):
        if (values != values.T).any():
            raise ValueError(f"{name} differ above and below the diagonal; a pair can have one label only.")
    scores = (scores + scores.T) / 2
    first, second = np.nonzero(np.triu(valid, k=1))
    separation, scores, labels = second - first, scores[first, second], contacts[first, second]
    if not np.isfinite(scores[separation >= CONTACT_RANGES["all"][0]]).all():
        raise ValueError("predictions hold NaN or infinity at pairs that have a label; expected a score for each.")

    length = int(valid.diagonal().sum())
    result: dict[str, float] = {"resolved": length}
    for name, (least, greatest) in CONTACT_RANGES.items():
        inside = (separation >= least) & (separation <= (greatest or len(valid)))
        own_scores, own_labels = scores[inside], labels[inside]
        precisions = _top_precisions(own_scores, own_labels, [length // part for part in TOP_FRACTIONS.values()])
        result |= {f"{name}_{metric}": value for metric, value in zip(TOP_FRACTIONS, precisions)}
        result[f"{name}_AP"] = (
            float(average_precision_score(own_labels, own_scores)) if own_labels.any() else float("nan")
        )
        result |= {f"{name}_pairs": len(own_labels), f"{name}_contacts": int(own_labels.sum())}
    inside = separation >= PAPER_SEPARATION
    result[PAPER_METRIC] = _top_precisions(scores[inside], labels[inside], [length // 5])[0]
    return result


def _top_precisions(scores: np.ndarray, labels: np.ndarray, counts: list[int]) -> list[float]:
    """Fraction of True labels among the highest scores, for each number of them."""
    if not len(scores):
        return [float("nan")] * len(counts)
    ascending = np.sort(scores)
    precisions = []
    for count in counts:
        count = min(max(count, 1), len(scores))
        last = ascending[-count]
        above, tied = scores > last, scores == last
        found = labels[above].sum() + (count - above.sum()) * labels[tied].mean()
        precisions.append(float(found / count))
    return precisions


def contact_summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """
    Means over proteins of the metrics in the rows of [`evaluate_contacts`].

    Returns:
        `dict[str, dict[str, float]]`: Per metric the `mean`, the number `n` of proteins in it, and how many were left
        out because the metric is `undefined` (NaN) for them. A metric that no protein has is NaN.
    """
    rows = list(rows)
    summary = {}
    for name in rows[0] if rows else ():
        if "@" not in name and not name.endswith("_AP"):
            continue
        values = np.array([row[name] for row in rows], dtype=np.float64)
        known = values[~np.isnan(values)]
        summary[name] = {
            "mean": float(known.mean()) if len(known) else float("nan"),
            "n": len(known),
            "undefined": len(values) - len(known),
        }
    return summary
