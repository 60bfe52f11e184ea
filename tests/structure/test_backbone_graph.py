"""Backbone graphs: positions from residue numbers, neighbours, distances, packing."""

import numpy as np
import pytest
import torch

from structure_aligned.structure.backbone_graph import (
    ATOM_PAIRS,
    BackboneGraph,
    as_backbone,
    atom_distances,
    backbone_atoms,
    nearest_residues,
    pair_ends,
    radial_basis,
    relative_positions,
    residue_positions,
)
from tests.models.proteinmpnn_reference import backbone, distances, edge_inputs, neighbors
from tests.tiny import chain


def made_coords(length, seed=0):
    """N, CA, C, O of a coil, float64; no two residues have the same shape."""
    coords = torch.from_numpy(chain(length, seed).coords[:, :4]).double()
    return coords + 0.2 * torch.randn(coords.shape, generator=torch.Generator().manual_seed(seed)).double()


# --- positions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (["1", "2", "3"], [0, 1, 2]),
        (["52", "52A", "52B", "53"], [0, 1, 2, 3]),
        (["10", "15", "16"], [0, 5, 6]),
        (["-3", "-1", "0", "0A", "2"], [0, 2, 3, 4, 6]),
        (["100", "101", "1", "2", "5"], [0, 1, 2, 3, 6]),
        (["7", "7"], [0, 1]),
        (["41B", "42C", "42A"], [0, 1, 2]),
        (["9"], [0]),
        ([], []),
    ],
)
def test_positions_of_residue_numbers(numbers, expected):
    found = residue_positions(numbers)
    assert found.dtype == torch.int64 and found.tolist() == expected
    assert residue_positions(tuple(numbers)).tolist() == expected


def positions_by_filling(numbers):
    """ProteinMPNN's way: every number from the first to the last has at least one place, present or not."""
    codes = {}
    for name in numbers:
        number = int(name.rstrip("ABC"))
        codes.setdefault(number, []).append(name)
    positions, place = [], 0
    for number in range(min(codes), max(codes) + 1):
        here = codes.get(number, [None])
        positions += [place + i for i, name in enumerate(here) if name is not None]
        place += len(here)
    return positions


def test_positions_are_those_of_filled_gaps():
    rng = np.random.default_rng(0)
    for _ in range(100):
        kept = sorted(rng.choice(np.arange(-20, 60), size=rng.integers(1, 40), replace=False).tolist())
        names = [f"{number}{code}" for number in kept for code in ["", "A", "B", "C"][: rng.integers(1, 5)]]
        assert residue_positions(names).tolist() == positions_by_filling(names)


@pytest.mark.parametrize("name", ["", "A", "A52", "-", None, "?"])
def test_names_without_a_number_are_refused(name):
    with pytest.raises(ValueError, match=r"Residue 1 is numbered .*; expected an integer"):
        residue_positions(["1", name])


# --- geometry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 30, 48])
def test_neighbors_of_the_plain_version(k):
    for length in (1, 2, 29, 60):
        coords = made_coords(length)
        found = nearest_residues(coords[:, 1].float(), k)
        expected = neighbors(backbone(coords[None].float()), torch.ones(1, length).double(), k)[0]
        assert torch.equal(found, expected)
        assert torch.equal(found[:, 0], torch.arange(length))


def test_of_equally_near_residues_the_lower_index_comes_first():
    ca = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, -1], [0, 0, 0]])
    found = nearest_residues(ca, 4)
    assert found[0].tolist() == [0, 5, 1, 2]
    assert found[5].tolist() == [0, 5, 1, 2]  # at distance zero: itself is among them all the same
    assert found[3].tolist()[:3] == [3, 0, 5]


def test_search_in_blocks_is_the_search_at_once(monkeypatch):
    ca = made_coords(200)[:, 1]
    expected = nearest_residues(ca, 20)
    monkeypatch.setattr("structure_aligned.structure.backbone_graph._DISTANCES_PER_BLOCK", 1)
    assert torch.equal(nearest_residues(ca, 20), expected)


def test_distances_and_basis_of_the_plain_version():
    coords = made_coords(25)
    index = nearest_residues(coords[:, 1], 7)
    positions = torch.arange(25)
    atoms = backbone_atoms(coords)
    found = atom_distances(pair_ends(atoms), index)
    expected = backbone(coords[None])
    for pair, (first, second) in enumerate(ATOM_PAIRS):
        wanted = distances(expected[first], expected[second])[0].gather(1, index)
        torch.testing.assert_close(found[..., pair], wanted, rtol=1e-12, atol=1e-12)
    assert len(set(ATOM_PAIRS)) == 25
    torch.testing.assert_close(found[3:9], atom_distances(pair_ends(atoms), index[3:9], slice(3, 9)))
    chains = torch.zeros(1, 25)
    for functions in (16, 3):
        _, basis = edge_inputs(expected, index[None], positions[None], chains, functions)
        torch.testing.assert_close(radial_basis(found, functions), basis[0], rtol=1e-10, atol=1e-12)


def test_virtual_cb_is_near_the_real_one():
    from structure_aligned.structure.backbone import backbone_from_torsions

    ideal = torch.from_numpy(backbone_from_torsions(np.full((10, 2), [-60.0, -45.0])))
    found = backbone_atoms(ideal[:, :4])
    assert torch.equal(found[:, :4], ideal[:, :4])
    assert (found[:, 4] - ideal[:, 4]).norm(dim=-1).max() < 0.1


def test_gradients_are_finite_where_atoms_coincide():
    coords = torch.ones(3, 4, 3, requires_grad=True)
    found = atom_distances(pair_ends(backbone_atoms(coords)), torch.arange(3).expand(3, 3))
    torch.testing.assert_close(found, torch.full((3, 3, 25), 1e-3))
    radial_basis(found).sum().backward()
    assert torch.isfinite(coords.grad).all()


def test_relative_positions():
    positions = torch.tensor([0, 1, 40, 100])
    index = torch.arange(4).expand(4, 4)
    found = relative_positions(positions, index)
    assert found[0].tolist() == [32, 31, 0, 0]
    assert found[3].tolist() == [64, 64, 64, 32]
    assert found[1].tolist() == [33, 32, 0, 0]
    assert torch.equal(relative_positions(positions, index[2:], residues=slice(2, 4)), found[2:])
    chains = torch.tensor([0, 0, 1, 1])
    apart = relative_positions(positions, index, chains)
    assert apart[0].tolist() == [32, 31, 65, 65] and apart[3].tolist() == [65, 65, 64, 32]
    assert relative_positions(positions, index, chains, max_distance=2)[0].tolist() == [2, 1, 5, 5]


# --- graphs ------------------------------------------------------------------------------------------------------


def test_pack_shifts_neighbors_and_masks_what_short_chains_lack():
    graphs = [BackboneGraph.from_chain(made_coords(n, n), k=6) for n in (8, 1, 4, 7)]
    pack = BackboneGraph.pack(graphs)
    assert pack.lengths == (8, 1, 4, 7) and pack.neighbors.shape == pack.neighbor_mask.shape == (20, 6)
    first = 0
    for graph in graphs:
        rows, width = slice(first, first + len(graph.coords)), graph.neighbors.shape[1]
        assert width == min(6, len(graph.coords))
        assert torch.equal(pack.neighbors[rows, :width], graph.neighbors + first)
        assert pack.neighbor_mask[rows, :width].all() and not pack.neighbor_mask[rows, width:].any()
        assert torch.equal(pack.coords[rows], graph.coords)
        assert torch.equal(pack.positions[rows], torch.arange(len(graph.coords)))
        first += len(graph.coords)
    with pytest.raises(ValueError, match="no graph to pack"):
        BackboneGraph.pack([])


def test_what_is_no_backbone_is_refused():
    coords = made_coords(5)
    with pytest.raises(ValueError, match=r"shape \(5, 3\)"):
        as_backbone(coords[:, 1])
    with pytest.raises(ValueError, match=r"expected \(residues, 4, 3\)"):
        as_backbone(coords[:, :3])
    assert as_backbone(chain(5).coords).shape == (5, 4, 3)
    assert as_backbone(coords.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="k is 0"):
        BackboneGraph.from_chain(coords, k=0)
    with pytest.raises(ValueError, match=r"5 residues but positions of shape \(4,\)"):
        BackboneGraph.from_chain(coords, torch.arange(4))
    with pytest.raises(ValueError, match="float32; expected one integer"):
        BackboneGraph.from_chain(coords, torch.zeros(5))
    coords[2, 3] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 residues lack"):
        BackboneGraph.from_chain(coords)
