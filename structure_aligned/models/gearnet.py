"""
GearNet and GearNet-Edge in plain PyTorch, with the weights named as torchdrug names them.

Reference: Zhang et al., *Protein Representation Learning by Geometric Structure Pretraining*, ICLR 2023
(arXiv:2203.06125).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from structure_aligned.structure.chain import ProteinChain
from structure_aligned.structure.graph import (
    NODE_FEATURE_DIM,
    UNKNOWN_RESIDUE,
    ResidueGraph,
    as_coordinates,
    edge_features,
    node_features,
)
from structure_aligned.structure.line_graph import FlatLineGraph, LineGraph, LineGraphBlock, counts_of

from .configuration import EMBEDDING_LAYERS, GearNetConfig
from .digest import digest_of
from .modes import evaluating
from .torchdrug import check_state_dict, read_state_dict, settings_from_state_dict
from .weights import WholeWeights


MAX_EDGES = 12_288
"""Default bound on the edges of one graph in `embed_batch`."""

# Rows of the line graph that are in memory at once, twice. Buffers below 32 MiB are reused by the allocator of glibc;
# larger ones are mapped anew each time, which costs more than filling them. A GPU wants longer products instead.
_MAX_ROWS_CPU, _MAX_ROWS_GPU = 16_384, 131_072


@dataclass
class GearNetOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(N, hidden_dims[-1])`): Node features of the last layer.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Node features of every layer, each of shape
            `(N, hidden_dims[i])`.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def _sum_members(features: torch.Tensor, members: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Row r is the sum of `features[members[offsets[r] : offsets[r + 1]]]`; half precisions are summed in float32."""
    return F.embedding_bag(members, features, offsets, mode="sum", include_last_offset=True)


class GeometricRelationalConv(nn.Module):
    """
    Relational convolution: the sums of the incoming features, one per relation, go through one linear layer side by
    side; the node's own feature goes through another. Then batch normalisation and ReLU.

    With running statistics (`eval()`) the normalisation is an affine map and is multiplied into the weights.
    """

    def __init__(self, input_dim: int, output_dim: int, relations: int) -> None:
        super().__init__()
        self.relations = relations
        self.self_loop = nn.Linear(input_dim, output_dim)
        self.linear = nn.Linear(relations * input_dim, output_dim)
        self.batch_norm = nn.BatchNorm1d(output_dim)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weight on the sums (float32 or wider), weight on the node itself and their common bias."""
        norm, dtype = self.batch_norm, self.linear.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weight, own = self.linear.weight.to(wide), self.self_loop.weight
        bias = self.linear.bias.to(wide) + self.self_loop.bias.to(wide)
        if not self.training:
            scale = norm.weight.to(wide) * torch.rsqrt(norm.running_var.to(wide) + norm.eps)
            weight, own = weight * scale[:, None], (own.to(wide) * scale[:, None]).to(dtype)
            bias = (bias - norm.running_mean.to(wide)) * scale + norm.bias.to(wide)
        return weight, own, bias.to(dtype)

    def activate(self, output: torch.Tensor) -> torch.Tensor:
        return F.relu(self.batch_norm(output) if self.training else output, inplace=True)

    def forward(self, hidden: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """`hidden` of shape `(N, input_dim)` and `sums` of shape `(N, relations · input_dim)`, relation-major."""
        weight, own, bias = self.weights()
        output = F.linear(sums, weight.to(hidden.dtype), bias)
        return self.activate(output.addmm_(hidden, own.T))


class EdgeConv(GeometricRelationalConv):
    """
    The same convolution on the line graph, where a relation is an angle bin. The `(edges, bins · width)` intermediate
    is never made: see `LineGraphBlock` for what is computed in its place.
    """

    def forward(self, hidden: torch.Tensor, line_graph: LineGraph | FlatLineGraph) -> torch.Tensor:
        """`hidden` of shape `(E, input_dim)`, edges in the order that `line_graph` was made from."""
        if isinstance(line_graph, FlatLineGraph):
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            sums = wide.new_zeros(len(hidden) * self.relations, hidden.shape[1])
            sums = sums.index_add(0, line_graph.cells, wide[line_graph.incoming]).view(len(hidden), -1)
            return super().forward(hidden, sums.to(hidden.dtype))
        weight, own, bias = self.weights()
        by_bin = weight.unflatten(1, (self.relations, -1)).transpose(0, 1).contiguous()
        by_bin = [by_bin[0].to(hidden.dtype), *(by_bin[1:] - by_bin[0]).to(hidden.dtype)]
        pairs = _sum_members(hidden, line_graph.edge_members, line_graph.edge_offsets)
        messages = torch.cat([self._block(pairs, block, by_bin, bias) for block in line_graph.blocks])
        return self.activate(messages.index_select(0, line_graph.pair_of_edge).addmm_(hidden, own.T))

    @staticmethod
    def _block(
        pairs: torch.Tensor, block: LineGraphBlock, weights: list[torch.Tensor], bias: torch.Tensor
    ) -> torch.Tensor:
        """Messages to the outgoing pairs of one block, of shape `(pairs, output_dim)`."""
        rows = _sum_members(pairs, block.members, block.offsets).split(block.rows_per_bin)
        if torch.is_grad_enabled():
            parts = [part @ weight.T for part, weight in zip(rows, weights)]
            products = torch.cat([parts[0] + bias, *parts[1:]])
        else:
            products = pairs.new_empty(sum(block.rows_per_bin), len(bias))
            for part, weight, out in zip(rows, weights, products.split(block.rows_per_bin)):
                torch.mm(part, weight.T, out=out)
            products[: block.rows_per_bin[0]] += bias
        return _sum_members(products, block.pair_members, block.pair_offsets)


class GearNetPreTrainedModel(WholeWeights, PreTrainedModel):
    config_class = GearNetConfig
    base_model_prefix = "gearnet"
    main_input_name = "ca"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # as torch and torchdrug start them, not the 0.02 of language models
            bound = module.in_features**-0.5
            initialization.uniform_(module.weight, -bound, bound)
            initialization.uniform_(module.bias, -bound, bound)


class GearNetModel(GearNetPreTrainedModel):
    """
    GearNet-Edge, or GearNet where `config.num_angle_bin` is `None`: residue embeddings from CA positions and residue
    types. Three families of batch normalisation are inside, so that outputs in training mode depend on what else is in
    the graph; `embed` and `embed_batch` always use the running statistics.

    Example:

    ```python
    model = GearNetModel.from_torchdrug("mc_gearnet_edge.pth")
    embeddings = model.embed_batch(read_chains("1aki.cif.gz"))
    ```
    """

    def __init__(self, config: GearNetConfig) -> None:
        super().__init__(config)
        dims = [NODE_FEATURE_DIM, *config.hidden_dims]
        self.layers = nn.ModuleList(GeometricRelationalConv(*widths, config.num_relation) for widths in pairwise(dims))
        self.batch_norms = nn.ModuleList(nn.BatchNorm1d(width) for width in config.hidden_dims)
        if config.num_angle_bin is not None:
            # An edge is one layer behind: its output has the width that the nodes had before the layer.
            edge_dims = [config.edge_input_dim, *dims[:-1]]
            self.edge_layers = nn.ModuleList(EdgeConv(*widths, config.num_angle_bin) for widths in pairwise(edge_dims))
        self.post_init()

    @classmethod
    def from_torchdrug(cls, path: str | Path, **config_kwargs: Any) -> GearNetModel:
        """
        Loads weights that torchdrug has written, such as `mc_gearnet_edge.pth` or `mc_gearnet.pth` of Zenodo record
        7593637. Number and width of the layers, angle bins and the edge variant are read from the tensors' shapes.

        Args:
            path (`str` or `Path`): A bare state dict, `.pth` or `.safetensors`. Nothing but tensors is unpickled.
            config_kwargs: Further fields of `GearNetConfig`, such as `embedding_layers="all"`.

        Raises:
            ValueError: The file is no state dict of tensors, or it is one of another family (IEConv, other relations).
        """
        state = read_state_dict(path)
        model = cls(GearNetConfig(**{**settings_from_state_dict(state, path), **config_kwargs}))
        check_state_dict(state, {name: tensor.shape for name, tensor in model.state_dict().items()}, path)
        model.load_state_dict(state)
        return model.eval()

    @property
    def output_dim(self) -> int:
        """Width of the embeddings that `embed_batch` returns."""
        return sum(self.config.hidden_dims) if self.config.embedding_layers == "all" else self.config.hidden_size

    def forward(
        self,
        ca: torch.Tensor,
        residue_types: torch.Tensor,
        edges: torch.Tensor,
        max_rows: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> GearNetOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            ca (`torch.Tensor` of shape `(N, 3)`): CA coordinates in Å of one chain or of several packed into one graph
                (`ResidueGraph`), float32 or float64 whatever the precision of the weights.
            residue_types (`torch.Tensor` of shape `(N,)`, int64): 0 … 19 as in `RESIDUE_LETTERS`, 20 for unknown.
            edges (`torch.Tensor` of shape `(E, 3)`, int64): Source, target, relation, from `residue_graph`.
            max_rows (`int`, *optional*): Rows of the line graph computed at once. Changes the memory taken, about
                `2 · max_rows · width` numbers, and not the result.
            output_hidden_states, return_dict (`bool`, *optional*): Those of the configuration by default.
        """
        config, dtype = self.config, self.layers[0].linear.weight.dtype
        ca = as_coordinates(ca)
        if not config.use_residue_types:
            residue_types = torch.full_like(residue_types, UNKNOWN_RESIDUE)
        edges = _sorted_edges(edges, len(ca), config.num_relation)
        source, target, relation = edges.unbind(1)
        cell = target * config.num_relation + relation
        order = cell.argsort(stable=True)
        counts = counts_of(cell, len(ca) * config.num_relation)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sources = source[order]

        hidden = node_features(residue_types, dtype)
        if config.num_angle_bin is not None:
            if torch.compiler.is_exporting():
                line_graph = FlatLineGraph.from_edges(edges, ca, config.num_angle_bin)
            else:
                max_rows = max_rows or (_MAX_ROWS_CPU if ca.device.type == "cpu" else _MAX_ROWS_GPU)
                line_graph = LineGraph.from_edges(edges, ca, config.num_angle_bin, max_rows)
            edge_hidden = edge_features(edges, ca, residue_types, config.num_relation, dtype)
        hidden_states = []
        for index, (layer, norm) in enumerate(zip(self.layers, self.batch_norms)):
            output = layer(hidden, _sum_members(hidden, sources, offsets).view(len(ca), -1))
            if config.short_cut and output.shape == hidden.shape:
                output = output + hidden
            if config.num_angle_bin is not None:
                edge_hidden = self.edge_layers[index](edge_hidden, line_graph)
                sums = _sum_members(edge_hidden, order, offsets).view(len(ca), -1)
                output = output + F.relu(layer.linear(sums))
            hidden = norm(output)
            hidden_states.append(hidden)
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = GearNetOutput(last_hidden_state=hidden, hidden_states=tuple(hidden_states) if wanted else None)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def embed(self, ca: np.ndarray | torch.Tensor, sequence: str, layers: str | None = None) -> torch.Tensor:
        """
        Residue embeddings of one chain.

        Args:
            ca (`np.ndarray` or `torch.Tensor` of shape `(L, 3)`): CA coordinates in Å, NaN where missing.
            sequence (`str`): One letter per residue; letters other than the twenty are "unknown".
            layers (`str`, *optional*): `"last"` or `"all"` (side by side); `config.embedding_layers` by default.

        Returns:
            `torch.Tensor` of shape `(L, D)`, float32 (float64 if the weights are), without gradient, on the model's
            device. Residues without CA are not in the graph and their rows are NaN.
        """
        return self._embed([(ca, sequence)], layers, MAX_EDGES)[0]

    def embed_batch(
        self, chains: Sequence[ProteinChain], layers: str | None = None, max_edges: int = MAX_EDGES
    ) -> list[torch.Tensor]:
        """
        Residue embeddings of many chains, in the order given; the same numbers as from `embed`, up to rounding.

        Args:
            chains (`list[ProteinChain]`): Any number; they are run through the network as graphs of bounded size.
            layers (`str`, *optional*): As in `embed`.
            max_edges (`int`, *optional*, defaults to 12288): Edges of one graph (about 19 per residue). A chain that
                has more is run on its own. A graph takes about `6 · edges · width` numbers. The sums over the line
                graph, torchdrug's `edges · angle_bins · width`, come in blocks of a size of their own.

        Returns:
            `list[torch.Tensor]`: Of shapes `(L_i, D)`, as from `embed`.
        """
        return self._embed([(chain.ca, chain.sequence) for chain in chains], layers, max_edges)

    def weights_digest(self) -> str:
        """
        SHA-256 over what the embeddings of a chain depend on: the fields of the configuration and the weights, as they
        are stored (so that bfloat16 has another digest than float32). Part of the key under which they are cached.
        """
        config = self.config
        fields = {
            "hidden_dims": config.hidden_dims,
            "num_angle_bin": config.num_angle_bin,
            "short_cut": config.short_cut,
            "embedding_layers": config.embedding_layers,
            **config.graph_options,
            # Only where it differs, so that the digests of published weights stay what they were.
            **({} if config.use_residue_types else {"use_residue_types": False}),
        }
        return digest_of(self, fields)

    @torch.no_grad()
    def _embed(
        self, chains: Sequence[tuple[np.ndarray | torch.Tensor, str]], layers: str | None, max_edges: int
    ) -> list[torch.Tensor]:
        layers = self.config.embedding_layers if layers is None else layers
        if layers not in EMBEDDING_LAYERS:
            raise ValueError(f"layers is {layers!r}; expected one of {EMBEDDING_LAYERS}.")
        if max_edges < 1:
            raise ValueError(f"max_edges is {max_edges}; expected at least 1.")
        results: list[torch.Tensor] = []
        with evaluating(self):
            for group in self._graphs(chains, max_edges):
                graphs = [graph for graph, _ in group if graph is not None]
                embedded = iter(self._run(ResidueGraph.pack(graphs), layers) if graphs else ())
                for graph, present in group:
                    rows = next(embedded) if graph is not None else None
                    results.append(self._scatter(rows, present, layers))
        return results

    def _graphs(
        self, chains: Sequence[tuple[np.ndarray | torch.Tensor, str]], max_edges: int
    ) -> Iterator[list[tuple[ResidueGraph | None, torch.Tensor]]]:
        """Groups of chains of at most `max_edges` edges together: each its graph and the mask of residues with CA."""
        group, edges = [], 0
        for ca, sequence in chains:
            ca = as_coordinates(ca).to(self.device)
            if len(ca) != len(sequence):
                raise ValueError(f"{len(ca)} CA positions but {len(sequence)} letters; give one of each per residue.")
            present = torch.isfinite(ca).all(dim=1)
            graph = None
            if present.any():
                letters = "".join(letter for letter, here in zip(sequence, present.tolist()) if here)
                graph = ResidueGraph.from_chain(ca[present], letters, **self.config.graph_options)
                if group and edges + len(graph.edges) > max_edges:
                    yield group
                    group, edges = [], 0
                edges += len(graph.edges)
            group.append((graph, present))
        if group:
            yield group

    def _run(self, graph: ResidueGraph, layers: str) -> tuple[torch.Tensor, ...]:
        output = self(
            graph.ca, graph.residue_types, graph.edges, output_hidden_states=layers == "all", return_dict=True
        )
        hidden = output.last_hidden_state if layers == "last" else torch.cat(output.hidden_states, dim=1)
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32)).split(graph.lengths)

    def _scatter(self, rows: torch.Tensor | None, present: torch.Tensor, layers: str) -> torch.Tensor:
        """Puts the rows of the residues with CA in their places among NaN."""
        width = sum(self.config.hidden_dims) if layers == "all" else self.config.hidden_size
        dtype = torch.promote_types(self.dtype, torch.float32)
        full = torch.full((len(present), width), torch.nan, dtype=dtype, device=present.device)
        if rows is not None:
            full[present] = rows
        return full


def _sorted_edges(edges: torch.Tensor, size: int, relations: int) -> torch.Tensor:
    """`edges` by target, source and relation, the order that `residue_graph` writes and the line graph relies on."""
    if edges.ndim != 2 or edges.shape[1] != 3:
        raise ValueError(f"edges have shape {tuple(edges.shape)}; expected (edges, 3): source, target, relation.")
    key = (edges[:, 1] * size + edges[:, 0]) * relations + edges[:, 2]
    return edges[key.argsort()]


AutoModel.register(GearNetConfig, GearNetModel, exist_ok=True)
