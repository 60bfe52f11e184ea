"""
Train a reference model: a small model on structures of high quality, whose losses say which residues of the main
training are worth learning (`train.py --reference_model`).

    python examples/prepare.py --structures pdb_files --pgnn mc_gearnet_edge.pth --output datasets/pdb_splits \
        --split_resolution 1.7 --split_r_free 0.20 --validation_fraction 0.02
    accelerate launch examples/train_reference.py --dataset datasets/pdb_splits \
        --model_name_or_path facebook/esm2_t6_8M_UR50D --output_dir outputs/reference
    accelerate launch examples/train.py --dataset datasets/pdb_splits --reference_model outputs/reference \
        --model_name_or_path facebook/esm2_t12_35M_UR50D

It trains on the dataset's split `reference`, or on all of --structures, with the objective of train.py and all of the
residues. Beside the weights and heads it writes which chains it was trained on, so that train.py can leave them out.
The options are those of `StructureAlignmentTrainingArguments` and of the classes here and in common.py.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import common
import datasets
from common import ModelArguments
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from structure_aligned import (
    DataCollatorForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    embedding_dim,
    split_chains,
    write_training_chains,
)
from structure_aligned.utils.scripts import clean_errors


@dataclass
class DataArguments(common.DataArguments):
    clusters: str | None = field(
        default=None,
        metadata={"help": "MMseqs2's *_cluster.tsv: where validation is held out, no cluster is on both sides."},
    )


class WriteTrainingChains(TrainerCallback):
    """Every checkpoint says what it was trained on: one that is used after an interruption must not lack it."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.dataset = dataset

    def on_save(
        self,
        args: StructureAlignmentTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_training_chains(folder, self.dataset)


def parse_arguments(argv: list[str]) -> tuple:
    classes = (ModelArguments, DataArguments, StructureAlignmentTrainingArguments)
    model_args, data_args, training_args = common.parse_arguments(argv, classes, "outputs/reference")
    if (data_args.dataset is None) == (data_args.structures is None):
        raise ValueError(
            f"--dataset is {data_args.dataset} and --structures {data_args.structures}; give one of them: a folder of "
            "examples/prepare.py --split_resolution …, or structure files of high quality."
        )
    if training_args.selection_ratio not in (None, 1.0) or training_args.reference_mode not in ("auto", "none"):
        raise ValueError(
            f"selection_ratio is {training_args.selection_ratio} and reference_mode {training_args.reference_mode!r}; "
            "a reference model learns from all residues and has no reference itself. Leave these options out."
        )
    # Also where the dataset holds losses of an earlier reference.
    training_args.selection_ratio, training_args.reference_mode = 1.0, "none"
    return model_args, data_args, training_args


def load_data(
    model_args: ModelArguments, args: DataArguments, training_args: StructureAlignmentTrainingArguments
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The chains to train on and those to validate on; without a validation split, whole groups are held out."""
    data = common.load_data(model_args, args, Path(training_args.output_dir))
    split = "train" if args.dataset is None else "reference"
    if split not in data:
        raise ValueError(
            f"{args.dataset} has the splits {', '.join(data)} and no 'reference'; make one of the chains of high "
            "quality with examples/prepare.py --split_resolution … --split_r_free …."
        )
    if "validation" in data:
        return data[split], data["validation"]
    print(f"No validation split: {args.validation_fraction:.0%} of the groups of related chains are held out.")
    halves, _ = split_chains(
        data[split], validation_fraction=args.validation_fraction, clusters=args.clusters, seed=training_args.seed
    )
    return halves["train"], halves["validation"]


def check_untouched(model: PreTrainedModel, name: str | None) -> None:
    """Chains of an earlier alignment would be missing in what this script writes."""
    if (pgnn := model.config.structure_alignment["pgnn"]) is not None:
        raise ValueError(
            f"{name} has been aligned before (with the pGNN {pgnn}), on chains that would not be among the reference "
            "model's training chains. Start from a plain model; to go on with an interrupted run use "
            "--resume_from_checkpoint."
        )


def main() -> None:
    model_args, data_args, training_args = parse_arguments(sys.argv[1:])
    common.start_process(training_args)
    with training_args.main_process_first(desc="building the dataset"):
        train, validation = load_data(model_args, data_args, training_args)
    model, tokenizer = common.load_model(model_args, embedding_dim(train))
    check_untouched(model, model_args.model_name_or_path)
    trainer = StructureAlignmentTrainer(
        model,
        training_args,
        DataCollatorForStructureAlignment(tokenizer, max_length=data_args.max_length, seed=training_args.seed),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[WriteTrainingChains(train)],
    )
    common.run(trainer, data_args)
    if trainer.is_world_process_zero():
        path = write_training_chains(training_args.output_dir, train)
        print(f"It was trained on the {len(train)} chains of {path}; train.py leaves them and their relatives out.")


if __name__ == "__main__":
    clean_errors(main)()
