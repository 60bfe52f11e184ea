"""A protein graph neural network to embed with: from a path, whatever wrote it, or untrained for try-outs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..structure.graph import ResidueGraph
from ..structure.synthetic import synthetic_chains
from .configuration import GearNetConfig
from .gearnet import GearNetModel


def load_pgnn(
    path: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GearNetModel:
    """
    A frozen pGNN, ready to embed.

    Args:
        path (`str` or `os.PathLike`): A folder written by `save_pretrained`, or a weights file of torchdrug such as
            `mc_gearnet_edge.pth`.
        device, dtype: Where and in which precision it computes.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"There is no pGNN at {path}. Give a folder written by GearNetModel.save_pretrained, or a weights file as "
            "published by the GearNet authors (mc_gearnet_edge.pth, Zenodo record 7593637)."
        )
    pgnn = GearNetModel.from_pretrained(path) if path.is_dir() else GearNetModel.from_torchdrug(path)
    return pgnn.eval().requires_grad_(False).to(device=device, dtype=dtype)


@torch.no_grad()
def untrained_gearnet(hidden_dims: Sequence[int] = (512,) * 6, seed: int = 0) -> GearNetModel:
    """
    A GearNet-Edge with random weights, for try-outs and benchmarks. Not a substitute for a pre-trained one: its
    embeddings tell the local geometry of residues apart, and no more.

    The statistics of its batch normalisations are taken from synthetic folds. Without them the sums over neighbours
    grow from layer to layer until float16 does not hold them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pgnn = GearNetModel(GearNetConfig(hidden_dims=list(hidden_dims)))
    options = pgnn.config.graph_options
    chains = synthetic_chains(24, seed=seed)
    graph = ResidueGraph.pack([ResidueGraph.from_chain(torch.from_numpy(c.ca), c.sequence, **options) for c in chains])
    norms = [module for module in pgnn.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of this one graph, without a trace of the initial 0 and 1
    # In float64, so that rounding, which varies with the number of threads, does not show in the float32 statistics
    # and with them in the digest.
    pgnn.double().train()
    pgnn(graph.ca.double(), graph.residue_types, graph.edges)
    pgnn.float()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return pgnn.eval().requires_grad_(False)
