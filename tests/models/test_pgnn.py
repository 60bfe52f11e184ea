import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig

from structure_aligned.data.builder import StructureDatasetBuilder, dataset_pgnn, embedding_dim
from structure_aligned.data.features import FeatureStore, decode_embedding
from structure_aligned.models import pgnn as pgnn_module
from structure_aligned.models.gearnet import GearNetModel
from structure_aligned.models.pgnn import (
    PGNN_FAMILIES,
    PgnnFamily,
    load_pgnn,
    register_pgnn,
    untrained_gearnet,
    untrained_proteinmpnn,
)
from structure_aligned.models.proteinmpnn import ProteinMPNNEncoder
from structure_aligned.structure.synthetic import synthetic_chains, write_synthetic_folds
from tests import tiny


def test_untrained_gearnet_is_seeded_and_of_a_scale_that_float16_holds():
    chains = synthetic_chains(3, seed=5)
    embeddings = [torch.cat(untrained_gearnet([32] * 6, seed=seed).embed_batch(chains)) for seed in (0, 0, 1)]
    assert torch.equal(embeddings[0], embeddings[1]) and not torch.equal(embeddings[0], embeddings[2])
    assert embeddings[0].abs().max() < 1000
    unit = torch.nn.functional.normalize(embeddings[0], dim=-1)
    assert (unit @ unit.T).mean() < 0.9  # residues differ


def test_load_pgnn_takes_every_layout(tmp_path):
    gearnet, proteinmpnn = untrained_gearnet([16, 16]), untrained_proteinmpnn(hidden_size=16, num_encoder_layers=1)
    gearnet.save_pretrained(tmp_path / "gearnet")
    proteinmpnn.save_pretrained(tmp_path / "proteinmpnn")
    torch.save(gearnet.state_dict(), tmp_path / "mc_gearnet_edge.pth")
    save_file(gearnet.state_dict(), tmp_path / "gearnet.safetensors")
    decoder = {"W_out.weight": torch.zeros(21, 16), "decoder_layers.0.W1.weight": torch.zeros(16, 64)}
    released = {"model_state_dict": proteinmpnn.state_dict() | decoder, "num_edges": 48, "noise_level": 0.2}
    torch.save(released, tmp_path / "v_48_020.pt")
    chains = synthetic_chains(2)
    names = {"gearnet": gearnet, "mc_gearnet_edge.pth": gearnet, "gearnet.safetensors": gearnet}
    for name, pgnn in (names | {"proteinmpnn": proteinmpnn, "v_48_020.pt": proteinmpnn}).items():
        loaded = load_pgnn(tmp_path / name)
        assert type(loaded) is type(pgnn)
        assert loaded.weights_digest() == pgnn.weights_digest()
        for ours, theirs in zip(loaded.embed_batch(chains), pgnn.embed_batch(chains)):
            assert torch.equal(ours, theirs)
        assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    for folder in ("gearnet", "proteinmpnn"):
        assert type(AutoModel.from_pretrained(tmp_path / folder)) is type(load_pgnn(tmp_path / folder))


def test_load_pgnn_by_name_is_untrained_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for name, model_class, width in (("gearnet", GearNetModel, 512), ("proteinmpnn", ProteinMPNNEncoder, 128)):
        caplog.clear()
        assert type(load_pgnn(name, width=16)) is model_class and load_pgnn(name, width=16).output_dim == 16
        assert "UNTRAINED" in caplog.text and name in caplog.text
        assert PGNN_FAMILIES[name].untrained(None).output_dim == width
    digests = [untrained_proteinmpnn(seed, hidden_size=16).weights_digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_load_pgnn_refuses_what_is_none(tmp_path):
    with pytest.raises(ValueError, match="There is no pGNN at.*gearnet, proteinmpnn"):
        load_pgnn(tmp_path / "missing")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'bert'; expected a pGNN, one of: gearnet, protein_mpnn"):
        load_pgnn(tmp_path)
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="torn.pth"):
        load_pgnn(tmp_path / "torn.pth")
    torch.save({"something.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        load_pgnn(tmp_path / "other.pth")
    with pytest.raises(TypeError, match="A list is no pGNN"):
        load_pgnn([1])


def test_families_and_objects_of_ones_own(monkeypatch):
    own = tiny.WindowGNN()
    assert load_pgnn(own) is own
    monkeypatch.setattr(pgnn_module, "PGNN_FAMILIES", dict(PGNN_FAMILIES))
    family = PGNN_FAMILIES["gearnet"]
    register_pgnn(
        "mine", PgnnFamily(family.model_class, family.from_file, family.owns, lambda width: family.untrained(8))
    )
    assert load_pgnn("mine").output_dim == 8
    with pytest.raises(ValueError, match="must not look like a path"):
        register_pgnn("a/b", family)


def test_each_family_gives_rows_of_its_width(tmp_path):
    write_synthetic_folds(tmp_path / "folds", 2, max_length=40)
    identities = set()
    for name, width in (("gearnet", 512), ("proteinmpnn", 128)):
        builder = StructureDatasetBuilder(tmp_path / "folds", name, tmp_path / "cache")
        builder.download_and_prepare()
        rows = builder.as_dataset("train")
        assert embedding_dim(rows) == width
        assert all(np.isfinite(decode_embedding(row)).all() for row in rows)
        identities.add(dataset_pgnn(rows))
    assert len(identities) == 2
    with pytest.raises(ValueError, match="There is no pGNN at"):
        StructureDatasetBuilder(tmp_path / "folds", "gearnett", tmp_path / "cache")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("max_residues", [1, 200])
def test_an_interrupted_build_with_a_real_gearnet(tmp_path, monkeypatch, max_residues):
    """Other graph batches afterwards change embeddings by one float16 step at most; batches of one, not at all."""
    write_synthetic_folds(tmp_path / "folds", 9, max_length=70)

    def build(cache):
        builder = StructureDatasetBuilder(
            tmp_path / "folds", untrained_gearnet([32] * 3), cache, max_batch_residues=max_residues
        )
        builder.download_and_prepare()
        return builder.report, list(builder.as_dataset("train"))

    _, expected = build(tmp_path / "whole")
    write, written = FeatureStore.write_embedding, []

    def stop_after_four(self, *arguments):
        if len(written) == 4:
            raise Interrupted
        written.append(write(self, *arguments))

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(FeatureStore, "write_embedding", stop_after_four)
        build(tmp_path / "cut")
    report, rows = build(tmp_path / "cut")
    assert (report.parsed, report.embedded) == (0, 5)
    for row, whole in zip(rows, expected):
        ours, theirs = decode_embedding(row), decode_embedding(whole)
        assert {k: v for k, v in row.items() if k != "structure_embedding"} == {
            k: v for k, v in whole.items() if k != "structure_embedding"
        }
        if max_residues == 1:
            assert np.array_equal(ours, theirs)
        else:
            step = np.spacing(np.maximum(np.abs(ours), np.abs(theirs)))
            # float32 rounding before the cast is far below a float16 step, but near zero that step is 6e-8.
            close = np.abs(ours.astype(np.float64) - theirs) <= np.maximum(step.astype(np.float64), 1e-5)
            assert close.all()
