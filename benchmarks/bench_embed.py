"""
Embedding throughput: `embed_sequences` and `embed_fasta` against the bare model's forward on the same batches.

* bare forward: the trunk on batches that were tokenized and padded before the clock starts; nothing is kept.
* `embed_sequences`: from strings to arrays (windows, tokens, batches, forward, residues picked out, checks).
* `embed_fasta`: from a FASTA file to Parquet or safetensors files: reading, digests of input and weights, plan, files.

The three take turns within each round, in one process. Bare batches are those of `embed_fasta`, whose files cut the
input; `embed_sequences` is given the sequences of one file after the other, so that it has the same ones. Ratios are
paired within rounds: median (range).

Usage:
    python benchmarks/bench_embed.py --fasta proteins.fasta.gz --sequences 500 --layers 2 --hidden 64 --heads 4
    python benchmarks/bench_embed.py --model-type AMPLIFY --layers 12 --hidden 640 --heads 10 --sequences 100
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskedLM

from structure_aligned.evaluation.trunk_outputs import run_trunk
from structure_aligned.inference.embedding_folder import SHARD_RESIDUES, embed_fasta
from structure_aligned.inference.embeddings import embed_sequences
from structure_aligned.inference.fasta import read_fasta
from structure_aligned.inference.windows import window_batches
from structure_aligned.models.trunks import fresh_trunk


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", help="proteins; random ones of natural lengths by default")
    parser.add_argument("--sequences", type=int, default=200, help="how many of them (default: %(default)s)")
    parser.add_argument("--model-type", default="esm", help="esm or AMPLIFY (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--poolings", nargs="+", default=["mean", "residue"])
    parser.add_argument("--formats", nargs="+", default=["parquet", "safetensors"])
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser.parse_args()


def load_sequences(arguments):
    if arguments.fasta:
        return [record.sequence for record in islice(read_fasta(arguments.fasta), arguments.sequences)]
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(5.7, 0.6, arguments.sequences)).astype(int).clip(20, 3000)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in lengths]


def cut(sequences, shard_residues):
    """The sequences of each file, as `embed_fasta` deals them out."""
    parts, size = [[]], 0
    for sequence in sequences:
        if parts[-1] and size + len(sequence) > shard_residues:
            parts.append([])
            size = 0
        parts[-1].append(sequence)
        size += len(sequence)
    return parts


def timed(function):
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(bare, ours):
    ratios = [above / below for above, below in zip(bare, ours)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def bench(arguments, folder):
    torch.manual_seed(0)
    config, tokenizer = fresh_trunk(arguments.model_type, arguments.layers, arguments.hidden, arguments.heads)
    model = AutoModelForMaskedLM.from_config(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()
    sequences = load_sequences(arguments)
    residues = sum(map(len, sequences))
    fasta = folder / "in.fasta"
    fasta.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    where = f"{torch.get_num_threads()} CPU threads" if arguments.device == "cpu" else torch.cuda.get_device_name()
    lines = [
        f"{arguments.model_type} {arguments.layers} × {arguments.hidden} ({model.num_parameters() / 1e6:.1f}M, "
        f"untrained, {arguments.dtype}), {len(sequences):,} sequences of {residues:,} residues, max_tokens "
        f"{arguments.max_tokens:,}; {where}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"medians of {arguments.rounds} rounds.",
        "",
        "| pooling | | residues/s | of the bare forward's residues/s |",
        "|---|---|---:|---:|",
    ]
    for pooling in arguments.poolings:
        parts = cut(sequences, SHARD_RESIDUES[pooling])
        batches = [batch for part in parts for _, batch in window_batches(part, tokenizer, 1022, arguments.max_tokens)]
        count = iter(range(10**6))

        def bare(batches=batches):
            for batch in batches:
                run_trunk(model, batch.to(arguments.device))

        def in_memory(parts=parts, pooling=pooling):
            for part in parts:
                options = {"max_tokens": arguments.max_tokens, "progress": False}
                embed_sequences(model, part, tokenizer, pooling=pooling, **options)

        def to_files(format, pooling=pooling, count=count):
            output = folder / f"{pooling}{next(count)}"
            options = {"max_tokens": arguments.max_tokens, "progress": False}
            embed_fasta(model, fasta, output, tokenizer, pooling=pooling, format=format, **options)

        ways = {"bare forward": bare, "`embed_sequences`": in_memory}
        ways |= {f"`embed_fasta`, {one}": lambda one=one: to_files(one) for one in arguments.formats}
        ways["bare forward"]()  # warm-up
        seconds = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                seconds[name].append(timed(way))
        for name, values in seconds.items():
            rate = residues / statistics.median(values)
            paired = "1" if name == "bare forward" else ratio(seconds["bare forward"], values)
            lines.append(f"| {pooling} | {name} | {rate:,.0f} | {paired} |")
    return "\n".join(lines)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(bench(arguments, Path(folder)))


if __name__ == "__main__":
    main()
