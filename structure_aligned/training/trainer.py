"""A Trainer for the dual-task objective: residue selection, counts over ranks, component losses, retrieval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from ..data.batching import TokenBudgetBatchSampler
from ..data.collator import count_proteins
from ..data.streaming import is_stream
from ..models.heads import StructureAlignmentOutput
from ..models.packing import use_packed_attention
from ..objectives.losses import IGNORE_INDEX, ResidueLosses, combine_losses
from ..objectives.selection import excess_losses, select_residues
from .agreement import check_ranks_agree
from .arguments import DEFAULT_RATIO, StructureAlignmentTrainingArguments
from .checking import (
    check_embeddings,
    check_evaluation_set,
    check_loss_function,
    check_model,
    check_training_stream,
    dataset_embeddings,
)
from .checkpoints import discard_failed_checkpoint, last_complete_checkpoint
from .compiling import compile_trunk
from .evaluating import EvaluatingTrainer, evaluation_loss
from .finite import NonFiniteError, StopsWhereNotFinite, WithRowIds
from .loading import (
    RankCheck,
    check_token_collator,
    default_collator,
    stream_loader,
    token_budget_loader,
    token_budget_sampler,
)
from .reference import make_reference
from .running import LOSS_NAMES, SELECTED_LOSSES, RunningSums, selection_logs, selection_sums


LATENT_HEADS = ("sequence_projection", "structure_projection", "logit_scale")


class StructureAlignmentTrainer(StopsWhereNotFinite, EvaluatingTrainer):
    """
    [`Trainer`] that aligns a protein language model with structures.

    Each task's loss is divided by the number of its kept residues over all ranks and accumulated micro-batches, so
    that with ratio 1.0 the MLM and token gradients do not depend on how proteins are cut into micro-batches.

    Args:
        model ([`EsmForStructureAlignment`] or another alignment class): Heads that were aligned with another pGNN
            than the datasets' are refused. May have adapters: see [`add_lora`].
        args ([`StructureAlignmentTrainingArguments`]): The options.
        data_collator ([`DataCollatorForStructureAlignment`], *optional*): Makes the batches; evaluation uses a copy
            with fixed masks. By default one of the `processing_class`, which is then the tokenizer.
        reference_model (`PreTrainedModel`, *optional*): Alignment model that was trained on high-quality structures;
            it runs in every step. Without one, losses that [`attach_reference_losses`] has stored in the training set
            are used where it has some; see `reference_mode`.
        kwargs (`Any`): As for [`Trainer`]; `compute_loss_func` is refused. With `model_init` instead of `model`, each
            call of `train` starts from what it returns. `train_dataset` may be a stream (`IterableDataset`): see
            [`ProteinStream`]. `compute_metrics` gets `(logits, structure_logits)` as predictions and the batch's
            `label_names` as `label_ids`, by default `(labels, structure_labels)`, each padded with −100; its metrics
            are added to this Trainer's own.
    """

    # compute_loss divides by the counts of the whole accumulated batch; see also `model_accepts_loss_kwargs` below.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        args: StructureAlignmentTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        reference_model: PreTrainedModel | None = None,
        compute_loss_func: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, StructureAlignmentTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}; expected StructureAlignmentTrainingArguments.")
        check_loss_function(args, compute_loss_func)
        check_training_stream(args, train_dataset)
        if data_collator is None:
            data_collator = default_collator(processing_class)
        if args.batching == "packed":
            check_token_collator(args.batching, data_collator)
            data_collator = data_collator.for_packing()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        # The same statement for versions of Transformers that have no `loss_is_scaled_for_ga` yet (5.17).
        self.model_accepts_loss_kwargs = True
        self._embeddings = dataset_embeddings(train_dataset)
        self._set_epoch = _SetEpoch(data_collator)
        self.add_callback(self._set_epoch)
        self._running = RunningSums(args.device, self._wide)
        self._set_up_model()
        for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
            check_evaluation_set(args, dataset, self._settings)
        self.reference = make_reference(args, self.model, reference_model, train_dataset)
        self._ranks = RankCheck()
        self._ranks_agree = False
        self._clock, self._paused = time.perf_counter(), 0.0

    def _set_up_model(self) -> None:
        """To be called again where `model_init` has made another model."""
        check_model(self.model)
        weights = self.args.loss_weights
        self._settings["loss_weights"] = [weights.mlm, weights.physical, weights.latent]
        check_embeddings(self._embeddings, self._settings)
        # Contacts are no task here: without a gradient the head would stop DDP, and it must stay as it was. The same
        # goes for the heads of a task of weight 0, which is not computed.
        frozen = ["contact_head"] if weights.latent else ["contact_head", *LATENT_HEADS]
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in frozen):
                parameter.requires_grad_(False)
        if getattr(self.data_collator, "packing", False):
            use_packed_attention(self.model)
        if self.args.compile_trunk:
            compile_trunk(self.model, self.args.torch_compile_backend, self.args.torch_compile_mode)

    def _hp_search_setup(self, trial: Any) -> None:
        """The Trainer's, which `train` calls once it has the model of `model_init`."""
        super()._hp_search_setup(trial)
        self.args.check_options()
        if self.model_init is not None:
            self._set_up_model()

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The Trainer's, by `eval_loss` unless told otherwise; it would add up all metrics."""
        return super().hyperparameter_search(hp_space, compute_objective or evaluation_loss, *args, **kwargs)

    @property
    def selection_ratio(self) -> float:
        """Fraction of residues that keep their structure losses."""
        if self.args.selection_ratio is not None:
            return self.args.selection_ratio
        return 1.0 if self.reference is None else DEFAULT_RATIO

    # Optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer with the alignment heads in groups of their own learning rate."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        named = (self.model if model is None else model).named_parameters()
        heads = {id(parameter) for name, parameter in named if "alignment." in name}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in heads]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": self.args.head_learning_rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """
        The Trainer's, without `logit_scale`, which decay would pull towards a temperature of 1, and without the norms
        that it does not know by their names, such as AMPLIFY's `layer_norm_2`.
        """
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("logit_scale") and "norm" not in name.lower()]

    # Batches

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches by tokens, padded or packed, or the Trainer's own: see `args.batching`."""
        # Nothing stays of an attempt that ran out of memory; see `auto_find_batch_size`.
        self._running = RunningSums(self.args.device, self._wide)
        with self._collator(WithRowIds(self.data_collator)):
            if is_stream(self.train_dataset):
                return stream_loader(self, self._settings["pgnn"])
            if self.args.batching == "proteins" or self.train_dataset is None:
                return super().get_train_dataloader()
            sampler = token_budget_sampler(self)
            # After resuming in mid-epoch, Accelerate wraps it in a way that hides it from the Trainer's own call.
            self._set_epoch.sampler = sampler
            return token_budget_loader(self, sampler)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """The Trainer's; a rank that cannot load its batches ends the run on all ranks, with its error."""
        batch_samples, error = [], None
        try:
            for _ in range(num_batches):
                batch_samples.append(next(epoch_iterator))
        except StopIteration:
            if is_stream(self.train_dataset):
                error = ValueError(
                    f"The training stream has no more rows after step {self.state.global_step} of "
                    f"{self.state.max_steps}; expected a dataset that is not empty and starts again each time it is "
                    "iterated over."
                )
        except Exception as raised:  # of any kind: it is raised again below
            error = raised
        self._ranks.all_well(error)
        return batch_samples, self._get_num_items_in_batch(batch_samples, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor:
        """
        Number of residues that each loss will keep in all micro-batches of all ranks, of shape `(len(LOSS_NAMES),)`.

        Known before the forward passes: selection keeps a fixed fraction of the labelled residues.
        """
        if not batch_samples:
            return self.accelerator.reduce(torch.zeros(len(LOSS_NAMES), dtype=self._wide, device=device))
        counts = torch.stack([self._available(batch).to(device) for batch in batch_samples])
        if self.args.selection_scope == "global":
            # The fraction is of all ranks' residues of a micro-batch.
            return self._kept_counts(self.accelerator.reduce(counts, reduction="sum")).sum(dim=0)
        return self.accelerator.reduce(self._kept_counts(counts).sum(dim=0), reduction="sum")

    def _available(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Number of residues that each loss has in a micro-batch."""
        labelled = [(batch["labels"] != IGNORE_INDEX).sum(), (batch["structure_labels"] != IGNORE_INDEX).sum()]
        aligned = batch["residue_mask"].sum() if "residue_mask" in batch else torch.zeros_like(labelled[0])
        return torch.stack([*labelled, aligned, aligned]).to(self._wide)

    def _kept_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """Of `(…, 4)` numbers of residues, how many each loss keeps."""
        if self.args.selection_keep == "all":
            return counts
        # int(ratio · N) and at least one, as num_selected, without asking the device for N.
        kept = torch.floor(counts * self.selection_ratio).clamp(min=1).minimum(counts)
        selected = torch.tensor([name in SELECTED_LOSSES for name in LOSS_NAMES], device=counts.device)
        return torch.where(selected, kept, counts)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, StructureAlignmentOutput]:
        """
        Selected, weighted total of a micro-batch, scaled so that gradients averaged over ranks add up to the
        gradient of the whole batch.
        """
        skipped = () if self.args.latent_weight or not model.training else ("structure_embeddings",)
        outputs = self._forward(model, {name: inputs[name] for name in inputs if name not in skipped})
        losses = self._residue_losses(outputs, inputs, self.args.negatives)
        kept, excess = self.select(losses, inputs)
        counts = self._kept_counts(self._available(inputs)) if num_items_in_batch is None else num_items_in_batch
        total, sums = combine_losses(losses, self.args.loss_weights, kept, dict(zip(LOSS_NAMES, counts)))
        if model.training:
            self._record(sums, kept, excess, inputs)
        if num_items_in_batch is not None:
            total = total * self.accelerator.num_processes
        total = total.to(outputs.logits.dtype if outputs.logits.dtype == torch.float64 else torch.float32)
        return (total, outputs) if return_outputs else total

    def select(
        self, losses: ResidueLosses, inputs: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        Masks of the residues that are kept and their signed excess losses, by the name of the loss, each of the shape
        of that loss. Where everything is kept the reference is not asked, and there are none.
        """
        if self.selection_ratio == 1.0 or self.args.selection_keep == "all":
            return {}, {}
        reference = None if self.reference is None else self.reference(inputs)
        kept, excess = {}, {}
        for name, values in losses.items():
            if name in SELECTED_LOSSES:
                theirs = None if reference is None else getattr(reference, name)
                excess[name] = excess_losses(values.detach(), theirs, self.args.missing_reference)
                kept[name] = select_residues(
                    excess[name],
                    ratio=self.selection_ratio,
                    keep=self.args.selection_keep,
                    scope=self.args.selection_scope,
                )
        return kept, excess

    # Logging

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As in Transformers; `resume_from_checkpoint=True` takes the last one that was written to its end."""
        if str(resume_from_checkpoint).lower() == "true":  # `--resume_from_checkpoint true` is a string
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        self._clock, self._paused = time.perf_counter(), 0.0
        with self._ranks:
            check_ranks_agree(self, checkpoint)
            self._ranks_agree = True
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except NonFiniteError:
            raise
        except Exception as error:
            # Whatever the writers make of a full disk: OSError, RuntimeError and SafetensorError have been seen.
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            raise discard_failed_checkpoint(folder, error) from error

    def _record(
        self,
        sums: dict[str, torch.Tensor],
        kept: dict[str, torch.Tensor],
        excess: dict[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
    ) -> None:
        special = count_proteins(inputs) * getattr(self.data_collator, "num_special_tokens", 0)
        values = {"residues": inputs["attention_mask"].sum() - special}
        available = dict(zip(LOSS_NAMES, self._available(inputs)))
        for name, total in sums.items():
            values |= {f"sum/{name}": total, f"count/{name}": kept[name].sum() if name in kept else available[name]}
        positions = {"token": inputs["structure_labels"] != IGNORE_INDEX}
        if "residue_mask" in inputs:
            positions |= dict.fromkeys(SELECTED_LOSSES[1:], inputs["residue_mask"].bool())
        self._running.add(values | selection_sums(kept, excess, positions))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Adds mean component losses of kept residues, what selection did, and unpadded residues per second to the
        training logs.
        """
        if "loss" in logs:
            sums = self._running.fetch(self.accelerator)
            now = time.perf_counter()
            means = {name: (sums[f"sum/{name}"], sums[f"count/{name}"]) for name in LOSS_NAMES}
            logs |= {f"{name}_loss": total / count for name, (total, count) in means.items() if count > 0}
            logs |= selection_logs(sums)
            logs["residues_per_second"] = sums["residues"] / max(now - self._clock - self._paused, 1e-9)
            self._clock, self._paused = now, 0.0
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if not self._ranks_agree:  # an evaluation before the training
            with self._ranks:
                check_ranks_agree(self)
            self._ranks_agree = True
        start = time.perf_counter()
        output = super().evaluation_loop(*args, **kwargs)
        self._paused += time.perf_counter() - start
        return output


class _SetEpoch(TrainerCallback):
    """Tells collator and sampler the epoch, before its batches are made; after resuming in mid-epoch too."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.sampler: TokenBudgetBatchSampler | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for target in (self.collator, self.sampler):
            if hasattr(target, "set_epoch"):
                target.set_epoch(int(state.epoch or 0))
