"""
Align a protein language model with structures.

    accelerate launch examples/train.py                                # quickstart: synthetic folds, small model, CPU
    accelerate launch examples/train.py --model_type AMPLIFY --pgnn proteinmpnn \
        --output_dir outputs/amplify                                   # the same, of other families
    accelerate launch examples/train.py --structures DIR --pgnn mc_gearnet_edge.pth \
        --model_name_or_path facebook/esm2_t6_8M_UR50D --output_dir outputs/saesm2_8m
    accelerate launch examples/train.py --dataset datasets/pdb_splits --reference_model outputs/reference \
        --model_name_or_path facebook/esm2_t12_35M_UR50D \
        --output_dir outputs/saesm2_35m                                # with residue selection, see train_reference.py
    accelerate launch examples/train.py --dataset datasets/pdb_splits --use_lora \
        --model_name_or_path facebook/esm2_t33_650M_UR50D \
        --output_dir outputs/lora                                      # adapters and heads alone, see export.py
    accelerate launch examples/train.py config.yaml --learning_rate 5e-4     # options from a file, some overridden

A run that was interrupted goes on with --resume_from_checkpoint true; --overwrite_output_dir replaces a result.
The options are those of `StructureAlignmentTrainingArguments` and of the classes here and in common.py.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import common
import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    attach_reference_losses,
    embedding_dim,
    leave_out_seen,
    read_clusters,
)
from structure_aligned.data.seen import RECORD_NAME, training_chains_of
from structure_aligned.training.adapters import add_lora, four_bit_config
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.utils.scripts import clean_errors


QUICKSTART = Path(__file__).parent / "configs" / "quickstart.yaml"


@dataclass
class ModelArguments(common.ModelArguments):
    use_lora: bool = field(default=False, metadata={"help": "Train low-rank adapters and the heads, and no trunk."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scaled by alpha / rank; by default 2 rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapters' inputs."})
    lora_target: str = field(default="attention", metadata={"help": "Layers adapted: attention or attention+ffn."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Frozen trunk in 4 bits (needs bitsandbytes)."})


@dataclass
class DataArguments(common.DataArguments):
    reference_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder written by examples/train_reference.py. Its losses are computed once, before the training "
            "(reference_mode auto or precomputed), or in every step (online). Whatever the mode, the chains that it "
            "was trained on and their relatives are left out, unless --reference_allow_seen."
        },
    )
    reference_clusters: str | None = field(
        default=None, metadata={"help": "MMseqs2's *_cluster.tsv: chains of one cluster are relatives."}
    )


def parse_arguments(argv: list[str]) -> tuple:
    classes = (ModelArguments, DataArguments, StructureAlignmentTrainingArguments)
    model_args, data_args, training_args = common.parse_arguments(argv, classes, "outputs/aligned", QUICKSTART)
    if model_args.load_in_4bit and not model_args.use_lora:
        raise ValueError("--load_in_4bit came without --use_lora; a trunk in 4 bits can only be adapted.")
    if model_args.use_lora and model_args.model_name_or_path is None:
        raise ValueError(
            "--use_lora came without a --model_name_or_path; adapters are saved without their trunk, and of a fresh "
            "one nothing would be left."
        )
    if data_args.reference_model is None:
        for option, asked in (
            ("--reference_clusters", data_args.reference_clusters is not None),
            ("--reference_mode online", training_args.reference_mode == "online"),
        ):
            if asked:
                raise ValueError(
                    f"{option} came without a --reference_model; give the folder that examples/train_reference.py "
                    "has written."
                )
    return model_args, data_args, training_args


def load_data(model_args: ModelArguments, args: DataArguments, output_dir: Path, seed: int) -> datasets.DatasetDict:
    data = common.load_data(model_args, args, output_dir)
    if "validation" not in data:
        print(f"No validation split: {args.validation_fraction:.0%} of the chains are held out at random.")
        halves = data["train"].train_test_split(args.validation_fraction, seed=seed)
        data = datasets.DatasetDict(train=halves["train"], validation=halves["test"])
    return data


def load_model(args: ModelArguments, structure_dim: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not args.use_lora:
        return common.load_model(args, structure_dim)
    options = {"quantization_config": four_bit_config()} if args.load_in_4bit else {}
    model, tokenizer = common.load_model(args, structure_dim, **options)
    model = add_lora(model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_target)
    return model, tokenizer


def load_reference(folder: str, allow_seen: bool) -> PreTrainedModel:
    """The reference model; early, so that one that cannot be used is refused before the data are built."""
    model = AutoModelForStructureAlignment.from_pretrained(folder)
    if training_chains_of(model) is None and not allow_seen:
        raise ValueError(
            f"{folder} has no {RECORD_NAME}, so nobody can tell which chains this model was trained on, and a "
            "reference that has memorised a chain makes it look hard. Train one with examples/train_reference.py, or "
            "take it as it is with --reference_allow_seen."
        )
    return model


def without_seen(
    data: datasets.DatasetDict, reference: PreTrainedModel, clusters: str | None, verbose: bool
) -> datasets.DatasetDict:
    """Training and validation chains that the reference model was not trained on, nor on relatives of theirs."""
    table = None if clusters is None else read_clusters(clusters)
    unseen = datasets.DatasetDict()
    for split in ("train", "validation"):
        unseen[split] = leave_out_seen(data[split], reference, table)
        if verbose:
            count = len(data[split]) - len(unseen[split])
            print(f"{split}: {count} of {len(data[split])} chains left out, seen by the reference model.")
        if len(unseen[split]) == 0:
            raise ValueError(
                f"The reference model has seen all {len(data[split])} chains of {split!r}, or relatives of them. Give "
                "other chains (examples/prepare.py --split_resolution … keeps them apart), or allow it with "
                "--reference_allow_seen."
            )
    return unseen


def main() -> None:
    model_args, data_args, training_args = parse_arguments(sys.argv[1:])
    common.start_process(training_args)
    reference, allow_seen = None, training_args.reference_allow_seen
    if data_args.reference_model is not None:
        reference = load_reference(data_args.reference_model, allow_seen)
    with training_args.main_process_first(desc="building the dataset"):
        data = load_data(model_args, data_args, Path(training_args.output_dir), training_args.seed)
        if reference is not None and not allow_seen:
            data = without_seen(data, reference, data_args.reference_clusters, training_args.process_index == 0)
    # Before the reference's losses, so that runs with and without them start from the same fresh weights.
    model, tokenizer = load_model(model_args, embedding_dim(data["train"]))
    # With everything kept there is nothing to rank, and "auto" asks for no losses.
    wanted = {"precomputed": True, "auto": training_args.selection_ratio != 1.0}
    if reference is not None and wanted.get(training_args.reference_mode):
        # Outside of the block above: the processes share this work and wait for each other.
        data["train"] = attach_reference_losses(
            data["train"],
            reference.to(training_args.device),
            load_tokenizer(data_args.reference_model, reference),
            max_length=data_args.max_length,
            cache_dir=data_args.cache_dir and Path(data_args.cache_dir) / "reference_losses",
            allow_seen=allow_seen,
        )
        reference = None
    trainer = StructureAlignmentTrainer(
        model,
        training_args,
        DataCollatorForStructureAlignment(tokenizer, max_length=data_args.max_length, seed=training_args.seed),
        reference_model=reference if training_args.reference_mode == "online" else None,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
    )
    common.run(trainer, data_args)


if __name__ == "__main__":
    clean_errors(main)()
