import numpy as np
import pytest
import torch
from transformers import AutoModel

from structure_aligned.data.builder import StructureDatasetBuilder
from structure_aligned.data.features import FeatureStore, decode_embedding
from structure_aligned.models.pgnn import load_pgnn, untrained_gearnet
from structure_aligned.structure.synthetic import synthetic_chains, write_synthetic_folds


def test_untrained_gearnet_is_seeded_and_of_a_scale_that_float16_holds():
    chains = synthetic_chains(3, seed=5)
    embeddings = [torch.cat(untrained_gearnet([32] * 6, seed=seed).embed_batch(chains)) for seed in (0, 0, 1)]
    assert torch.equal(embeddings[0], embeddings[1]) and not torch.equal(embeddings[0], embeddings[2])
    assert embeddings[0].abs().max() < 1000
    unit = torch.nn.functional.normalize(embeddings[0], dim=-1)
    assert (unit @ unit.T).mean() < 0.9  # residues differ


def test_load_pgnn_takes_both_layouts(tmp_path):
    pgnn = untrained_gearnet([16, 16])
    pgnn.save_pretrained(tmp_path / "folder")
    torch.save(pgnn.state_dict(), tmp_path / "torchdrug.pth")
    (chain,) = synthetic_chains(1)
    assert type(AutoModel.from_pretrained(tmp_path / "folder")) is type(pgnn)
    for path in (tmp_path / "folder", tmp_path / "torchdrug.pth"):
        loaded = load_pgnn(path)
        assert loaded.weights_digest() == pgnn.weights_digest()
        assert torch.equal(loaded.embed(chain.ca, chain.sequence), pgnn.embed(chain.ca, chain.sequence))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(ValueError, match="There is no pGNN at"):
        load_pgnn(tmp_path / "missing")


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
