"""A protein graph neural network to embed with: by the name of a family, from a path, or untrained for try-outs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ..structure.graph import ResidueGraph
from ..structure.synthetic import synthetic_chains
from .configuration import GearNetConfig, ProteinMPNNConfig
from .gearnet import GearNetModel
from .proteinmpnn import ProteinMPNNEncoder
from .weights import load_auto, read_tensors


logger = logging.get_logger(__name__)

SHIPPED_PGNNS = {"gearnet-small": Path(__file__).parent / "pretrained" / "gearnet_small"}
"""Pre-trained networks that come with the package, by the name that `StructureDatasetBuilder(pgnn=…)` and `--pgnn`
take. What they are and were trained on is in the README.md beside them."""


@dataclass(frozen=True)
class PgnnFamily:
    """
    How networks of one family come about.

    Args:
        model_class (`type[PreTrainedModel]`): Loads folders of `save_pretrained`.
        from_file (`Callable[[Path], PreTrainedModel]`): Loads the authors' weights file.
        owns (`Callable[[dict], bool]`): Whether the content of a weights file looks like this family's.
        untrained (`Callable[[int | None], PreTrainedModel]`): A network of this width, or of the family's default,
            with random weights.
    """

    model_class: type[PreTrainedModel]
    from_file: Callable[[Path], PreTrainedModel]
    owns: Callable[[dict], bool]
    untrained: Callable[[int | None], PreTrainedModel]


PGNN_FAMILIES: dict[str, PgnnFamily] = {}
"""Families by the name that `StructureDatasetBuilder(pgnn=…)` and `--pgnn` take."""


def register_pgnn(name: str, family: PgnnFamily) -> None:
    """Make a family known to [`load_pgnn`], and so to the builder and the examples."""
    if os.sep in name or not name:
        raise ValueError(f"{name!r} cannot name a family of pGNNs: it must not look like a path.")
    PGNN_FAMILIES[name] = family


def load_pgnn(
    pgnn: str | os.PathLike | Any,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    width: int | None = None,
) -> Any:
    """
    A frozen pGNN, ready to embed.

    Args:
        pgnn (`str` or `os.PathLike`): A folder written by `save_pretrained`; a weights file as its authors publish it
            (GearNet's `mc_gearnet_edge.pth`, ProteinMPNN's `v_48_020.pt`); `"gearnet-small"`, the small pre-trained
            one that comes with this package; or the name of a family, `"gearnet"` or `"proteinmpnn"`, for an
            *untrained* network. An object with `embed_batch` and `output_dim` is returned as it is.
        device, dtype: Where and in which precision it computes.
        width (`int`, *optional*): Of an untrained network; else its family's own.
    """
    if hasattr(pgnn, "embed_batch") and hasattr(pgnn, "output_dim"):
        return pgnn
    if not isinstance(pgnn, (str, os.PathLike)):
        raise TypeError(
            f"A {type(pgnn).__name__} is no pGNN; expected a path, one of {', '.join(PGNN_FAMILIES)}, or an object "
            "with output_dim and embed_batch(list of ProteinChain) -> list of (L, output_dim) tensors."
        )
    path = SHIPPED_PGNNS.get(str(pgnn), Path(pgnn))
    if path.is_dir():
        network = _family_of_folder(path).model_class.from_pretrained(path)
    elif path.is_file():
        network = _family_of_file(path).from_file(path)
    elif str(pgnn) in PGNN_FAMILIES:
        logger.warning(
            f"pgnn={str(pgnn)!r} without weights is an UNTRAINED network: its embeddings only reflect local geometry. "
            "Give the path of pre-trained weights for more than a try-out."
        )
        network = PGNN_FAMILIES[str(pgnn)].untrained(width)
    else:
        raise ValueError(
            f"There is no pGNN at {path}. Give a folder written by save_pretrained, a weights file as published "
            "(GearNet's mc_gearnet_edge.pth of Zenodo record 7593637, ProteinMPNN's v_48_020.pt), "
            f"{', '.join(SHIPPED_PGNNS)} for the small one that comes with this package, or one of "
            f"{', '.join(PGNN_FAMILIES)} for an untrained network."
        )
    return network.eval().requires_grad_(False).to(device=device, dtype=dtype)


def _family_of_folder(path: Path) -> PgnnFamily:
    config = load_auto(AutoConfig, path)
    for family in PGNN_FAMILIES.values():
        if isinstance(config, family.model_class.config_class):
            return family
    known = ", ".join(family.model_class.config_class.model_type for family in PGNN_FAMILIES.values())
    raise ValueError(f"{path} holds a model of type {config.model_type!r}; expected a pGNN, one of: {known}.")


def _family_of_file(path: Path) -> PgnnFamily:
    try:
        content = read_tensors(path, "the weights of a pGNN")
    except ValueError:
        content = {}  # the loader of the first family says what is wrong with it
    for family in PGNN_FAMILIES.values():
        if family.owns(content):
            return family
    return next(iter(PGNN_FAMILIES.values()))


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


def untrained_proteinmpnn(seed: int = 0, **options: Any) -> ProteinMPNNEncoder:
    """
    A ProteinMPNN encoder with random weights, for try-outs and benchmarks. It never sees the sequence, so that its
    embeddings are of the backbone's local geometry alone.

    Args:
        options (`Any`): Fields of [`ProteinMPNNConfig`], such as `hidden_size=64`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProteinMPNNEncoder(ProteinMPNNConfig(**options)).eval().requires_grad_(False)


def _is_proteinmpnn(content: dict) -> bool:
    return "model_state_dict" in content or any(str(name).startswith("encoder_layers.") for name in content)


register_pgnn(
    "gearnet",
    PgnnFamily(
        GearNetModel,
        GearNetModel.from_torchdrug,
        lambda content: any(str(name).startswith("layers.") for name in content),
        lambda width: untrained_gearnet([width or 512] * 6),
    ),
)
register_pgnn(
    "proteinmpnn",
    PgnnFamily(
        ProteinMPNNEncoder,
        ProteinMPNNEncoder.from_checkpoint,
        _is_proteinmpnn,
        lambda width: untrained_proteinmpnn(hidden_size=width or 128),
    ),
)
