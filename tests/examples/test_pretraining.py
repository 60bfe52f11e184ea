"""Base models from nothing, as a user starts the scripts."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from structure_aligned import load_pgnn, write_synthetic_folds
from structure_aligned.structure.synthetic import synthetic_chains

from .test_examples import TINY, start


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequences") / "some.fasta"
    path.write_text("".join(f">{chain.id}\n{chain.sequence}\n" for chain in synthetic_chains(60, seed=0)))
    return path


@pytest.mark.parametrize("family", ["esm", "AMPLIFY"])
def test_pretrain_mlm(fasta, tmp_path, family):
    options = ("--sequences", fasta, "--model_type", family, *TINY, "--num_train_epochs", 12, "--logging_steps", 5)
    options += ("--validation_fraction", 0.2, "--tokens_per_batch", 600, "--learning_rate", 5e-3, "--save_steps", 20)
    output = start("pretrain_mlm.py", *options, "--report_to", "none", "--output_dir", tmp_path / "base").stdout
    summary = json.loads((tmp_path / "base" / "pretraining.json").read_text())
    assert f"Held-out perplexity {summary['perplexity']:.2f}" in output
    assert summary["perplexity_low"] < summary["perplexity"] < summary["perplexity_high"]
    assert summary["perplexity"] < 18  # it has learnt at least which residues there are
    assert (summary["proteins"], summary["held_out_proteins"]) == (48, 12)
    assert len(summary["sequences"]["some.fasta"]) == 64
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    assert summary["parameters"] == model.num_parameters()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) == model.config.vocab_size
    state = json.loads((max((tmp_path / "base").glob("checkpoint-*")) / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0]
    # Going on from it, with a rate of nothing, is the same model.
    more = (*options, "--model_name_or_path", tmp_path / "base", "--learning_rate", 0, "--weight_decay", 0)
    more += ("--max_steps", 1, "--report_to", "none", "--output_dir", tmp_path / "more")
    result = start("pretrain_mlm.py", *more, "--resume_from_checkpoint", "true")
    assert "the training starts from the beginning" in result.stderr
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "more").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_pretrain_gearnet(tmp_path):
    write_synthetic_folds(tmp_path / "train", 12, seed=0, max_length=60)
    write_synthetic_folds(tmp_path / "valid", 4, seed=1, max_length=60)
    options = ("--structures", tmp_path / "train", "--validation_structures", tmp_path / "valid", "--epochs", 3)
    options += ("--hidden_dims", 16, 16, "--half_precision", "True", "--use_residue_types", "False")
    options += ("--resume_from_checkpoint", "true", "--output_dir", tmp_path / "gearnet")
    result = start("pretrain_gearnet.py", *options)
    output = result.stdout
    assert "the training starts from the beginning" in result.stderr
    summary = json.loads((tmp_path / "gearnet" / "pretraining.json").read_text())
    for name in ("secondary_structure", "structure_tokens", "contacts"):
        assert name in output
        assert all(0 <= summary["probes"][which][name] <= 1 for which in ("untrained", "pre-trained"))
    pgnn = load_pgnn(tmp_path / "gearnet")
    assert pgnn.weights_digest() == summary["weights_digest"]
    assert pgnn.output_dim == 32 and not pgnn.config.use_residue_types
    assert type(AutoModel.from_pretrained(tmp_path / "gearnet")) is type(pgnn)
    embedding = pgnn.embed_batch(synthetic_chains(1, seed=9))[0].numpy()
    assert np.isfinite(embedding).all() and embedding.std(axis=0).max() > 0
