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
from transformers import AutoTokenizer, set_seed

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    SelectionRecord,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    assign_secondary_structure,
    load_prepared_dataset,
    plot_selection,
    read_chains,
    selection_frequency,
    selection_summary,
    selection_table,
)
from structure_aligned.data.selecting import resolve_structures
from structure_aligned.utils.files import write_text
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
    tokenizer = AutoTokenizer.from_pretrained(args.model)
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


def with_secondary(records: list[SelectionRecord], structures: list[str]) -> list[SelectionRecord]:
    """The records with the secondary structure of those chains that are in the files, by id and sequence."""
    wanted = {record.id: record for record in records}
    entries = {name.rsplit("_", 1)[0].lower() for name in wanted}
    # Files that are named like the entries come first: of a large folder only these need to be read.
    paths = sorted(resolve_structures(structures), key=lambda path: not any(e in path.name.lower() for e in entries))
    found: dict[str, str] = {}
    for path in paths:
        if len(found) == len(wanted):
            break
        for chain in read_chains(path):
            if chain.id in wanted and chain.sequence == wanted[chain.id].sequence:
                found[chain.id] = assign_secondary_structure(chain.coords, chain.sequence)
    if missing := sorted(set(wanted) - set(found)):
        print(f"No chain of this id and sequence in --structures, so no secondary structure: {', '.join(missing)}")
    return [replace(record, secondary=found.get(record.id)) for record in records]


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
    chains = args.chains or dataset["id"][: args.num_chains]
    records = list(selection_frequency(trainer, dataset, args.epochs, chains).values())
    if args.structures:
        records = with_secondary(records, args.structures)
    args.output.mkdir(parents=True, exist_ok=True)
    for record in records:
        plot_selection(record, args.output / f"{record.id}.png")
        write_text(args.output / f"{record.id}.tsv", selection_table(record))
    ratio = "everything" if args.selection_keep == "all" else f"{args.selection_keep} {args.selection_ratio:.0%}"
    print(f"\nModel {args.model}, {len(records)} chains, {ratio} of each batch kept\n")
    print(selection_summary(records))
    print(f"\nSaved a PNG and a TSV per chain in {args.output}")


if __name__ == "__main__":
    clean_errors(main)()
