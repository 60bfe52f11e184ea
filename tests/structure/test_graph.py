"""Residue graph, edge features and line graph, against torchdrug's and against loops."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from structure_aligned.structure import graph as graph_module
from structure_aligned.structure.graph import (
    RESIDUE_LETTERS,
    ResidueGraph,
    edge_features,
    node_features,
    residue_graph,
    residue_types,
)
from structure_aligned.structure.line_graph import LineGraph, angle_bins
from tests.models.gearnet_reference import compact_ca, random_sequence, reference_edges, reference_line_edges


NAMES = ("1aki_A", "3o5r_A", "5L33_A")


def as_set(edges):
    edges = [tuple(edge) for edge in edges.tolist()]
    assert len(set(edges)) == len(edges)
    return set(edges)


@pytest.mark.parametrize("name", NAMES)
def test_edges_and_features_of_torchdrug(golden, name):
    expected = load_file(golden("gearnet_edge_tiny", f"{name}.safetensors"))
    assert as_set(residue_graph(expected["ca"])) == as_set(expected["edge_list"])
    features = edge_features(expected["edge_list"], expected["ca"], expected["residue_type"])
    torch.testing.assert_close(features, expected["edge_feature"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(node_features(expected["residue_type"]), expected["node_input"], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_edges_of_the_file_itself(golden, name):
    from structure_aligned.structure.io import read_chains

    expected = load_file(golden("gearnet_edge_tiny", f"{name}.safetensors"))
    path = golden("gearnet_edge_tiny", f"{name.split('_')[0]}.pdb.gz")
    chain = next(chain for chain in read_chains(path) if chain.chain_id == "A")
    torch.testing.assert_close(torch.as_tensor(chain.ca), expected["ca"], rtol=0, atol=1e-4)
    graph = ResidueGraph.from_chain(chain.ca, chain.sequence)
    assert as_set(graph.edges) == as_set(expected["edge_list"])
    features = edge_features(expected["edge_list"], graph.ca, graph.residue_types)
    torch.testing.assert_close(features, expected["edge_feature"], rtol=1e-5, atol=1e-5)


def test_packed_graph_of_torchdrug(golden):
    expected = load_file(golden("gearnet_edge_tiny", "batch_of_three.safetensors"))
    parts = [expected["ca"][expected["node2graph"] == i] for i in range(3)]
    types = [expected["residue_type"][expected["node2graph"] == i] for i in range(3)]
    sequences = ["".join(RESIDUE_LETTERS[i] for i in chain.tolist()) for chain in types]
    graph = ResidueGraph.pack([ResidueGraph.from_chain(*pair) for pair in zip(parts, sequences)])
    assert as_set(graph.edges) == as_set(expected["edge_list"])
    assert torch.equal(graph.node_to_graph, expected["node2graph"])
    features = edge_features(expected["edge_list"], graph.ca, graph.residue_types)
    torch.testing.assert_close(features, expected["edge_feature"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_angle_bins_of_torchdrug(golden, name):
    expected = load_file(golden("gearnet_edge_tiny", f"{name}.safetensors"))
    first, second, bins = expected["line_edge_list"].T
    source, target = expected["edge_list"][:, :2].T
    ca = expected["ca"]
    found = angle_bins((ca[source[first]] - ca[target[first]]).T, (ca[target[second]] - ca[source[second]]).T, 8)
    assert torch.equal(found, bins)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 11, 12, 40])
def test_edges_by_loops(length):
    ca = compact_ca(length, seed=length) if length else torch.empty(0, 3)
    edges = residue_graph(ca)
    assert edges.dtype == torch.int64 and edges.shape == (len(edges), 3)
    assert as_set(edges) == reference_edges(ca.double())
    assert edges.tolist() == sorted(edges.tolist(), key=lambda edge: (edge[1], edge[0], edge[2]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=25), st.integers(1, 12))
def test_ties_go_to_the_lower_index(points, k):
    # Points on a coarse lattice are equally near all the time, and some coincide.
    ca = torch.tensor(points, dtype=torch.float64) * 4.0
    assert as_set(residue_graph(ca, k=k)) == reference_edges(ca, k=k)


def test_neighbours_come_before_the_separation_filter():
    # On a straight chain the ten nearest of residue 12 are 7 … 17, of which the filter leaves the outermost two.
    ca = torch.tensor([[3.8 * i, 0.0, 0.0] for i in range(25)])
    edges = residue_graph(ca)
    of_twelve = edges[edges[:, 1] == 12]
    assert of_twelve[of_twelve[:, 2] == 6, 0].tolist() == [7, 17]
    assert not (edges[:, 2] == 5).any()


def test_radius_is_exclusive_and_coincident_residues_get_no_spatial_edge():
    ca = torch.tensor([[100.0 * i, 0.0, 0.0] for i in range(8)])
    ca[6], ca[7] = torch.tensor([10.0, 0.0, 0.0]), ca[1]
    spatial = as_set(residue_graph(ca)[residue_graph(ca)[:, 2] == 5])
    assert spatial == set()
    ca[6, 0] = 9.999
    assert as_set(residue_graph(ca)[residue_graph(ca)[:, 2] == 5]) == {(0, 6, 5), (6, 0, 5)}


def test_long_chains_are_searched_in_blocks(monkeypatch):
    ca = compact_ca(150)
    whole = residue_graph(ca)
    shapes = []
    cdist = torch.cdist

    def record(a, b, **kwargs):
        shapes.append((len(a), len(b)))
        return cdist(a, b, **kwargs)

    monkeypatch.setattr(graph_module, "_DISTANCES_PER_BLOCK", 1000)
    monkeypatch.setattr(torch, "cdist", record)
    assert torch.equal(residue_graph(ca), whole)
    assert len(shapes) > 20 and max(rows * columns for rows, columns in shapes) <= 1000


def test_arrays_and_tensors_alike():
    ca = compact_ca(30)
    assert torch.equal(residue_graph(ca.numpy()), residue_graph(ca))
    assert torch.equal(residue_graph(ca.double()), residue_graph(ca))


def test_torch_cluster_finds_the_same_edges():
    pytest.importorskip("torch_cluster")
    for length in (1, 2, 6, 50, 200):
        ca = compact_ca(length, seed=length) * 0.8  # more than the default cap of 32 neighbours
        assert torch.equal(residue_graph(ca, backend="torch_cluster"), residue_graph(ca))


def test_torch_cluster_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_cluster", None)
    with pytest.raises(ImportError, match="pip install"):
        residue_graph(compact_ca(5), backend="torch_cluster")


@pytest.mark.parametrize(
    ("ca", "options", "match"),
    [
        (torch.full((3, 3), math.nan), {}, "3 of 3 residues have no finite CA"),
        (torch.zeros(3, 2), {}, r"shape \(3, 2\)"),
        (torch.zeros(3, 3), {"backend": "scipy"}, "'scipy'"),
        (torch.zeros(3, 3), {"k": 0}, "k=0"),
        (torch.zeros(3, 3), {"radius": -1.0}, "radius=-1.0"),
    ],
)
def test_refusals(ca, options, match):
    with pytest.raises(ValueError, match=match):
        residue_graph(ca, **options)


def test_unknown_residue_is_glycine_on_edges_only():
    types = residue_types("GWX-")
    assert types.tolist() == [0, 19, 20, 20]
    assert node_features(types).argmax(1).tolist() == [0, 19, 20, 20]
    ca = compact_ca(4)
    edges = residue_graph(ca)
    glycine = edge_features(edges, ca, residue_types("GWGG"))
    assert torch.equal(edge_features(edges, ca, types), glycine)
    assert glycine.shape[1] == 59


def test_packing_keeps_chains_apart():
    graphs = [ResidueGraph.from_chain(compact_ca(n, n), random_sequence(n, n)) for n in (20, 1, 13)]
    packed = ResidueGraph.pack(graphs)
    chain = packed.node_to_graph
    assert packed.lengths == (20, 1, 13) and torch.equal(chain, torch.repeat_interleave(torch.tensor([20, 1, 13])))
    assert torch.equal(chain[packed.edges[:, 0]], chain[packed.edges[:, 1]])
    separate = torch.cat([edge_features(graph.edges, graph.ca, graph.residue_types) for graph in graphs])
    assert torch.equal(edge_features(packed.edges, packed.ca, packed.residue_types), separate)
    with pytest.raises(ValueError, match="no graph"):
        ResidueGraph.pack([])
    with pytest.raises(ValueError, match="20 CA positions but 3 letters"):
        ResidueGraph.from_chain(compact_ca(20), "GGG")


def test_self_loops_are_at_angle_zero():
    zero, vector = torch.zeros(3, 1), torch.tensor([[-1.0], [-2.0], [-3.0]])
    assert angle_bins(zero, vector, 8).item() == angle_bins(vector, zero, 8).item() == 0
    assert angle_bins(vector, vector, 8).item() == 0 and angle_bins(vector, -vector, 8).item() == 7


@pytest.mark.parametrize("max_rows", [1, 50, 100_000])
@pytest.mark.parametrize("bins", [1, 8])
def test_line_graph_adds_up_to_all_meetings(max_rows, bins):
    """Sums by block, with a number per bin for a weight, against the sum over every two edges that meet."""
    ca = compact_ca(25).double()
    edges = residue_graph(ca)
    values, weights = torch.rand(len(edges), dtype=torch.float64), torch.rand(bins, dtype=torch.float64)
    first, second, angle = reference_line_edges(edges, ca, bins)
    expected = torch.zeros_like(values).index_add(0, second, values[first] * weights[angle])

    def sums(x, members, offsets):
        return torch.stack([x[members[a:b]].sum() for a, b in pairwise(offsets)])

    line = LineGraph.from_edges(edges, ca, bins, max_rows)
    pairs = sums(values, line.edge_members.long(), line.edge_offsets.tolist())
    found = []
    for block in line.blocks:
        scale = torch.cat([weights[:1], weights[1:] - weights[0]]).repeat_interleave(torch.tensor(block.rows_per_bin))
        rows = sums(pairs, block.members.long(), block.offsets.tolist()) * scale
        found.append(sums(rows, block.pair_members.long(), block.pair_offsets.tolist()))
        assert sum(block.rows_per_bin) <= max_rows or block.rows_per_bin[0] == 1  # a residue is not split
    torch.testing.assert_close(torch.cat(found)[line.pair_of_edge], expected, rtol=1e-12, atol=1e-12)
