"""
Contact maps read layer by layer against Transformers' own `predict_contacts`, which holds the attentions of all layers
at once: seconds and peak memory of a fresh ESM2 of the given size, per length, each in a process of its own.
Linux only, which can forget a process's peak.

Usage:
    python benchmarks/bench_contacts.py --lengths 175 350 700
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from transformers import EsmForMaskedLM

from structure_aligned.evaluation.contact_heads import ContactRegression
from structure_aligned.evaluation.contact_prediction import predict_contacts
from structure_aligned.models.esm2 import esm2_config, esm2_tokenizer


RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[175, 350, 700])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=320)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_model(arguments):
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = EsmForMaskedLM(esm2_config(arguments.layers, arguments.hidden_size, arguments.heads)).eval()
    linear = model.esm.contact_head.regression
    torch.nn.init.normal_(linear.weight, std=5)
    torch.nn.init.constant_(linear.bias, -1.0)
    return model


def runs(model, length, arguments):
    """Both ways, as functions that return the map."""
    generator = torch.Generator().manual_seed(length)
    sequence = "".join(RESIDUES[i] for i in torch.randint(20, (length,), generator=generator))
    head = ContactRegression.from_linear(model.esm.contact_head.regression, arguments.layers, arguments.heads)
    tokenizer = esm2_tokenizer()
    encoded = tokenizer(sequence, return_tensors="pt")

    def streamed():
        return predict_contacts(model, [sequence], tokenizer, head)[0]

    @torch.no_grad()
    def all_layers():
        model.set_attn_implementation("eager")
        try:
            return model.predict_contacts(encoded["input_ids"], encoded["attention_mask"])[0]
        finally:
            model.set_attn_implementation("sdpa")

    return {"streamed": streamed, "all layers": all_layers}


def peak_memory(name, length, arguments, queue):
    """MiB that one run needs at its peak, beyond what the process has before."""
    model = make_model(arguments)
    both = {short: runs(model, short, arguments) for short in (16, length)}
    both[16][name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of the imports, is forgotten
    before = resident_memory()["VmRSS"]
    both[length][name]()
    queue.put((resident_memory()["VmHWM"] - before) / 2**10)


def resident_memory():
    """kiB now (VmRSS) and at the peak (VmHWM), as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}


def measure_memory(name, length, arguments):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_memory, args=(name, length, arguments, queue))
    process.start()
    memory = queue.get()
    process.join()
    return memory


def measure_seconds(length, arguments):
    """Medians of runs that take turns, and the median of the rounds' ratios."""
    ways = runs(make_model(arguments), length, arguments)
    difference = (ways["streamed"]() - ways["all layers"]()).abs().max().item()
    seconds = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(slow / fast for fast, slow in zip(seconds["streamed"], seconds["all layers"]))
    return {name: statistics.median(values) for name, values in seconds.items()}, ratio, difference


def main():
    arguments = parse_arguments()
    print(f"{arguments.layers} layers, {arguments.heads} heads, {arguments.threads} threads\n")
    print("| residues | peak MiB, streamed | all layers | ratio | s, streamed | all layers | ratio | max difference |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for length in arguments.lengths:
        memory = {name: measure_memory(name, length, arguments) for name in ("streamed", "all layers")}
        seconds, ratio, difference = measure_seconds(length, arguments)
        print(
            f"| {length} | {memory['streamed']:.0f} | {memory['all layers']:.0f} "
            f"| {memory['all layers'] / memory['streamed']:.1f} | {seconds['streamed']:.3f} "
            f"| {seconds['all layers']:.3f} | {ratio:.1f} | {difference:.1e} |"
        )


if __name__ == "__main__":
    main()
