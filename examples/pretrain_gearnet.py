"""
Pre-trains a GearNet-Edge on structures without labels, where the published weights cannot be had.

    python examples/pretrain_gearnet.py --structures structures/train --validation_structures structures/valid

Ends with what linear probes read from its embeddings on the validation chains, beside an untrained network of the
same size, and a folder that `--pgnn` of examples/prepare.py and examples/train.py takes.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from common import use_all_cores
from tqdm import tqdm
from transformers import HfArgumentParser

from structure_aligned import GearNetConfig, GearNetModel, ProteinChain, read_chains
from structure_aligned.data.selecting import resolve_structures
from structure_aligned.evaluation.pgnn_probes import evaluate_pgnn
from structure_aligned.models.folders import halve_stored_weights
from structure_aligned.models.pgnn import untrained_gearnet
from structure_aligned.training.gearnet_pretraining import pretrain_gearnet
from structure_aligned.training.output_folder import (
    OVERWRITE_HELP,
    check_output_dir,
    checkpoint_to_resume,
    clear_output_dir,
)
from structure_aligned.utils.files import write_json
from structure_aligned.utils.scripts import clean_errors


SUMMARY_NAME = "pretraining.json"
PROBES = ("secondary_structure", "structure_tokens", "contacts")


@dataclass
class Arguments:
    structures: str = field(metadata={"help": "Structure files to train on: folder or glob."})
    validation_structures: str = field(metadata={"help": "The same, for the probes."})
    output_dir: str = field(default="outputs/gearnet", metadata={"help": "Where the network goes."})
    objective: str = field(default="prediction", metadata={"help": "prediction, or contrast (of two views)."})
    hidden_dims: list[int] = field(default_factory=lambda: [96] * 4, metadata={"help": "Width of each layer."})
    embedding_layers: str = field(default="all", metadata={"help": "Layers that make the embedding: last or all."})
    use_residue_types: bool = field(default=True, metadata={"help": "Let the network see residue types."})
    epochs: float = field(default=5.0, metadata={"help": "Passes over the chains."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    mask_fraction: float = field(default=0.15, metadata={"help": "Residues whose type is hidden."})
    residues_per_batch: int = field(default=2048, metadata={"help": "At most, of all chains together."})
    probe_chains: int = field(default=300, metadata={"help": "Training chains that the probes are fitted on."})
    half_precision: bool = field(default=False, metadata={"help": "Store the weights in float16."})
    seed: int = field(default=0, metadata={"help": "Of weights, masks and order."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints, of which one is kept."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from; true for the newest in the output folder."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})


def read_all(structures: str) -> list[ProteinChain]:
    files = resolve_structures(structures)
    return [chain for path in tqdm(files, desc=f"Reading {structures}") for chain in read_chains(path)]


def mean_probes(pgnn: GearNetModel, train: list[ProteinChain], validation: list[ProteinChain]) -> dict[str, float]:
    rows = evaluate_pgnn(pgnn, train, validation)
    return {name: float(np.nanmean([row[name] for row in rows])) for name in PROBES}


def main() -> None:
    (args,) = HfArgumentParser([Arguments]).parse_args_into_dataclasses(sys.argv[1:])
    check_output_dir(args)
    use_all_cores()
    train, validation = read_all(args.structures), read_all(args.validation_structures)
    torch.manual_seed(args.seed)
    options = {"embedding_layers": args.embedding_layers, "use_residue_types": args.use_residue_types}
    gearnet = GearNetModel(GearNetConfig(hidden_dims=args.hidden_dims, **options))
    clear_output_dir(args)
    start = time.perf_counter()
    history = pretrain_gearnet(
        gearnet,
        train,
        args.objective,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        residues_per_batch=args.residues_per_batch,
        mask_fraction=args.mask_fraction,
        seed=args.seed,
        output_dir=args.output_dir,
        save_steps=args.save_steps,
        resume_from_checkpoint=checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir),
    )
    hours = (time.perf_counter() - start) / 3600
    folder = Path(args.output_dir)
    gearnet.save_pretrained(folder)
    if args.half_precision:
        halve_stored_weights(folder)
    # As it will be used: with the weights that were stored.
    gearnet = GearNetModel.from_pretrained(folder, dtype=torch.float32).eval()
    untrained = untrained_gearnet(args.hidden_dims, args.seed)
    for name, value in options.items():
        setattr(untrained.config, name, value)
    fitted = train[:: max(1, len(train) // args.probe_chains)][: args.probe_chains]
    probes = {
        "pre-trained": mean_probes(gearnet, fitted, validation),
        "untrained": mean_probes(untrained, fitted, validation),
    }
    summary = {
        "chains": len(train),
        "residues": sum(len(chain.sequence) for chain in train),
        "parameters": gearnet.num_parameters(),
        "weights_digest": gearnet.weights_digest(),
        "training_hours": hours,
        "history": history,
        "probes": probes,
        "options": vars(args),
    }
    write_json(folder / SUMMARY_NAME, summary)
    print(f"{'probe, validation chains':28}{'untrained':>12}{'pre-trained':>14}")
    for name in PROBES:
        print(f"{name:28}{probes['untrained'][name]:12.3f}{probes['pre-trained'][name]:14.3f}")
    print(f"Saved {folder}: give it as --pgnn.")


if __name__ == "__main__":
    clean_errors(main)()
