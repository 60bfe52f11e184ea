"""
Build rate and reading rate of a structure dataset.

    python benchmarks/bench_dataset.py --structures DIR [--output benchmarks/dataset.md]

Building is timed cold (nothing cached) and warm (features cached, dataset not). Reading compares our binary column
with the nested float16 lists that Datasets users would write first, in turn in one run.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch

from structure_aligned import GearNetModel, StructureDatasetBuilder, decode_embedding, untrained_gearnet
from structure_aligned.data.selecting import resolve_structures
from structure_aligned.structure.synthetic import write_synthetic_folds
from structure_aligned.utils.files import write_text


def build(files: list[Path], pgnn: GearNetModel, cache: Path, features: Path, num_proc: int) -> tuple:
    start = time.perf_counter()
    builder = StructureDatasetBuilder(files, pgnn, cache, feature_cache=features, on_error="skip")
    builder.download_and_prepare(num_proc=num_proc)
    return time.perf_counter() - start, builder


def rows_per_second(dataset: datasets.Dataset, decode, indices: list[int]) -> float:
    start = time.perf_counter()
    for index in indices:
        decode(dataset[index])
    return len(indices) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", help="folder or glob; synthetic folds without it")
    parser.add_argument("--num_files", type=int, default=100)
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden_dims", type=int, nargs="+", default=[512] * 6, help="of the untrained GearNet-Edge")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pgnn = untrained_gearnet(args.hidden_dims).to(device)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.structures is None:
            write_synthetic_folds(root / "folds", args.num_files)
        files = resolve_structures(args.structures or root / "folds")
        files = random.Random(0).sample(files, min(args.num_files, len(files)))
        cold, builder = build(files, pgnn, root / "one", root / "features", args.num_proc)
        warm = []
        for index in range(args.rounds):
            seconds, again = build(files, pgnn, root / f"warm{index}", root / "features", args.num_proc)
            assert again.report.parsed == again.report.embedded == 0
            warm.append(seconds)
        data = builder.as_dataset("train")
        residues, chains = sum(data["length"][:]), len(data)

        rows = [{"embedding": decode_embedding(row)} for row in data]
        nested = datasets.Dataset.from_list(
            rows, features=datasets.Features({"embedding": datasets.List(datasets.List(datasets.Value("float16")))})
        )
        nested.save_to_disk(root / "nested")
        nested = datasets.load_from_disk(root / "nested").with_format("numpy", dtype=np.float16)
        indices = [random.Random(1).randrange(chains) for _ in range(300)]
        binary = data.select_columns(["structure_embedding", "structure_embedding_shape"])
        rates = {"ours": [], "nested": [], "whole row": []}
        for _ in range(args.rounds):
            rates["ours"].append(rows_per_second(binary, decode_embedding, indices))
            rates["nested"].append(rows_per_second(nested, lambda row: np.stack(list(row["embedding"])), indices))
            rates["whole row"].append(rows_per_second(data, decode_embedding, indices))
    ratios = [a / b for a, b in zip(rates["ours"], rates["nested"])]

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"

    dims = "×".join(map(str, (len(args.hidden_dims), args.hidden_dims[0])))
    lines = [
        f"Structure dataset: {len(files)} files, {chains} chains, {residues:,} residues; GearNet-Edge {dims} fp32 on "
        f"{device}, {torch.get_num_threads()} threads, {args.num_proc} processes; {args.rounds} rounds, median "
        "(min–max).",
        "",
        "| measure | value |",
        "|---|---:|",
        f"| build, nothing cached: residues/s (one run) | {residues / cold:,.0f} |",
        f"| build, nothing cached: chains/s (one run) | {chains / cold:,.2f} |",
        f"| build, features cached: chains/s | {spread([chains / seconds for seconds in warm])} |",
        f"| read embedding rows/s, binary column (ours) | {spread(rates['ours'])} |",
        f"| read embedding rows/s, nested float16 lists (Datasets, numpy format) | {spread(rates['nested'])} |",
        f"| paired ratio ours / nested | {statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f}) |",
        f"| read whole rows/s, all columns as Python | {spread(rates['whole row'])} |",
    ]
    text = "\n".join(lines)
    print(text)
    if args.output is not None:
        write_text(args.output, text + "\n")


if __name__ == "__main__":
    main()
