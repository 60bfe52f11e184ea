"""
The encoder of ProteinMPNN in plain PyTorch, with the weights named as the released checkpoints name them.

Reference: Dauparas et al., *Robust deep learning–based protein sequence design using ProteinMPNN*, Science 2022
(doi:10.1126/science.add2187).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from structure_aligned.structure.backbone_graph import (
    ATOM_PAIRS,
    BackboneGraph,
    ResidueNumbers,
    as_backbone,
    as_positions,
    atom_distances,
    backbone_atoms,
    pair_ends,
    radial_basis,
    relative_positions,
    residue_positions,
)
from structure_aligned.structure.chain import ProteinChain

from .configuration import ProteinMPNNConfig
from .digest import digest_of
from .modes import evaluating
from .proteinmpnn_checkpoint import check_encoder, read_checkpoint, settings_from_encoder
from .weights import WholeWeights


MAX_RESIDUES = 4096
"""Default bound on the residues of one graph in `embed_batch`."""

# Edges computed at once. On a CPU what they take then stays in its caches; a GPU wants longer products instead.
_EDGES_CPU, _EDGES_GPU = 2048, 262_144


@dataclass
class ProteinMPNNOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(N, hidden_size)`): Residue embeddings of the last layer.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Residue embeddings of every layer, of the same shape.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class _Block:
    """A range of R residues: their K neighbours `(R, K)` and, in the precision of the weights, the mask of those."""

    residues: slice
    neighbors: torch.Tensor
    mask: torch.Tensor


class RelativePosition(nn.Module):
    """Embeds the classes of `relative_positions`; a linear layer on their one-hots, of which it picks the columns."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(classes, width)

    def table(self) -> torch.Tensor:
        """Embedding of every class, of shape `(classes, width)`."""
        return self.linear.weight.T + self.linear.bias


class BackboneFeatures(nn.Module):
    """Edge features from the backbone: relative position and radial basis functions, one linear layer, a norm."""

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__()
        self.max_relative_position, self.num_rbf = config.max_relative_position, config.num_rbf
        positional = config.num_positional_embeddings
        self.embeddings = RelativePosition(2 * config.max_relative_position + 2, positional)
        self.edge_embedding = nn.Linear(positional + len(ATOM_PAIRS) * config.num_rbf, config.hidden_size, bias=False)
        self.norm_edges = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        ends: torch.Tensor,
        positions: torch.Tensor,
        neighbors: torch.Tensor,
        chain_ids: torch.Tensor | None = None,
        residues: slice = slice(None),
    ) -> torch.Tensor:
        """
        Edge features of shape `(R, K, hidden_size)`; arguments as in `atom_distances` and `relative_positions`.
        Distances and basis functions have the precision of `ends` (float32 or float64) before they are multiplied.
        """
        dtype = self.edge_embedding.weight.dtype
        positional = self.embeddings.linear.out_features
        on_position, on_distance = self.edge_embedding.weight.tensor_split([positional], dim=1)
        basis = radial_basis(atom_distances(ends, neighbors, residues), self.num_rbf).to(dtype)
        classes = relative_positions(positions, neighbors, chain_ids, self.max_relative_position, residues)
        # The two layers on the position are one table of a row per class, so that no one-hot is multiplied.
        edges = F.embedding(classes.flatten(), self.embeddings.table() @ on_position.T)
        edges = edges.addmm_(basis.flatten(0, 1), on_distance.T)
        return self.norm_edges(edges.unflatten(0, neighbors.shape))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_in = nn.Linear(width, 4 * width)
        self.W_out = nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.W_out(F.gelu(self.W_in(hidden)))


class EncoderLayer(nn.Module):
    """
    One layer of message passing: residues from their edges and neighbours, then edges from their residues.

    The first linear layer on (residue, edge, neighbour) is computed as the sum of three, of which two are needed only
    once per residue; the last one of the message is linear and so applied to the sum over neighbours.
    """

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.message_scale = config.message_scale
        self.dropout = nn.Dropout(config.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.W1, self.W11 = (nn.Linear(3 * width, width) for _ in range(2))
        self.W2, self.W3, self.W12, self.W13 = (nn.Linear(width, width) for _ in range(4))
        self.dense = FeedForward(width)

    def forward(self, hidden: torch.Tensor, edges: Sequence[torch.Tensor], blocks: Sequence[_Block]) -> torch.Tensor:
        """
        Residues of the next layer, of shape `(N, width)`.

        Args:
            hidden (`torch.Tensor` of shape `(N, width)`): Residues.
            edges (`list[torch.Tensor]`): Edges of each block, of shape `(R, K, width)`.
            blocks (`list[_Block]`): Which residues and neighbours those are.
        """
        parts = self._parts(self.W1, hidden)
        sums = []
        for edge, block in zip(edges, blocks):
            messages = F.gelu(self.W2(self._mix(parts, edge, block)))
            sums.append(torch.bmm(block.mask[:, None], messages).squeeze(1))
        counts = torch.cat([block.mask.sum(1, keepdim=True) for block in blocks])
        message = F.linear(torch.cat(sums), self.W3.weight) + counts * self.W3.bias
        hidden = self.norm1(hidden + self.dropout(message / self.message_scale))
        return self.norm2(hidden + self.dropout(self.dense(hidden)))

    def update_edges(
        self, hidden: torch.Tensor, edges: Sequence[torch.Tensor], blocks: Sequence[_Block]
    ) -> list[torch.Tensor]:
        """Edges of the next layer from the residues of that layer; arguments as in `forward`."""
        parts = self._parts(self.W11, hidden)
        updated = []
        for edge, block in zip(edges, blocks):
            message = self.W13(F.gelu(self.W12(self._mix(parts, edge, block))))
            updated.append(self.norm3(edge + self.dropout(message)))
        return updated

    @staticmethod
    def _parts(linear: nn.Linear, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a linear layer adds for a residue and for a neighbour, each `(N, width)`, and its weight on edges."""
        own, on_edge, other = linear.weight.chunk(3, dim=1)
        return F.linear(hidden, own, linear.bias), F.linear(hidden, other), on_edge

    @staticmethod
    def _mix(
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], edges: torch.Tensor, block: _Block
    ) -> torch.Tensor:
        own, other, on_edge = parts
        mixed = other.index_select(0, block.neighbors.flatten()).addmm_(edges.flatten(0, 1), on_edge.T)
        return F.gelu(mixed.unflatten(0, block.neighbors.shape).add_(own[block.residues, None]))


class ProteinMPNNEncoder(WholeWeights, PreTrainedModel):
    """
    The encoder of ProteinMPNN: residue embeddings from backbone coordinates. It never sees the sequence. What the
    decoder starts from is the last layer's residues, which is what `embed` and `embed_batch` return. No noise is added
    to the coordinates.

    Example:

    ```python
    model = ProteinMPNNEncoder.from_checkpoint("vanilla_model_weights/v_48_020.pt")
    embeddings = model.embed_batch(read_chains("1aki.cif.gz"))
    ```
    """

    config_class = ProteinMPNNConfig
    base_model_prefix = "protein_mpnn"
    main_input_name = "coords"

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__(config)
        self.features = BackboneFeatures(config)
        self.W_e = nn.Linear(config.hidden_size, config.hidden_size)
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # as the original starts them, not the 0.02 of language models
            initialization.xavier_uniform_(module.weight)
            if module.bias is not None:
                bound = module.in_features**-0.5
                initialization.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_checkpoint(cls, path: str | Path, **config_kwargs: Any) -> ProteinMPNNEncoder:
        """
        Loads weights as released, such as `vanilla_model_weights/v_48_020.pt` or those of `soluble_model_weights`.
        Sizes are read from the tensors' shapes; the decoder is left out.

        Args:
            path (`str` or `Path`): A checkpoint as released, whose `num_edges` is the number of neighbours, or a bare
                state dict, torch or `.safetensors`. Nothing but tensors and plain values is unpickled.
            config_kwargs: Further fields of `ProteinMPNNConfig`, such as `num_neighbors=30`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no state dict of tensors, or one of another network (CA-only, other features).
        """
        state, neighbors = read_checkpoint(path)
        settings = settings_from_encoder(state, path)
        if neighbors is not None:
            settings["num_neighbors"] = neighbors
        config = ProteinMPNNConfig(**{**settings, **config_kwargs})
        with torch.device("meta"):  # nothing is allocated for a file that does not fit
            expected = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
        check_encoder(state, expected, path)
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()

    @property
    def output_dim(self) -> int:
        """Width of the embeddings that `embed_batch` returns."""
        return self.config.hidden_size

    def forward(
        self,
        coords: torch.Tensor,
        neighbors: torch.Tensor,
        neighbor_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        chain_ids: torch.Tensor | None = None,
        max_edges: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ProteinMPNNOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            coords (`torch.Tensor` of shape `(N, 4, 3)`): N, CA, C, O in Å of one chain or of several packed into one
                graph (`BackboneGraph`), float32 or float64 whatever the precision of the weights.
            neighbors (`torch.Tensor` of shape `(N, K)`, int64): From `nearest_residues`.
            neighbor_mask (`torch.Tensor` of shape `(N, K)`, bool, *optional*): False where there is no neighbour; all
                are there by default.
            positions (`torch.Tensor` of shape `(N,)`, int64, *optional*): From `residue_positions`; 0 … N − 1 by
                default.
            chain_ids (`torch.Tensor` of shape `(N,)`, *optional*): Equal within a chain. Only needed where chains are
                each other's neighbours.
            max_edges (`int`, *optional*): Edges computed at once. Changes the memory taken and not the result.
            output_hidden_states, return_dict (`bool`, *optional*): Those of the configuration by default.
        """
        config, coords, dtype = self.config, as_backbone(coords), self.W_e.weight.dtype
        size, device = len(coords), coords.device
        positions = torch.arange(size, device=device) if positions is None else positions
        mask = torch.ones_like(neighbors) if neighbor_mask is None else neighbor_mask
        for name, values, shape in (
            ("neighbors", neighbors, (size, neighbors.shape[-1])),
            ("neighbor_mask", mask, neighbors.shape),
            ("positions", positions, (size,)),
            ("chain_ids", chain_ids, (size,)),
        ):
            if values is not None and values.shape != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {tuple(shape)}, as coords have.")
        max_edges = max_edges or (_EDGES_CPU if device.type == "cpu" else _EDGES_GPU)
        rows = max(1, max_edges // max(neighbors.shape[1], 1))
        ranges = [slice(start, start + rows) for start in range(0, max(size, 1), rows)]
        blocks = [_Block(residues, neighbors[residues], mask[residues].to(dtype)) for residues in ranges]
        ends = pair_ends(backbone_atoms(coords.to(torch.promote_types(coords.dtype, dtype))))
        edges = [
            self.W_e(self.features(ends, positions, block.neighbors, chain_ids, block.residues)) for block in blocks
        ]
        hidden = torch.zeros(size, config.hidden_size, dtype=dtype, device=device)
        hidden_states = []
        for index, layer in enumerate(self.encoder_layers, start=1):
            hidden = layer(hidden, edges, blocks)
            hidden_states.append(hidden)
            if index < len(self.encoder_layers):  # the last edges are read by the decoder alone
                edges = layer.update_edges(hidden, edges, blocks)
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = ProteinMPNNOutput(last_hidden_state=hidden, hidden_states=tuple(hidden_states) if wanted else None)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def embed(self, coords: np.ndarray | torch.Tensor, residue_numbers: ResidueNumbers = None) -> torch.Tensor:
        """
        Residue embeddings of one chain.

        Args:
            coords (`np.ndarray` or `torch.Tensor` of shape `(L, 4, 3)` or `(L, 5, 3)`): N, CA, C, O in Å, NaN where
                missing. A CB in fifth place, as in `ProteinChain.coords`, is not used.
            residue_numbers (`Sequence[str]`, `np.ndarray` or `torch.Tensor`, *optional*): Author's numbers such as
                `"52A"`, or integer positions as an array or tensor. Numbered without gaps by default.

        Returns:
            `torch.Tensor` of shape `(L, D)`, float32 (float64 if the weights are), without gradient, on the model's
            device. Residues that lack N, CA, C or O are not in the graph and their rows are NaN.
        """
        return self._embed([(coords, residue_numbers)], MAX_RESIDUES)[0]

    def embed_batch(self, chains: Sequence[ProteinChain], max_residues: int = MAX_RESIDUES) -> list[torch.Tensor]:
        """
        Residue embeddings of many chains, in the order given; the same numbers as from `embed`, up to rounding.

        Args:
            chains (`list[ProteinChain]`): Any number; they are run through the network as graphs of bounded size.
            max_residues (`int`, *optional*, defaults to 4096): Residues of one graph. A chain that has more is run on
                its own. A graph takes about `2 · residues · num_neighbors · hidden_size` numbers.

        Returns:
            `list[torch.Tensor]`: Of shapes `(L_i, D)`, as from `embed`.
        """
        return self._embed([(chain.coords, _positions(chain)) for chain in chains], max_residues)

    def weights_digest(self) -> str:
        """
        SHA-256 over what the embeddings of a chain depend on: the fields of the configuration and the weights, as they
        are stored (so that bfloat16 has another digest than float32). Part of the key under which they are cached.
        """
        config = self.config
        fields = {
            "num_neighbors": config.num_neighbors,
            "num_rbf": config.num_rbf,
            "max_relative_position": config.max_relative_position,
            "message_scale": float(config.message_scale),
        }
        return digest_of(self, fields)

    @torch.no_grad()
    def _embed(
        self, chains: Sequence[tuple[np.ndarray | torch.Tensor, ResidueNumbers]], max_residues: int
    ) -> list[torch.Tensor]:
        if max_residues < 1:
            raise ValueError(f"max_residues is {max_residues}; expected at least 1.")
        dtype = torch.promote_types(self.dtype, torch.float32)
        results: list[torch.Tensor] = []
        with evaluating(self):
            for group in self._groups(chains, max_residues):
                graph = BackboneGraph.pack([graph for graph, _ in group])
                inputs = (graph.coords, graph.neighbors, graph.neighbor_mask, graph.positions)
                for rows, (_, present) in zip(self(*inputs, return_dict=False)[0].split(graph.lengths), group):
                    full = torch.full((len(present), self.output_dim), torch.nan, dtype=dtype, device=self.device)
                    full[present] = rows.to(dtype)
                    results.append(full)
        return results

    def _groups(
        self, chains: Sequence[tuple[np.ndarray | torch.Tensor, ResidueNumbers]], max_residues: int
    ) -> Iterator[list[tuple[BackboneGraph, torch.Tensor]]]:
        """Groups of chains of at most `max_residues` together: each its graph and the mask of complete residues."""
        group, residues = [], 0
        for coords, numbers in chains:
            coords = as_backbone(coords).to(self.device)
            positions = as_positions(numbers, len(coords)).to(self.device)
            present = torch.isfinite(coords).flatten(1).all(dim=1)
            graph = BackboneGraph.from_chain(coords[present], positions[present], self.config.num_neighbors)
            if group and residues + len(graph.coords) > max_residues:
                yield group
                group, residues = [], 0
            residues += len(graph.coords)
            group.append((graph, present))
        if group:
            yield group


def _positions(chain: ProteinChain) -> torch.Tensor:
    try:
        return residue_positions(chain.residue_numbers)
    except ValueError as error:
        raise ValueError(f"{chain.id}: {error}") from error


AutoModel.register(ProteinMPNNConfig, ProteinMPNNEncoder, exist_ok=True)
