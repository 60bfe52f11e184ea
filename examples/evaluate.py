"""
Evaluate protein language models side by side: a page with tables, tests and plots.

    python examples/evaluate.py --models base=facebook/esm2_t6_8M_UR50D aligned=outputs/saesm2_8m \
        --structures structures/test --train_structures structures/train --dms dms --sequences natural.fasta.gz \
        --output evaluation

The first model is the baseline. Seeds of one model, named aligned#1=... aligned#2=..., are also compared as one.
Writes report.html (one file, no network needed) and report.json; each result lies in results/, so that the same
command after an interruption, or with one more model, computes only what is missing. For a quick look:
--max_proteins 10.
"""

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import torch

import structure_aligned  # noqa: F401 (registers AMPLIFY)
from structure_aligned.evaluation.fitness import STRATEGIES
from structure_aligned.evaluation.report import evaluate_models
from structure_aligned.evaluation.report_inputs import EvaluationOptions, load_inputs
from structure_aligned.evaluation.report_tasks import DEFAULT_TASKS, TASKS
from structure_aligned.evaluation.report_text import summary_text
from structure_aligned.utils.scripts import clean_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    default = EvaluationOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", required=True, nargs="+", metavar="NAME=PATH", help="whatever AutoModelForMaskedLM loads"
    )
    parser.add_argument("--baseline", help="name of the model, or of the seeds, to compare with; the first by default")
    parser.add_argument("--structures", nargs="+", help="test structures: files, folders or globs")
    parser.add_argument(
        "--train_structures", nargs="+", help="to fit contact heads and probes on; no relatives of the test"
    )
    parser.add_argument("--dms", help="mutation assays: folder of .csv or .csv.gz in ProteinGym's form, or one")
    parser.add_argument("--sequences", help="natural sequences for the perplexity: FASTA, also .gz")
    parser.add_argument("--secondary_structure", help="sequences with secondary structure, as FLIP lays them out")
    parser.add_argument("--output", required=True, type=Path, help="folder of the report")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help=f"by default {' '.join(DEFAULT_TASKS)}")
    parser.add_argument("--pair_head", action="store_true", help="contacts from hidden states too, as in the paper")
    parser.add_argument(
        "--max_proteins", type=int, help="at most so many test chains, assays and sequences: a quick look"
    )
    parser.add_argument("--max_sequences", type=int, default=default.max_sequences, help="drawn from --sequences")
    parser.add_argument("--num_contact_chains", type=int, default=default.num_contact_chains, help="for contact heads")
    parser.add_argument("--num_probe_chains", type=int, default=default.num_probe_chains, help="for probes")
    parser.add_argument("--max_train_residues", type=int, default=default.max_train_residues, help="for probes")
    parser.add_argument("--min_length", type=int, default=default.min_length, help="of chains and sequences")
    parser.add_argument("--max_length", type=int, default=default.max_length, help="of chains and sequences")
    parser.add_argument("--perplexity_tokens", type=int, help="budget of one model and set, for one-by-one masks")
    parser.add_argument("--fitness_tokens", type=int, help="budget of one model for all assays")
    parser.add_argument("--strategy", default=default.strategy, choices=STRATEGIES, help="of scoring mutants")
    parser.add_argument("--max_tokens", type=int, default=default.max_tokens, help="of a batch")
    parser.add_argument("--num_examples", type=int, default=default.num_examples, help="proteins whose maps are drawn")
    parser.add_argument("--seed", type=int, default=default.seed, help="of all that is drawn and resampled")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="to run all models in")
    parser.add_argument("--use_cpu", action="store_true")
    return parser.parse_args(argv)


def named_models(pairs: list[str]) -> dict[str, str]:
    models: dict[str, str] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not (separator and name.strip() and path):
            raise ValueError(f"--models has {pair!r}; expected NAME=PATH, such as base=facebook/esm2_t6_8M_UR50D.")
        if name in models:
            raise ValueError(f"--models has the name {name!r} twice; number seeds of one model: {name}#1, {name}#2.")
        models[name] = path
    return models


def run(args: argparse.Namespace, command: str) -> dict:
    models = named_models(args.models)
    options = EvaluationOptions(**{one.name: getattr(args, one.name) for one in fields(EvaluationOptions)})
    tasks = list(args.tasks or DEFAULT_TASKS)
    if args.pair_head and "pair_head" not in tasks:
        tasks.insert(tasks.index("contacts") + 1 if "contacts" in tasks else 0, "pair_head")
    inputs = load_inputs(
        options, args.structures, args.train_structures, args.dms, args.sequences, args.secondary_structure
    )
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    return evaluate_models(
        models,
        inputs,
        args.output,
        options,
        tasks,
        args.baseline,
        device,
        getattr(torch, args.dtype),
        command=command,
    )


@clean_errors
def main(argv: list[str] | None = None) -> None:
    command = shlex.join(["python", *(sys.argv if argv is None else [__file__, *argv])])
    args = parse_arguments(argv)
    report = run(args, command)
    print(f"\n{summary_text(report['summary'])}\n")
    for task, reason in report["left_out"].items():
        print(f"Left out: {task} {reason}.")
    for name in ("report.html", "report.json"):
        print(args.output / name)
    if report["failed"]:
        sys.exit("error: " + "; ".join(f"{task} failed for {', '.join(of)}" for task, of in report["failed"].items()))


if __name__ == "__main__":
    main()
