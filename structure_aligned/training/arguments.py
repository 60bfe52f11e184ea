"""Training arguments with the paper's values as defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import TrainingArguments

from ..data.batching import BATCHING, TOKENS_PER_PROTEIN
from ..objectives.losses import LossWeights
from ..objectives.negatives import NEGATIVES
from ..objectives.selection import KEEP_MODES, MISSING_REFERENCE, SCOPES, num_selected
from ..utils.numbers import check_options
from .output_folder import OVERWRITE_HELP
from .reference import REFERENCE_MODES


DEFAULT_RATIO = 0.8
"""Fraction of residues kept where there is a reference model and nothing else is asked for."""

_AT_LEAST_ZERO = ("learning_rate", "head_learning_rate", "weight_decay", "max_grad_norm", "warmup_steps")
_AT_LEAST_ZERO += ("num_train_epochs", "adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass
class StructureAlignmentTrainingArguments(TrainingArguments):
    """
    [`TrainingArguments`] with the defaults of arXiv 2505.16896 and the options of the alignment objective.

    Two of the paper's values belong to its hardware and are not defaults: 80 accumulation steps on 8 GPUs (its
    effective batch of 5,120 proteins is larger than many datasets; `gradient_accumulation_steps`) and `bf16`.

    Args:
        head_learning_rate (`float`, *optional*, defaults to 1e-3): Peak learning rate of the alignment heads;
            `learning_rate` is the trunk's.
        mlm_weight, physical_weight, latent_weight (`float`, *optional*, default to 1.0, 0.5, 0.5): Of the tasks.
        batching (`str`, *optional*, defaults to `"tokens"`): What makes a micro-batch: `"tokens"`, as many proteins of
            like length as fit into `tokens_per_batch` with their padding; `"packed"`, any proteins laid end to end in
            one row, without padding and without attention between them; `"proteins"`, a number of them, as
            `per_device_train_batch_size` and `train_sampling_strategy` say.
        tokens_per_batch (`int`, *optional*): Positions per device and micro-batch. By default 256 for each of
            `per_device_train_batch_size` proteins.
        negatives (`str`, *optional*, defaults to `"batch"`): Residues of the contrastive loss: those of one process's
            micro-batch (the paper's), or with `"global"` those of all processes' together.
        compile_trunk (`bool`, *optional*, defaults to `False`): Compile the layers of the language model
            (`torch.compile`), each kind once.
        selection_ratio (`float`, *optional*): Fraction of residues whose structure losses are kept. By default 0.8
            with a reference model and 1.0 without.
        selection_keep (`str`, *optional*, defaults to `"largest"`): Excess losses to keep: `"largest"`, `"smallest"`
            or `"all"`.
        selection_scope (`str`, *optional*, defaults to `"batch"`): Rank the residues of one process's micro-batch (the
            paper's), or with `"global"` those of all processes' together.
        reference_mode (`str`, *optional*, defaults to `"auto"`): `"online"` runs the Trainer's `reference_model` in
            every step (the paper's), `"precomputed"` reads the dataset's `reference_losses`, `"none"` ranks by the
            model's own loss. `"auto"` takes the first of these that there is.
        missing_reference (`str`, *optional*, defaults to `"raise"`): What residues without a stored reference loss do;
            `"own_loss"` ranks them by the model's own.
        reference_allow_seen (`bool`, *optional*, defaults to `False`): Take a reference model that was trained on
            chains of the training set.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`): For the training scripts, which refuse an
            `output_dir` that holds a model or checkpoints: see [`check_output_dir`].
    """

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Proteins per device and micro-batch."})
    num_train_epochs: float = field(default=25.0, metadata={"help": "Total number of training epochs."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the trunk."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    warmup_steps: float = field(
        default=2 / 25, metadata={"help": "Warm-up: steps, or below 1 a fraction of all steps (2 of 25 epochs)."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: it waits for the device at every step, and would hide a loss of NaN."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator makes the model's inputs from the raw columns."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: parameters that get no gradient are frozen."}
    )
    head_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the alignment heads."})
    mlm_weight: float = field(default=1.0, metadata={"help": "Weight of masked language modelling."})
    physical_weight: float = field(default=0.5, metadata={"help": "Weight of 3Di token prediction."})
    latent_weight: float = field(default=0.5, metadata={"help": "Weight of the contrastive loss, both directions."})
    batching: str = field(
        default="tokens", metadata={"help": "Micro-batches: tokens (length-grouped), packed or proteins."}
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Positions per device and micro-batch; by default 256 per per_device_train_batch_size."},
    )
    negatives: str = field(
        default="batch", metadata={"help": "Negatives of the contrastive loss: batch (of one process) or global."}
    )
    compile_trunk: bool = field(default=False, metadata={"help": "Compile the layers of the language model."})
    selection_ratio: float | None = field(
        default=None, metadata={"help": "Fraction of residues kept; by default 0.8 with a reference model, else 1.0."}
    )
    selection_keep: str = field(
        default="largest", metadata={"help": "Which excess losses are kept: largest, smallest or all."}
    )
    selection_scope: str = field(
        default="batch", metadata={"help": "Residues ranked together: batch (of one process) or global."}
    )
    reference_mode: str = field(
        default="auto", metadata={"help": "Reference losses: auto, none, precomputed (in the dataset) or online."}
    )
    missing_reference: str = field(
        default="raise", metadata={"help": "Residues without a reference loss: raise, or own_loss."}
    )
    reference_allow_seen: bool = field(
        default=False, metadata={"help": "Take a reference model that was trained on chains of the training set."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})

    _default_tokens: ClassVar[int | None] = None
    """What `tokens_per_batch` was set to because none was given: it follows `per_device_train_batch_size`."""

    def __post_init__(self) -> None:
        check_options(vars(self), _AT_LEAST_ZERO)
        super().__post_init__()
        # Without a device to copy to, pinning only warns, once for every loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        self.check_options()
        check_processes(int(os.environ.get("WORLD_SIZE", "1")), self.world_size)
        if self.n_gpu > 1:
            raise ValueError(
                f"This process sees {self.n_gpu} GPUs and would use DataParallel, which cuts the contrastive loss "
                "into pieces. Start one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
            )

    def check_options(self) -> None:
        """Raises `ValueError` where an option makes no sense; also for what a search for hyperparameters has set."""
        check_options(vars(self), _AT_LEAST_ZERO)
        LossWeights(self.mlm_weight, self.physical_weight, self.latent_weight)  # says what is wrong with them
        choices = {"selection_keep": KEEP_MODES, "selection_scope": SCOPES, "missing_reference": MISSING_REFERENCE}
        choices |= {"reference_mode": REFERENCE_MODES, "batching": BATCHING, "negatives": NEGATIVES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        if self.selection_ratio is not None:
            num_selected(1, self.selection_ratio)  # says what is wrong with a ratio that is none
        self._check_batching()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: the collator needs the dataset's own columns.")
        self._check_accelerate()

    def _check_batching(self) -> None:
        if self.tokens_per_batch in (None, self._default_tokens):
            self._default_tokens = TOKENS_PER_PROTEIN * self.per_device_train_batch_size
            self.tokens_per_batch = self._default_tokens
        if self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; expected at least 1.")
        if self.batching != "proteins" and self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"train_sampling_strategy is {str(self.train_sampling_strategy)!r} and batching {self.batching!r}, "
                "which has an order of its own; use batching='proteins', or leave train_sampling_strategy out."
            )
        if self.batching != "proteins" and self.dataloader_drop_last:
            raise ValueError(
                f"dataloader_drop_last is set and batching is {self.batching!r}, whose batches are never incomplete; "
                "use batching='proteins', or leave dataloader_drop_last out."
            )
        if self.compile_trunk and self.torch_compile:
            raise ValueError("compile_trunk and torch_compile are both set; choose one of them.")

    def _check_accelerate(self) -> None:
        config = self.accelerator_config
        if config.dispatch_batches:
            raise ValueError(
                "accelerator_config has dispatch_batches=True, which needs batches of one size, but batches of "
                "proteins differ in length; leave it out, and each process makes its own batches."
            )
        config.dispatch_batches = False  # left out, Accelerate would take True for streams
        if config.split_batches and self.batching != "proteins":
            raise ValueError(
                f"accelerator_config has split_batches=True and batching is {self.batching!r}, whose batches have no "
                "fixed number of proteins to be split over processes; leave it out, or use batching='proteins'."
            )
        parallelism = self.parallelism_config
        for name in ("tp_size", "cp_size", "sp_size"):
            if getattr(parallelism, name, 1) > 1:
                raise ValueError(
                    f"parallelism_config has {name}={getattr(parallelism, name)}, but the losses need whole proteins "
                    "and heads on each process; use data parallelism (`accelerate launch`) or FSDP."
                )
        if self.world_size == 1:
            return
        if not config.even_batches:
            raise ValueError(
                "accelerator_config has even_batches=False; processes with different numbers of batches would wait "
                "for each other without end. Leave it out."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices is False, but this Trainer's losses are means over the residues of all "
                "processes; leave it out."
            )
        if config.split_batches:
            for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
                if getattr(self, name) % self.world_size:
                    raise ValueError(
                        f"{name} is {getattr(self, name)} and accelerator_config has split_batches=True; expected a "
                        f"multiple of the number of processes, {self.world_size}."
                    )

    @property
    def loss_weights(self) -> LossWeights:
        return LossWeights(self.mlm_weight, self.physical_weight, self.latent_weight)


def check_processes(started: int, joined: int) -> None:
    """Raises `ValueError` where several processes were started and Accelerate did not make one job of them."""
    if started > 1 and joined == 1:
        raise ValueError(
            f"{started} processes were started but each would train on its own and overwrite the others' files. On "
            "machines without a GPU, Accelerate joins them only with use_cpu=True (`--use_cpu`)."
        )
