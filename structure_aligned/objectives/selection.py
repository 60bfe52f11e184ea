"""Residue loss selection: keep the residues whose loss exceeds the reference model's most (arXiv 2505.16896, §3.3)."""

from __future__ import annotations

import torch

from .distributed import gather_uneven


KEEP_MODES = ("largest", "smallest", "all")
SCOPES = ("batch", "global")
MISSING_REFERENCE = ("raise", "own_loss")


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
def excess_losses(
    current: torch.Tensor, reference: torch.Tensor | None = None, missing_reference: str = "raise"
) -> torch.Tensor:
    """
    Signed excess `current − reference` per residue, what selection ranks by.

    Args:
        current (`torch.Tensor` of shape `(N,)`): Loss of the model in training.
        reference (`torch.Tensor` of shape `(N,)`, *optional*): Loss of the reference model on the same residues, NaN
            where there is none. Without it the model's own loss is the excess.
        missing_reference (`str`, *optional*, defaults to `"raise"`): `"own_loss"` takes the own loss for the excess of
            residues whose reference is NaN; the larger numbers then tend to be theirs.
    """
    if current.ndim != 1:
        raise ValueError(f"current has shape {tuple(current.shape)}; expected one loss per residue, (num_residues,).")
    if missing_reference not in MISSING_REFERENCE:
        raise ValueError(f"missing_reference is {missing_reference!r}; choose one of {MISSING_REFERENCE}.")
    if reference is None:
        return current
    if reference.shape != current.shape:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)} and current {tuple(current.shape)}; "
            "both must list the same residues in the same order."
        )
    reference = reference.to(current.dtype)
    missing = torch.isnan(reference)
    if missing_reference == "own_loss":
        return torch.where(missing, current, current - reference)
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(reference)} reference losses are NaN (missing). Compute them for every "
            "residue of the dataset (attach_reference_losses), or choose missing_reference='own_loss'."
        )
    return current - reference


@torch.no_grad()
def select_residues(
    current: torch.Tensor,
    reference: torch.Tensor | None = None,
    ratio: float = 0.8,
    keep: str = "largest",
    scope: str = "batch",
    missing_reference: str = "raise",
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
        scope (`str`, *optional*, defaults to `"batch"`): `"batch"` ranks the residues given; `"global"` those of all
            processes together, each of which must call this and gets the mask of its own residues.
        missing_reference (`str`, *optional*, defaults to `"raise"`): See [`excess_losses`].

    Returns:
        `torch.Tensor` of shape `(N,)`: Bool mask with exactly `int(ratio · N)` residues (of all processes' N for
        `"global"`), at least one where N > 0. Equal excesses are kept in order of rank and position. Carries no
        gradient.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; choose one of {', '.join(map(repr, SCOPES))}.")
    excess = excess_losses(current, reference, missing_reference)
    num_selected(len(excess), ratio, keep)  # says what is wrong with them, before any rank waits for another
    own = len(excess)
    if ratio == 1.0 or keep == "all":
        return torch.ones_like(excess, dtype=torch.bool)
    excess, start = gather_uneven(excess) if scope == "global" else (excess, 0)
    # A stable sort, not topk: topk does not say which of equal values it takes.
    order = torch.sort(excess, descending=keep == "largest", stable=True).indices
    selected = torch.zeros_like(excess, dtype=torch.bool)
    selected[order[: num_selected(len(excess), ratio, keep)]] = True
    return selected[start : start + own]
