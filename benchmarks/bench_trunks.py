"""
Forward passes and training steps of the alignment models: residues per second and memory, with the fused attention of
PyTorch (sdpa) against the eager one, on padded batches of proteins of real lengths. Random weights.

The implementations take turns within each round, on the same batch; the ratio is the median over rounds of the paired
ratios, with their range. Memory is the peak of a process of its own for each case, above what it held before the step
(weights, gradients and optimizer state are listed apart). Runs on a GPU where there is one; --dtype bfloat16 there.

Usage:
    python benchmarks/bench_trunks.py --structures folder_of_mmcif_files --output trunks.md
    python benchmarks/bench_trunks.py --models esm2-35M --rounds 10
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from structure_aligned import AutoModelForStructureAlignment, fresh_trunk
from structure_aligned.utils.files import write_text


MODELS = {
    "esm2-8M": ("esm", 6, 320, 20),
    "esm2-35M": ("esm", 12, 480, 20),
    "esm2-150M": ("esm", 30, 640, 20),
    "esm2-650M": ("esm", 33, 1280, 20),
    "amplify-120M": ("AMPLIFY", 24, 640, 10),
    "amplify-350M": ("AMPLIFY", 32, 960, 15),
}
IMPLEMENTATIONS = ("eager", "sdpa")
STRUCTURE_DIM = 512
MIB = 2**20


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["esm2-35M", "amplify-120M"], choices=list(MODELS))
    parser.add_argument("--structures", type=Path, help="take the lengths of these chains; log-normal ones by default")
    parser.add_argument("--batch-size", type=int, default=8, help="proteins (default: %(default)s, the paper's)")
    parser.add_argument("--rounds", type=int, default=5, help="batches, each through every case")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: by autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--output", type=Path, help="also write the tables here")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)  # internal: one case in a process of its own
    return parser.parse_args()


def draw_lengths(arguments):
    rng = np.random.default_rng(0)
    count = arguments.batch_size * arguments.rounds
    if arguments.structures is None:
        return rng.lognormal(np.log(220), 0.5, count).clip(40, 1022).astype(int)
    from structure_aligned.data.selecting import resolve_structures
    from structure_aligned.structure.io import read_chains

    files = resolve_structures(arguments.structures)[:count]
    lengths = [len(chain) for path in files for chain in read_chains(path)]
    return rng.choice(lengths, count, replace=len(lengths) < count)


def make_batch(lengths, tokenizer, device):
    """What the collator makes of proteins of these lengths: 15 % masked, labels for all three tasks."""
    generator = torch.Generator().manual_seed(int(sum(lengths)))
    shape = (len(lengths), -(-(max(lengths) + 2) // 8) * 8)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    residue_mask = torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        attention_mask[row, : length + 2] = 1
        residue_mask[row, 1 : length + 1] = True
    residues = torch.tensor(tokenizer.convert_tokens_to_ids(list("ACDEFGHIKLMNPQRSTVWY")))
    ids = residues[torch.randint(0, 20, shape, generator=generator)]
    ids[attention_mask == 0] = tokenizer.pad_token_id
    masked = residue_mask & (torch.rand(shape, generator=generator) < 0.15)
    batch = {
        "input_ids": ids.masked_fill(masked, tokenizer.mask_token_id),
        "attention_mask": attention_mask,
        "labels": torch.where(masked, ids, -100),
        "structure_labels": torch.where(residue_mask, ids % 20, -100),
        "residue_mask": residue_mask,
        "structure_embeddings": torch.randn(*shape, STRUCTURE_DIM, generator=generator),
    }
    return {name: values.to(device) for name, values in batch.items()}


class Case:
    """One model; runs a forward pass or a training step with the attention implementation asked for."""

    def __init__(self, name, arguments):
        config, self.tokenizer = fresh_trunk(*MODELS[name], structure_alignment={"structure_dim": STRUCTURE_DIM})
        torch.manual_seed(0)
        self.model = AutoModelForStructureAlignment.from_config(config).to(arguments.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.device, self.dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)

    def run(self, task, implementation, batch):
        self.model.set_attn_implementation(implementation)
        autocast = contextlib.nullcontext()
        if self.dtype != torch.float32:
            autocast = torch.autocast(self.device.type, self.dtype)
        self.model.train(task == "training step")
        if task == "forward":
            with torch.no_grad(), autocast:
                self.model(batch["input_ids"], attention_mask=batch["attention_mask"])
            return
        with autocast:
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, *task):
        self.synchronize()
        start = time.perf_counter()
        self.run(*task)
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure_memory(arguments):
    """Peak MiB of one step above what the process held before it."""
    name, task, implementation = arguments.measure_memory.split("|")
    case = Case(name, arguments)
    lengths = draw_lengths(arguments)
    longest = max((lengths[i :: arguments.rounds] for i in range(arguments.rounds)), key=max)
    batch = make_batch(longest, case.tokenizer, case.device)
    if task == "training step":  # with gradients and optimizer state in place
        small = make_batch([10] * 2, case.tokenizer, case.device)
        case.run(task, implementation, small)
        for parameter in case.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run(task, implementation, batch)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
    before = resident("VmRSS")
    case.run(task, implementation, batch)
    return resident("VmHWM") - before


def resident(field):
    """MiB of this process: now (`VmRSS`) or at its peak (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def memory_of(*case):
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory", "|".join(case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def bench(name, arguments, lengths):
    case = Case(name, arguments)
    parameters = sum(parameter.numel() for parameter in case.model.parameters())
    rows = []
    for task in ("forward", "training step"):
        seconds = {implementation: [] for implementation in IMPLEMENTATIONS}
        residues = []
        for index in range(-1, arguments.rounds):  # the first round warms up
            batch_lengths = lengths[max(index, 0) :: arguments.rounds]
            batch = make_batch(batch_lengths, case.tokenizer, case.device)
            order = IMPLEMENTATIONS if index % 2 else IMPLEMENTATIONS[::-1]
            taken = {implementation: case.seconds(task, implementation, batch) for implementation in order}
            if index >= 0:
                residues.append(sum(batch_lengths))
                for implementation in IMPLEMENTATIONS:
                    seconds[implementation].append(taken[implementation])
        ratios = [slow / fast for slow, fast in zip(seconds["eager"], seconds["sdpa"])]
        for implementation in IMPLEMENTATIONS:
            rate = statistics.median(count / taken for count, taken in zip(residues, seconds[implementation]))
            ratio = "1"
            if implementation == "sdpa":
                ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            peak = memory_of(name, task, implementation)
            rows.append(f"| {name} | {task} | {implementation} | {rate:,.0f} | {ratio} | {peak:,.0f} |")
            print(rows[-1], flush=True)
    return parameters, rows


def main():
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        print(json.dumps(measure_memory(arguments)))
        return
    lengths = draw_lengths(arguments)
    padded = [lengths[i :: arguments.rounds] for i in range(arguments.rounds)]
    share = 1 - sum(map(sum, padded)) / sum(len(batch) * (max(batch) + 2) for batch in padded)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"{device}, torch {torch.__version__}, {arguments.dtype}; {arguments.rounds} batches of "
        f"{arguments.batch_size} proteins, lengths {min(lengths)} to {max(lengths)}, median {np.median(lengths):.0f}; "
        f"{share:.0%} of the positions are padding.",
        "",
        "| model | task | attention | residues/s | times eager (range) | peak above weights, MiB |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    sizes = []
    for name in arguments.models:
        parameters, rows = bench(name, arguments, lengths)
        lines += rows
        sizes.append(
            f"{name}: {parameters / 1e6:.1f} M parameters, {4 * parameters / MIB:,.0f} MiB in float32, as much "
            "again for gradients and twice as much for AdamW"
        )
    lines += ["", "; ".join(sizes) + "."]
    print("\n".join(lines[-2:]))
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
