"""
Backbones as ProteinMPNN reads them: each residue with its nearest ones by CA, the distances between their atoms and
their separation in the chain.

Reference: Dauparas et al., *Robust deep learning–based protein sequence design using ProteinMPNN*, Science 2022
(doi:10.1126/science.add2187). Orders and constants are those of the published checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .graph import smallest


ATOM_PAIRS = tuple(
    tuple(pair.split("-"))
    for pair in [
        "CA-CA",
        "N-N",
        "C-C",
        "O-O",
        "CB-CB",
        "CA-N",
        "CA-C",
        "CA-O",
        "CA-CB",
        "N-C",
        "N-O",
        "N-CB",
        "CB-C",
        "CB-O",
        "O-C",
        "N-CA",
        "C-CA",
        "O-CA",
        "CB-CA",
        "C-N",
        "O-N",
        "CB-N",
        "C-CB",
        "O-CB",
        "C-O",
    ]
)
"""Order of the distances: atom of the residue, atom of its neighbour."""

RBF_RANGE = (2.0, 22.0)
"""First and last centre of the radial basis functions in Å."""

ResidueNumbers = Sequence[str] | np.ndarray | torch.Tensor | None
"""Author's numbers, or integer positions as an array or tensor, or neither."""

_ATOMS = ("N", "CA", "C", "O", "CB")
_VIRTUAL_CB = (-0.58273431, 0.56802827, -0.54067466)  # along (CA − N) × (C − CA), CA − N and C − CA
_SQUARED_DISTANCE_FLOOR = 1e-6  # Å²; keeps the gradient finite where two atoms coincide
_DISTANCES_PER_BLOCK = 1 << 22  # float64, so 32 MiB: bounds the memory of the search in long chains


def as_backbone(coords: np.ndarray | torch.Tensor) -> torch.Tensor:
    """N, CA, C, O as a float32 or float64 tensor of shape `(N, 4, 3)`; a CB in fifth place is left out."""
    coords = torch.as_tensor(coords)
    if coords.ndim != 3 or coords.shape[1] not in (4, 5) or coords.shape[2] != 3:
        raise ValueError(
            f"Backbone coordinates have shape {tuple(coords.shape)}; expected (residues, 4, 3): N, CA, C and O in Å, "
            "or (residues, 5, 3) with CB, which is not used."
        )
    coords = coords[:, :4]
    return coords if coords.dtype in (torch.float32, torch.float64) else coords.float()


def as_positions(numbers: ResidueNumbers, length: int) -> torch.Tensor:
    """Integer positions of shape `(L,)` as they are given, or from residue numbers; 0 … L − 1 where there are none."""
    if numbers is None:
        return torch.arange(length)
    given = isinstance(numbers, (np.ndarray, torch.Tensor))
    positions = torch.as_tensor(numbers) if given else residue_positions(numbers)
    if positions.shape != (length,) or positions.is_floating_point():
        raise ValueError(
            f"{length} residues but positions of shape {tuple(positions.shape)}, {positions.dtype}; expected one "
            "integer, or one author's number such as '52A', for each."
        )
    return positions.long()


def residue_positions(residue_numbers: Sequence[str]) -> torch.Tensor:
    """
    Places along the chain, of shape `(L,)`, int64: 0 for the first residue; the next one is as much further as its
    number is larger, and at least one. So 52, 52A, 52B, 53 are four places in a row, a gap from 10 to 15 counts five,
    and numbers that stay or fall (insertion codes, a numbering that starts anew) count one. For numbers that do not
    fall this is what ProteinMPNN's own reader arrives at by filling the gaps with masked residues.

    Args:
        residue_numbers (`Sequence[str]`): Author's residue numbers with insertion codes, such as `"52A"` or `"-3"`.

    Raises:
        ValueError: One of them does not begin with a number.
    """
    numbers = []
    for index, name in enumerate(residue_numbers):
        match = re.match(r"\s*([+-]?[0-9]{1,18})", str(name))
        if match is None:
            raise ValueError(
                f"Residue {index} is numbered {name!r}; expected an integer, with or without an insertion code, such "
                "as '52' or '52A'. Give positions as an integer tensor if the residues have no numbers."
            )
        numbers.append(int(match[1]))
    numbers = torch.tensor(numbers, dtype=torch.int64)
    positions = torch.zeros_like(numbers)
    positions[1:] = numbers.diff().clamp(min=1).cumsum(0)
    return positions


def nearest_residues(ca: torch.Tensor, k: int = 48) -> torch.Tensor:
    """
    The nearest residues of one chain by CA distance, each residue itself included.

    Exact and the same on every run: of equally near residues the lower index is taken, and comes first.

    Args:
        ca (`torch.Tensor` of shape `(N, 3)`): CA coordinates in Å, none missing.
        k (`int`, defaults to 48): Neighbours of each residue.

    Returns:
        `torch.Tensor` of shape `(N, min(k, N))`, int64: The nearest first.
    """
    size = len(ca)
    count = min(k, size)
    # float64: coordinates of three decimals are then compared as they were written. Apple's GPUs have none.
    ca = ca.detach() if ca.device.type == "mps" else ca.detach().double()
    rows = max(1, _DISTANCES_PER_BLOCK // max(size, 1))
    found = [torch.empty(0, count, dtype=torch.int64, device=ca.device)]
    for start in range(0, size, rows):
        block = ca[start : start + rows]
        # The default route by a matrix product loses digits where points are near each other.
        distance = torch.cdist(block, ca, compute_mode="donot_use_mm_for_euclid_dist")
        index = smallest(distance, count).nonzero()[:, 1].view(-1, count)
        order = distance.gather(1, index).argsort(dim=1, stable=True)
        found.append(index.gather(1, order))
    return torch.cat(found)


def backbone_atoms(coords: torch.Tensor) -> torch.Tensor:
    """
    N, CA, C, O and a virtual CB of shape `(N, 5, 3)` from N, CA, C, O of shape `(N, 4, 3)`. The CB is placed by the
    other atoms, so that glycine has one too; that of the file plays no role.
    """
    n, ca, c = coords[:, 0], coords[:, 1], coords[:, 2]
    first, second = ca - n, c - ca
    normal = torch.linalg.cross(first, second, dim=-1)
    across, along_first, along_second = _VIRTUAL_CB
    cb = across * normal + along_first * first + along_second * second + ca
    return torch.cat([coords, cb[:, None]], dim=1)


def pair_ends(atoms: torch.Tensor) -> torch.Tensor:
    """
    Coordinates of the atoms in `ATOM_PAIRS`, as first and as second of the pair, of shape `(2, 3, N, 25)`, from
    `backbone_atoms` of shape `(N, 5, 3)`. Components come first, as sums over adjacent triples are slow.
    """
    order = torch.tensor([[_ATOMS.index(name) for name in side] for side in zip(*ATOM_PAIRS)], device=atoms.device)
    return atoms.permute(2, 0, 1)[:, :, order].permute(2, 0, 1, 3).contiguous()


def atom_distances(ends: torch.Tensor, neighbors: torch.Tensor, residues: slice = slice(None)) -> torch.Tensor:
    """
    Distances between the atoms of residues and those of their neighbours in Å, in the order of `ATOM_PAIRS`.

    Args:
        ends (`torch.Tensor` of shape `(2, 3, N, 25)`): From `pair_ends`.
        neighbors (`torch.Tensor` of shape `(R, K)`, int64): Neighbours of those `residues`, counted among all N.
        residues (`slice`, *optional*): The R residues; all of them by default.

    Returns:
        `torch.Tensor` of shape `(R, K, 25)`.
    """
    own, other = ends
    other = other.index_select(1, neighbors.flatten()).unflatten(1, neighbors.shape)
    return ((own[:, residues, None] - other).square().sum(0) + _SQUARED_DISTANCE_FLOOR).sqrt()


def radial_basis(distances: torch.Tensor, functions: int = 16) -> torch.Tensor:
    """
    Gaussians of the distances about evenly spaced centres, of shape `(…, pairs · functions)`, pair after pair.

    Args:
        distances (`torch.Tensor` of shape `(…, pairs)`): In Å.
        functions (`int`, defaults to 16): Per distance. Their width follows from the number.
    """
    first, last = RBF_RANGE
    width = (last - first) / functions
    # Made anew each time: a buffer that is not saved would be lost when Transformers loads a model.
    centers = torch.linspace(first, last, functions, dtype=distances.dtype, device=distances.device)
    # Powers of two in place of e: on a CPU, exp takes ten times as long where its result is next to nothing.
    scaled = (distances.unsqueeze(-1) - centers).mul_(math.log2(math.e) ** 0.5 / width)
    return scaled.square().neg_().exp2_().flatten(-2)


def relative_positions(
    positions: torch.Tensor,
    neighbors: torch.Tensor,
    chain_ids: torch.Tensor | None = None,
    max_distance: int = 32,
    residues: slice = slice(None),
) -> torch.Tensor:
    """
    Class of the separation in the chain between residues and their neighbours, of shape `(R, K)`, int64: residue minus
    neighbour, cut off at ± `max_distance` and shifted to 0 … 2 · `max_distance`. One more stands for another chain.

    Args:
        positions (`torch.Tensor` of shape `(N,)`, int64): From `residue_positions`.
        neighbors (`torch.Tensor` of shape `(R, K)`, int64): Neighbours of those `residues`, counted among all N.
        chain_ids (`torch.Tensor` of shape `(N,)`, *optional*): Equal within a chain; all are one chain by default.
        max_distance (`int`, defaults to 32): Larger separations count as this one.
        residues (`slice`, *optional*): The R residues; all of them by default.
    """
    classes = (positions[residues, None] - positions[neighbors] + max_distance).clamp(0, 2 * max_distance)
    if chain_ids is not None:
        classes = classes.masked_fill(chain_ids[residues, None] != chain_ids[neighbors], 2 * max_distance + 1)
    return classes


@dataclass(frozen=True, eq=False)
class BackboneGraph:
    """
    One chain, or several packed into one graph without an edge between them. What ProteinMPNN's `forward` takes.

    Args:
        coords (`torch.Tensor` of shape `(N, 4, 3)`): N, CA, C, O in Å, none missing.
        positions (`torch.Tensor` of shape `(N,)`, int64): Place along its chain.
        neighbors (`torch.Tensor` of shape `(N, K)`, int64): From `nearest_residues`, counted over the whole pack.
        neighbor_mask (`torch.Tensor` of shape `(N, K)`, bool): False where a chain has fewer than K residues.
        lengths (`tuple[int, ...]`): Residues of each chain.
    """

    coords: torch.Tensor
    positions: torch.Tensor
    neighbors: torch.Tensor
    neighbor_mask: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_chain(
        cls, coords: np.ndarray | torch.Tensor, positions: torch.Tensor | None = None, k: int = 48
    ) -> BackboneGraph:
        """
        The graph of one chain.

        Args:
            coords (`np.ndarray` or `torch.Tensor` of shape `(N, 4, 3)`): N, CA, C, O in Å. Residues that lack one of
                them must have been left out.
            positions (`torch.Tensor` of shape `(N,)`, *optional*): From `residue_positions`; 0 … N − 1 by default.
            k (`int`, defaults to 48): Neighbours of each residue.

        Raises:
            ValueError: A shape is another, a coordinate is not finite, or `k` is below 1.
        """
        coords = as_backbone(coords)
        if not torch.isfinite(coords).all():
            count = int((~torch.isfinite(coords).flatten(1).all(1)).sum())
            raise ValueError(
                f"{count} of {len(coords)} residues lack N, CA, C or O; leave them out before building the graph."
            )
        positions = as_positions(positions, len(coords)).to(coords.device)
        if k < 1:
            raise ValueError(f"k is {k}; expected at least one neighbour, the residue itself.")
        neighbors = nearest_residues(coords[:, 1], k)
        mask = torch.ones_like(neighbors, dtype=torch.bool)
        return cls(coords, positions, neighbors, mask, (len(coords),))

    @classmethod
    def pack(cls, graphs: Sequence[BackboneGraph]) -> BackboneGraph:
        """Several graphs as one, in the order given. Places that a short chain does not fill point to residue 0."""
        if not graphs:
            raise ValueError("There is no graph to pack; give at least one.")
        total, width = sum(len(graph.coords) for graph in graphs), max(graph.neighbors.shape[1] for graph in graphs)
        neighbors = graphs[0].neighbors.new_zeros(total, width)
        mask = graphs[0].neighbor_mask.new_zeros(total, width)
        first = 0
        for graph in graphs:
            rows, columns = slice(first, first + len(graph.coords)), slice(graph.neighbors.shape[1])
            neighbors[rows, columns] = graph.neighbors + first
            mask[rows, columns] = graph.neighbor_mask
            first += len(graph.coords)
        return cls(
            torch.cat([graph.coords for graph in graphs]),
            torch.cat([graph.positions for graph in graphs]),
            neighbors,
            mask,
            tuple(length for graph in graphs for length in graph.lengths),
        )
