"""GearNet against torchdrug's numbers, against the plain version, and what it refuses."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from structure_aligned.models.configuration import GearNetConfig
from structure_aligned.models.gearnet import GearNetModel
from structure_aligned.structure.chain import ProteinChain
from structure_aligned.structure.graph import RESIDUE_LETTERS, ResidueGraph, residue_graph, residue_types
from structure_aligned.structure.line_graph import LineGraph
from tests.models.gearnet_reference import compact_ca, random_sequence, reference_forward


NAMES = ("1aki_A", "3o5r_A", "5L33_A")
VARIANTS = (("model.safetensors", "node_feature"), ("model_no_edge.safetensors", "node_feature_no_edge"))
BF16_ERROR = 0.02
"""Relative error of bfloat16 against float32 on the golden model: 0.0085 to 0.0095 with edges, 0.0036 without."""


def tiny_model(dtype=torch.float32, **options):
    """Random weights, with running statistics and norms away from 0 and 1 so that the folding of them shows."""
    torch.manual_seed(0)
    model = GearNetModel(GearNetConfig(**{"hidden_dims": [24, 24, 16], **options}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "batch_norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0) if name.endswith(("var", "weight")) else tensor.normal_(std=0.5)
    return model.to(dtype).eval()


def make_chain(length, seed=0, missing=(), letters=RESIDUE_LETTERS):
    coords = np.full((length, 5, 3), np.nan, dtype=np.float32)
    if length:
        coords[:, 1] = compact_ca(length, seed).numpy()
    coords[list(missing), 1] = np.nan
    numbers = tuple(str(i) for i in range(length))
    sequence = random_sequence(length, seed, letters)
    return ProteinChain("made", str(seed), sequence, coords, numbers, np.zeros(length, np.float32))


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- torchdrug's numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "key"), VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_residue_features_of_torchdrug(golden, weights, key, name):
    model = GearNetModel.from_torchdrug(golden("gearnet_edge_tiny", weights), embedding_layers="all")
    expected = load_file(golden("gearnet_edge_tiny", f"{name}.safetensors"))
    sequence = "".join(RESIDUE_LETTERS[i] for i in expected["residue_type"].tolist())
    found = model.embed(expected["ca"], sequence)
    assert relative_error(found, expected[key]) < 5e-6
    torch.testing.assert_close(found, expected[key], rtol=1e-4, atol=1e-4 * float(expected[key].abs().max()))
    assert relative_error(model.to(torch.bfloat16).embed(expected["ca"], sequence), expected[key]) < BF16_ERROR


@pytest.mark.parametrize(("weights", "key"), VARIANTS)
def test_batch_of_torchdrug_from_files(golden, weights, key):
    from structure_aligned.structure.io import read_chains

    model = GearNetModel.from_torchdrug(golden("gearnet_edge_tiny", weights), embedding_layers="all")
    chains = []
    for name in NAMES:
        path = golden("gearnet_edge_tiny", f"{name.split('_')[0]}.pdb.gz")
        chains.append(next(chain for chain in read_chains(path) if chain.chain_id == "A"))
    found = dict(zip(NAMES, model.embed_batch(chains)))
    for name in NAMES:
        expected = load_file(golden("gearnet_edge_tiny", f"{name}.safetensors"))[key]
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    expected = load_file(golden("gearnet_edge_tiny", "batch_of_three.safetensors"))
    lengths = torch.bincount(expected["node2graph"]).tolist()  # torchdrug packed them in another order
    in_its_order = [chain for length in lengths for chain in found.values() if len(chain) == length]
    assert relative_error(torch.cat(in_its_order), expected[key]) < 5e-6


# --- the plain version -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"num_angle_bin": None}, {"num_angle_bin": 1}, {"num_angle_bin": 5}, {"hidden_dims": [8]}],
    ids=["edge", "no-edge", "one-bin", "five-bins", "one-layer"],
)
@pytest.mark.parametrize("max_rows", [60, 100_000])
def test_equals_the_plain_version(options, max_rows):
    model = tiny_model(torch.float64, **options)
    ca, types = compact_ca(60).double(), residue_types(random_sequence(60, letters=RESIDUE_LETTERS + "X"))
    edges = residue_graph(ca)
    expected = reference_forward(model.state_dict(), ca, types, edges)
    with torch.no_grad():
        fast = model(ca, types, edges, max_rows=max_rows)
    slow = model(ca, types, edges, max_rows=max_rows)  # with gradients, which takes another branch
    for output in (fast, slow):
        assert len(output.hidden_states) == len(expected)
        for found, wanted in zip(output.hidden_states, expected):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bins", [8, None])
def test_gradients_of_the_plain_version(training, bins):
    model = tiny_model(torch.float64, num_angle_bin=bins).train(training)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    parameters = {name: state[name].requires_grad_() for name, _ in model.named_parameters()}
    ca, types = compact_ca(40).double(), residue_types(random_sequence(40))
    edges = residue_graph(ca)
    target = torch.randn(40, 16, dtype=torch.float64)
    wanted = reference_forward(state, ca, types, edges, training)[-1]
    (wanted * target).sum().backward()
    found = model(ca, types, edges, max_rows=200).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    (found * target).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-8, atol=1e-8)


def test_a_training_step_moves_every_weight_and_statistic():
    model = tiny_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = ResidueGraph.pack([ResidueGraph.from_chain(compact_ca(n, n), random_sequence(n, n)) for n in (40, 30)])
    output = model(graph.ca, graph.residue_types, graph.edges)
    (output.last_hidden_state * torch.randn(70, 16)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])] == []


def test_hidden_states_and_tuples_as_asked_for():
    model, graph = tiny_model(), ResidueGraph.from_chain(compact_ca(20), random_sequence(20))
    inputs = {"ca": graph.ca, "residue_types": graph.residue_types, "edges": graph.edges}
    assert next(iter(inputs)) == model.main_input_name
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and output.hidden_states[-1] is output.last_hidden_state
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    (alone,) = model(**inputs, output_hidden_states=False, return_dict=False)
    assert torch.equal(alone, output.last_hidden_state)
    embedded = model.embed(graph.ca, "G" * 20, layers="all")
    model.config.return_dict = model.config.output_hidden_states = False
    assert isinstance(model(**inputs), tuple) and len(model(**inputs)) == 1
    assert model(**inputs, return_dict=True).hidden_states is None
    assert torch.equal(model.embed(graph.ca, "G" * 20, layers="all"), embedded)  # whatever the configuration says


@pytest.mark.parametrize("bins", [8, None])
def test_exported_program_gives_the_same(bins):
    model, graph = tiny_model(torch.float64, num_angle_bin=bins), ResidueGraph.from_chain(compact_ca(30), "G" * 30)
    inputs = {"ca": graph.ca.double(), "residue_types": graph.residue_types, "edges": graph.edges}
    program = torch.export.export(model, (), inputs).module()
    moved = inputs | {"ca": inputs["ca"] + torch.randn(30, 3, dtype=torch.float64)}  # other angles, other bins
    shuffled = inputs | {"edges": graph.edges[torch.randperm(len(graph.edges))]}
    for given in (inputs, moved, shuffled):
        found, wanted = program(**given), model(**given)
        torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, rtol=1e-10, atol=1e-10)
    assert torch.equal(program(**moved)[0], program(**inputs)[0]) == (bins is None)


def test_exported_program_has_torchdrugs_numbers(golden):
    model = GearNetModel.from_torchdrug(golden("gearnet_edge_tiny", VARIANTS[0][0]))
    expected = load_file(golden("gearnet_edge_tiny", f"{NAMES[0]}.safetensors"))
    ca, types = expected["ca"], expected["residue_type"].long()
    inputs = {"ca": ca, "residue_types": types, "edges": residue_graph(ca, **model.config.graph_options)}
    with torch.no_grad():
        found = torch.cat(torch.export.export(model, (), inputs).module()(**inputs).hidden_states, dim=1)
    assert relative_error(found, expected[VARIANTS[0][1]]) < 5e-6


def test_edges_in_any_order():
    model, graph = tiny_model(torch.float64), ResidueGraph.from_chain(compact_ca(30).double(), random_sequence(30))
    shuffled = graph.edges[torch.randperm(len(graph.edges))]
    with torch.no_grad():
        found = model(graph.ca, graph.residue_types, shuffled)[0]
        assert torch.equal(found, model(graph.ca, graph.residue_types, graph.edges)[0])
    with pytest.raises(ValueError, match="source, target, relation"):
        model(graph.ca, graph.residue_types, graph.edges.T)


# --- embed and embed_batch ---------------------------------------------------------------------------------------


def test_batches_equal_single_chains_in_the_order_given():
    model = tiny_model(torch.float64)
    chains = [make_chain(length, seed) for seed, length in enumerate((50, 1, 35, 2, 20))]
    for max_edges in (1, 1000, 10**6):
        for chain, found in zip(chains, model.embed_batch(chains, max_edges=max_edges)):
            assert found.dtype == torch.float64 and found.shape == (len(chain), 16) and not found.requires_grad
            torch.testing.assert_close(found, model.embed(chain.ca, chain.sequence), rtol=1e-9, atol=1e-9)
    assert model.embed_batch([]) == []


def test_layers():
    model, chain = tiny_model(torch.float64), make_chain(12)
    last, both = model.embed_batch([chain])[0], model.embed_batch([chain], layers="all")[0]
    assert model.output_dim == 16 and last.shape == (12, 16) and both.shape == (12, 64)
    torch.testing.assert_close(both[:, -16:], last, rtol=1e-9, atol=1e-9)
    model.config.embedding_layers = "all"
    assert model.output_dim == 64
    torch.testing.assert_close(model.embed(chain.ca, chain.sequence), both, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="'first'"):
        model.embed_batch([chain], layers="first")


def test_residues_without_ca_are_nan_and_outside_the_graph():
    model, whole = tiny_model(torch.float64), make_chain(30)
    missing = [0, 7, 8, 29]
    present = [i for i in range(30) if i not in missing]
    chain = make_chain(30, missing=missing)
    found, other, nothing = model.embed_batch([chain, whole, make_chain(4, missing=range(4))])
    letters = "".join(chain.sequence[i] for i in present)
    torch.testing.assert_close(found[present], model.embed(whole.ca[present], letters), rtol=1e-9, atol=1e-9)
    assert found[missing].isnan().all() and not found[present].isnan().any() and not other.isnan().any()
    assert nothing.shape == (4, 16) and nothing.isnan().all()
    assert model.embed(np.zeros((0, 3), np.float32), "").shape == (0, 16)
    with pytest.raises(ValueError, match="30 CA positions but 2 letters"):
        model.embed(whole.ca, "GG")


def test_running_statistics_are_used_whatever_the_mode():
    model, chain = tiny_model(), make_chain(20)
    expected = model.embed(chain.ca, chain.sequence)
    model.train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(model.embed(chain.ca, chain.sequence), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_max_edges_bounds_every_graph_but_that_of_one_long_chain():
    model, seen = tiny_model(), []
    chains = [make_chain(length, seed) for seed, length in enumerate((40, 40, 150, 30, 30, 30))]
    sizes = [len(residue_graph(chain.ca)) for chain in chains]
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[2])))
    model.embed_batch(chains, max_edges=1500)
    assert sum(seen) == sum(sizes) and len(seen) < len(chains)
    assert [size for size in seen if size > 1500] == [sizes[2]]
    with pytest.raises(ValueError, match="max_edges is 0"):
        model.embed_batch(chains, max_edges=0)


def test_memory_of_a_long_chain_is_bounded(monkeypatch):
    """2,000 residues: the blocks of the line graph stay within their bound, and the search within its own."""
    model, chain, blocks = tiny_model(hidden_dims=[8, 8]), make_chain(2000), []
    original = LineGraph.from_edges.__func__

    def record(cls, *args):
        line_graph = original(cls, *args)
        blocks.extend(line_graph.blocks)
        return line_graph

    monkeypatch.setattr(LineGraph, "from_edges", classmethod(record))
    found = model.embed_batch([chain])[0]
    assert not found.isnan().any()
    assert len(blocks) > 5 and max(sum(block.rows_per_bin) for block in blocks) <= 16_384


def test_half_precision_keeps_geometry_and_returns_float32():
    model, chain = tiny_model(), make_chain(60)
    expected = model.embed(chain.ca, chain.sequence)
    half = tiny_model(torch.bfloat16)
    found = half.embed(chain.ca + 500.0, chain.sequence)  # bfloat16 coordinates would be off by an Å out there
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < BF16_ERROR


# --- saving, loading, digest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [8, None])
def test_save_and_load(tmp_path, bins):
    model, chain = tiny_model(num_angle_bin=bins, embedding_layers="all", radius=8.0), make_chain(25)
    model.save_pretrained(tmp_path)
    loaded, info = GearNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded.embed(chain.ca, chain.sequence), model.embed(chain.ca, chain.sequence))
    assert loaded.weights_digest() == model.weights_digest()
    assert loaded.config.graph_options == model.config.graph_options
    half = GearNetModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.weights_digest() != model.weights_digest()
    assert relative_error(half.embed(chain.ca, chain.sequence), model.embed(chain.ca, chain.sequence)) < BF16_ERROR


def test_digest_changes_with_every_weight_and_setting():
    model = tiny_model()
    digests = {model.weights_digest()}
    assert tiny_model().weights_digest() in digests
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.view(-1)[-1] += 0.25
            digests.add(model.weights_digest())
    changes = {"embedding_layers": "all", "radius": 9.0, "num_neighbors": 8, "min_distance": 4, "short_cut": False}
    for name, value in changes.items():
        digests.add(tiny_model(**{name: value}).weights_digest())
    weights = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(digests) == 1 + len(weights) + len(changes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hidden_dims": []}, "at least one layer"),
        ({"num_angle_bin": 0}, "num_angle_bin is 0"),
        ({"embedding_layers": "first"}, "'first'"),
    ],
)
def test_refused_configurations(options, match):
    with pytest.raises(ValueError, match=match):
        GearNetConfig(**options)


def test_other_reaches_have_other_relations():
    config = GearNetConfig(hidden_dims=[8], max_sequential_distance=3)
    assert (config.num_relation, config.edge_input_dim, config.hidden_size) == (9, 61, 8)
    chain = make_chain(20)
    assert GearNetModel(config).embed(chain.ca, chain.sequence).shape == (20, 8)


# --- torchdrug's files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [8, 5, None])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_from_torchdrug_reads_the_shapes(tmp_path, bins, suffix):
    model, path, chain = tiny_model(num_angle_bin=bins), tmp_path / f"weights.{suffix}", make_chain(15)
    (torch.save if suffix == "pth" else save_file)(model.state_dict(), path)
    loaded = GearNetModel.from_torchdrug(path, embedding_layers="all")
    assert (loaded.config.hidden_dims, loaded.config.num_angle_bin) == ([24, 24, 16], bins)
    assert loaded.output_dim == 64 and not loaded.training
    assert torch.equal(loaded.embed(chain.ca, chain.sequence), model.embed(chain.ca, chain.sequence, layers="all"))


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {f"module.{name}": tensor for name, tensor in s.items()}, "begin with 'module.'"),
        (lambda s: {"model": s, "optimizer": {}}, "model, optimizer are no tensors"),
        (lambda s: list(s.values()), "holds a list"),
        (lambda s: {}, "is no GearNet"),
        (lambda s: s | {"layers.0.ieconv.weight": torch.zeros(1)}, "IEConv family"),
        (lambda s: without(s, "layers.1.self_loop.weight"), r"no layers\.1\.self_loop\.weight"),
        (lambda s: without(s, "edge_layers.2.linear.weight"), r"no edge_layers\.2\.linear\.weight"),
        (lambda s: without(s, "batch_norms.0.bias"), r"missing are batch_norms\.0\.bias"),
        (lambda s: s | {"mlp.weight": torch.zeros(1)}, r"not part of it are mlp\.weight"),
        (lambda s: s | {"layers.0.linear.weight": torch.zeros(24, 105)}, "5 relations; expected 7"),
        (lambda s: s | {"layers.0.linear.weight": torch.zeros(24, 100)}, "expected a multiple"),
        (lambda s: s | {"layers.0.self_loop.weight": torch.zeros(24, 39)}, "width 39; expected 21"),
        (lambda s: s | {"edge_layers.0.self_loop.weight": torch.zeros(21, 57)}, "width 57; expected 59"),
        (lambda s: s | {"layers.1.linear.weight": torch.zeros(20, 168)}, r"layers\.1\.linear\.bias \(24,\) instead"),
        (lambda s: s | {"edge_layers.2.linear.weight": torch.zeros(24, 48)}, r"\(24, 48\) instead of \(24, 192\)"),
        (lambda s: s | {"layers.0.linear.weight": torch.zeros(24)}, "expected a matrix"),
    ],
)
def test_other_files_are_refused(tmp_path, change, match):
    path = tmp_path / "weights.pth"
    torch.save(change(dict(tiny_model().state_dict())), path)
    with pytest.raises(ValueError, match=match):
        GearNetModel.from_torchdrug(path)


def test_pickles_are_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("code was run",))

    for name, write in (("a.pth", torch.save), ("b.pth", lambda x, path: path.write_bytes(pickle.dumps(x)))):
        write(Payload(), tmp_path / name)
        with pytest.raises(ValueError, match="cannot be read as tensors"):
            GearNetModel.from_torchdrug(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    for name in ("c.pth", "c.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match="cannot be read as tensors"):
            GearNetModel.from_torchdrug(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        GearNetModel.from_torchdrug(tmp_path / "nowhere.pth")
