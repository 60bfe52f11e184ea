"""
Forward and backward pass of the residue contrastive losses: the plain ones, which hold N×N matrices, against the tiled
ones, with every residue kept and with a share of them dropped by selection, whose gradients are then exactly zero.

Both take turns within each round, on the same inputs; the ratio is the median over rounds of the paired ratios, with
their range. Memory is the peak of a process of its own for each case, above the inputs; their gradients count. Runs on
a GPU where there is one; --dtype bfloat16 gives inputs in that type, similarities are float32 either way.

Usage:
    python benchmarks/bench_contrastive.py --output contrastive.md
    python benchmarks/bench_contrastive.py --sizes 500 1000 --rounds 10 --candidates 4
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize

from structure_aligned.objectives.contrastive import contrastive_losses


BACKENDS = ("reference", "chunked")
SCALE = 14.3  # 1 / 0.07, where training starts
MIB = 2**20


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000, 16000], help="residues N")
    parser.add_argument("--dim", type=int, default=512, help="projection width D (default: %(default)s)")
    parser.add_argument("--dropped", type=float, nargs="+", default=[0.0, 0.2], help="shares without a gradient")
    parser.add_argument(
        "--candidates", type=int, default=1, help="times N, as of so many ranks; 1: the residues alone"
    )
    parser.add_argument("--chunk-size", type=int, help="by default that of the library")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reference-up-to", type=int, default=32000, help="N from which only the tiled ones are run")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)  # internal: one case in a process of its own
    return parser.parse_args()


class Case:
    """Inputs of one size; runs a forward and backward pass of the backend asked for."""

    def __init__(self, size, dropped, arguments):
        self.device, self.chunk_size = torch.device(arguments.device), arguments.chunk_size
        generator = torch.Generator().manual_seed(size)

        def projections(count):
            values = normalize(torch.randn(count, arguments.dim, generator=generator), dim=-1)
            return values.to(self.device, getattr(torch, arguments.dtype)).requires_grad_()

        self.inputs = {"sequence": projections(size), "structure": projections(size)}
        self.inputs["scale"] = torch.tensor(SCALE, device=self.device, requires_grad=True)
        if arguments.candidates > 1:
            total = size * arguments.candidates
            self.inputs |= {f"{name}_candidates": projections(total) for name in ("sequence", "structure")}
        kept = torch.rand(2, size, generator=generator) >= dropped
        self.weights = (kept / kept.sum(1, keepdim=True)).to(self.device)

    def run(self, backend):
        """Seconds of the forward and of the backward pass."""
        for tensor in self.inputs.values():
            tensor.grad = None
        start = self.now()
        losses = contrastive_losses(**self.inputs, backend=backend, chunk_size=self.chunk_size)
        middle = self.now()
        torch.autograd.backward(losses, [weights.to(losses[0].dtype) for weights in self.weights])
        return middle - start, self.now() - middle

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_memory(arguments):
    """Peak MiB of one forward and backward pass above what the process held before it."""
    backend, size, dropped = json.loads(arguments.measure_memory)
    # The libraries' own buffers come with the first matrix products and are none of the losses' business.
    Case(64, 0.5, arguments).run(backend)
    case = Case(size, dropped, arguments)
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run(backend)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
    before = resident("VmRSS")
    case.run(backend)
    return resident("VmHWM") - before


def resident(field):
    """MiB of this process: now (`VmRSS`) or at its peak (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def memory_of(*case):
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory", json.dumps(case)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        return f"failed: {(result.stderr.strip().splitlines() or ['killed'])[-1][:60]}"
    return f"{json.loads(result.stdout):,.0f}"


def bench(size, dropped, arguments):
    case = Case(size, dropped, arguments)
    backends = BACKENDS if size <= arguments.reference_up_to else BACKENDS[1:]
    seconds = {backend: [] for backend in backends}
    for index in range(-1, arguments.rounds):  # the first round warms up
        for backend in backends if index % 2 else backends[::-1]:
            taken = case.run(backend)
            if index >= 0:
                seconds[backend].append(taken)
    del case
    rows = []
    for backend in backends:
        forward, backward = (1000 * statistics.median(column) for column in zip(*seconds[backend]))
        ratio = "1" if backend == "reference" else "–"
        if backend != "reference" and "reference" in seconds:
            ratios = [sum(slow) / sum(fast) for slow, fast in zip(seconds["reference"], seconds[backend])]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(
            f"| {size:,} | {dropped:.0%} | {backend} | {forward:,.1f} | {backward:,.1f} | {ratio} | "
            f"{memory_of(backend, size, dropped)} |"
        )
        print(rows[-1], flush=True)
    return rows


def main():
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.measure_memory:
        print(json.dumps(measure_memory(arguments)))
        return
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    candidates = f"{arguments.candidates} N candidates" if arguments.candidates > 1 else "no other candidates"
    lines = [
        f"{device}, torch {torch.__version__}, {arguments.dtype}, D = {arguments.dim}, {candidates}, chunk size "
        f"{arguments.chunk_size or 'by default'}; medians of {arguments.rounds} rounds.",
        "",
        "| N | dropped | backend | forward, ms | backward, ms | times reference (range) | peak above inputs, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for size in arguments.sizes:
        for dropped in arguments.dropped:
            lines += bench(size, dropped, arguments)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
