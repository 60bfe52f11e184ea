"""What the training scripts share: options, data from structure files or a prepared dataset, a model, one run."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from closing import ClosingTable, structure_files
from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from structure_aligned import (
    AutoModelForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    StructureDatasetBuilder,
    fresh_trunk,
    load_pgnn,
    load_prepared_dataset,
    majority_accuracy,
    write_synthetic_folds,
)
from structure_aligned.hub.cards import ModelCardCallback
from structure_aligned.hub.results import BEFORE_FILE, EVAL_FILE, MAJORITY
from structure_aligned.training.output_folder import check_output_dir, checkpoint_to_resume, clear_output_dir
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.utils.files import read_yaml
from structure_aligned.utils.numbers import check_options


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to align; without it a fresh one."})
    model_type: str = field(default="esm", metadata={"help": "Family of a fresh model: esm (ESM2) or AMPLIFY."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers of a fresh model."})
    hidden_size: int = field(default=320, metadata={"help": "Width of a fresh model."})
    num_attention_heads: int = field(default=20, metadata={"help": "Attention heads of a fresh model."})
    attention: str | None = field(
        default=None, metadata={"help": "Attention implementation of Transformers: sdpa, eager, …"}
    )
    pgnn: str = field(
        default="gearnet-small",
        metadata={
            "help": "Folder or weights file of a pGNN; gearnet-small for the one that comes with the package; gearnet "
            "or proteinmpnn for an untrained one."
        },
    )
    pgnn_dim: int = field(default=128, metadata={"help": "Width of an untrained pGNN."})


@dataclass
class DataArguments:
    structures: str | None = field(default=None, metadata={"help": "Structure files: folder or glob."})
    validation_structures: str | None = field(default=None, metadata={"help": "The same, for validation."})
    validation_fraction: float = field(default=0.05, metadata={"help": "Held out at random without the latter."})
    dataset: str | None = field(default=None, metadata={"help": "Folder of examples/prepare.py, or one on the hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Of datasets and features."})
    num_proc: int = field(default=1, metadata={"help": "Processes that read structures."})
    on_error: str = field(default="skip", metadata={"help": "Unreadable files: skip (and report) or raise."})
    max_length: int = field(default=2048, metadata={"help": "Tokens per protein; longer ones are cropped."})
    closing_contacts: bool = field(default=True, metadata={"help": "Judge contacts before and after the training."})
    num_synthetic: int = field(default=400, metadata={"help": "Synthetic folds to train on without --structures."})


def parse_arguments(
    argv: list[str], classes: tuple[type, type, type], output_dir: str, without_data: Path | None = None
) -> tuple:
    """
    Instances of `classes` from the command line, which may begin with files of options; the later ones win.

    Args:
        without_data (`Path`, *optional*): The file for a command line that names neither a file nor any data.
    """
    parser = HfArgumentParser(list(classes))
    parser.set_defaults(eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True)
    parser.set_defaults(metric_for_best_model="eval_loss", output_dir=output_dir, logging_steps=10)
    paths = []
    while argv and argv[0].endswith((".yaml", ".yml")):
        paths, argv = [*paths, Path(argv[0])], argv[1:]
    if not paths and not any(option.split("=")[0] in ("--structures", "--dataset") for option in argv):
        paths = [] if without_data is None else [without_data]
    for path in paths:
        options = read_yaml(path, "a file of options") or {}
        if not isinstance(options, dict):
            raise ValueError(f"{path} holds a {type(options).__name__}; expected lines of `option: value`.")
        if unknown := sorted(map(str, set(options) - {action.dest for action in parser._actions})):
            raise ValueError(f"{path} has unknown options {unknown}; `--help` lists the known ones.")
        parser.set_defaults(**options)
    parsed = parser.parse_args_into_dataclasses(argv)
    for options in parsed:
        check_options(vars(options))
    return parsed


def start_process(training_args: StructureAlignmentTrainingArguments) -> None:
    check_output_dir(training_args)
    set_seed(training_args.seed)
    if training_args.device.type == "cpu" and training_args.world_size == 1:
        use_all_cores()


def use_all_cores() -> None:
    """As many threads as there are cores; of `taskset`'s, where it shares a machine out. Accelerate leaves one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores or 1)


def load_data(model_args: ModelArguments, args: DataArguments, output_dir: Path) -> datasets.DatasetDict:
    """The prepared dataset, or one of the structure files, or one of synthetic folds."""
    if args.dataset is not None:
        return load_prepared_dataset(args.dataset)
    if args.structures is None:
        structures = {}
        for split, count in (("train", args.num_synthetic), ("validation", max(8, args.num_synthetic // 5))):
            structures[split] = output_dir / "synthetic_folds" / split
            written = write_synthetic_folds(structures[split], count, seed=0 if split == "train" else 1)
            for path in set(structures[split].iterdir()) - set(written):
                path.unlink(missing_ok=True)  # of an earlier run with more folds
    else:
        structures = {"train": args.structures}
        if args.validation_structures is not None:
            structures["validation"] = args.validation_structures
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pgnn = load_pgnn(model_args.pgnn, device, width=model_args.pgnn_dim)
    builder = StructureDatasetBuilder(structures, pgnn, args.cache_dir, on_error=args.on_error)
    builder.download_and_prepare(num_proc=args.num_proc)
    return builder.as_dataset()


def load_model(
    args: ModelArguments, structure_dim: int, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer; further options are for `from_pretrained`."""
    heads: dict[str, Any] = {"structure_dim": structure_dim}
    if args.attention is not None:
        options["attn_implementation"] = args.attention
    if args.model_name_or_path is not None:
        # Whatever a checkpoint is stored in: an optimizer's small steps are lost in half precision.
        options.setdefault("dtype", torch.float32)
        model = AutoModelForStructureAlignment.from_pretrained(
            args.model_name_or_path, structure_alignment=heads, **options
        )
        return model, load_tokenizer(args.model_name_or_path, model)
    sizes = (args.num_hidden_layers, args.hidden_size, args.num_attention_heads)
    config, tokenizer = fresh_trunk(args.model_type, *sizes, structure_alignment=heads)
    return AutoModelForStructureAlignment.from_config(config, **options), tokenizer


def run(trainer: StructureAlignmentTrainer, data_args: DataArguments) -> None:
    """Trains, saves with a model card, and prints what the training changed on the validation set."""
    args = trainer.args
    card = ModelCardCallback(trainer)
    trainer.add_callback(card)
    files = structure_files(data_args.structures, data_args.validation_structures, data_args.dataset, args.output_dir)
    closing = ClosingTable(trainer, files, data_args.closing_contacts)
    closing.score()
    before = trainer.evaluate()
    clear_output_dir(args)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir))
    after = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics(BEFORE_FILE.removesuffix("_results.json"), before, combined=False)
    trainer.save_metrics("eval", after | {MAJORITY: majority_accuracy(trainer.eval_dataset)})
    card.write([EVAL_FILE, BEFORE_FILE])
    closing.score()
    if trainer.is_world_process_zero():
        print("\n" + closing.text(before, after))
        plain = " without structure_aligned" if trainer.model.config.model_type == "esm" else ""
        if hasattr(trainer.model, "peft_config"):
            print(f"\nSaved {args.output_dir}: adapters and heads. Merge them with examples/export.py.")
        else:
            print(f"\nSaved {args.output_dir}: AutoModel.from_pretrained loads it{plain}.")
