"""
Per-residue losses of the dual-task objective, and the one scalar they become.

Everything here is differentiable, keeps one number per residue until [`combine_losses`] (so that residues can be
selected), and divides by counts handed in from outside (so that the result does not depend on how a batch is cut).
Source: Chen et al., "Structure-Aligned Protein Language Model", arXiv 2505.16896.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F


IGNORE_INDEX = -100
"""Label of positions that are no target, as everywhere in Transformers."""


@dataclass
class ResidueLosses:
    """
    One value per residue and task, float32 (float64 for float64 inputs). A task without labels is `None`.

    Args:
        mlm (`torch.Tensor` of shape `(num_masked,)`): Cross-entropy of the masked residues.
        token (`torch.Tensor` of shape `(num_labelled,)`): Cross-entropy of the 3Di token.
        seq_to_struct, struct_to_seq (`torch.Tensor` of shape `(num_aligned,)`): The two contrastive directions.

    Residues are in row-major order of the batch.
    """

    mlm: torch.Tensor | None = None
    token: torch.Tensor | None = None
    seq_to_struct: torch.Tensor | None = None
    struct_to_seq: torch.Tensor | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def items(self) -> list[tuple[str, torch.Tensor]]:
        """`(name, losses)` of the tasks that are present."""
        return [(name, getattr(self, name)) for name in self.names() if getattr(self, name) is not None]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three tasks; the defaults are the paper's. Each contrastive direction gets half of `latent`."""

    mlm: float = 1.0
    physical: float = 0.5
    latent: float = 0.5

    def __post_init__(self) -> None:
        values = (self.mlm, self.physical, self.latent)
        if not all(0 <= value < math.inf for value in values) or not any(values):
            raise ValueError(
                f"The loss weights are {', '.join(map(str, values))}; expected finite numbers >= 0, not all 0. "
                "A weight of 0 turns a task off."
            )

    def per_loss(self) -> dict[str, float]:
        half = self.latent / 2
        return {"mlm": self.mlm, "token": self.physical, "seq_to_struct": half, "struct_to_seq": half}


def labelled_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of every labelled position, unreduced.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, length, num_classes)`): In any float dtype.
        labels (`torch.Tensor` of shape `(batch_size, length)`): Class ids, −100 where there is no target.

    Returns:
        `torch.Tensor` of shape `(num_labelled,)`: In nats, row-major; connected to `logits` even when empty.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "expected (batch_size, length, num_classes) and (batch_size, length)."
        )
    labelled = labels != IGNORE_INDEX
    return F.cross_entropy(_at_least_float32(logits[labelled]), labels[labelled], reduction="none")


def residue_contrastive_losses(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    scale: torch.Tensor | float,
    *,
    sequence_candidates: torch.Tensor | None = None,
    structure_candidates: torch.Tensor | None = None,
    offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Symmetric residue-level InfoNCE: each residue finds its own structure among all residues, and the reverse.

    Args:
        sequence, structure (`torch.Tensor` of shape `(N, D)`): L2-normalised projections; row i of both is residue i.
        scale (`torch.Tensor` or `float`): Multiplier of the cosine similarity, `exp(logit_scale)`.
        sequence_candidates, structure_candidates (`torch.Tensor` of shape `(M, D)`, *optional*):
            What the anchors are compared with when that is more than themselves, such as the projections of all
            ranks. The anchors' own rows must be among them.
        offset (`int`, *optional*, defaults to 0): Row of the candidates that holds residue 0.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: Losses sequence → structure and structure →
        sequence, in nats, differentiable in all inputs.
    """
    sequence, structure, sequence_candidates, structure_candidates = contrastive_inputs(
        sequence, structure, sequence_candidates, structure_candidates, offset
    )
    targets = torch.arange(offset, offset + len(sequence), device=sequence.device)
    to_structure = F.cross_entropy(scale * sequence @ structure_candidates.T, targets, reduction="none")
    to_sequence = F.cross_entropy(scale * structure @ sequence_candidates.T, targets, reduction="none")
    return to_structure, to_sequence


def contrastive_inputs(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    sequence_candidates: torch.Tensor | None,
    structure_candidates: torch.Tensor | None,
    offset: int,
    *,
    keep_dtype: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The four sets of [`residue_contrastive_losses`] in the dtype of the losses, or its errors. With `keep_dtype`, sets
    that are all in one lower precision stay in it.
    """
    if sequence.ndim != 2 or sequence.shape != structure.shape:
        raise ValueError(
            f"sequence has shape {tuple(sequence.shape)} and structure {tuple(structure.shape)}; "
            "expected the same (num_residues, projection_dim) for both."
        )
    if keep_dtype:
        given = [each for each in (sequence, structure, sequence_candidates, structure_candidates) if each is not None]
        dtype = functools.reduce(torch.promote_types, (each.dtype for each in given))
        sequence, structure = sequence.to(dtype), structure.to(dtype)
    else:
        sequence, structure = _at_least_float32(sequence), _at_least_float32(structure)
    sequence_candidates = sequence if sequence_candidates is None else sequence_candidates.to(sequence.dtype)
    structure_candidates = structure if structure_candidates is None else structure_candidates.to(structure.dtype)
    for name, candidates in (("sequence", sequence_candidates), ("structure", structure_candidates)):
        if offset < 0 or offset + len(sequence) > len(candidates):
            raise ValueError(
                f"{len(sequence)} anchors at offset {offset} do not fit into {len(candidates)} {name}_candidates; "
                "the candidates must contain the anchors' own rows, starting at offset."
            )
    return sequence, structure, sequence_candidates, structure_candidates


def combine_losses(
    losses: ResidueLosses,
    weights: LossWeights | None = None,
    kept: dict[str, torch.Tensor] | None = None,
    normalizers: dict[str, torch.Tensor | float] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Weighted total of the residues that are kept.

    Args:
        losses ([`ResidueLosses`]): Per-residue losses of one micro-batch.
        weights ([`LossWeights`], *optional*): The paper's by default.
        kept (`dict[str, torch.Tensor]`, *optional*): Bool mask per loss name; a loss not named keeps every residue.
        normalizers (`dict[str, torch.Tensor | float]`, *optional*): What each sum is divided by: the number of kept
            residues over all ranks and accumulated micro-batches. Defaults to this micro-batch's own numbers.

    Returns:
        `tuple[torch.Tensor, dict[str, torch.Tensor]]`: The scalar total, and the sum over kept residues per loss
        name (detached, before division and weighting).
    """
    present = losses.items()
    if not present:
        raise ValueError(
            "There is nothing to combine: no loss was computed. Give at least one of labels, structure_labels or "
            "structure_embeddings with residue_mask."
        )
    per_loss = (weights or LossWeights()).per_loss()
    total, sums = 0.0, {}
    for name, values in present:
        mask = None if kept is None else kept.get(name)
        # Not values[mask]: its shape would have to be fetched from the device.
        kept_sum = values.sum() if mask is None else torch.where(mask, values, 0.0).sum()
        if normalizers is not None:
            count = normalizers[name]
        else:
            count = len(values) if mask is None else mask.sum()
        # No residue anywhere: 0/1 keeps a zero that is connected to the graph, as DDP needs.
        count = count.clamp(min=1) if isinstance(count, torch.Tensor) else (count or 1)
        total = total + per_loss[name] * kept_sum / count
        sums[name] = kept_sum.detach()
    return total, sums


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
