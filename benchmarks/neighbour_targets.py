"""
A dataset whose latent targets are nothing but contacts: in place of the pGNN's embedding, the residue types around
each residue in space, without those near it in sequence.

Could an aligned model that ignores contacts be owed to a pGNN that hardly needs them? These targets cannot be guessed
from a residue's neighbours in sequence: for each of 20 types, how many residues lie within 7, 9 and 12 Å (CB; soft by
2 Å) and at least 6 away in sequence, standardised over all residues.

    python benchmarks/neighbour_targets.py --dataset outputs/dataset --structures data/structures/train \
        --output outputs/dataset_neighbours
"""

import argparse
from pathlib import Path

import datasets
import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from structure_aligned import ProteinChain, load_prepared_dataset, read_chains
from structure_aligned.data.builder import resolve_structures
from structure_aligned.structure.chain import BACKBONE_ATOMS


RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RADII = (7.0, 9.0, 12.0)
SOFTNESS = 2.0
MIN_SEPARATION = 6


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="of examples/prepare.py")
    parser.add_argument("--structures", nargs="+", required=True, help="that it was made from")
    parser.add_argument("--output", required=True, type=Path)
    return parser.parse_args()


def neighbour_types(chain: ProteinChain) -> np.ndarray:
    """`(L, 60)`; NaN where the residue has neither CB nor CA."""
    cb, ca = (chain.coords[:, BACKBONE_ATOMS.index(atom)] for atom in ("CB", "CA"))
    points = np.where(np.isfinite(cb).all(axis=1, keepdims=True), cb, ca)
    resolved = np.isfinite(points).all(axis=1)
    index = np.arange(len(chain))
    apart = (np.abs(index[:, None] - index) >= MIN_SEPARATION) & resolved
    distances = np.nan_to_num(cdist(points, points), nan=np.inf)
    types = np.array([[letter == residue for residue in RESIDUES] for letter in chain.sequence], dtype=np.float64)
    near = [np.clip((radius - distances) / SOFTNESS, 0, 1) * apart @ types for radius in RADII]
    found = np.concatenate(near, axis=1)
    found[~resolved] = np.nan
    return found


def main() -> None:
    args = parse_arguments()
    data = load_prepared_dataset(args.dataset)
    wanted = {name for split in data.values() for name in split["id"]}
    targets = {}
    for path in tqdm(resolve_structures(args.structures), "Reading chains", unit="file"):
        targets.update({chain.id: neighbour_types(chain) for chain in read_chains(path) if chain.id in wanted})
    if missing := sorted(wanted - set(targets)):
        raise ValueError(f"{len(missing)} chains of {args.dataset} are not in {args.structures}, first {missing[0]}.")
    together = np.concatenate(list(targets.values()))
    mean, deviation = np.nanmean(together, axis=0), np.nanstd(together, axis=0) + 1e-3

    def replace(row: dict) -> dict:
        target = ((targets[row["id"]] - mean) / deviation).astype(np.float16)
        return {
            "structure_embedding": target.tobytes(),
            "structure_embedding_shape": target.shape,
            "structure_embedding_mask": ~np.isnan(target).any(axis=1),
            "pgnn": f"neighbour_types:{target.shape[1]}",
        }

    replaced = {name: rows.map(replace, features=rows.features, desc=name) for name, rows in data.items()}
    datasets.DatasetDict(replaced).save_to_disk(args.output)
    print(f"{len(targets)} chains; saved {args.output}.")


if __name__ == "__main__":
    main()
