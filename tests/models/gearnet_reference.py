"""
GearNet written down plainly, to be right rather than fast: the oracle of the tests and the baseline of the benchmark.

Every relation's share of a sum has its own place in a dense tensor, the line graph is all pairs of edges that meet,
and nothing is folded, skipped or shared.
"""

import math

import torch
import torch.nn.functional as F


LETTERS = "GASPVTCILNDQKEMHFRYW"


def compact_ca(length, seed=0):
    """CA positions of a made-up chain: steps of 3.8 Å inside a ball as dense as a protein. float32, shape (L, 3)."""
    generator = torch.Generator().manual_seed(seed)
    ball = 3.2 * length ** (1 / 3) + 3.0
    position, positions = torch.zeros(3, dtype=torch.float64), []
    for _ in range(length):
        for _ in range(50):
            step = torch.randn(3, generator=generator, dtype=torch.float64)
            new = position + 3.8 * step / step.norm()
            clear = not positions or (torch.stack(positions[-60:]) - new).norm(dim=1).min() > 3.5
            if new.norm() < ball and clear:
                break
        else:
            new = new * min(1.0, ball / float(new.norm()))
        positions.append(new)
        position = new
    return torch.stack(positions).float()


def random_sequence(length, seed=0, letters=LETTERS):
    generator = torch.Generator().manual_seed(seed)
    return "".join(letters[i] for i in torch.randint(len(letters), (length,), generator=generator).tolist())


def reference_edges(ca, radius=10.0, k=10, min_distance=5):
    """Set of (source, target, relation), by loops over residues."""
    ca = [[float(x) for x in row] for row in ca]
    size = len(ca)
    edges = set()
    for target in range(size):
        distance = [math.dist(ca[target], ca[source]) for source in range(size)]
        nearest = sorted((d, source) for source, d in enumerate(distance) if source != target)[:k]
        for source in range(size):
            if abs(target - source) <= 2:
                edges.add((source, target, target - source + 2))
            elif abs(target - source) >= min_distance:
                if 0 < distance[source] < radius:
                    edges.add((source, target, 5))
                if source in {index for _, index in nearest}:
                    edges.add((source, target, 6))
    return edges


def reference_line_edges(edges, ca, bins):
    """(first edge, second edge, bin) of all pairs of edges k → j → i, as three tensors."""
    source, target = edges[:, 0], edges[:, 1]
    first, second = (target[:, None] == source[None, :]).nonzero(as_tuple=True)
    out, back = ca[target[second]] - ca[source[second]], ca[source[first]] - ca[target[first]]
    angle = torch.atan2(torch.linalg.cross(out, back).norm(dim=1), (out * back).sum(1))
    return first, second, (angle / math.pi * bins).long().clamp(max=bins - 1)


def reference_forward(state, ca, types, edges, training=False):
    """
    Node features of every layer. `state` is the state dict of a GearNet; `ca` and the weights are of one precision.
    Without `edge_layers` in it there are no messages between edges.
    """
    source, target, relation = edges.T
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    use_edges = "edge_layers.0.linear.weight" in state

    def norm(x, name):
        mean, var = (state[f"{name}.running_{kind}"] for kind in ("mean", "var"))
        if training:
            mean, var = None, None
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def gather(x, into, slot, size, slots):
        sums = x.new_zeros(size * slots, x.shape[1])
        return sums.index_add(0, into * slots + slot, x).view(size, slots * x.shape[1])

    def conv(x, sums, name):
        return F.relu(norm(linear(sums, f"{name}.linear") + linear(x, f"{name}.self_loop"), f"{name}.batch_norm"))

    hidden = F.one_hot(types, 21).to(ca.dtype)
    if use_edges:
        bins = state["edge_layers.0.linear.weight"].shape[1] // state["edge_layers.0.self_loop.weight"].shape[1]
        first, second, angle = reference_line_edges(edges, ca, bins)
        letters = F.one_hot(types.where(types < 20, 0), 20).to(ca.dtype)
        edge = torch.cat(
            [
                letters[source],
                letters[target],
                F.one_hot(relation, 7).to(ca.dtype),
                F.one_hot((source - target).abs().clamp(max=10), 11).to(ca.dtype),
                (ca[source] - ca[target]).norm(dim=1, keepdim=True),
            ],
            dim=1,
        )
    states = []
    for i in range(count):
        output = conv(hidden, gather(hidden[source], target, relation, len(ca), 7), f"layers.{i}")
        if output.shape == hidden.shape:
            output = output + hidden
        if use_edges:
            edge = conv(edge, gather(edge[first], second, angle, len(edges), bins), f"edge_layers.{i}")
            output = output + F.relu(linear(gather(edge, target, relation, len(ca), 7), f"layers.{i}.linear"))
        hidden = norm(output, f"batch_norms.{i}")
        states.append(hidden)
    return states
