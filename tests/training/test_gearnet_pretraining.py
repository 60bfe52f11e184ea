"""Pre-training of GearNet: what is hidden stays hidden, losses fall, runs repeat."""

import numpy as np
import pytest
import torch

from structure_aligned import GearNetConfig, GearNetModel
from structure_aligned.structure.graph import UNKNOWN_RESIDUE, ResidueGraph
from structure_aligned.structure.synthetic import synthetic_chains
from structure_aligned.training.checkpoints import last_complete_checkpoint
from structure_aligned.training.gearnet_pretraining import (
    CROP_RESIDUES,
    GearNetPretraining,
    _draw_pairs,
    _without_pairs,
    dihedrals,
    pretrain_gearnet,
)


@pytest.fixture(scope="module")
def chains():
    return synthetic_chains(6, seed=3)


def network(**options):
    torch.manual_seed(0)
    return GearNetModel(GearNetConfig(hidden_dims=[16, 16], embedding_layers="all", **options))


def graphs_of(chains):
    return [ResidueGraph.from_chain(torch.from_numpy(chain.ca), chain.sequence) for chain in chains]


@pytest.mark.parametrize(
    ("objective", "names"), [("prediction", {"type", "distance", "dihedral"}), ("contrast", {"contrast"})]
)
def test_losses_fall_and_runs_repeat(chains, objective, names):
    options = {"epochs": 40, "residues_per_batch": 1200, "learning_rate": 3e-3, "progress": False}
    first, second = network(), network()
    history = pretrain_gearnet(first, chains, objective, **options)
    assert set(history[0]) == names | {"step"}
    for name in names:
        assert history[-1][name] < 0.95 * history[0][name]
    assert pretrain_gearnet(second, chains, objective, **options) == history
    assert first.weights_digest() == second.weights_digest()
    assert not first.training and all(row.isfinite().all() for row in first.embed_batch(chains))


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(chains, tmp_path, monkeypatch):
    options = {"epochs": 8, "residues_per_batch": 200, "progress": False}
    whole, killed = network(), network()
    history = pretrain_gearnet(whole, chains, **options)

    steps, forward = iter(range(1, 6)), GearNetPretraining.forward

    def stop_at_the_fifth_step(task, *args):
        if next(steps) == 5:
            raise Killed
        return forward(task, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GearNetPretraining, "forward", stop_at_the_fifth_step)
        pretrain_gearnet(killed, chains, **options, output_dir=tmp_path, save_steps=2)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]

    resumed = network()
    found = pretrain_gearnet(resumed, chains, **options, resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert found == history and resumed.weights_digest() == whole.weights_digest()
    for other in ({"seed": 1}, {"residues_per_batch": 400}, {"objective": "contrast"}):
        with pytest.raises(ValueError, match="written by a training with other chains or options"):
            pretrain_gearnet(network(), chains, **options | other, resume_from_checkpoint=tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="not a complete checkpoint of this pre-training"):
        pretrain_gearnet(network(), chains, **options, resume_from_checkpoint=tmp_path / "checkpoint-4")


def test_a_hidden_type_does_not_reach_the_network(chains):
    """With every type hidden, letters change what is asked for and nothing that is read."""
    graph = ResidueGraph.pack(graphs_of(chains[:2]))
    task = GearNetPretraining(network(use_residue_types=False)).eval()
    seen = []
    task.gearnet.register_forward_hook(lambda module, inputs, output: seen.append(output.last_hidden_state))
    types = torch.randint(0, 20, graph.residue_types.shape, generator=torch.Generator().manual_seed(1))
    other = ResidueGraph(graph.ca, types, graph.edges, graph.lengths)
    losses = [task([one], torch.Generator().manual_seed(0)) for one in (graph, other)]
    torch.testing.assert_close(*seen)
    assert losses[0]["type"] != losses[1]["type"]
    torch.testing.assert_close(losses[0]["distance"], losses[1]["distance"])


def test_a_distance_that_is_asked_for_is_on_no_edge(chains):
    graph = ResidueGraph.pack(graphs_of(chains[:3]))
    first, second = _draw_pairs(graph, 0.5, torch.Generator().manual_seed(0))
    assert len(first) > 20
    assert ((first - second).abs() >= 5).all()
    assert (graph.node_to_graph[first] == graph.node_to_graph[second]).all()
    left = set(map(tuple, _without_pairs(graph.edges, first, second, len(graph.ca))[:, :2].tolist()))
    asked = set(zip(first.tolist(), second.tolist()))
    before = set(map(tuple, graph.edges[:, :2].tolist()))
    assert before & asked and not left & (asked | {pair[::-1] for pair in asked})
    assert left == before - asked - {pair[::-1] for pair in asked}


def test_views_are_parts_with_the_edges_inside(chains):
    (graph,) = graphs_of(chains[:1])
    task, generator = GearNetPretraining(network(), "contrast"), torch.Generator().manual_seed(0)
    places = {tuple(point): index for index, point in enumerate(graph.ca.tolist())}
    sizes = set()
    for _ in range(10):
        view = task._view(graph, generator)
        own = torch.tensor([places[tuple(point)] for point in view.ca.tolist()])
        assert (view.residue_types == graph.residue_types[own]).all()
        edges = {(int(own[a]), int(own[b]), r) for a, b, r in view.edges.tolist()}
        inside = set(own.tolist())
        assert edges == {(a, b, r) for a, b, r in graph.edges.tolist() if {a, b} <= inside}
        sizes.add(len(view.ca))
    assert min(CROP_RESIDUES, len(graph.ca)) in sizes and len(sizes) > 1


def test_dihedrals_have_the_sign_of_the_convention():
    points = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.float64)
    angle = dihedrals(*points[:, None])
    # Looking along b -> c (+z), the far bond points 90° clockwise of the near one where the angle is +90°.
    reference = _dihedral_by_hand(points.numpy())
    assert angle.item() == pytest.approx(reference)
    mirrored = points * torch.tensor([1, -1, 1])
    assert dihedrals(*mirrored[:, None]).item() == pytest.approx(-reference)


def _dihedral_by_hand(points):
    """Angle between the bonds' shadows on the plane across the axis, counted in the right-handed sense about it."""
    axis = (points[2] - points[1]) / np.linalg.norm(points[2] - points[1])
    near, far = points[0] - points[1], points[3] - points[2]
    near, far = near - near @ axis * axis, far - far @ axis * axis
    return np.arctan2(np.cross(near, far) @ axis, near @ far)


def test_residues_without_ca_and_short_chains_are_left_out(chains):
    coords = chains[0].coords.copy()
    coords[5:] = np.nan
    short = type(chains[0])(**{**vars(chains[0]), "coords": coords})
    with pytest.raises(ValueError, match="None of 1 chains has 8 residues"):
        pretrain_gearnet(network(), [short], progress=False)
    history = pretrain_gearnet(network(), [short, chains[1]], epochs=1, progress=False)
    assert np.isfinite(history[-1]["type"])


@pytest.mark.parametrize("options", [{"objective": "distance"}, {"mask_fraction": 0.0}, {"mask_fraction": 1.5}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        GearNetPretraining(network(), **options)


def test_geometry_alone_is_another_network_with_another_digest(chains):
    plain, blind = network(), network(use_residue_types=False)
    assert plain.weights_digest() != blind.weights_digest()
    chain = chains[0]
    letters = "".join("A" if letter != "A" else "W" for letter in chain.sequence)
    torch.testing.assert_close(blind.eval().embed(chain.ca, chain.sequence), blind.embed(chain.ca, letters))
    assert not torch.allclose(plain.eval().embed(chain.ca, chain.sequence), plain.embed(chain.ca, letters))
    unknown = plain.embed(chain.ca, "X" * len(chain.sequence))
    torch.testing.assert_close(unknown, blind.embed(chain.ca, chain.sequence))
    assert UNKNOWN_RESIDUE == 20
