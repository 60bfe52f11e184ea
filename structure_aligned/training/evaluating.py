"""How the Trainer evaluates: sums and counts per protein are gathered, of which metrics are means over residues."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..data.collator import FORWARD_INPUTS
from ..models.alignment import compute_residue_losses
from ..models.heads import StructureAlignmentOutput
from ..objectives.losses import IGNORE_INDEX, LossWeights, ResidueLosses
from .checking import check_evaluation_set
from .running import LOSS_NAMES


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

    Per protein and not per batch, so that gathering can leave out the proteins that several ranks repeat to fill their
    last batch, and the metrics are exact means over residues.
    """
    masks = {
        "mlm": inputs["labels"] != IGNORE_INDEX,
        "token": inputs["structure_labels"] != IGNORE_INDEX,
        "aligned": torch.zeros_like(inputs["labels"], dtype=torch.bool),
    }
    values = dict(losses.items())
    labels = inputs["structure_labels"][masks["token"]]
    values["token_hits"] = outputs.structure_logits[masks["token"]].argmax(-1) == labels
    # A batch may have no embedding at all, such as that of one chain without any CA.
    if losses.seq_to_struct is not None and len(losses.seq_to_struct):
        masks["aligned"] = inputs["residue_mask"].bool()
        nearest = outputs.sequence_projection[masks["aligned"]] @ outputs.structure_projection[masks["aligned"]].T
        own = torch.arange(len(nearest), device=nearest.device)
        values["retrieval_hits"] = nearest.argmax(dim=1) == own
        values["retrieval_chance"] = torch.ones_like(own, dtype=dtype) / len(own)

    def per_protein(kind: str, values: torch.Tensor | None) -> torch.Tensor:
        table = torch.zeros(masks[kind].shape, dtype=dtype, device=masks[kind].device)
        if values is not None:
            table[masks[kind]] = values.to(dtype)
        return table.sum(dim=1)

    sums = [per_protein(kind, values.get(name)) for name, kind in _SUMS.items()]
    counts = [mask.sum(dim=1).to(dtype) for mask in masks.values()]
    return torch.stack(sums, dim=1), torch.stack(counts, dim=1)


def residue_means(sums: torch.Tensor, counts: torch.Tensor, weights: LossWeights) -> dict[str, float]:
    """
    Metrics of the summed columns of [`protein_tables`]: means over residues.

    `loss` is the weighted total. `retrieval_at_1` is the fraction of residues whose own structure is nearest to them
    among all residues of their evaluation batch; `retrieval_chance` is what guessing gives.
    """
    totals = dict(zip(_SUMS, sums.tolist()))
    residues = dict(zip(_KINDS, counts.tolist()))
    means = {name: totals[name] / residues[kind] for name, kind in _SUMS.items() if residues[kind] > 0}
    if wrong := [name for name, mean in means.items() if not math.isfinite(mean)]:
        raise ValueError(
            f"The evaluation gives NaN or infinity for {', '.join(wrong)}; the model's weights or the dataset's "
            "embeddings hold some, or the precision is too low."
        )
    per_loss = weights.per_loss()
    metrics = {"loss": sum(per_loss[name] * means.get(name, 0.0) for name in LOSS_NAMES)}
    shown = {name: f"{name}_loss" for name in LOSS_NAMES} | {"token_hits": "token_accuracy"}
    shown |= {"retrieval_hits": "retrieval_at_1", "retrieval_chance": "retrieval_chance"}
    return metrics | {shown[name]: mean for name, mean in means.items()}


class EvaluationSums:
    """[`protein_tables`] of one evaluation, added up over its batches and the ranks."""

    def __init__(self) -> None:
        self._totals: tuple[torch.Tensor, ...] | None = None

    def add(self, tables: tuple[torch.Tensor, torch.Tensor], accelerator: Accelerator) -> None:
        """To be called while the batch is the loader's last one, by every rank."""
        # This leaves out the proteins that fill up the last batches of several ranks.
        totals = [table.sum(dim=0) for table in accelerator.gather_for_metrics(tables)]
        self._totals = tuple(totals if self._totals is None else map(torch.add, self._totals, totals))

    def metrics(self, weights: LossWeights, prefix: str) -> dict[str, float]:
        """[`residue_means`] under their names in the logs."""
        if self._totals is None:
            return {}
        return {f"{prefix}_{name}": value for name, value in residue_means(*self._totals, weights).items()}


def predictions_and_labels(
    outputs: StructureAlignmentOutput, inputs: dict[str, torch.Tensor], ignore_keys: list[str], label_names: list[str]
) -> tuple[Any, Any]:
    """What `predict` returns and `compute_metrics` gets: tuples, or what they hold where that is one tensor."""
    predictions = tuple(outputs[name] for name in ("logits", "structure_logits") if name not in ignore_keys)
    if missing := [name for name in label_names if name not in inputs]:
        raise ValueError(f"label_names has {missing}, but the batch has only {', '.join(inputs)}.")
    labels = tuple(inputs[name] for name in label_names)
    return tuple(values[0] if len(values) == 1 else values or None for values in (predictions, labels))


def evaluation_loss(metrics: dict[str, float]) -> float:
    """What a search for hyperparameters minimises, if it is not told otherwise."""
    if "eval_loss" not in metrics:
        raise ValueError(
            f"There is no eval_loss among {sorted(metrics)}; give hyperparameter_search a compute_objective that "
            "makes one number of the metrics of several evaluation sets."
        )
    return metrics["eval_loss"]


class EvaluatingTrainer(Trainer):
    """[`Trainer`] whose metrics are exact means over residues, beside those of `compute_metrics`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Sums and counts, exactly; Apple's GPUs have no float64.
        self._wide = torch.float32 if self.args.device.type == "mps" else torch.float64
        self._evaluated = EvaluationSums()

    @property
    def _settings(self) -> dict[str, Any]:
        return self.model.config.structure_alignment

    @staticmethod
    def _forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> StructureAlignmentOutput:
        # Without labels: the unselected loss that the model would compute is not needed.
        return model(**{name: inputs[name] for name in FORWARD_INPUTS if name in inputs})

    @staticmethod
    def _residue_losses(
        outputs: StructureAlignmentOutput, inputs: dict[str, torch.Tensor], negatives: str = "batch"
    ) -> ResidueLosses:
        return compute_residue_losses(
            outputs, inputs["labels"], inputs["structure_labels"], inputs.get("residue_mask"), negatives
        )

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's, with the means over residues of [`residue_means`] beside the user's own metrics."""
        self._evaluated = EvaluationSums()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        own = self._evaluated.metrics(self.args.loss_weights, metric_key_prefix)
        loss = {name: own[name] for name in own if name == f"{metric_key_prefix}_loss"}
        return output._replace(metrics=own | output.metrics | loss)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        if not isinstance(eval_dataset, str):
            check_evaluation_set(self.args, eval_dataset, self._settings)
        with self._collator(self._evaluation_collator()):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        check_evaluation_set(self.args, test_dataset, self._settings)
        with self._collator(self._evaluation_collator()):
            return super().get_test_dataloader(test_dataset)

    def _evaluation_collator(self) -> Any:
        collator = self.data_collator
        return collator.for_evaluation() if hasattr(collator, "for_evaluation") else collator

    @contextlib.contextmanager
    def _collator(self, collator: Any) -> Iterator[None]:
        own, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.data_collator = own

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """The batch's loss where `include_for_metrics` asks for it, logits and labels where anybody does."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            outputs = self._forward(model, inputs)
            losses = self._residue_losses(outputs, inputs)
        tables = protein_tables(outputs, losses, inputs, self._wide)
        self._evaluated.add(tables, self.accelerator)
        loss = None
        if "loss" in self.args.include_for_metrics:
            means = residue_means(*(table.sum(dim=0) for table in tables), self.args.loss_weights)
            loss = torch.tensor(means["loss"], device=self.args.device)
        if prediction_loss_only:
            return loss, None, None
        return loss, *predictions_and_labels(outputs, inputs, ignore_keys or [], self.label_names)
