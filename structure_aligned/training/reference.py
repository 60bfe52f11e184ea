"""Where a training step takes the reference model's losses from: the dataset, or the reference model itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from ..data.collator import FORWARD_INPUTS
from ..data.seen import check_unseen
from ..data.streaming import column_names, is_stream
from ..models.alignment import compute_residue_losses
from ..models.packing import use_packed_attention
from ..objectives.distributed import is_distributed
from ..objectives.losses import IGNORE_INDEX, ResidueLosses
from ..objectives.reference import rebuild_contrastive_losses


if TYPE_CHECKING:
    from .arguments import StructureAlignmentTrainingArguments

REFERENCE_MODES = ("auto", "none", "precomputed", "online")


class Reference(Protocol):
    """Gives, for a batch, the reference model's loss of every residue whose loss is selected by."""

    def __call__(self, inputs: dict[str, torch.Tensor]) -> ResidueLosses: ...


class PrecomputedReference:
    """
    From the column that [`attach_reference_losses`] has added; the contrastive ones for the number of candidates.

    Args:
        negatives (`str`, *optional*, defaults to `"batch"`): As in the training.
    """

    def __init__(self, negatives: str = "batch") -> None:
        self.negatives = negatives

    def __call__(self, inputs: dict[str, torch.Tensor]) -> ResidueLosses:
        if "reference_losses" not in inputs:
            raise ValueError(
                "reference_mode is 'precomputed' but the batch has no reference_losses; add them to the dataset with "
                "attach_reference_losses, or give the Trainer a reference_model."
            )
        stored = inputs["reference_losses"]
        losses = ResidueLosses(token=stored[..., 0][inputs["structure_labels"] != IGNORE_INDEX])
        if "residue_mask" in inputs:
            aligned = inputs["residue_mask"].bool()
            own = self._own_residues(aligned, inputs.get("sequence_ids"))[aligned]
            candidates = torch.tensor(len(own), device=own.device)
            if self.negatives == "global" and is_distributed():
                dist.all_reduce(candidates)
            losses.seq_to_struct, losses.struct_to_seq = rebuild_contrastive_losses(
                stored[..., 1:][aligned], own, candidates
            )
        return losses

    @staticmethod
    def _own_residues(aligned: torch.Tensor, sequence_ids: torch.Tensor | None) -> torch.Tensor:
        """For every position the number of aligned residues of its protein."""
        if sequence_ids is None:
            return aligned.sum(dim=1, keepdim=True).expand_as(aligned)
        counts = torch.zeros_like(sequence_ids)
        ids = sequence_ids.clamp(min=0)  # padding is not aligned and adds nothing
        return counts.scatter_add_(1, ids, aligned.to(counts.dtype)).gather(1, ids)


class OnlineReference:
    """
    The reference model on the batch's own masked tokens, residues and pGNN embeddings, as the paper runs it.

    Args:
        model (`PreTrainedModel`): Alignment model; is frozen and put into evaluation mode. Shared by nothing else.
        device (`torch.device`): Where the training runs.
        bf16 (`bool`, *optional*): Computes under bfloat16 autocast; by default on GPUs that have it.
        negatives (`str`, *optional*, defaults to `"batch"`): As in the training.
    """

    def __init__(
        self, model: PreTrainedModel, device: torch.device, bf16: bool | None = None, negatives: str = "batch"
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        use_packed_attention(self.model)
        if bf16 is None:
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.device, self.bf16, self.negatives = device, bf16, negatives

    @torch.no_grad()
    def __call__(self, inputs: dict[str, torch.Tensor]) -> ResidueLosses:
        # The training's own autocast, if any, is left aside: the reference is judged in one precision throughout.
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with precision if self.bf16 or torch.is_autocast_enabled(self.device.type) else contextlib.nullcontext():
            outputs = self.model(**{name: inputs[name] for name in FORWARD_INPUTS if name in inputs})
            return compute_residue_losses(
                outputs, None, inputs["structure_labels"], inputs.get("residue_mask"), self.negatives
            )


def make_reference(
    args: StructureAlignmentTrainingArguments,
    model: PreTrainedModel,
    reference_model: PreTrainedModel | None,
    train_dataset: Any,
) -> Reference | None:
    """
    What `args.reference_mode` asks for, with what there is to take it from.

    Raises:
        ValueError: There is not what it needs; or the reference model reads other tokens or embeddings than `model`,
            or was trained on chains of `train_dataset`.
    """
    mode = args.reference_mode
    columns = column_names(train_dataset)
    if mode == "auto":
        mode = "online" if reference_model is not None else "precomputed" if "reference_losses" in columns else "none"
    if mode == "precomputed" and train_dataset is not None and "reference_losses" not in columns:
        raise ValueError(
            f"reference_mode is 'precomputed' but the training set has columns {columns} and no "
            "reference_losses; add them with attach_reference_losses."
        )
    if mode != "online":
        return PrecomputedReference(args.negatives) if mode == "precomputed" else None
    if reference_model is None:
        raise ValueError("reference_mode is 'online' but the Trainer got no reference_model.")
    theirs, own = reference_model.config, model.config
    if (theirs.model_type, theirs.vocab_size) != (own.model_type, own.vocab_size):
        raise ValueError(
            f"The reference model is of type {theirs.model_type!r} with {theirs.vocab_size} tokens and the model of "
            f"type {own.model_type!r} with {own.vocab_size}: they read different token ids. Train a reference of the "
            "same family, or attach its losses to the dataset beforehand."
        )
    known, expected = theirs.structure_alignment["pgnn"], own.structure_alignment["pgnn"]
    if known != expected:
        raise ValueError(
            f"The reference model was trained with the pGNN {known} and the training set comes from {expected}. Both "
            "must be made with the same pGNN."
        )
    if not args.reference_allow_seen and train_dataset is not None:
        if is_stream(train_dataset):
            raise ValueError(
                "reference_mode is 'online' and the training set a stream, so nobody can tell beforehand whether the "
                "reference model has seen its chains. Leave them out with leave_out_seen while it is a "
                "datasets.Dataset, and then set reference_allow_seen=True."
            )
        check_unseen(train_dataset, reference_model)
    return OnlineReference(reference_model, args.device, negatives=args.negatives)
