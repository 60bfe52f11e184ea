"""
Look at residue selection: which residues of some chains are kept, beside B-factor, 3Di and secondary structure.

    python examples/inspect_selection.py --model outputs/saesm2_8m --dataset datasets/pdb \
        --reference_model outputs/reference_8m --chains 1abc_A 2xyz_B --structures pdb_files --output selection

Without --reference_model the reference losses that are stored in the dataset are used where it has some, else the
model's own losses rank the residues. Writes a PNG and a TSV per chain, and prints a summary of all of them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import datasets
from transformers import set_seed

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    SelectionRecord,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    assign_secondary_structure,
    find_chains,
    load_prepared_dataset,
    plot_selection,
    selection_frequency,
    selection_summary,
    selection_table,
)
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.utils.files import write_text
from structure_aligned.utils.names import plain_text, safe_file_name
from structure_aligned.utils.scripts import clean_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an aligned model, as examples/train.py saves it")
    parser.add_argument("--dataset", required=True, help="folder written by examples/prepare.py")
    parser.add_argument("--split", default="train")
    parser.add_argument("--reference_model", help="folder of an aligned model; runs on every batch")
    parser.add_argument("--reference_allow_seen", action="store_true", help="it may have been trained on these chains")
    parser.add_argument("--missing_reference", default="raise", choices=["raise", "own_loss"])
    parser.add_argument("--chains", nargs="+", help="ids of the chains to report on")
    parser.add_argument("--num_chains", type=int, default=4, help="without --chains: the dataset's first")
    parser.add_argument("--structures", nargs="+", help="files, folders or globs, for the secondary structure")
    parser.add_argument("--selection_ratio", type=float, default=0.8)
    parser.add_argument("--selection_keep", default="largest", choices=["largest", "smallest", "all"])
    parser.add_argument("--per_device_train_batch_size", type=int, default=8, help="residues are ranked in a batch")
    parser.add_argument("--epochs", type=int, default=1, help="each has other masks and batches")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens per protein")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--output", required=True, type=Path, help="folder of the report")
    return parser.parse_args()


def make_trainer(args: argparse.Namespace, dataset: datasets.Dataset) -> StructureAlignmentTrainer:
    tokenizer = load_tokenizer(args.model)
    names = ("selection_ratio", "selection_keep", "per_device_train_batch_size", "missing_reference", "seed")
    training_args = StructureAlignmentTrainingArguments(
        output_dir=str(args.output),
        report_to=[],
        use_cpu=args.use_cpu,
        reference_allow_seen=args.reference_allow_seen,
        **{name: getattr(args, name) for name in names},
    )
    reference = None
    if args.reference_model is not None:
        reference = AutoModelForStructureAlignment.from_pretrained(args.reference_model)
    return StructureAlignmentTrainer(
        AutoModelForStructureAlignment.from_pretrained(args.model),
        training_args,
        DataCollatorForStructureAlignment(tokenizer, max_length=args.max_length, seed=args.seed),
        reference_model=reference,
        train_dataset=dataset,
        processing_class=tokenizer,
    )


def with_secondary(
    records: list[SelectionRecord], dataset: datasets.Dataset, structures: list[str]
) -> list[SelectionRecord]:
    """The records with the secondary structure of those chains of the dataset that are in the files."""
    row_of = {name: row for row, name in enumerate(dataset["id"])}
    found = find_chains(structures, dataset.select([row_of[record.id] for record in records]))
    secondary = [
        None if chain is None else assign_secondary_structure(chain.coords, chain.sequence) for chain in found
    ]
    if missing := sorted(plain_text(record.id) for record, chain in zip(records, found) if chain is None):
        print(f"Not in --structures with this content, so without secondary structure: {', '.join(missing)}")
    return [replace(record, secondary=states) for record, states in zip(records, secondary)]


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    data = load_prepared_dataset(args.dataset)
    if args.split not in data:
        raise ValueError(
            f"{args.dataset} has the splits {', '.join(data)} and no {args.split!r}; choose with --split."
        )
    dataset = data[args.split]
    trainer = make_trainer(args, dataset)
    if trainer.reference is None:
        print("No reference: residues are ranked by the model's own loss.")
    chains = [one for given in args.chains or () for one in given.split(",") if one]
    chains = chains or dataset["id"][: args.num_chains]
    records = list(selection_frequency(trainer, dataset, args.epochs, chains).values())
    if args.structures:
        records = with_secondary(records, dataset, args.structures)
    args.output.mkdir(parents=True, exist_ok=True)
    for record in records:
        path = args.output / safe_file_name(record.id)
        plot_selection(record, f"{path}.png")
        write_text(f"{path}.tsv", selection_table(record))
    ratio = "everything" if args.selection_keep == "all" else f"{args.selection_keep} {args.selection_ratio:.0%}"
    print(f"\nModel {args.model}, {len(records)} chains, {ratio} of each batch kept\n")
    print(selection_summary(records))
    print(f"\nSaved a PNG and a TSV per chain in {args.output}")


if __name__ == "__main__":
    clean_errors(main)()
