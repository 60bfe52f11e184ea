import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EsmForMaskedLM

from structure_aligned.evaluation.tokens import evaluate_structure_tokens
from structure_aligned.structure.synthetic import synthetic_chains
from structure_aligned.structure.tokens import encode_3di
from tests import tiny


def predicted(model, tokenizer, sequence):
    inputs = tokenizer(sequence, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).structure_logits[0, 1:-1].argmax(-1).numpy()


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_accuracy_of_each_protein_alone(family):
    model, tokenizer = family.model(), family.tokenizer()
    model.train()
    data = tiny.dataset(7)
    rows = evaluate_structure_tokens(model, data, max_tokens=90, progress=False)
    assert model.training
    model.eval()
    everything = np.concatenate([np.array(row["structure_tokens"])[row["structure_token_mask"]] for row in data])
    usual = np.bincount(everything).argmax()
    for row, item in zip(rows, data):
        tokens, valid = np.array(item["structure_tokens"]), np.array(item["structure_token_mask"])
        right = predicted(model, tokenizer, item["sequence"])[valid] == tokens[valid]
        assert row == {
            "id": item["id"],
            "length": item["length"],
            "residues": item["length"] - 2,
            "token_accuracy": pytest.approx(right.mean()),
            "token_accuracy_majority": pytest.approx((tokens[valid] == usual).mean()),
        }
    assert len({row["token_accuracy"] for row in rows}) > 1


def test_chains_and_rows_are_the_same():
    model = tiny.esm_model()
    chains = synthetic_chains(4, max_length=50)
    listed = []
    for chain in chains:
        tokens, valid = encode_3di(chain.coords)
        listed.append(
            {"id": chain.id, "sequence": chain.sequence, "structure_tokens": tokens, "structure_token_mask": valid}
        )
    expected = evaluate_structure_tokens(model, chains, progress=False)
    assert evaluate_structure_tokens(model, listed, progress=False) == expected
    assert evaluate_structure_tokens(model, Dataset.from_list(listed), progress=False) == expected


def test_a_head_that_knows_is_right_everywhere():
    """A head whose classes are the letters of the sequence, and labels that are too."""
    model, tokenizer = tiny.esm_model(), tiny.FAMILIES["esm"].tokenizer()
    rows = [tiny.row(index) for index in range(3)]
    for row in rows:
        row["structure_tokens"] = predicted(model, tokenizer, row["sequence"])
    rows[1]["structure_tokens"] = (rows[1]["structure_tokens"] + 1) % 20
    rows[2]["structure_token_mask"] = np.zeros(rows[2]["length"], dtype=bool)
    found = evaluate_structure_tokens(model, rows, progress=False)
    assert [row["token_accuracy"] for row in found[:2]] == [1.0, 0.0]
    assert found[2]["residues"] == 0 and np.isnan(found[2]["token_accuracy"])


def test_bad_input_is_refused():
    model = tiny.esm_model()
    with pytest.raises(ValueError, match="no proteins"):
        evaluate_structure_tokens(model, [])
    with pytest.raises(ValueError, match="has no head for structure tokens"):
        evaluate_structure_tokens(EsmForMaskedLM(tiny.esm_config()), [tiny.row(0)], progress=False)
    with pytest.raises(ValueError, match="no structure_tokens"):
        evaluate_structure_tokens(model, [{"id": "a", "sequence": "MKV", "structure_token_mask": [True] * 3}])
    row = tiny.row(0)
    row["structure_tokens"][3] = 25
    with pytest.raises(ValueError, match="structure token 25 but the model's head knows 20"):
        evaluate_structure_tokens(model, [row], progress=False)
