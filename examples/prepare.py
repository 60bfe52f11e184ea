"""
Build a dataset from structure files: sequences, 3Di tokens and pGNN embeddings.

    python examples/prepare.py --structures pdb_files --pgnn mc_gearnet_edge.pth --output datasets/pdb \
        --max_resolution 3.0 --num_proc 4

May be killed and started again: what was computed is kept in --cache_dir, and finished Arrow files in --output. Use
the result with `examples/train.py --dataset datasets/pdb`.

Several processes, also on several machines, share the work and make the same dataset; on GPUs each uses its own:

    accelerate launch --num_processes 8 examples/prepare.py ... --cache_dir shared_cache
    accelerate launch --config_file examples/accelerate/multi_node.yaml --machine_rank 0 --main_process_ip 10.0.0.1 \
        examples/prepare.py ... --cache_dir shared_cache

All of them must see --structures, --output and --cache_dir under the same paths. When one dies, start the command
again, with as many processes or others.

With options of the group "splits" the chains are split so that no cluster, entry or sequence is in two splits:
`reference` (high quality, for a reference model), `train`, `validation` and `test`, as asked for. For example

    python examples/prepare.py --structures pdb_files --pgnn mc_gearnet_edge.pth --output datasets/pdb_splits \
        --clusters pdb_cluster.tsv --split_resolution 2.0 --split_r_free 0.25 --split_date 2023-01-01 \
        --validation_fraction 0.02 --max_b_factor 80
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from structure_aligned import QualityThresholds, load_pgnn
from structure_aligned.data.ranks import launched_ranks
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.utils.numbers import check_options
from structure_aligned.utils.scripts import clean_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", nargs="+", required=True, help="files, folders or globs of the train split")
    parser.add_argument("--validation_structures", nargs="+", help="the same, for the validation split")
    parser.add_argument("--pgnn", required=True, help="GearNet or ProteinMPNN: folder or weights file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the dataset")
    parser.add_argument("--cache_dir", type=Path, help="of intermediate results; Datasets' own by default")
    parser.add_argument("--device", help="of the pGNN; by default each process its own GPU, or the CPU")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the pGNN")
    parser.add_argument("--num_proc", type=int, default=1, help="reading structures, for each process")
    parser.add_argument("--on_error", default="skip", choices=["skip", "raise"], help="unreadable files")
    parser.add_argument("--max_batch_residues", type=int, default=2048, help="residues the pGNN gets at once")
    parser.add_argument(
        "--shard_chains", type=int, default=1000, help="chains per Arrow file, which one process writes"
    )
    parser.add_argument("--no_embedding_cache", action="store_true", help="half the space; a kill loses a shard")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds without progress of other processes")
    parser.add_argument("--max_resolution", type=float, help="in Å; entries that state none are left out")
    parser.add_argument("--max_r_free", type=float, help="as a fraction; entries that state none are left out")
    parser.add_argument("--methods", nargs="+", help='such as "X-RAY DIFFRACTION"')
    parser.add_argument("--min_length", type=int, default=10, help="residues per chain")
    parser.add_argument("--max_length", type=int, help="residues per chain")
    parser.add_argument("--chains", default="all", choices=["all", "first", "longest"], help="of each entry")
    parser.add_argument("--drop_duplicates", action="store_true", help="keep one chain of each sequence")
    parser.add_argument("--predicted", default="auto", choices=["auto", "yes", "no"], help="are these models?")
    parser.add_argument("--plddt_scale", default="100", choices=["100", "1", "auto"], help="of predicted models")
    parser.add_argument("--max_b_factor", type=float, help="in Å²; residues above it lose their structure labels")
    parser.add_argument("--min_plddt", type=float, help="0-100; residues below it lose their structure labels")

    splits = parser.add_argument_group("splits", "What is not stated meets no bound; see split_chains for the rules.")
    splits.add_argument("--split_resolution", type=float, help="reference: at most this, in Å")
    splits.add_argument("--split_r_free", type=float, help="reference: at most this, as a fraction")
    splits.add_argument("--split_methods", nargs="+", help='reference: such as "X-RAY DIFFRACTION"')
    splits.add_argument("--split_plddt", type=float, help="reference: predicted models of at least this mean, 0-100")
    splits.add_argument("--allow_missing_r_free", action="store_true", help="reference: also NMR, EM and old entries")
    splits.add_argument("--reference_fraction", type=float, default=1.0, help="of the groups that qualify")
    splits.add_argument("--split_date", help="test: chains deposited on this day (YYYY-MM-DD) or later")
    splits.add_argument("--straddling", default="train", choices=["train", "test"], help="keeps mixed groups")
    splits.add_argument("--undated", default="leave_out", choices=["leave_out", "train", "raise"], help="chains")
    splits.add_argument("--clusters", help="MMseqs2's *_cluster.tsv of the chains (representative<TAB>member)")
    splits.add_argument("--missing_clusters", default="raise", choices=["raise", "own"], help="chains not in it")
    splits.add_argument("--validation_fraction", type=float, default=0.0, help="of the groups")
    splits.add_argument("--test_fraction", type=float, default=0.0, help="of the groups")
    splits.add_argument("--split_seed", type=int, default=0)
    return parser.parse_args()


def split_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Options of `split_chains`, checked before the long work begins; `None` where no split is asked for."""
    bounds = (args.split_resolution, args.split_r_free, args.split_methods, args.split_plddt)
    asked = any(bound is not None for bound in bounds)
    if not (asked or args.split_date or args.validation_fraction or args.test_fraction):
        if args.clusters or args.allow_missing_r_free:
            raise ValueError("--clusters and --allow_missing_r_free say how to split; say also which splits to make.")
        return None
    if args.validation_structures:
        raise ValueError("Both --validation_structures and options that split; give all files as --structures.")
    names = ("reference_fraction", "straddling", "undated", "missing_clusters", "validation_fraction", "test_fraction")
    return {name: getattr(args, name) for name in names} | {
        "quality": QualityThresholds(*bounds, args.allow_missing_r_free) if asked else None,
        "date": args.split_date,
        "clusters": args.clusters,
        "seed": args.split_seed,
    }


def main() -> None:
    args = parse_arguments()
    check_options(vars(args))
    rank, world_size, local_rank = launched_ranks()
    splits = split_options(args)
    device = args.device
    if device is None:
        device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    structures = {"train": args.structures}
    if args.validation_structures:
        structures["validation"] = args.validation_structures
    options = ("on_error", "max_batch_residues", "max_resolution", "max_r_free", "methods", "min_length", "max_length")
    others = ("chains", "drop_duplicates", "max_b_factor", "min_plddt", "shard_chains", "num_proc", "timeout")
    made = prepare_dataset(
        structures,
        load_pgnn(args.pgnn, device, getattr(torch, args.dtype)),
        args.output,
        feature_cache=None if args.cache_dir is None else args.cache_dir / "structure_features",
        rank=rank,
        world_size=world_size,
        predicted={"auto": None, "yes": True, "no": False}[args.predicted],
        plddt_scale=args.plddt_scale if args.plddt_scale == "auto" else int(args.plddt_scale),
        splits=splits,
        cache_embeddings=not args.no_embedding_cache,
        **{name: getattr(args, name) for name in (*options, *others)},
    )
    if made is None:
        return
    report = made.report
    if made.finished_before:
        print(f"{made.path} was finished before; nothing to do.")
    if made.summary is not None:
        print(f"\n{made.summary}")
    print(
        f"\n{report.files} files, {report.chains} chains; {report.parsed} files read and {report.embedded} chains "
        "embedded for this dataset, the others before."
    )
    for split, counts in made.splits.items():
        print(f"{split}: {counts['chains']} chains, {counts['residues']} residues, {counts['shards']} Arrow files")
    for reason, count in report.reasons().items():
        print(f"left out, {reason}: {count}")
    written = ", ".join(sorted(path.name for path in made.path.iterdir() if path.suffix in (".json", ".png")))
    print(f"Saved {made.path} with {written}; build_report.json says what was left out and why.")


if __name__ == "__main__":
    clean_errors(main)()
