"""
What a residue is told apart from: the residues of its own micro-batch, or those of all ranks.

Each rank computes the losses of its own residues alone, rows and columns, against everybody's projections; gradients
with respect to the others' projections go back to them. With N residues on each of W ranks that is 2 W N² similarities
a rank, as many as of one matrix per direction cut into W strips, and no N W × N W matrix anywhere.
"""

from __future__ import annotations

from typing import Any

import torch

from .contrastive import contrastive_losses
from .distributed import gather_with_gradient, is_distributed


NEGATIVES = ("batch", "global")


def residue_losses_among(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    scale: torch.Tensor | float,
    negatives: str = "batch",
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Both contrastive losses of this rank's residues.

    Args:
        sequence, structure (`torch.Tensor` of shape `(N, D)`): L2-normalised projections; row i of both is residue i.
            N may differ between ranks and be 0.
        scale (`torch.Tensor` or `float`): Multiplier of the cosine similarity, `exp(logit_scale)`.
        negatives (`str`, *optional*, defaults to `"batch"`): `"batch"` compares with these residues; `"global"` with
            those of all ranks, each of which must call this, and run the backward pass, in the same order.
        options (`Any`): Of [`contrastive_losses`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: Losses sequence → structure and structure →
        sequence. Summed over the ranks, their values and gradients are those of one process that has all residues.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives is {negatives!r}; choose one of {', '.join(map(repr, NEGATIVES))}.")
    if negatives == "batch" or not is_distributed():
        return contrastive_losses(sequence, structure, scale, **options)
    if sequence.shape != structure.shape:
        raise ValueError(
            f"sequence has shape {tuple(sequence.shape)} and structure {tuple(structure.shape)}; "
            "expected the same (num_residues, projection_dim) for both."
        )
    # Side by side: one message there and one back.
    candidates, offset = gather_with_gradient(torch.cat([sequence, structure.to(sequence.dtype)], dim=1))
    sequence_candidates, structure_candidates = candidates.split(sequence.shape[1], dim=1)
    return contrastive_losses(
        sequence,
        structure,
        scale,
        sequence_candidates=sequence_candidates,
        structure_candidates=structure_candidates,
        offset=offset,
        **options,
    )
