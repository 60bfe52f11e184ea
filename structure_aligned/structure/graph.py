"""
Residue graphs as GearNet reads them: one node per CA; sequential, spatial and nearest-neighbour edges.

Reference: Zhang et al., *Protein Representation Learning by Geometric Structure Pretraining*, ICLR 2023
(arXiv:2203.06125). Relation ids are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


RESIDUE_LETTERS = "GASPVTCILNDQKEMHFRYW"
"""Order of the residue types: glycine is 0, tryptophan 19."""

UNKNOWN_RESIDUE = len(RESIDUE_LETTERS)
NODE_FEATURE_DIM = len(RESIDUE_LETTERS) + 1

MAX_INDEX_DISTANCE = 10
"""Sequence separations from here on share the last place of their one-hot in the edge feature."""

_DISTANCES_PER_BLOCK = 1 << 22  # float64, so 32 MiB: bounds the memory of the search in long chains
_TYPE_OF_LETTER = {letter: index for index, letter in enumerate(RESIDUE_LETTERS)}


def num_relations(max_sequential_distance: int = 2) -> int:
    """Number of relations: the sequential ones in both directions with the self-loop, spatial, nearest neighbours."""
    return 2 * max_sequential_distance + 3


def edge_feature_dim(relations: int = 7) -> int:
    """Width of `edge_features`: 59 for the seven relations of the published checkpoints."""
    return 2 * len(RESIDUE_LETTERS) + relations + MAX_INDEX_DISTANCE + 2


def residue_types(sequence: str) -> torch.Tensor:
    """Residue types of shape `(L,)`, int64, in the order of `RESIDUE_LETTERS`; any other letter is 20, unknown."""
    return torch.tensor([_TYPE_OF_LETTER.get(letter, UNKNOWN_RESIDUE) for letter in sequence], dtype=torch.int64)


def as_coordinates(ca: np.ndarray | torch.Tensor) -> torch.Tensor:
    """`ca` as a float32 or float64 tensor of shape `(N, 3)`; other types become float32."""
    ca = torch.as_tensor(ca)
    if ca.ndim != 2 or ca.shape[1] != 3:
        raise ValueError(f"CA coordinates have shape {tuple(ca.shape)}; expected (residues, 3), in Å.")
    return ca if ca.dtype in (torch.float32, torch.float64) else ca.float()


def residue_graph(
    ca: np.ndarray | torch.Tensor,
    *,
    radius: float = 10.0,
    k: int = 10,
    min_distance: int = 5,
    max_sequential_distance: int = 2,
    backend: str = "auto",
) -> torch.Tensor:
    """
    Edges of one chain. With the defaults the relation ids are those of the published GearNet checkpoints: 0 to 4 join
    residue *i* to *i* − 2 … *i* + 2 (2 is the self-loop), 5 joins residues nearer than `radius`, 6 comes from each of
    the `k` nearest residues.

    The result is exact and the same on every run: all residues within `radius` are taken (torchdrug stops at 32, and
    does not say which), and of equally near ones the lower index comes first.

    Args:
        ca (`np.ndarray` or `torch.Tensor` of shape `(N, 3)`): CA coordinates in Å. Residues without CA must have been
            left out; "index" below counts the residues that are here, not their author's numbers.
        radius (`float`, defaults to 10.0): In Å, exclusive.
        k (`int`, defaults to 10): Nearest neighbours looked up among all residues, near in sequence or not.
        min_distance (`int`, defaults to 5): Spatial edges and those to the `k` nearest are kept only between residues
            at least this far apart in index; fewer than `k` usually remain.
        max_sequential_distance (`int`, defaults to 2): Reach of the sequential relations.
        backend (`str`, defaults to `"auto"`): `"torch"`, or `"torch_cluster"` where that extension is installed: the
            same edges but for neighbours at exactly equal distances. `"auto"` is `"torch"`; the network takes far
            longer than the search.

    Returns:
        `torch.Tensor` of shape `(E, 3)`, int64: source, target, relation, sorted by target, source, relation.

    Raises:
        ValueError: `ca` is not `(N, 3)` or has NaN, or an option is out of range.
        ImportError: `backend="torch_cluster"` and the extension is not installed.
    """
    ca = as_coordinates(ca).detach()
    if not torch.isfinite(ca).all():
        count = int((~torch.isfinite(ca).all(1)).sum())
        raise ValueError(f"{count} of {len(ca)} residues have no finite CA; leave them out before building the graph.")
    if backend not in ("auto", "torch", "torch_cluster"):
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'torch' or 'torch_cluster'.")
    if radius <= 0 or k < 1 or max_sequential_distance < 0:
        raise ValueError(
            f"radius={radius}, k={k}, max_sequential_distance={max_sequential_distance}: expected a positive radius, "
            "at least one neighbour and a distance of 0 or more."
        )

    size, relations = len(ca), num_relations(max_sequential_distance)
    index = torch.arange(size, device=ca.device)
    found = []
    for relation, offset in enumerate(range(-max_sequential_distance, max_sequential_distance + 1)):
        source = index[max(0, -offset) : size - max(0, offset)]
        found.append((source, source + offset, relation))
    search = _search_torch_cluster if backend == "torch_cluster" else _search_torch
    # float64: coordinates of three decimals are then compared as they were written.
    for relation, (source, target) in enumerate(search(ca.double(), radius, k), start=relations - 2):
        keep = (source - target).abs() >= min_distance
        found.append((source[keep], target[keep], relation))

    keys = torch.cat([(target * size + source) * relations + relation for source, target, relation in found])
    keys = keys.sort().values
    pairs = keys // relations
    return torch.stack([pairs % max(size, 1), pairs // max(size, 1), keys % relations], dim=1)


_Pairs = tuple[torch.Tensor, torch.Tensor]


def _search_torch(ca: torch.Tensor, radius: float, k: int) -> tuple[_Pairs, _Pairs]:
    """(source, target) of all pairs within `radius`, none at distance zero, and of the `k` nearest of each target."""
    size = len(ca)
    spatial, nearest = [], []
    rows = max(1, _DISTANCES_PER_BLOCK // max(size, 1))
    for start in range(0, size, rows):
        block = ca[start : start + rows]
        # The default route by a matrix product loses digits where points are near each other.
        distance = torch.cdist(block, ca, compute_mode="donot_use_mm_for_euclid_dist")
        spatial.append(_pairs((distance < radius) & (distance > 0), start))
        distance[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        nearest.append(_pairs(smallest(distance, min(k, size - 1)), start))
    empty = torch.empty(0, dtype=torch.int64, device=ca.device)
    return tuple(
        tuple(torch.cat([pairs[side] for pairs in blocks] or [empty]) for side in (0, 1))
        for blocks in (spatial, nearest)
    )


def _pairs(mask: torch.Tensor, start: int) -> _Pairs:
    target, source = mask.nonzero(as_tuple=True)
    return source, target + start


def smallest(distance: torch.Tensor, k: int) -> torch.Tensor:
    """Mask of the `k` smallest of each row; of equal ones the lower index first, which `torch.topk` leaves open."""
    if k == 0:
        return torch.zeros_like(distance, dtype=torch.bool)
    limit = distance.topk(k, dim=1, largest=False).values.amax(dim=1, keepdim=True)
    mask = distance <= limit
    tied = (mask.sum(dim=1) > k).nonzero().squeeze(1)
    if len(tied):
        nearer, equal = distance[tied] < limit[tied], distance[tied] == limit[tied]
        places = k - nearer.sum(dim=1, keepdim=True)
        mask[tied] = nearer | (equal & (equal.cumsum(dim=1) <= places))
    return mask


def _search_torch_cluster(ca: torch.Tensor, radius: float, k: int) -> tuple[_Pairs, _Pairs]:
    """The same by torch-cluster, one chain at a time, so that no batch vector can be out of order."""
    try:
        import torch_cluster
    except ImportError as error:
        raise ImportError(
            "backend='torch_cluster' needs that extension: pip install --no-build-isolation --no-cache-dir "
            "'torch-cluster>=1.6.3', or leave the backend out; plain torch finds the same edges."
        ) from error
    size = len(ca)
    empty = torch.empty(0, dtype=torch.int64, device=ca.device)
    if size < 2:
        return (empty, empty), (empty, empty)
    # The default of 32 neighbours silently drops edges. Its own comparison at the rim is redone on exact distances.
    source, target = torch_cluster.radius_graph(ca, 1.001 * radius, max_num_neighbors=size)
    distance = torch.linalg.vector_norm(ca[source] - ca[target], dim=1)
    near = (distance < radius) & (distance > 0)
    nearest_source, nearest_target = torch_cluster.knn_graph(ca, min(k, size - 1))
    return (source[near], target[near]), (nearest_source, nearest_target)


def node_features(types: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One-hot of the residue type of shape `(N, 21)`; the last place is "unknown"."""
    return torch.nn.functional.one_hot(types, NODE_FEATURE_DIM).to(dtype)


def edge_features(
    edges: torch.Tensor, ca: torch.Tensor, types: torch.Tensor, relations: int = 7, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """
    What the edges of a residue graph start from, of shape `(E, 52 + relations)`: one-hots of the residue type of the
    source (20), of that of the target (20), of the relation and of the sequence separation (11: 0 … 9, 10 or more),
    and the CA distance in Å.

    Args:
        edges (`torch.Tensor` of shape `(E, 3)`): From `residue_graph`, or of several chains packed into one graph.
        ca (`torch.Tensor` of shape `(N, 3)`): CA coordinates in Å.
        types (`torch.Tensor` of shape `(N,)`): From `residue_types`. An unknown residue counts as glycine here, as it
            did when the published checkpoints were trained; only the node feature has a place for it.
        dtype (`torch.dtype`, *optional*): Of the result; that of `ca` when not given. Distances are taken in the
            precision of `ca` first.
    """
    source, target, relation = edges.unbind(1)
    types = types.masked_fill(types == UNKNOWN_RESIDUE, 0)
    letters = len(RESIDUE_LETTERS)
    separation = (source - target).abs().clamp(max=MAX_INDEX_DISTANCE)
    columns = torch.stack(
        [
            types[source],
            letters + types[target],
            2 * letters + relation,
            2 * letters + relations + separation,
        ],
        dim=1,
    )
    features = torch.zeros(len(edges), edge_feature_dim(relations), dtype=dtype or ca.dtype, device=ca.device)
    features.scatter_(1, columns, 1.0)
    features[:, -1] = torch.linalg.vector_norm(ca[source] - ca[target], dim=1)
    return features


@dataclass(frozen=True, eq=False)
class ResidueGraph:
    """
    One chain, or several packed into one graph without an edge between them. What GearNet's `forward` takes.

    Args:
        ca (`torch.Tensor` of shape `(N, 3)`): CA coordinates in Å, none missing.
        residue_types (`torch.Tensor` of shape `(N,)`, int64): From `residue_types`.
        edges (`torch.Tensor` of shape `(E, 3)`, int64): From `residue_graph`, indices counted over the whole pack.
        lengths (`tuple[int, ...]`): Residues of each chain.
    """

    ca: torch.Tensor
    residue_types: torch.Tensor
    edges: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_chain(
        cls,
        ca: np.ndarray | torch.Tensor,
        sequence: str,
        *,
        device: torch.device | None = None,
        **options: float | int | str,
    ) -> ResidueGraph:
        """The graph of one chain; `options` go to `residue_graph`."""
        ca = as_coordinates(ca).to(device)
        if len(ca) != len(sequence):
            raise ValueError(f"{len(ca)} CA positions but {len(sequence)} letters; give one of each per residue.")
        return cls(ca, residue_types(sequence).to(ca.device), residue_graph(ca, **options), (len(ca),))

    @classmethod
    def pack(cls, graphs: Sequence[ResidueGraph]) -> ResidueGraph:
        """Several graphs as one, in the order given. Separations are taken within chains, since both ends move."""
        if not graphs:
            raise ValueError("There is no graph to pack; give at least one.")
        edges, first = [], 0
        for graph in graphs:
            edges.append(graph.edges + torch.tensor([first, first, 0], device=graph.edges.device))
            first += len(graph.ca)
        return cls(
            torch.cat([graph.ca for graph in graphs]),
            torch.cat([graph.residue_types for graph in graphs]),
            torch.cat(edges),
            tuple(length for graph in graphs for length in graph.lengths),
        )

    @property
    def node_to_graph(self) -> torch.Tensor:
        """Which chain each node belongs to, of shape `(N,)`, int64."""
        lengths = torch.tensor(self.lengths, device=self.ca.device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=self.ca.device), lengths)
