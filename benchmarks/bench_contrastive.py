"""
Forward and backward pass of the residue contrastive losses: the plain ones, which hold N×N matrices, against the tiled
ones, with every residue kept and with a share of them dropped by selection, whose gradients are then exactly zero. On
a GPU the Triton kernels as well, and where they are installed Cut Cross-Entropy (`pip install cut-cross-entropy`) and
Inf-CL (`pip install inf-cl`), each called once per direction on vectors that are multiplied by the scale before.

All take turns within each round, on the same inputs; the ratio is the median over rounds of the paired ratios to the
first backend, with their range. Memory is the peak of a process of its own for each case, above the inputs; in
brackets, what of it are their gradients. On a GPU, the rate of a bfloat16 matrix product is measured in the same run:
the share of it is that of 8 N²D operations (forward 2, the similarities again 2, gradients 4; against candidates
16 N·M·D), whatever the backend really computes. bfloat16 inputs stay so in Triton, Cut Cross-Entropy and the rate;
the others make float32 of them.

Usage:
    python benchmarks/bench_contrastive.py --output contrastive.md
    python benchmarks/bench_contrastive.py --sizes 500 1000 --rounds 10 --candidates 4
    python benchmarks/bench_contrastive.py --sizes 16384 --dim 320 --rounds 3 --threads 2
    python benchmarks/bench_contrastive.py --sizes 65536 131072 --dropped 0 --backends chunked --memory-only
    python benchmarks/bench_contrastive.py --sizes 65536 131072 --dtype bfloat16  # on a GPU
"""

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize

from structure_aligned.objectives.contrastive import contrastive_losses
from structure_aligned.utils.files import write_text


OWN_BACKENDS = ("reference", "chunked", "triton")
OTHERS = {"cut-cross-entropy": "cut_cross_entropy", "inf-cl": "inf_cl"}
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
    parser.add_argument("--backends", nargs="+", choices=[*OWN_BACKENDS, *OTHERS], help="by default all that run here")
    parser.add_argument("--memory-only", action="store_true", help="one pass of each case, without the time it takes")
    parser.add_argument("--reference-up-to", type=int, default=32000, help="N from which only the tiled ones are run")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)  # internal: one case in a process of its own
    arguments = parser.parse_args()
    if arguments.backends is None:
        arguments.backends = [backend for backend in [*OWN_BACKENDS, *OTHERS] if can_run(backend, arguments)]
    return arguments


def can_run(backend, arguments):
    if backend in ("reference", "chunked"):
        return True
    installed = importlib.util.find_spec(OTHERS.get(backend, backend)) is not None
    wide = {"triton": ["float64"], "cut-cross-entropy": ["float32", "float64"]}.get(backend, ["float64"])
    return installed and arguments.device.startswith("cuda") and arguments.dtype not in wide


def losses_of(backend, inputs, chunk_size):
    if backend in OWN_BACKENDS:
        return contrastive_losses(**inputs, backend=backend, chunk_size=chunk_size)
    sequence, structure, scale = inputs["sequence"], inputs["structure"], inputs["scale"]
    targets = torch.arange(len(sequence), device=sequence.device)
    directions = (
        (sequence, inputs.get("structure_candidates", structure)),
        (structure, inputs.get("sequence_candidates", sequence)),
    )
    if backend == "cut-cross-entropy":
        from cut_cross_entropy import linear_cross_entropy

        # By default it leaves out small gradients; all of them are wanted here.
        return tuple(
            linear_cross_entropy((scale * rows).to(rows.dtype), columns, targets, reduction="none", filter_eps=None)
            for rows, columns in directions
        )
    from inf_cl import cal_flash_loss

    head = math.gcd(sequence.shape[1], 256)
    return tuple(cal_flash_loss(rows, columns, targets, scale, head) for rows, columns in directions)


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
        columns = size * arguments.candidates
        self.operations = (8 if columns == size else 16) * size * columns * arguments.dim

    def run(self, backend):
        """Seconds of the forward and of the backward pass."""
        for tensor in self.inputs.values():
            tensor.grad = None
        start = self.now()
        losses = losses_of(backend, self.inputs, self.chunk_size)
        middle = self.now()
        torch.autograd.backward(losses, [weights.to(losses[0].dtype) for weights in self.weights])
        return middle - start, self.now() - middle

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_memory(arguments):
    """Peak MiB of one forward and backward pass above what the process held before it, and MiB of the gradients."""
    backend, size, dropped = json.loads(arguments.measure_memory)
    # The libraries' own buffers come with the first matrix products and are none of the losses' business.
    Case(64, 0.5, arguments).run(backend)
    case = Case(size, dropped, arguments)
    gradients = sum(tensor.nbytes for tensor in case.inputs.values()) / MIB
    if case.device.type == "cuda":
        case.run(backend)  # kernels are chosen for this size, on copies
        for tensor in case.inputs.values():
            tensor.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run(backend)
        return (torch.cuda.max_memory_allocated() - before) / MIB, gradients
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
    before = resident("VmRSS")
    case.run(backend)
    return resident("VmHWM") - before, gradients


def matrix_rate(device):
    """Operations per second of a bfloat16 matrix product of 8,192 each way, the median of 20."""
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for index in range(25):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        if index >= 5:
            seconds.append(time.perf_counter() - start)
    return 2 * 8192**3 / statistics.median(seconds)


def resident(field):
    """MiB of this process: now (`VmRSS`) or at its peak (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def memory_of(*case):
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory", json.dumps(case)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        return f"failed: {(result.stderr.strip().splitlines() or ['killed'])[-1][:60]}"
    peak, gradients = json.loads(result.stdout.splitlines()[-1])
    return f"{peak:,.0f} ({gradients:,.0f})"


def bench(size, dropped, arguments, rate):
    backends = [each for each in arguments.backends if each != "reference" or size <= arguments.reference_up_to]
    if arguments.memory_only:
        rows = []
        for backend in backends:
            rows.append(f"| {size:,} | {dropped:.0%} | {backend} | {memory_of(backend, size, dropped)} |")
            print(rows[-1], flush=True)
        return rows
    case = Case(size, dropped, arguments)
    seconds = {backend: [] for backend in backends}
    for index in range(-1, arguments.rounds):  # the first round warms up
        for backend in backends if index % 2 else backends[::-1]:
            taken = case.run(backend)
            if index >= 0:
                seconds[backend].append(taken)
    operations = case.operations
    del case
    if arguments.device.startswith("cuda"):
        torch.cuda.empty_cache()
    rows = []
    for backend in backends:
        forward, backward = (1000 * statistics.median(column) for column in zip(*seconds[backend]))
        ratio = "1"
        if backend != backends[0]:
            ratios = [sum(slow) / sum(fast) for slow, fast in zip(seconds[backends[0]], seconds[backend])]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        share = "–" if rate is None else f"{operations / statistics.median(map(sum, seconds[backend])) / rate:.0%}"
        rows.append(
            f"| {size:,} | {dropped:.0%} | {backend} | {forward:,.1f} | {backward:,.1f} | {ratio} | {share} | "
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
    on_gpu = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    rate = matrix_rate(arguments.device) if on_gpu and not arguments.memory_only else None
    candidates = f"{arguments.candidates} N candidates" if arguments.candidates > 1 else "no other candidates"
    passes = "one pass each" if arguments.memory_only else f"medians of {arguments.rounds} rounds"
    lines = [
        f"{device}, torch {torch.__version__}, {arguments.dtype}, D = {arguments.dim}, {candidates}, chunk size "
        f"{arguments.chunk_size or 'by default'}; {passes}."
        + (f" bfloat16 matrix product: {rate / 1e12:,.0f} TFLOP/s." if rate else ""),
        "",
    ]
    memory = "peak above inputs, MiB (of it gradients)"
    if arguments.memory_only:
        lines += [f"| N | dropped | backend | {memory} |", "|---|---|---|---|"]
    else:
        lines += [
            "| N | dropped | backend | forward, ms | backward, ms | times as fast as the first (range) | "
            f"share of the matrix rate | {memory} |",
            "|---|---|---|---|---|---|---|---|",
        ]
    print("\n".join(lines), flush=True)
    for size in arguments.sizes:
        for dropped in arguments.dropped:
            lines += bench(size, dropped, arguments, rate)
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
