"""
Trains a small protein language model from nothing by masked language modelling, where no pre-trained one can be had.

    python examples/pretrain_mlm.py --sequences natural_proteins.fasta.gz --num_train_epochs 2

Further options are the Trainer's. Ends with the perplexity on held-out proteins and a checkpoint that
`AutoModelForMaskedLM` loads and examples/train.py aligns (`--model_name_or_path outputs/pretrained`).
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import use_all_cores
from transformers import (
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from structure_aligned import DataCollatorForStructureAlignment, fresh_trunk
from structure_aligned.evaluation.perplexity import pseudo_perplexity
from structure_aligned.hub.results import file_digest
from structure_aligned.inference.fasta import clean_sequence, read_fasta
from structure_aligned.models.folders import halve_stored_weights, refuse_adapters
from structure_aligned.models.weights import load_whole
from structure_aligned.training.agreement import check_ranks_agree
from structure_aligned.training.compiling import compile_trunk
from structure_aligned.training.finite import StopsWhereNotFinite, WithRowIds
from structure_aligned.training.loading import RankCheck, token_budget_loader, token_budget_sampler
from structure_aligned.training.output_folder import (
    OVERWRITE_HELP,
    check_output_dir,
    checkpoint_to_resume,
    clear_output_dir,
)
from structure_aligned.training.pretrained import load_language_model, load_tokenizer
from structure_aligned.utils.files import write_json
from structure_aligned.utils.numbers import check_options
from structure_aligned.utils.scripts import clean_errors


SUMMARY_NAME = "pretraining.json"


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from, instead of fresh weights of the sizes below."}
    )
    model_type: str = field(default="esm", metadata={"help": "Family: esm (ESM2) or AMPLIFY."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers."})
    hidden_size: int = field(default=320, metadata={"help": "Width."})
    num_attention_heads: int = field(default=20, metadata={"help": "Attention heads."})
    initializer_range: float | None = field(
        default=None, metadata={"help": "Spread of fresh weights; by default 1 / √hidden_size, not ESM's 0.02."}
    )
    attention: str | None = field(default=None, metadata={"help": "Attention implementation in training."})
    compile_trunk: bool = field(default=False, metadata={"help": "Compile the layers of the language model."})
    half_precision: bool = field(default=False, metadata={"help": "Store the weights in float16."})


@dataclass
class DataArguments:
    sequences: list[str] = field(metadata={"help": "FASTA files, plain or gzipped."})
    max_length: int = field(default=256, metadata={"help": "Tokens of a protein; longer ones are cropped at random."})
    validation_fraction: float = field(default=0.01, metadata={"help": "Proteins held out, at random."})
    perplexity_proteins: int = field(default=200, metadata={"help": "Held-out proteins of the closing perplexity."})


@dataclass
class PretrainingArguments(TrainingArguments):
    output_dir: str = field(default="outputs/pretrained", metadata={"help": "Where the model goes."})
    tokens_per_batch: int = field(default=4096, metadata={"help": "Positions per device and micro-batch."})
    batching: str = field(default="tokens", metadata={"help": "Micro-batches by tokens: padded or packed."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 a fraction of all steps."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the proteins, a crop of each."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator needs them."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})

    def __post_init__(self) -> None:
        check_options(vars(self), ("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs"))
        super().__post_init__()


class MaskingCollator(DataCollatorForStructureAlignment):
    """Crops, masks and pads as the alignment does; the batch has what a masked language model takes, and no more."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


class PretrainingTrainer(StopsWhereNotFinite, Trainer):
    """The Trainer with batches by a budget of tokens; masks change from epoch to epoch, but not in evaluation."""

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        self.sampler = token_budget_sampler(self)
        collator, self.data_collator = self.data_collator, WithRowIds(self.data_collator)
        try:
            return token_budget_loader(self, self.sampler)
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, eval_dataset: datasets.Dataset | None = None) -> torch.utils.data.DataLoader:
        collator, self.data_collator = self.data_collator, self.data_collator.for_evaluation()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator


class SetEpoch(TrainerCallback):
    def __init__(self, trainer: PretrainingTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        for target in (self.trainer.data_collator, self.trainer.sampler):
            target.set_epoch(int(state.epoch or 0))


def load_sequences(paths: list[str], validation_fraction: float, seed: int) -> datasets.DatasetDict:
    """The proteins of FASTA files, some of them held out."""
    rows = {"id": [], "sequence": []}
    for path in paths:
        for record in read_fasta(path):
            rows["id"].append(record.id)
            rows["sequence"].append(clean_sequence(record.sequence, f"{record.id} of {path}")[0])
    proteins = datasets.Dataset.from_dict(rows | {"length": [len(sequence) for sequence in rows["sequence"]]})
    halves = proteins.train_test_split(validation_fraction, seed=seed)
    return datasets.DatasetDict(train=halves["train"], validation=halves["test"])


def load_or_make_model(model_args: ModelArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The checkpoint to go on from, in float32, or a fresh model."""
    options = {} if model_args.attention is None else {"attn_implementation": model_args.attention}
    if path := model_args.model_name_or_path:
        refuse_adapters(path)
        model = load_whole(AutoModelForMaskedLM, path, dtype=torch.float32, **options)
        return model, load_tokenizer(path, model)
    sizes = (model_args.num_hidden_layers, model_args.hidden_size, model_args.num_attention_heads)
    config, tokenizer = fresh_trunk(model_args.model_type, *sizes)
    if model_args.model_type.lower() == "esm":
        config.initializer_range = model_args.initializer_range or model_args.hidden_size**-0.5
    return AutoModelForMaskedLM.from_config(config, **options), tokenizer


def held_out_perplexity(folder: str, held_out: datasets.Dataset, proteins: int) -> dict[str, float]:
    """Pseudo-perplexity of some held-out proteins, 15 % of the residues masked at once, with its interval."""
    model, tokenizer = load_language_model(folder), load_tokenizer(folder)
    chosen = np.random.default_rng(0).permutation(len(held_out))[:proteins]
    sequences = held_out.select(chosen)["sequence"][:]
    found = pseudo_perplexity(model.eval(), sequences, tokenizer, "masked", progress=True)
    interval = found.interval()
    return {"perplexity": interval.value, "perplexity_low": interval.low, "perplexity_high": interval.high}


def main() -> None:
    parser = HfArgumentParser([ModelArguments, DataArguments, PretrainingArguments])
    model_args, data_args, args = parser.parse_args_into_dataclasses(sys.argv[1:])
    check_output_dir(args)
    set_seed(args.seed)
    if args.device.type == "cpu" and args.world_size == 1:
        use_all_cores()
    data = load_sequences(data_args.sequences, data_args.validation_fraction, args.seed)
    model, tokenizer = load_or_make_model(model_args)
    if model_args.compile_trunk:
        compile_trunk(model)
    collator = MaskingCollator(tokenizer, max_length=data_args.max_length, seed=args.seed)
    trainer = PretrainingTrainer(
        model,
        args,
        collator,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
    )
    trainer.add_callback(SetEpoch(trainer))
    clear_output_dir(args)
    start = time.perf_counter()
    checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)
    with RankCheck():
        check_ranks_agree(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    hours = (time.perf_counter() - start) / 3600
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    if model_args.half_precision:
        halve_stored_weights(args.output_dir)
    summary = {
        "sequences": {Path(path).name: file_digest(path) for path in data_args.sequences},
        "proteins": len(data["train"]),
        "held_out_proteins": len(data["validation"]),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "training_hours": hours,
        "parameters": model.num_parameters(),
        **held_out_perplexity(args.output_dir, data["validation"], data_args.perplexity_proteins),
        "options": vars(model_args) | {"max_length": data_args.max_length} | changed_options(args),
    }
    write_json(Path(args.output_dir) / SUMMARY_NAME, summary)
    print(f"Held-out perplexity {summary['perplexity']:.2f}; saved {args.output_dir}.")


def changed_options(args: PretrainingArguments) -> dict[str, object]:
    names = ("tokens_per_batch", "learning_rate", "adam_beta2", "weight_decay", "warmup_steps", "num_train_epochs")
    return {name: getattr(args, name) for name in (*names, "lr_scheduler_type", "max_grad_norm", "seed", "bf16")}


if __name__ == "__main__":
    clean_errors(main)()
