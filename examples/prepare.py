"""
Build a dataset from structure files: sequences, 3Di tokens and pGNN embeddings.

    python examples/prepare.py --structures pdb_files --pgnn mc_gearnet_edge.pth --output datasets/pdb \
        --max_resolution 3.0 --num_proc 4

May be killed and started again: what was computed is kept in --cache_dir. Use the result with
`examples/train.py --dataset datasets/pdb`.
"""

import argparse
from pathlib import Path

import torch

from structure_aligned import StructureDatasetBuilder, load_pgnn


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", nargs="+", required=True, help="files, folders or globs of the train split")
    parser.add_argument("--validation_structures", nargs="+", help="the same, for the validation split")
    parser.add_argument("--pgnn", required=True, help="GearNet or ProteinMPNN: folder or weights file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the dataset")
    parser.add_argument("--cache_dir", help="of intermediate results; Datasets' own by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the pGNN")
    parser.add_argument("--num_proc", type=int, default=1, help="processes that read structures")
    parser.add_argument("--on_error", default="skip", choices=["skip", "raise"], help="unreadable files")
    parser.add_argument("--max_batch_residues", type=int, default=2048, help="residues the pGNN gets at once")
    parser.add_argument("--max_resolution", type=float, help="in Å; entries that state none are left out")
    parser.add_argument("--max_r_free", type=float, help="as a fraction; entries that state none are left out")
    parser.add_argument("--methods", nargs="+", help='such as "X-RAY DIFFRACTION"')
    parser.add_argument("--min_length", type=int, default=10, help="residues per chain")
    parser.add_argument("--max_length", type=int, help="residues per chain")
    parser.add_argument("--chains", default="all", choices=["all", "first", "longest"], help="of each entry")
    parser.add_argument("--drop_duplicates", action="store_true", help="keep one chain of each sequence")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"{args.output} is not empty; give a new folder, or delete it first.")
    structures = {"train": args.structures}
    if args.validation_structures:
        structures["validation"] = args.validation_structures
    options = ("on_error", "max_batch_residues", "max_resolution", "max_r_free", "methods", "min_length", "max_length")
    builder = StructureDatasetBuilder(
        structures,
        load_pgnn(args.pgnn, args.device, getattr(torch, args.dtype)),
        args.cache_dir,
        **{name: getattr(args, name) for name in (*options, "chains", "drop_duplicates")},
    )
    builder.download_and_prepare(num_proc=args.num_proc)
    data = builder.as_dataset()
    data.save_to_disk(args.output)
    report = builder.report
    (args.output / "build_report.json").write_text((Path(builder.cache_dir) / "build_report.json").read_text())
    print(
        f"\n{report.files} files, {report.chains} chains; {report.parsed} files read and {report.embedded} chains "
        "embedded now, the others before."
    )
    for split, rows in data.items():
        print(f"{split}: {len(rows)} chains, {sum(rows['length'][:])} residues")
    for reason, count in report.reasons().items():
        print(f"left out, {reason}: {count}")
    print(f"Saved {args.output}; what was left out and why: {args.output / 'build_report.json'}")


if __name__ == "__main__":
    main()
