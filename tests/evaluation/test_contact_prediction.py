import numpy as np
import pytest

from structure_aligned.evaluation.contact_heads import ContactRegression
from structure_aligned.evaluation.contact_prediction import evaluate_contacts, predict_contacts
from structure_aligned.evaluation.contacts import contact_map, contact_precision, contact_summary
from structure_aligned.structure.io import read_chains
from tests import tiny
from tests.evaluation.planted import planted_attention


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


def one_head(model, layer, head, value=1.0):
    regression = ContactRegression(model.config.num_hidden_layers, model.config.num_attention_heads)
    regression.weight[layer, head] = value
    return regression


def test_a_row_per_chain_in_their_order(family):
    model = family.model()
    chains = [tiny.chain(length, seed=length, entry_id=f"c{length}") for length in (30, 60, 12, 45)]
    head = one_head(model, 0, 1)
    rows = evaluate_contacts(model, chains, head, max_tokens=100, progress=False)
    assert [row["id"] for row in rows] == ["c30_A", "c60_A", "c12_A", "c45_A"]
    assert [row["length"] for row in rows] == [30, 60, 12, 45]
    for chain, row in zip(chains, rows):
        prediction = predict_contacts(model, [chain.sequence], head=head)[0]
        expected = contact_precision(prediction, *contact_map(chain.coords, chain.sequence))
        assert expected.keys() < row.keys()
        assert row["all_AP"] == pytest.approx(expected["all_AP"], abs=0.02)
        assert (row["all_pairs"], row["all_contacts"]) == (expected["all_pairs"], expected["all_contacts"])
    other = evaluate_contacts(model, chains, head, threshold=12.0, progress=False)
    assert sum(row["all_contacts"] for row in other) > sum(row["all_contacts"] for row in rows)


def test_no_chains():
    with pytest.raises(ValueError, match="no chains to evaluate"):
        evaluate_contacts(tiny.esm_model(), [], ContactRegression(2, 4))


def test_attention_to_contacts_finds_them_in_real_chains(family, real_data):
    folder = real_data("structures", "test")
    chains = [chain for path in sorted(folder.glob("*.cif.gz"))[:12] for chain in read_chains(path)]
    chains = [chain for chain in chains if len(chain) <= 300][:6]
    assert len(chains) >= 4
    model, tokenizer = family.model(), family.tokenizer()
    maps = {chain.sequence: contact_map(chain.coords, chain.sequence)[0].astype(float) for chain in chains}
    with planted_attention(model, tokenizer, maps, layer=1, head=3):
        rows = evaluate_contacts(model, chains, one_head(model, 1, 3), progress=False)
        fitted = ContactRegression.fit(model, chains[:2])
        held_out = evaluate_contacts(model, chains[2:], fitted, progress=False)
    for row in rows + held_out:
        assert row["all_AP"] == pytest.approx(1.0)
        assert row["all_P@L/5"] == row["paper_P@L/5"] == 1.0
        for name in ("short", "medium", "long"):
            count = min(row[f"{name}_pairs"], max(1, row["resolved"] // 5))
            assert row[f"{name}_P@L/5"] == pytest.approx(min(1, row[f"{name}_contacts"] / count))

    rng = np.random.default_rng(0)
    noise = {sequence: rng.random(contacts.shape) for sequence, contacts in maps.items()}
    with planted_attention(model, tokenizer, noise, layer=1, head=3):
        rows = evaluate_contacts(model, chains, one_head(model, 1, 3), progress=False)
    rate = np.mean([row["all_contacts"] / row["all_pairs"] for row in rows])
    expected = sum(row["resolved"] for row in rows) * rate
    mean = contact_summary(rows)["all_P@L"]["mean"]
    assert 0 < rate < 0.1
    assert mean == pytest.approx(rate, abs=4 * rate / np.sqrt(expected))
