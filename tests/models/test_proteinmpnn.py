"""ProteinMPNN's encoder against the original's numbers, against the plain version, and as a pGNN."""

import gzip

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from structure_aligned.models import proteinmpnn
from structure_aligned.models.configuration import ProteinMPNNConfig
from structure_aligned.models.proteinmpnn import ProteinMPNNEncoder
from structure_aligned.structure.backbone_graph import (
    BackboneGraph,
    backbone_atoms,
    nearest_residues,
    pair_ends,
    residue_positions,
)
from tests.models.proteinmpnn_reference import reference_forward
from tests.tiny import chain


BF16_ERROR = 0.02
"""Relative error of bfloat16 against float32 on the golden model: 0.010."""


def tiny_model(dtype=torch.float32, seed=0, **options):
    """Random weights, with norms away from 0 and 1 so that they show."""
    torch.manual_seed(seed)
    model = ProteinMPNNEncoder(ProteinMPNNConfig(**{"hidden_size": 16, "num_neighbors": 12, **options}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".norm" in name:
                tensor.uniform_(0.5, 2.0) if name.endswith("weight") else tensor.normal_(std=0.5)
    return model.to(dtype).eval()


def made_chain(length, seed=0, missing=(), **fields):
    """`missing` lists (residue, atom) pairs without coordinates."""
    coords = chain(length, seed).coords + np.random.default_rng(seed).normal(size=(length, 5, 3), scale=0.2)
    for residue, atom in missing:
        coords[residue, atom] = np.nan
    return chain(length, seed, coords=coords.astype(np.float32), **fields)


def reference(model, *chains, **options):
    """The plain version on chains of one length, positions from their numbering."""
    coords = torch.stack([torch.from_numpy(one.coords[:, :4]) for one in chains])
    positions = torch.stack([residue_positions(one.residue_numbers) for one in chains])
    options = {"k": model.config.num_neighbors, "scale": model.config.message_scale, **options}
    return reference_forward(model.state_dict(), coords, positions, **options)[0]


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- the original's numbers --------------------------------------------------------------------------------------


@pytest.fixture
def golden_model(golden):
    return ProteinMPNNEncoder.from_checkpoint(golden("proteinmpnn_encoder", "encoder.safetensors"))


@pytest.fixture
def expected(golden):
    return load_file(golden("proteinmpnn_encoder", "5L33_A.safetensors"))


def test_neighbors_and_features_of_the_original(golden_model, expected):
    graph = BackboneGraph.from_chain(expected["backbone_n_ca_c_o"], expected["residue_idx"])
    assert torch.equal(graph.neighbors, expected["neighbor_index"])
    ends = pair_ends(backbone_atoms(graph.coords))
    found = golden_model.features(ends, graph.positions, graph.neighbors[:8], residues=slice(0, 8))
    torch.testing.assert_close(found, expected["edge_features"], rtol=0, atol=1e-5)


def test_residue_embeddings_of_the_original(golden_model, expected):
    coords, wanted = expected["backbone_n_ca_c_o"], expected["residue_embedding"]
    for numbers in (None, expected["residue_idx"], [str(i + 7) for i in range(len(coords))]):
        torch.testing.assert_close(golden_model.embed(coords, numbers), wanted, rtol=0, atol=1e-5)
    assert relative_error(golden_model.to(torch.bfloat16).embed(coords), wanted) < BF16_ERROR


@pytest.mark.parametrize("source", ["pdb", "mmcif"])
def test_residue_embeddings_from_files(golden, real_data, golden_model, expected, source, tmp_path):
    from structure_aligned.structure.io import read_chains

    if source == "pdb":
        # The original was run on the first location of each atom; the reader takes the last listed.
        path = tmp_path / "5L33.pdb"
        lines = gzip.decompress(golden("gearnet_edge_tiny", "5L33.pdb.gz").read_bytes()).decode().splitlines(True)
        atoms = ("ATOM", "ANISOU")
        path.write_text("".join(line for line in lines if not line.startswith(atoms) or line[16] in " A"))
    else:
        path = real_data("structures", "train", "5l33_A.cif.gz")
    one = next(one for one in read_chains(path) if one.chain_id == "A")
    found = golden_model.embed_batch([one])[0]
    torch.testing.assert_close(found, expected["residue_embedding"], rtol=0, atol=1e-5)


def test_plain_version_is_the_original(golden_model, expected):
    hidden, features = reference_forward(golden_model.state_dict(), expected["backbone_n_ca_c_o"][None])
    torch.testing.assert_close(hidden[0].float(), expected["residue_embedding"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features[0, :8].float(), expected["edge_features"], rtol=0, atol=1e-5)


# --- the plain version -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_encoder_layers": 1},
        {"num_rbf": 5, "num_positional_embeddings": 4, "max_relative_position": 6},
        {"message_scale": 4, "num_neighbors": 1},
        {"num_neighbors": 60},
    ],
    ids=["default", "one-layer", "other-features", "one-neighbor", "more-neighbors-than-residues"],
)
def test_equals_the_plain_version(options):
    model = tiny_model(torch.float64, **options)
    config = model.config
    for length in (1, 2, 5, 40):
        one = made_chain(length, length)
        wanted = reference(model, one, functions=config.num_rbf, reach=config.max_relative_position)[0]
        torch.testing.assert_close(model.embed_batch([one])[0], wanted, rtol=1e-9, atol=1e-9)


def test_hidden_states_and_tuples_as_asked_for():
    model, graph = tiny_model(), BackboneGraph.from_chain(torch.from_numpy(made_chain(20).coords[:, :4]), None, 12)
    inputs = {"coords": graph.coords, "neighbors": graph.neighbors}
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and output.hidden_states[-1] is output.last_hidden_state
    shorter = tiny_model(num_encoder_layers=2)
    shorter.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(output.hidden_states[1], shorter(**inputs).last_hidden_state)
    assert model(**inputs).hidden_states is None
    model.config.output_hidden_states, model.config.return_dict = True, False
    last, hidden_states = model(**inputs)
    assert torch.equal(last, output.last_hidden_state) and len(hidden_states) == 3
    assert isinstance(model(**inputs, return_dict=True), proteinmpnn.ProteinMPNNOutput)
    assert model.embed_batch([made_chain(20)])[0].shape == (20, 16)  # whatever the configuration says


@pytest.mark.parametrize("k", [6, 50], ids=["more-than-k", "fewer-than-k"])
def test_incomplete_residues_are_nan_and_masked_for_the_others(k):
    model = tiny_model(torch.float64, num_neighbors=k)
    missing = [(0, 0), (5, 1), (6, 2), (13, 3), (29, 0), (29, 1), (29, 2), (29, 3)]
    one, no_cb = made_chain(30, missing=missing), made_chain(30, missing=[(i, 4) for i in range(30)])
    gone = sorted({residue for residue, _ in missing})
    present = [i for i in range(30) if i not in gone]
    found, whole, nothing = model.embed_batch([one, no_cb, made_chain(3, missing=[(i, i) for i in range(3)])])
    assert found[gone].isnan().all() and not found[present].isnan().any()
    torch.testing.assert_close(found[present], reference(model, one)[0, present], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole, reference(model, no_cb)[0], rtol=1e-9, atol=1e-9)
    assert nothing.shape == (3, 16) and nothing.isnan().all()
    # The gaps that they leave count: the others keep their places along the chain.
    assert relative_error(found[present], model.embed(one.coords[present])) > 1e-4
    places = torch.tensor(present)
    torch.testing.assert_close(found[present], model.embed(one.coords[present], places))


def test_breaks_and_insertion_codes_are_positions():
    model = tiny_model(torch.float64)
    numbers = ["-2", "-1", "0", "0A", "0B", "1", *(str(i) for i in range(9, 23))]
    one = made_chain(20, residue_numbers=tuple(numbers))
    found = model.embed_batch([one])[0]
    torch.testing.assert_close(found, reference(model, one)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, model.embed(one.coords, numbers))
    torch.testing.assert_close(found, model.embed(one.coords, residue_positions(numbers).numpy()))
    shifted = residue_positions(numbers) + 1000
    torch.testing.assert_close(found, model.embed(one.coords, shifted))
    assert relative_error(model.embed(one.coords), found) > 1e-4
    with pytest.raises(ValueError, match="tiny_A: Residue 1 is numbered 'B'"):
        model.embed_batch([made_chain(3, residue_numbers=("1", "B", "2"))])


def test_neighbors_in_other_chains():
    model = tiny_model(torch.float64)
    coords = torch.from_numpy(made_chain(30).coords[:, :4]).double()
    chains = torch.arange(30) // 12
    positions = torch.arange(30) + 100 * chains
    index = nearest_residues(coords[:, 1], 12)
    with torch.no_grad():
        found = model(coords, index, positions=positions, chain_ids=chains)[0]
    wanted = reference_forward(model.state_dict(), coords[None], positions[None], chains[None], k=12)[0][0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert relative_error(found, reference_forward(model.state_dict(), coords[None], positions[None], k=12)[0][0]) > 0


def test_blocks_do_not_change_the_result():
    model, graph = tiny_model(torch.float64), BackboneGraph.from_chain(made_chain(50).coords, k=12)
    inputs = (graph.coords, graph.neighbors, graph.neighbor_mask, graph.positions)
    with torch.no_grad():
        at_once = model(*inputs, max_edges=10**9).last_hidden_state
        for max_edges in (1, 100):
            torch.testing.assert_close(model(*inputs, max_edges=max_edges)[0], at_once, rtol=1e-12, atol=1e-12)
        assert torch.equal(model(*inputs, max_edges=10**9, return_dict=False)[0], at_once)
        assert torch.equal(model(*inputs[:2], max_edges=10**9)[0], at_once)
        assert model(*(x[:0] for x in inputs))[0].shape == (0, 16)


def test_turned_and_shifted_chains():
    model, one = tiny_model(torch.float64), made_chain(40)
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    rotation[:, 0] *= torch.linalg.det(rotation)
    coords = torch.from_numpy(one.coords).double()
    wanted = model.embed(coords)
    torch.testing.assert_close(model.embed(coords @ rotation + 50.0), wanted, rtol=1e-8, atol=1e-8)
    assert relative_error(model.embed(-coords), wanted) > 1e-3  # a mirror image has its CB elsewhere


# --- training ----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_weight_and_are_finite():
    model = tiny_model().train()
    coords = torch.from_numpy(made_chain(30).coords[:, :4]).clone()
    coords[7] = coords[8]  # distances of zero, to other residues too
    coords.requires_grad_()
    graph = BackboneGraph.from_chain(coords, k=12)
    output = model(graph.coords, graph.neighbors, graph.neighbor_mask, graph.positions).last_hidden_state
    (output * torch.randn(output.shape)).sum().backward()
    assert torch.isfinite(coords.grad).all() and coords.grad.abs().sum() > 0
    unused = ("norm3", "W11", "W12", "W13")  # the last layer's edges are read by the decoder alone
    for name, parameter in model.named_parameters():
        if name.startswith("encoder_layers.2.") and name.split(".")[2] in unused:
            assert parameter.grad is None, name
        else:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_dropout_in_training_mode_alone():
    one = made_chain(20)
    graph = BackboneGraph.from_chain(one.coords, k=12)
    inputs = (graph.coords, graph.neighbors)
    with torch.no_grad():
        model = tiny_model(dropout=0.0).train()
        wanted = model.eval()(*inputs)[0]
        assert torch.equal(model.train()(*inputs)[0], wanted)
        model = tiny_model(dropout=0.5).train()
        assert not torch.equal(model(*inputs)[0], model(*inputs)[0])
    model.encoder_layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.testing.assert_close(model.embed(one.coords), wanted)
    assert [module.training for module in model.modules()] == modes


# --- embed and embed_batch ---------------------------------------------------------------------------------------


def test_batches_equal_single_chains_in_the_order_given():
    model = tiny_model(torch.float64)
    chains = [made_chain(length, seed) for seed, length in enumerate((50, 1, 35, 2, 20))]
    for max_residues in (1, 40, 10**6):
        for one, found in zip(chains, model.embed_batch(chains, max_residues=max_residues)):
            assert found.dtype == torch.float64 and found.shape == (len(one), model.output_dim)
            assert not found.requires_grad
            torch.testing.assert_close(found, model.embed(one.coords, one.residue_numbers), rtol=1e-9, atol=1e-9)
    assert model.embed_batch([]) == []
    assert model.embed(np.zeros((0, 4, 3), np.float32)).shape == (0, 16)


def test_max_residues_bounds_every_graph_but_that_of_one_long_chain():
    model, seen = tiny_model(), []
    chains = [made_chain(length, seed) for seed, length in enumerate((20, 20, 70, 15, 15, 15))]
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model.embed_batch(chains, max_residues=45)
    assert seen == [40, 70, 45]
    with pytest.raises(ValueError, match="max_residues is 0"):
        model.embed_batch(chains, max_residues=0)


def test_memory_of_a_long_chain_is_bounded(monkeypatch):
    """3,000 residues: neither the search nor the features hold all pairs at once."""
    model, sizes, searched = tiny_model(hidden_size=8, num_encoder_layers=1, num_neighbors=8), [], []
    basis, cdist = proteinmpnn.radial_basis, torch.cdist

    def recorded_basis(*args):
        sizes.append(basis(*args).numel())
        return basis(*args)

    def recorded_cdist(*args, **options):
        searched.append(cdist(*args, **options).numel())
        return cdist(*args, **options)

    monkeypatch.setattr(proteinmpnn, "radial_basis", recorded_basis)
    monkeypatch.setattr(torch, "cdist", recorded_cdist)
    found = model.embed_batch([made_chain(3000)])[0]
    assert not found.isnan().any()
    assert len(sizes) > 5 and max(sizes) <= 2048 * 400
    assert sum(searched) == 3000**2 and max(searched) <= 1 << 22


def test_half_precision_keeps_geometry_and_returns_float32():
    model, one = tiny_model(), made_chain(60)
    wanted = model.embed(one.coords)
    found = tiny_model(torch.bfloat16).embed(one.coords + 500.0)  # bfloat16 would be off by an Å out there
    assert found.dtype == torch.float32
    assert relative_error(found, wanted) < BF16_ERROR


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"neighbors": torch.zeros(3, 2, dtype=torch.int64)}, r"neighbors has shape \(3, 2\)"),
        ({"neighbor_mask": torch.ones(4, 3, dtype=torch.bool)}, r"neighbor_mask has shape \(4, 3\)"),
        ({"positions": torch.arange(5)}, r"positions has shape \(5,\)"),
        ({"chain_ids": torch.arange(4)[:, None]}, r"chain_ids has shape \(4, 1\)"),
        ({"coords": torch.zeros(4, 3)}, r"Backbone coordinates have shape \(4, 3\)"),
    ],
)
def test_refused_inputs(change, match):
    inputs = {"coords": torch.zeros(4, 4, 3), "neighbors": torch.zeros(4, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=match):
        tiny_model()(**(inputs | change))


def test_numbers_of_another_length_are_refused():
    with pytest.raises(ValueError, match="5 residues but positions of shape"):
        tiny_model().embed(made_chain(5).coords, ["1", "2"])


# --- saving, loading, digest -------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    model, one = tiny_model(num_rbf=8, message_scale=20.0), made_chain(25)
    model.save_pretrained(tmp_path)
    loaded, info = ProteinMPNNEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded.embed(one.coords), model.embed(one.coords))
    assert loaded.weights_digest() == model.weights_digest()
    assert isinstance(AutoModel.from_pretrained(tmp_path), ProteinMPNNEncoder)
    half = ProteinMPNNEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.weights_digest() != model.weights_digest()
    assert relative_error(half.embed(one.coords), model.embed(one.coords)) < BF16_ERROR


def test_weights_start_as_the_original_starts_them():
    torch.manual_seed(0)
    state = ProteinMPNNEncoder(ProteinMPNNConfig()).state_dict()
    for name, tensor in state.items():
        if "norm" in name:
            assert (tensor == float(name.endswith("weight"))).all(), name
        else:
            bound = (6 / sum(tensor.shape)) ** 0.5 if tensor.ndim == 2 else 0.0
            bound = bound or state[name.replace("bias", "weight")].shape[1] ** -0.5
            assert tensor.abs().max() <= bound and tensor.abs().max() > 0.8 * bound, name


def test_digest_changes_with_every_weight_and_setting_that_matters():
    model = tiny_model()
    digests = {model.weights_digest()}
    assert tiny_model(dropout=0.3).train().weights_digest() in digests
    assert tiny_model(message_scale=30).weights_digest() in digests
    for tensor in model.state_dict().values():
        tensor.view(-1)[-1] += 0.25
        digests.add(model.weights_digest())
    changes = {"num_neighbors": 8, "message_scale": 20.0, "num_rbf": 8, "max_relative_position": 8}
    for name, value in changes.items():
        digests.add(tiny_model(**{name: value}).weights_digest())
    digests.add(tiny_model(torch.bfloat16).weights_digest())
    assert len(digests) == 2 + len(model.state_dict()) + len(changes)
