"""
Residues per second of GearNet-Edge (random weights): in batches, in float32 and bfloat16, against the plain version
of the tests run chain by chain, and against the rate of the machine's own matrix product.

The variants take turns within each round, so that a change of the machine's speed hits all of them; medians over the
rounds are reported. Runs on a GPU where there is one.

Usage:
    python benchmarks/bench_gearnet.py --output gearnet.md
    python benchmarks/bench_gearnet.py --structures folder_of_mmcif_files --chains 16
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from structure_aligned.models.configuration import GearNetConfig
from structure_aligned.models.gearnet import MAX_EDGES, GearNetModel
from structure_aligned.structure.graph import NODE_FEATURE_DIM, ResidueGraph
from structure_aligned.structure.line_graph import LineGraph
from structure_aligned.structure.synthetic import synthetic_chains
from structure_aligned.utils.files import write_text


sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.models.gearnet_reference import reference_forward


TORCHDRUG_RATE = 236
"""Residues per second of torchdrug's GearNet-Edge 6×512 on two cores of the kind this was developed on."""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, help="folder of PDB or mmCIF files; synthetic folds by default")
    parser.add_argument("--chains", type=int, default=8, help="number of chains (default: %(default)s)")
    parser.add_argument("--length", type=int, default=250, help="residues of synthetic folds, give or take 50")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-edges", type=int, default=MAX_EDGES, help="edges of one batch (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--reference-chains", type=int, default=2, help="chains the plain version is timed on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--output", type=Path, help="also write the table here")
    return parser.parse_args()


def load_chains(arguments):
    if arguments.structures is None:
        return synthetic_chains(arguments.chains, min_length=arguments.length - 50, max_length=arguments.length + 50)
    from structure_aligned.structure.io import read_chains

    names = (".pdb", ".ent", ".cif", ".mmcif", ".pdb.gz", ".ent.gz", ".cif.gz", ".mmcif.gz")
    files = sorted(path for path in arguments.structures.rglob("*") if path.name.endswith(names))
    chains = list(itertools.islice((chain for path in files for chain in read_chains(path)), arguments.chains))
    if not chains:
        raise SystemExit(f"{arguments.structures} has no protein chain; give a folder of PDB or mmCIF files.")
    return chains


def count_work(graphs, config):
    """Floating-point operations of the matrix products: as done here, and with every cell of every sum multiplied."""
    edges = sum(len(graph.edges) for graph in graphs)
    nodes = sum(len(graph.ca) for graph in graphs)
    rows, cells, pairs = 0, 0, 0
    for graph in graphs:
        line_graph = LineGraph.from_edges(graph.edges, graph.ca, config.num_angle_bin)
        for block in line_graph.blocks:
            rows += sum(block.rows_per_bin)
            cells += sum(block.rows_per_bin[1:])
            pairs += len(block.pair_offsets) - 1
    widths = [NODE_FEATURE_DIM, *config.hidden_dims]
    edge_widths = [config.edge_input_dim, *widths[:-1]]
    relations, bins = config.num_relation, config.num_angle_bin
    on_nodes = sum(2 * a * b * nodes * (2 * relations + 1) for a, b in itertools.pairwise(widths))
    on_edges = sum(2 * a * b for a, b in itertools.pairwise(edge_widths))
    return {
        "done": on_nodes + on_edges * (rows + edges),
        "naive": on_nodes + on_edges * edges * (bins + 1),
        "edges per residue": edges / nodes,
        "pairs per edge": pairs / edges,
        "cells filled": (cells + pairs) / (bins * pairs),  # bin 0 holds the self-loop: always filled
    }


class Stopwatch:
    """Seconds of calls by name, the device's queue drained before and after each."""

    def __init__(self, device):
        self.device, self.seconds = device, {}

    def __call__(self, name, function):
        self.drain()
        start = time.perf_counter()
        result = function()
        self.drain()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def drain(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, name):
        return statistics.median(self.seconds[name])


def main():
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    config = GearNetConfig(hidden_dims=[arguments.width] * arguments.layers)
    model = GearNetModel(config).eval()
    chains = load_chains(arguments)
    residues = sum(int(np.isfinite(chain.ca).all(1).sum()) for chain in chains)
    graphs = []
    for chain in chains:
        present = np.isfinite(chain.ca).all(1)
        letters = "".join(letter for letter, here in zip(chain.sequence, present) if here)
        graphs.append(ResidueGraph.from_chain(chain.ca[present], letters, device=device))
    work = count_work(graphs, config)

    models = {name: GearNetModel(config).eval() for name in arguments.dtypes}
    for name, other in models.items():
        other.load_state_dict(model.state_dict())
        other.to(device, getattr(torch, name))
    state = {name: tensor.to(device) for name, tensor in model.state_dict().items()}
    plain = graphs[: arguments.reference_chains]
    product_rows, product_repeats = 4096, 8
    factor = {name: torch.randn(product_rows, 512, device=device).to(getattr(torch, name)) for name in models}
    weight = {name: torch.randn(512, 512, device=device).to(getattr(torch, name)) for name in models}

    def multiply(name):
        for _ in range(product_repeats):
            torch.mm(factor[name], weight[name])

    def run_plain():
        with torch.no_grad():
            return [reference_forward(state, g.ca, g.residue_types, g.edges)[-1] for g in plain]

    variants = {
        f"embed {name}": lambda m=m: m.embed_batch(chains, max_edges=arguments.max_edges) for name, m in models.items()
    }
    variants |= {f"product {name}": lambda name=name: multiply(name) for name in models}
    variants["plain"] = run_plain
    watch, results = Stopwatch(device), {}
    for function in variants.values():
        function()
    for turn in range(arguments.rounds):
        # Each round in the other direction, so that no variant always follows the same one.
        for name, function in list(variants.items())[:: 1 if turn % 2 else -1]:
            results[name] = watch(name, function)

    plain_rate = sum(len(graph.ca) for graph in plain) / watch.median("plain")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    done, naive = work["done"] / residues, work["naive"] / residues
    lines = [
        f"GearNet-Edge {arguments.layers}×{arguments.width}, torch {torch.__version__}, {name}; {len(chains)} chains, "
        f"{residues} residues; median of {arguments.rounds} interleaved rounds.",
        "",
        "| variant | residues/s | against plain | matrix rate reached | of the product's rate | naive rate |",
        "|---|---|---|---|---|---|",
        f"| plain, chain by chain, float32 | {plain_rate:.0f} | 1.00 | | | {plain_rate * naive / 1e9:.0f} GFLOP/s |",
    ]
    for dtype in models:
        seconds = watch.median(f"embed {dtype}")
        product = 2 * product_rows * 512 * 512 * product_repeats / watch.median(f"product {dtype}") / 1e9
        rate = residues / seconds
        lines.append(
            f"| batched, {dtype} | {rate:.0f} | {rate / plain_rate:.2f} | {rate * done / 1e9:.0f} GFLOP/s | "
            f"{rate * done / 1e9 / product:.0%} of {product:.0f} GFLOP/s | {rate * naive / 1e9:.0f} GFLOP/s |"
        )
    lines += [
        "",
        f"Work per residue: {done / 1e6:.0f} MFLOP of matrix products, {naive / 1e6:.0f} with every cell multiplied; "
        f"{work['edges per residue']:.1f} edges, {work['pairs per edge']:.2f} pairs per edge, "
        f"{work['cells filled']:.0%} of the (pair, angle bin) cells filled. Matrix product measured on "
        f"({product_rows}, 512) × (512, 512). torchdrug: {TORCHDRUG_RATE} residues/s on two CPU cores.",
        "",
    ]
    embedded = {dtype: present_rows(results[f"embed {dtype}"]) for dtype in models}
    plain_result = torch.cat(results["plain"])
    for dtype, found in embedded.items():
        error = relative_error(found[: len(plain_result)], plain_result)
        lines.append(f"Relative difference of {dtype} from the plain version: {error:.1e}.")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        write_text(arguments.output, text)


def present_rows(embeddings):
    rows = torch.cat(embeddings)
    return rows[torch.isfinite(rows).all(1)]


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
