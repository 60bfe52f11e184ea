"""
Masked marginals of every substitution of a protein: `score_mutations` against plain loops over the same model.

* per mutant: what a first script does, for each mutant: mask its position, run the model, read two log-probabilities.
  19 rows of every position are the same row.
* per position: the loop that has noticed, one row at a time. Both go from tokens to log-softmax, in inference mode.

The three take turns within each round. All rows cost the same, so --positions runs so many positions spread over the
protein, with their 19 substitutions each, and multiplies; the loop over mutants runs --sampled of those. Ratios are
paired within rounds: median (range). Scores of all three are compared before anything is timed.

Usage:
    python benchmarks/bench_fitness.py --output benchmarks/fitness.md
    python benchmarks/bench_fitness.py --length 100 --rounds 9 --max-tokens 1024 4096 16384
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskedLM

from structure_aligned.evaluation.fitness import score_mutations
from structure_aligned.evaluation.masked_lm import AMINO_ACIDS
from structure_aligned.models.trunks import fresh_trunk
from structure_aligned.utils.files import write_text


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", default="esm", help="esm or AMPLIFY (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--length", type=int, default=250, help="residues (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="of a batch")
    parser.add_argument("--positions", type=int, help="of the protein that are run; all by default")
    parser.add_argument("--sampled", type=int, default=4, help="positions of the loop over mutants that are run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the page here")
    return parser.parse_args()


class Loops:
    """The plain ways, on token ids that are made once."""

    def __init__(self, model, tokenizer, wild_type):
        self.model, self.wild_type, self.mask = model, wild_type, tokenizer.mask_token_id
        self.input_ids = tokenizer(wild_type, return_tensors="pt")["input_ids"].to(model.device)
        self.ids = dict(zip(AMINO_ACIDS, tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))))

    def masked(self, position):
        input_ids = self.input_ids.clone()
        input_ids[0, 1 + position] = self.mask
        return self.model(input_ids=input_ids).logits[0, 1 + position].log_softmax(-1)

    @torch.inference_mode()
    def per_mutant(self, mutants):
        scores = []
        for mutant in mutants:
            found = self.masked(int(mutant[1:-1]) - 1)
            scores.append((found[self.ids[mutant[-1]]] - found[self.ids[mutant[0]]]).item())
        return np.array(scores)

    @torch.inference_mode()
    def per_position(self, mutants):
        found = {}
        for position in sorted({int(mutant[1:-1]) - 1 for mutant in mutants}):
            found[position] = self.masked(position).cpu()
        rows = ((found[int(mutant[1:-1]) - 1], mutant) for mutant in mutants)
        return np.array([(row[self.ids[one[-1]]] - row[self.ids[one[0]]]).item() for row, one in rows])


def timed(function, *arguments, **options):
    start = time.perf_counter()
    function(*arguments, **options)  # ends on the CPU, so nothing is left running
    return time.perf_counter() - start


def ratio(numerators, denominators):
    ratios = [above / below for above, below in zip(numerators, denominators)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def bench(arguments):
    torch.manual_seed(0)
    config, tokenizer = fresh_trunk(arguments.model_type, arguments.layers, arguments.hidden, arguments.heads)
    model = AutoModelForMaskedLM.from_config(config).to(arguments.device).eval()
    letters = np.random.default_rng(0).choice(list(AMINO_ACIDS), arguments.length)
    wild_type = "".join(letters)
    positions = np.linspace(0, arguments.length - 1, arguments.positions or arguments.length).round().astype(int)
    every = [
        f"{wild_type[position]}{position + 1}{new}"
        for position in positions
        for new in AMINO_ACIDS
        if new != wild_type[position]
    ]
    sample = every[: 19 * arguments.sampled]
    whole = arguments.length / len(positions)
    loops = Loops(model, tokenizer, wild_type)

    # Also the warm-up.
    fast, slow, slowest = score_mutations(model, wild_type, every), loops.per_position(every), loops.per_mutant(sample)
    differences = [np.abs(fast - slow).max(), np.abs(fast[: len(sample)] - slowest).max()]
    assert max(differences) < 1e-5 < np.ptp(fast), differences

    seconds = {"per mutant": [], "per position": []} | {budget: [] for budget in arguments.max_tokens}
    for _ in range(arguments.rounds):
        seconds["per mutant"].append(timed(loops.per_mutant, sample) * arguments.length / arguments.sampled)
        seconds["per position"].append(timed(loops.per_position, every) * whole)
        for budget in arguments.max_tokens:
            options = {"tokenizer": tokenizer, "max_tokens": budget}
            seconds[budget].append(timed(score_mutations, model, wild_type, every, **options) * whole)
    lines = [
        f"{arguments.model_type} {arguments.layers} × {arguments.hidden} ({model.num_parameters() / 1e6:.1f}M, "
        f"untrained), {arguments.length} residues, {19 * arguments.length:,} mutants, "
        f"{len(positions)} positions run; {describe(arguments)}; medians of {arguments.rounds} rounds. "
        f"Largest difference between scores: {max(differences):.1e}.",
        "",
        "| | seconds | times as fast as the loop per mutant | times as fast as the loop per position |",
        "|---|---:|---:|---:|",
    ]
    for name, values in seconds.items():
        label = f"loop {name}" if isinstance(name, str) else f"`score_mutations`, max_tokens={name:,}"
        over = [ratio(seconds[loop], values) if loop != name else "1" for loop in ("per mutant", "per position")]
        lines.append(f"| {label} | {statistics.median(values):.2f} | {over[0]} | {over[1]} |")
    return "\n".join(lines)


def describe(arguments):
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"
    if arguments.device != "cpu":
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"CPU, {torch.get_num_threads()} threads, {versions}"


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    table = bench(arguments)
    print(table)
    if arguments.output:
        write_text(arguments.output, table + "\n")


if __name__ == "__main__":
    main()
