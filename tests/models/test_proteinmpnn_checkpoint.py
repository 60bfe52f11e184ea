"""ProteinMPNN's released files: read, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from structure_aligned.models.proteinmpnn import ProteinMPNNEncoder
from tests.models.test_proteinmpnn import made_chain, tiny_model


def released(model, **changes):
    """The layout of the released files: with the decoder's tensors, and with what the encoder does not need."""
    state = dict(model.state_dict())
    state |= {"W_s.weight": torch.zeros(21, 16), "W_out.weight": torch.zeros(21, 16), "W_out.bias": torch.zeros(21)}
    state |= {f"decoder_layers.{i}.W1.weight": torch.zeros(16, 64) for i in range(3)}
    return {"num_edges": 9, "noise_level": 0.2, "model_state_dict": state} | changes


def test_from_checkpoint_as_released(tmp_path):
    model, path, one = tiny_model(num_neighbors=9), tmp_path / "v_48_020.pt", made_chain(25)
    torch.save(released(model), path)
    loaded = ProteinMPNNEncoder.from_checkpoint(path)
    assert loaded.config.num_neighbors == 9 and loaded.config.hidden_size == 16 and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded.embed(one.coords), model.embed(one.coords))
    assert ProteinMPNNEncoder.from_checkpoint(path, num_neighbors=5).config.num_neighbors == 5
    torch.save(released(model) | {"epoch": 3, "optimizer_state_dict": {"step": 1}}, path)  # from their training script
    assert ProteinMPNNEncoder.from_checkpoint(path).weights_digest() == model.weights_digest()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_from_checkpoint_reads_the_shapes_of_a_bare_state_dict(tmp_path, suffix):
    options = {"num_encoder_layers": 2, "num_rbf": 7, "num_positional_embeddings": 5, "max_relative_position": 11}
    model, path = tiny_model(**options), tmp_path / f"encoder.{suffix}"
    (torch.save if suffix == "pt" else save_file)(released(model)["model_state_dict"], path)
    loaded = ProteinMPNNEncoder.from_checkpoint(path, dropout=0.0)
    assert {name: getattr(loaded.config, name) for name in options} == options
    assert loaded.config.num_neighbors == 48 and loaded.config.dropout == 0.0
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def changed(**tensors):
    """Tensors replaced in the state dict, by name with `_` for `.`; `None` takes one away."""

    def change(content):
        state = content["model_state_dict"]
        names = {name.replace(".", "_"): name for name in state}
        for key, tensor in tensors.items():
            name = names.get(key, key)
            state.pop(name) if tensor is None else state.update({name: tensor})
        return content

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (changed(W_e_bias=None), r"missing are W_e\.bias"),
        (changed(encoder_layers_1_W11_weight=None), r"missing are encoder_layers\.1\.W11\.weight"),
        (changed(mlp=torch.zeros(1)), "not part of it are mlp"),
        (changed(W_e_weight=torch.zeros(16, 15)), r"W_e\.weight \(16, 15\) instead of \(16, 16\)"),
        (changed(W_e_weight=torch.zeros(16)), r"W_e\.weight \(16,\) instead of"),
        (changed(features_edge_embedding_weight=torch.zeros(16)), r"has shape \(16,\); expected a matrix"),
        (changed(features_edge_embedding_weight=None), r"no features\.edge_embedding\.weight"),
        (changed(features_edge_embedding_weight=torch.zeros(16, 167)), "CA-only ProteinMPNN.*width 167.*416"),
        (changed(**{"features.node_embedding.weight": torch.zeros(16, 3)}), "CA-only"),
        (changed(features_edge_embedding_weight=torch.zeros(16, 400)), "multiple of 25 atom pairs"),
        (changed(features_edge_embedding_weight=torch.zeros(16, 16)), "multiple of 25 atom pairs"),
        (changed(features_embeddings_linear_weight=torch.zeros(16, 65)), "65 relative positions"),
        (changed(features_embeddings_linear_weight=torch.zeros(66)), r"has shape \(66,\)"),
        (changed(**{"encoder_layers.9999.W1.weight": torch.zeros(1)}), "no complete encoder layers"),
        (lambda c: c | {"model_state_dict": [1]}, "model_state_dict in .* is a list"),
        (lambda c: c | {"model_state_dict": {}}, "but nothing"),
        (lambda c: c | {"num_edges": 0}, "num_edges in .* is 0"),
        (lambda c: c | {"num_edges": "48"}, "num_edges in .* is '48'"),
        (lambda c: {"state": c["model_state_dict"], "epoch": 1}, "epoch, state in .* are no tensors"),
        (lambda c: list(c), "holds a list"),
        (lambda c: {f"module.{name}": x for name, x in c["model_state_dict"].items()}, "begin with 'module.'"),
    ],
)
def test_other_files_are_refused(tmp_path, change, match):
    path = tmp_path / "weights.pt"
    torch.save(change(released(tiny_model())), path)
    with pytest.raises(ValueError, match=match):
        ProteinMPNNEncoder.from_checkpoint(path)


def test_pickles_are_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("code was run",))

    for name, write in (("a.pt", torch.save), ("b.pt", lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2)))):
        write({"model_state_dict": Payload(), "num_edges": 48}, tmp_path / name)
        with pytest.raises(ValueError, match="cannot be read as tensors"):
            ProteinMPNNEncoder.from_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    for name in ("c.pt", "c.safetensors"):
        for content in (b"", b"not a checkpoint"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match="cannot be read as tensors"):
                ProteinMPNNEncoder.from_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ProteinMPNNEncoder.from_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="is no file"):
        ProteinMPNNEncoder.from_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "legacy.pt", "safetensors"])
def test_cut_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"v_48_020.{suffix}"
    if suffix == "safetensors":
        save_file(tiny_model().state_dict(), path)
    else:
        torch.save(released(tiny_model()), path, _use_new_zipfile_serialization=suffix == "pt")
    content = path.read_bytes()
    assert ProteinMPNNEncoder.from_checkpoint(path)
    for part in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(ValueError, match="cannot be read as tensors"):
            ProteinMPNNEncoder.from_checkpoint(path)
