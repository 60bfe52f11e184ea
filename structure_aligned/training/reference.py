"""Where a training step takes the reference model's losses from: the dataset, or the reference model itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PreTrainedModel

from ..data.seen import check_unseen
from ..models.alignment import compute_residue_losses
from ..objectives.losses import IGNORE_INDEX, ResidueLosses
from ..objectives.reference import rebuild_contrastive_losses


if TYPE_CHECKING:
    from .arguments import StructureAlignmentTrainingArguments

REFERENCE_MODES = ("auto", "none", "precomputed", "online")


class Reference(Protocol):
    """Gives, for a batch, the reference model's loss of every residue whose loss is selected by."""

    def __call__(self, inputs: dict[str, torch.Tensor]) -> ResidueLosses: ...


class PrecomputedReference:
    """From the column that [`attach_reference_losses`] has added; the contrastive ones for this batch's size."""

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
            own = aligned.sum(dim=1, keepdim=True).expand_as(aligned)[aligned]
            losses.seq_to_struct, losses.struct_to_seq = rebuild_contrastive_losses(
                stored[..., 1:][aligned], own, len(own)
            )
        return losses


class OnlineReference:
    """
    The reference model on the batch's own masked tokens, residues and pGNN embeddings, as the paper runs it.

    Args:
        model (`PreTrainedModel`): Alignment model; is frozen and put into evaluation mode. Shared by nothing else.
        device (`torch.device`): Where the training runs.
        bf16 (`bool`, *optional*): Computes under bfloat16 autocast; by default on GPUs that have it.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, bf16: bool | None = None) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        if bf16 is None:
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.device, self.bf16 = device, bf16

    @torch.no_grad()
    def __call__(self, inputs: dict[str, torch.Tensor]) -> ResidueLosses:
        names = ("input_ids", "attention_mask", "structure_embeddings")
        # The training's own autocast, if any, is left aside: the reference is judged in one precision throughout.
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with precision if self.bf16 or torch.is_autocast_enabled(self.device.type) else contextlib.nullcontext():
            outputs = self.model(**{name: inputs[name] for name in names if name in inputs})
            return compute_residue_losses(outputs, None, inputs["structure_labels"], inputs.get("residue_mask"))


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
    columns = getattr(train_dataset, "column_names", None) or ()
    if mode == "auto":
        mode = "online" if reference_model is not None else "precomputed" if "reference_losses" in columns else "none"
    if mode == "precomputed" and train_dataset is not None and "reference_losses" not in columns:
        raise ValueError(
            f"reference_mode is 'precomputed' but the training set has columns {list(columns)} and no "
            "reference_losses; add them with attach_reference_losses."
        )
    if mode != "online":
        return PrecomputedReference() if mode == "precomputed" else None
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
        check_unseen(train_dataset, reference_model)
    return OnlineReference(reference_model, args.device)
