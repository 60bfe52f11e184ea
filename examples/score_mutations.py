"""
Score the mutants of a table with a protein language model, without training on any of them.

    python examples/score_mutations.py --model chandar-lab/SaESM2_650M --fasta blat.fasta --csv blat.csv \
        --output blat_scored.csv

Takes one wild type (FASTA) and a CSV with a column of mutants such as H24C, A24G:L30P or WT; all files may end in .gz.
Writes the CSV with a column of scores appended: higher is fitter, the wild type is 0. Where there is a column
DMS_score, as in ProteinGym, prints how well the scores rank it. Errors name the row, counted from 1 after the header.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import structure_aligned  # noqa: F401 (registers AMPLIFY)
from structure_aligned.evaluation.assays import fitness_metrics
from structure_aligned.evaluation.fitness import STRATEGIES, score_mutations
from structure_aligned.evaluation.mutants import parse_mutants
from structure_aligned.inference.fasta import read_single_fasta
from structure_aligned.training.pretrained import load_language_model, load_tokenizer
from structure_aligned.utils.files import read_table, write_table
from structure_aligned.utils.scripts import clean_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder that AutoModelForMaskedLM loads")
    parser.add_argument("--fasta", required=True, type=Path, help="the wild type")
    parser.add_argument("--csv", required=True, type=Path, help="the mutants")
    parser.add_argument("--output", required=True, type=Path, help="CSV to write (compressed if it ends in .gz)")
    parser.add_argument("--overwrite", action="store_true", help="write it even if it exists")
    parser.add_argument("--strategy", default="masked-marginals", choices=STRATEGIES)
    parser.add_argument("--offset", type=int, default=1, help="number of the wild type's first residue")
    parser.add_argument("--mutant_column", default="mutant")
    parser.add_argument("--score_column", default="score", help="to append")
    parser.add_argument("--max_residues", type=int, default=1022, help="of a window, for long proteins")
    parser.add_argument("--max_tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--use_cpu", action="store_true")
    return parser.parse_args(argv)


def measurement(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def report(scores: np.ndarray, measured: np.ndarray) -> str:
    finite = np.isfinite(measured)
    if not finite.any():
        return "No row has a DMS_score that is a number, so nothing to compare with."
    metrics = fitness_metrics(scores[finite], measured[finite])
    without = f", {(~finite).sum()} without a DMS_score left out" if not finite.all() else ""
    if "spearman" in metrics.undefined:
        return f"Spearman is not defined: {metrics.undefined['spearman']} (n = {metrics.n}{without})"
    return f"Spearman {metrics.spearman:.4f} (n = {metrics.n}{without})"


def run(args: argparse.Namespace) -> None:
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; give another --output, or --overwrite.")
    wild_type = read_single_fasta(args.fasta)
    columns, rows = read_table(args.csv)
    if args.mutant_column not in columns:
        raise ValueError(
            f"{args.csv} has no column {args.mutant_column!r} but {', '.join(columns)}; choose with --mutant_column."
        )
    if args.score_column in columns:
        raise ValueError(f"{args.csv} already has a column {args.score_column!r}; choose another --score_column.")
    mutants = [row[args.mutant_column] for row in rows]
    parse_mutants(mutants, wild_type, args.offset)  # what is wrong is said before a model is loaded
    model = load_language_model(args.model)
    model.to("cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu")
    scores = score_mutations(
        model,
        wild_type,
        mutants,
        load_tokenizer(args.model, model),
        strategy=args.strategy,
        offset=args.offset,
        max_residues=args.max_residues,
        max_tokens=args.max_tokens,
        progress=True,
    )
    scored = [row | {args.score_column: f"{score:.8g}"} for row, score in zip(rows, scores)]
    write_table(args.output, [*columns, args.score_column], scored)
    print(f"Scored {len(rows)} mutants of {len(wild_type)} residues by {args.strategy}: {args.output}")
    if "DMS_score" in columns:
        print(report(scores, np.array([measurement(row["DMS_score"]) for row in rows])))


@clean_errors
def main(argv: list[str] | None = None) -> None:
    run(parse_arguments(argv))


if __name__ == "__main__":
    main()
