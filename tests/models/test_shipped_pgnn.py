"""The pre-trained pGNN that comes with the package: offline, whole, small, what its card says, and of some use."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard

from structure_aligned import load_pgnn
from structure_aligned.evaluation.pgnn_probes import evaluate_pgnn
from structure_aligned.models.pgnn import SHIPPED_PGNNS, untrained_gearnet
from structure_aligned.structure.synthetic import synthetic_chains


@pytest.mark.parametrize("name", sorted(SHIPPED_PGNNS))
def test_it_is_the_network_of_its_card(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = SHIPPED_PGNNS[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    summary = json.loads((folder / "pretraining.json").read_text())
    pgnn = load_pgnn(name)
    assert pgnn.weights_digest() == summary["weights_digest"]
    assert not pgnn.training and not any(parameter.requires_grad for parameter in pgnn.parameters())
    card = ModelCard.load(folder / "README.md")
    assert summary["weights_digest"] in card.text and card.data.license == "apache-2.0"
    for probe, value in summary["probes"]["pre-trained"].items():
        assert f"{value:.3f}" in card.text and f"{summary['probes']['untrained'][probe]:.3f}" in card.text
    (result,) = card.data.eval_results
    assert result.metric_value == round(summary["probes"]["pre-trained"]["structure_tokens"], 3)


@pytest.mark.parametrize("name", sorted(SHIPPED_PGNNS))
def test_it_tells_more_of_folds_that_it_never_saw_than_random_weights(name):
    chains = synthetic_chains(24, seed=11)
    pgnn = load_pgnn(name)
    untrained = untrained_gearnet(pgnn.config.hidden_dims)
    for option in ("embedding_layers", "use_residue_types"):
        setattr(untrained.config, option, getattr(pgnn.config, option))
    rows, others = (evaluate_pgnn(one, chains[:18], chains[18:]) for one in (pgnn, untrained))
    for probe in ("structure_tokens", "contacts"):
        assert np.mean([row[probe] for row in rows]) > np.mean([row[probe] for row in others])
