"""Residue loss selection: keep the residues whose loss exceeds the reference model's most (arXiv 2505.16896, §3.3)."""

from __future__ import annotations

import torch


KEEP_MODES = ("largest", "smallest", "all")


def num_selected(num_residues: int, ratio: float, keep: str = "largest") -> int:
    """How many of `num_residues` are kept: `int(ratio · N)`, at least one where there is any."""
    if keep not in KEEP_MODES:
        raise ValueError(f"keep is {keep!r}; choose one of {', '.join(map(repr, KEEP_MODES))}.")
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"The selection ratio is {ratio}; expected a fraction with 0 < ratio <= 1.")
    if keep == "all" or num_residues == 0:
        return num_residues
    return max(1, int(ratio * num_residues))


@torch.no_grad()
def select_residues(
    current: torch.Tensor,
    reference: torch.Tensor | None = None,
    ratio: float = 0.8,
    keep: str = "largest",
) -> torch.Tensor:
    """
    Top-k selection on the signed excess loss `current − reference`, over all residues given.

    Args:
        current (`torch.Tensor` of shape `(N,)`): Loss of the model in training, per residue.
        reference (`torch.Tensor` of shape `(N,)`, *optional*): Loss of the reference model on the same residues.
            Without one the model's own loss is the excess.
        ratio (`float`, *optional*, defaults to 0.8): Fraction that is kept; 1.0 keeps all.
        keep (`str`, *optional*, defaults to `"largest"`): `"largest"` excess (the method), `"smallest"` (its
            ablation) or `"all"`.

    Returns:
        `torch.Tensor` of shape `(N,)`: Bool mask with exactly `int(ratio · N)` residues, at least one where N > 0.
        Equal excesses are kept in order of position. Carries no gradient.
    """
    if current.ndim != 1:
        raise ValueError(f"current has shape {tuple(current.shape)}; expected one loss per residue, (num_residues,).")
    if reference is not None and reference.shape != current.shape:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)} and current {tuple(current.shape)}; "
            "both must list the same residues in the same order."
        )
    count = num_selected(len(current), ratio, keep)
    if count == len(current):
        return torch.ones_like(current, dtype=torch.bool)
    excess = current
    if reference is not None:
        if torch.isnan(reference).any():
            raise ValueError(
                f"{int(torch.isnan(reference).sum())} of {len(reference)} reference losses are NaN (missing). Compute "
                "them for every residue of the dataset, or leave these residues out before selecting."
            )
        excess = current - reference.to(current.dtype)
    # A stable sort, not topk: topk does not say which of equal values it takes.
    order = torch.sort(excess, descending=keep == "largest", stable=True).indices
    selected = torch.zeros_like(current, dtype=torch.bool)
    selected[order[:count]] = True
    return selected
