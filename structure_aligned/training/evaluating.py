"""What evaluation gathers and reports: sums and counts per protein, of which metrics are means over residues."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import EvalPrediction

from ..models.heads import StructureAlignmentOutput
from ..objectives.losses import IGNORE_INDEX, ResidueLosses
from .running import LOSS_NAMES


if TYPE_CHECKING:
    from .arguments import StructureAlignmentTrainingArguments

# Columns of the per-protein tables: sums, each with the kind of residue it is taken over.
_SUMS = {
    "mlm": "mlm",
    "token": "token",
    "seq_to_struct": "aligned",
    "struct_to_seq": "aligned",
    "token_hits": "token",
    "retrieval_hits": "aligned",
    "retrieval_chance": "aligned",
}
_KINDS = ("mlm", "token", "aligned")


def protein_tables(
    outputs: StructureAlignmentOutput, losses: ResidueLosses, inputs: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sums and counts per protein, of shapes `(batch_size, 7)` and `(batch_size, 3)`.

    Per protein and not per batch, so that the Trainer's own gathering drops what padding the last batch of several
    ranks repeats, and the metrics are exact means over residues.
    """
    masks = {
        "mlm": inputs["labels"] != IGNORE_INDEX,
        "token": inputs["structure_labels"] != IGNORE_INDEX,
        "aligned": torch.zeros_like(inputs["labels"], dtype=torch.bool),
    }
    values = dict(losses.items())
    labels = inputs["structure_labels"][masks["token"]]
    values["token_hits"] = outputs.structure_logits[masks["token"]].argmax(-1) == labels
    if losses.seq_to_struct is not None:
        masks["aligned"] = inputs["residue_mask"].bool()
        nearest = outputs.sequence_projection[masks["aligned"]] @ outputs.structure_projection[masks["aligned"]].T
        own = torch.arange(len(nearest), device=nearest.device)
        values["retrieval_hits"] = nearest.argmax(dim=1) == own
        values["retrieval_chance"] = torch.ones_like(own, dtype=dtype) / max(len(own), 1)

    def per_protein(kind: str, values: torch.Tensor | None) -> torch.Tensor:
        table = torch.zeros(masks[kind].shape, dtype=dtype, device=masks[kind].device)
        if values is not None:
            table[masks[kind]] = values.to(dtype)
        return table.sum(dim=1)

    sums = [per_protein(kind, values.get(name)) for name, kind in _SUMS.items()]
    counts = [mask.sum(dim=1).to(dtype) for mask in masks.values()]
    return torch.stack(sums, dim=1), torch.stack(counts, dim=1)


def evaluation_metrics(
    args: StructureAlignmentTrainingArguments,
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for [`protein_tables`]: means over residues.

    `retrieval_at_1` is the fraction of residues whose own structure is nearest to them among all residues of their
    evaluation batch; `retrieval_chance` is what guessing gives.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        sums = dict(zip(_SUMS, np.asarray(prediction.predictions).sum(axis=0)))
        counts = dict(zip(_KINDS, np.asarray(prediction.label_ids).sum(axis=0)))
        means = {name: sums[name] / counts[kind] for name, kind in _SUMS.items() if counts[kind] > 0}
        if wrong := [name for name, mean in means.items() if not np.isfinite(mean)]:
            raise ValueError(
                f"The evaluation gives NaN or infinity for {', '.join(wrong)}; the model's weights or the dataset's "
                "embeddings hold some, or the precision is too low."
            )
        weights = args.loss_weights.per_loss()
        metrics = {"loss": sum(weights[name] * means.get(name, 0.0) for name in LOSS_NAMES)}
        shown = {name: f"{name}_loss" for name in LOSS_NAMES} | {"token_hits": "token_accuracy"}
        shown |= {"retrieval_hits": "retrieval_at_1", "retrieval_chance": "retrieval_chance"}
        metrics |= {shown[name]: mean for name, mean in means.items()}
        return metrics

    return compute
