"""
Embeddings of the sequences of a FASTA file by an ESM2 or AMPLIFY, aligned or not.

    python examples/embed.py --model chandar-lab/SaESM2_650M --fasta proteins.fasta.gz --output embeddings

writes the mean over the residues of each protein; `--pooling residue` writes every residue's, `--pooling both` both.
Ids and order are kept. `structure_aligned.inference.embedding_files.read_embeddings(folder)` reads the files one
protein after the other; pandas, polars and Datasets read the Parquet ones.

    zcat *.fasta.gz | python examples/embed.py --model MODEL --fasta - --output embeddings

May be killed and started again: finished files stay, and the result is the same. Several processes share out the
files:

    accelerate launch --num_processes 8 examples/embed.py --model MODEL --fasta proteins.fasta --output embeddings

Proteins of more than --max_residues are read in overlapping windows. White space and `*` at the end are dropped,
letters become upper-case, J becomes X; empty sequences and other signs are errors that name the record.
"""

import argparse

import torch

import structure_aligned  # noqa: F401 (registers AMPLIFY)
from structure_aligned.data.ranks import launched_ranks
from structure_aligned.inference.embedding_files import FORMATS
from structure_aligned.inference.embedding_folder import SHARD_RESIDUES, EmbeddingReport, embed_fasta
from structure_aligned.inference.embedding_plan import DUPLICATES
from structure_aligned.inference.embeddings import POOLINGS
from structure_aligned.training.pretrained import load_language_model, load_tokenizer
from structure_aligned.utils.scripts import clean_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of the checkpoint")
    parser.add_argument("--fasta", required=True, help="also gzipped; - for the standard input")
    parser.add_argument("--output", required=True, help="folder; new, or of the same command before")
    parser.add_argument("--format", default="parquet", choices=FORMATS)
    parser.add_argument("--pooling", default="mean", choices=POOLINGS)
    parser.add_argument("--layer", type=int, default=-1, help="0 goes into the first block, -1 comes out of the last")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"], help="of the files")
    parser.add_argument(
        "--compute_dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model"
    )
    parser.add_argument("--duplicates", default="error", choices=DUPLICATES, help="ids that come again")
    parser.add_argument("--max_residues", type=int, default=1022, help="of a window, for long proteins")
    parser.add_argument("--max_tokens", type=int, default=4096, help="of a batch; more keep a GPU busier")
    parser.add_argument(
        "--shard_residues",
        type=int,
        help="of a file; by default {mean:,} for means, else {both:,}".format(**SHARD_RESIDUES),
    )
    parser.add_argument("--device", help="by default each process its own GPU, or the CPU")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds without progress of other processes")
    return parser.parse_args(argv)


def summary(report: EmbeddingReport) -> str:
    lines = [f"{report.path}: {report.sequences:,} sequences, {report.residues:,} residues, {report.files:,} files"]
    if report.embedded:
        rate = report.embedded / report.seconds
        lines.append(f"embedded now: {report.embedded:,} residues in {report.seconds:.1f} s, {rate:,.0f} residues/s")
    else:
        lines.append("finished before; nothing to do")
    if report.read_as_x:
        lines.append(f"{report.read_as_x:,} letters that stand for no amino acid were read as X")
    if report.renamed:
        lines.append(f"{report.renamed:,} ids that came again were numbered")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    rank, world_size, local_rank = launched_ranks()
    device = args.device
    if device is None:
        device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    model = load_language_model(args.model, getattr(torch, args.compute_dtype), lm_head=False).to(device)
    names = ("format", "pooling", "layer", "dtype", "max_residues", "max_tokens", "duplicates", "shard_residues")
    report = embed_fasta(
        model,
        args.fasta,
        args.output,
        load_tokenizer(args.model, model),
        rank=rank,
        world_size=world_size,
        timeout=args.timeout,
        **{name: getattr(args, name) for name in names},
    )
    if report is not None:
        print(summary(report))


@clean_errors
def main(argv: list[str] | None = None) -> None:
    run(parse_arguments(argv))


if __name__ == "__main__":
    main()
