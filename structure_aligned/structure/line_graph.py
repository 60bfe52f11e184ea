"""
The line graph of a residue graph: which edge *k → j* is followed by which edge *j → i*, and at what angle.

Two facts about it save work without changing the result. The angle depends on the residues alone, so edges that join
the same two residues by different relations have the same neighbours; here they are one *pair*. And the sum over the
neighbours in all angle bins together is the same for every pair that leaves *j*, so one bin need not be summed or
multiplied at all (see `LineGraphBlock`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


def angle_bins(first: torch.Tensor, second: torch.Tensor, bins: int) -> torch.Tensor:
    """
    Bin of the angle between vectors, 0 … `bins` − 1 over 0 … π, of shape `(…)`, int64. A vector of length zero (that
    of a self-loop) is at angle 0 to everything.

    Args:
        first, second (`torch.Tensor` of shape `(3, …)`): Components first.
        bins (`int`): Number of bins of equal width.
    """
    (ax, ay, az), (bx, by, bz) = first, second
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    # Adding zero turns a dot product of −0.0, which lies at angle π, into 0.0, which lies at angle 0.
    angle = torch.atan2((x * x + y * y + z * z).sqrt(), ax * bx + ay * by + az * bz + 0.0)
    return (angle / torch.pi * bins).long().clamp(max=bins - 1)


@dataclass(frozen=True, eq=False)
class LineGraphBlock:
    """
    The line edges through a range of middle residues, as two sums with one matrix product per angle bin between them.

    A *row* is what one product multiplies: the sum of the features of some pairs. The rows of bin 0 are the sums over
    *all* pairs that end in a middle residue, one row per residue, whatever the angle. Those of bin *b* > 0 are the
    sums over the pairs found in that bin, seen from one outgoing pair; empty ones are not there. With `W_b` the weight
    of bin *b*, bin 0 is multiplied by `W_0` and bin *b* by `W_b − W_0`, and the products of an outgoing pair added up
    give what the usual sum over eight bins gives.

    Args:
        members (`torch.Tensor`, int32): Pairs (ordered by target) summed into the rows, row after row.
        offsets (`torch.Tensor` of shape `(rows + 1,)`, int32): Where each row begins among the members.
        rows_per_bin (`tuple[int, ...]`): Rows are ordered by bin.
        pair_members (`torch.Tensor`, int32): Rows added up for each outgoing pair of the block, pair after pair.
        pair_offsets (`torch.Tensor` of shape `(pairs + 1,)`, int32): Where each pair begins among those.
    """

    members: torch.Tensor
    offsets: torch.Tensor
    rows_per_bin: tuple[int, ...]
    pair_members: torch.Tensor
    pair_offsets: torch.Tensor


@dataclass(frozen=True, eq=False)
class LineGraph:
    """
    Line graph of a residue graph, in blocks of bounded size.

    Args:
        blocks (`list[LineGraphBlock]`): Their outgoing pairs, one block after the other, are all pairs by source.
        edge_members, edge_offsets (`torch.Tensor`, int32): Edges of each pair (ordered by target), as for the rows.
        pair_of_edge (`torch.Tensor` of shape `(E,)`, int64): For each edge its pair, counted by source.
    """

    blocks: list[LineGraphBlock]
    edge_members: torch.Tensor
    edge_offsets: torch.Tensor
    pair_of_edge: torch.Tensor

    @classmethod
    def from_edges(cls, edges: torch.Tensor, ca: torch.Tensor, bins: int = 8, max_rows: int = 16_384) -> LineGraph:
        """
        Args:
            edges (`torch.Tensor` of shape `(E, 3)`): Source, target, relation, sorted by target and source.
            ca (`torch.Tensor` of shape `(N, 3)`): CA coordinates; angles are taken in their precision.
            bins (`int`, defaults to 8): Angle bins.
            max_rows (`int`, defaults to 16384): Bound on the rows of a block, unless a single residue has more.
        """
        source, target = edges[:, 0], edges[:, 1]
        first = torch.ones(len(edges), dtype=torch.bool, device=edges.device)
        first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
        start = first.nonzero().squeeze(1)
        source, target = source[start], target[start]
        by_source = source.argsort(stable=True)
        place = torch.empty_like(by_source)
        place[by_source] = torch.arange(len(place), device=place.device)

        vector = (ca[source] - ca[target]).T.contiguous()
        degree_in, degree_out = (torch.bincount(end, minlength=len(ca)) for end in (target, source))
        incoming, outgoing = _offsets(degree_in), _offsets(degree_out)
        blocks = []
        for lower, upper in _ranges(degree_out.tolist(), bins, max_rows):
            pairs = by_source[outgoing[lower] : outgoing[upper]]
            blocks.append(_block(pairs, lower, upper, source, vector, degree_in, incoming, bins))
        return cls(
            blocks,
            torch.arange(len(edges), dtype=torch.int32, device=edges.device),
            torch.cat([start, start.new_tensor([len(edges)])]).int(),
            place[first.cumsum(0) - 1],
        )


@dataclass(frozen=True, eq=False)
class FlatLineGraph:
    """
    The same line graph, one line edge at a time. `torch.export` can trace this one: the only size that depends on the
    values is the number of line edges. It takes a sum for every edge and angle bin.

    Args:
        incoming (`torch.Tensor`, int64): For each line edge the edge it comes from.
        cells (`torch.Tensor`, int64): For each line edge the edge it goes to, times `bins`, plus its angle bin.
    """

    incoming: torch.Tensor
    cells: torch.Tensor

    @classmethod
    def from_edges(cls, edges: torch.Tensor, ca: torch.Tensor, bins: int = 8) -> FlatLineGraph:
        """Arguments as in [`LineGraph.from_edges`]."""
        source, target = edges[:, 0], edges[:, 1]
        degree_in = counts_of(target, len(ca))
        meetings = degree_in[source]
        out = torch.repeat_interleave(torch.arange(len(edges), device=edges.device), meetings)
        shift = _offsets(degree_in)[source] - _offsets(meetings)[:-1]
        # Not len(out): a Python number is what the trace does not have.
        incoming = torch.arange(out.shape[0], device=edges.device) + shift[out]
        vector = (ca[source] - ca[target]).T
        return cls(incoming, out * bins + angle_bins(vector[:, incoming], -vector[:, out], bins))


def counts_of(values: torch.Tensor, size: int) -> torch.Tensor:
    """How often each of 0 … `size` − 1 is among `values`; unlike that of `bincount`, its shape is always `(size,)`."""
    return values.new_zeros(size).scatter_add_(0, values, torch.ones_like(values))


def _offsets(counts: torch.Tensor) -> torch.Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(degrees: list[int], bins: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of middle residues; one has at most a row in each bin for each of its outgoing pairs, and its own."""
    lower, rows = 0, 0
    for residue, degree in enumerate(degrees):
        added = degree * (bins - 1) + 1
        if residue > lower and rows + added > max_rows:
            yield lower, residue
            lower, rows = residue, 0
        rows += added
    if degrees:
        yield lower, len(degrees)


def _block(
    pairs: torch.Tensor,
    lower: int,
    upper: int,
    source: torch.Tensor,
    vector: torch.Tensor,
    degree_in: torch.Tensor,
    incoming: torch.Tensor,
    bins: int,
) -> LineGraphBlock:
    """`pairs` leave the residues `lower` … `upper` − 1; `vector` points from the target to the source of a pair."""
    count, device = len(pairs), pairs.device
    middle = source[pairs]
    # Every incoming pair of the middle residue meets every outgoing one: count off degree_in[middle] for each.
    meetings = degree_in[middle]
    out = torch.repeat_interleave(torch.arange(count, device=device), meetings)
    shift = incoming[middle] - _offsets(meetings)[:-1]
    into = torch.arange(len(out), device=device) + shift[out]

    outward = -vector[:, pairs]
    angle = angle_bins(vector[:, into], outward[:, out], bins)
    order = angle.to(torch.uint8).argsort(stable=True)
    cell = (angle * count + out)[order]
    skipped = int((angle == 0).sum())
    cells, sizes = torch.unique_consecutive(cell[skipped:], return_counts=True)
    per_bin = torch.bincount(cells // max(count, 1), minlength=bins).tolist()

    begin, end = int(incoming[lower]), int(incoming[upper])
    members = torch.cat([torch.arange(begin, end, device=device), into[order[skipped:]]])
    offsets = torch.cat([incoming[lower : upper + 1] - begin, end - begin + sizes.cumsum(0)])
    pair = torch.cat([torch.arange(count, device=device), cells % max(count, 1)])
    row = torch.cat([middle - lower, torch.arange(upper - lower, upper - lower + len(cells), device=device)])
    return LineGraphBlock(
        members.int(),
        offsets.int(),
        (upper - lower, *per_bin[1:]),
        row[pair.argsort(stable=True)].int(),
        _offsets(torch.bincount(pair, minlength=count)).int(),
    )
