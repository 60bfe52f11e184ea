"""
Reference losses that are computed once: a contrastive loss taken apart, so that it can be put together for any batch.

The contrastive loss of a residue depends on what it is compared with. The residues of its own protein are the hard
candidates and are the same in every batch; the others are many and come at random, so that their share of the sum is
about their number times its mean over a declared pool.
"""

from __future__ import annotations

import math

import torch


CONTRASTIVE_PARTS = ("positive", "own_structures", "foreign_structures", "own_sequences", "foreign_sequences")
"""Columns of what [`contrastive_parts`] gives: one logit, and per direction a log-sum-exp and a log-mean-exp."""


@torch.no_grad()
def contrastive_parts(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    scale: torch.Tensor | float,
    foreign_sequence: torch.Tensor,
    foreign_structure: torch.Tensor,
) -> torch.Tensor:
    """
    What the contrastive losses of one protein's residues are made of.

    Args:
        sequence, structure (`torch.Tensor` of shape `(L, D)`): L2-normalised projections of the protein's residues.
        scale (`torch.Tensor` or `float`): Multiplier of the cosine similarity, `exp(logit_scale)`.
        foreign_sequence, foreign_structure (`torch.Tensor` of shape `(P, D)`): The same of the pool, residues of other
            proteins.

    Returns:
        `torch.Tensor` of shape `(L, 5)`, float32 or wider: see `CONTRASTIVE_PARTS`. The positive is among its own.
    """
    if not len(foreign_sequence) == len(foreign_structure) > 0:
        raise ValueError(
            f"The pool holds {len(foreign_sequence)} sequence and {len(foreign_structure)} structure projections; "
            "expected the same residues of both, at least one. A pool needs at least two proteins."
        )
    wide = torch.promote_types(sequence.dtype, torch.float32)
    sequence, structure, foreign_sequence, foreign_structure = (
        tensor.to(wide) for tensor in (sequence, structure, foreign_sequence, foreign_structure)
    )
    own = scale * sequence @ structure.T
    log_pool = math.log(len(foreign_sequence))
    return torch.stack(
        [
            own.diagonal(),
            own.logsumexp(dim=1),
            (scale * sequence @ foreign_structure.T).logsumexp(dim=1) - log_pool,
            own.logsumexp(dim=0),
            (scale * structure @ foreign_sequence.T).logsumexp(dim=1) - log_pool,
        ],
        dim=1,
    )


@torch.no_grad()
def rebuild_contrastive_losses(
    parts: torch.Tensor, own_residues: torch.Tensor, num_residues: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The contrastive losses that residues have in a batch, from their parts.

    Args:
        parts (`torch.Tensor` of shape `(N, 5)`): Of [`contrastive_parts`].
        own_residues (`torch.Tensor` of shape `(N,)`): Residues of the same protein in the batch, itself included.
        num_residues (`int`): Candidates in the batch altogether.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: `LSE(own, foreign + ln(num_residues − own)) −
        positive`, sequence → structure and structure → sequence.
    """
    positive, own_structures, foreign_structures, own_sequences, foreign_sequences = parts.unbind(-1)
    # ln 0 = −inf where the batch holds this protein alone: the foreign share is then nothing.
    log_foreign = (num_residues - own_residues).to(parts.dtype).log()
    return (
        torch.logaddexp(own_structures, foreign_structures + log_foreign) - positive,
        torch.logaddexp(own_sequences, foreign_sequences + log_foreign) - positive,
    )
