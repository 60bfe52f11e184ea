"""
Speed of reading structure files and of 3Di tokens, each against a named alternative in the same run.

    python benchmarks/bench_structures.py --structures FOLDER --output structures.md

Rounds are interleaved (ours, alternative, ours, ...), so that a change of the machine's load meets both; the table has
the medians and the median of the ratios within a round. Without --structures, chains are generated.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import gemmi
import mini3di
import numpy as np
import torch

from structure_aligned.structure.chain import BACKBONE_ATOMS, ProteinChain
from structure_aligned.structure.io import read_chains, write_mmcif
from structure_aligned.structure.tokens import STRUCTURE_ALPHABET_3DI, encode_3di


SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
LENGTHS = (100, 300, 1000)


def random_chain(rng, length, name="random"):
    """A random walk of CA atoms, 3.8 Å a step, with atoms scattered around them."""
    steps = rng.normal(size=(length, 3))
    ca = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    return ProteinChain(
        entry_id=name,
        chain_id="A",
        sequence="".join(rng.choice(list(STRUCTURE_ALPHABET_3DI), length)),
        coords=(ca[:, None] + rng.normal(size=(length, len(BACKBONE_ATOMS), 3))).astype(np.float32),
        residue_numbers=tuple(str(i + 1) for i in range(length)),
        b_factors=np.full(length, 20, dtype=np.float32),
    )


def read_per_atom(path):
    """What one writes first with gemmi: a Python loop over residues and atoms, last-listed altloc, same residues."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    chains = []
    for chain in structure[0]:
        polymer = chain.get_polymer()
        if polymer.check_polymer_type() not in (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD):
            continue
        letters, coords = [], []
        for residue in polymer.first_conformer():
            letters.append(gemmi.find_tabulated_residue(residue.name).one_letter_code.upper())
            row = np.full((len(BACKBONE_ATOMS), 3), np.nan, dtype=np.float32)
            for atom in residue:
                if atom.name in BACKBONE_ATOMS:
                    row[BACKBONE_ATOMS.index(atom.name)] = atom.pos.tolist()
            coords.append(row)
        chains.append(("".join(letters), np.array(coords)))
    return chains


def biopython_reader():
    """`path -> structure` with Biopython's parsers (parsing only), or `None` where Biopython is not installed."""
    try:
        from Bio.PDB import FastMMCIFParser, PDBParser
    except ImportError:
        return None
    import gzip

    def read(path):
        parser = FastMMCIFParser(QUIET=True) if ".cif" in path.name.lower() else PDBParser(QUIET=True)
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rt") as file:
            return parser.get_structure(path.name, file)

    return read


def compare(ours, other, rounds):
    """Median seconds of both and the median of other / ours over interleaved rounds, after one unrecorded round."""
    times = {ours: [], other: []}
    for i in range(rounds + 1):
        for run in (ours, other):
            start = time.perf_counter()
            run()
            if i:
                times[run].append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(times[ours], times[other]))
    return statistics.median(times[ours]), statistics.median(times[other]), ratio


def bench_reading(paths, rounds):
    alternatives = {"gemmi, Python loop over atoms": read_per_atom}
    if (biopython := biopython_reader()) is not None:
        alternatives["Biopython, parsing only"] = biopython
    chains = [chain for path in paths for chain in read_chains(path)]
    print(f"{len(paths)} files, {len(chains)} chains, {sum(map(len, chains))} residues")
    for name, read in alternatives.items():
        ours, other, ratio = compare(
            lambda: [read_chains(path) for path in paths], lambda read=read: [read(path) for path in paths], rounds
        )
        task = f"read {len(paths)} files ({len(chains)} chains)"
        yield task, f"{len(paths) / ours:.0f} files/s", name, f"{len(paths) / other:.0f} files/s", ratio
        print(f"{task}: {1e3 * ours / len(chains):.2f} ms per chain")


def bench_tokens(rounds, seed):
    rng = np.random.default_rng(seed)
    encoder = mini3di.Encoder()
    for length in LENGTHS:
        coords = [random_chain(rng, length).coords.astype(np.float64) for _ in range(max(1, 2000 // length))]
        for item in coords:  # a ratio means something only between equal results
            states = encoder.encode_atoms(item[:, 1], item[:, 4], item[:, 0], item[:, 2])
            if not np.array_equal(states.filled(), encode_3di(item)[0]):
                raise SystemExit(f"3Di of a chain of {length} residues differs from mini3di: fix that first.")
        ours, other, ratio = compare(
            lambda coords=coords: [encode_3di(item) for item in coords],
            lambda coords=coords: [encoder.encode_atoms(c[:, 1], c[:, 4], c[:, 0], c[:, 2]) for c in coords],
            rounds,
        )
        speeds = [f"{len(coords) / seconds:.0f} chains/s" for seconds in (ours, other)]
        yield f"3Di, {length} residues", speeds[0], "mini3di Encoder", speeds[1], ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, help="folder searched for .pdb, .ent, .cif and .mmcif files (.gz)")
    parser.add_argument("--files", type=int, default=60, help="at most this many files, drawn at random (default 60)")
    parser.add_argument("--rounds", type=int, default=7, help="recorded rounds, at least 5 (default 7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to which the table is appended")
    args = parser.parse_args()
    if args.rounds < 5 or args.files < 1:
        parser.error(f"got --rounds {args.rounds} --files {args.files}; give at least 5 rounds and 1 file")
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as scratch:
        if args.structures:
            found = sorted(args.structures.rglob("*"))
            paths = [path for path in found if path.name.lower().removesuffix(".gz").endswith(SUFFIXES)]
            if not paths:
                parser.error(f"{args.structures} holds no structure file; expected {', '.join(SUFFIXES)}, also .gz")
            random.Random(args.seed).shuffle(paths)
            paths = paths[: args.files]
        else:
            rng = np.random.default_rng(args.seed)
            paths = [Path(scratch) / f"random{i}.cif.gz" for i in range(min(args.files, 30))]
            for i, path in enumerate(paths):
                write_mmcif(random_chain(rng, LENGTHS[i % len(LENGTHS)], path.stem), path)
        rows = [*bench_reading(paths, args.rounds), *bench_tokens(args.rounds, args.seed)]

    source = "files of a folder" if args.structures else "generated chains"
    lines = [
        f"Structures: medians of {args.rounds} interleaved rounds, one process, {source}, seed {args.seed}; Python "
        f"{platform.python_version()}, {platform.machine()}, gemmi {gemmi.__version__}, numpy {np.__version__}.",
        "",
        "| task | structure_aligned | alternative | its speed | alternative / ours (time) |",
        "|---|---|---|---|---|",
        *(f"| {task} | {ours} | {name} | {other} | {ratio:.2f} |" for task, ours, name, other, ratio in rows),
    ]
    table = "\n".join(lines) + "\n"
    print(table)
    if args.output:
        with args.output.open("a") as file:
            file.write(table + "\n")


if __name__ == "__main__":
    main()
