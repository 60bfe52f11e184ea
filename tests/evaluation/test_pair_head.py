import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from structure_aligned.data.tokenizing import sequence_batches
from structure_aligned.evaluation import pair_head
from structure_aligned.evaluation.contact_heads import ContactRegression
from structure_aligned.evaluation.contact_prediction import evaluate_contacts, load_contact_head, predict_contacts
from structure_aligned.evaluation.pair_head import PairHead
from structure_aligned.evaluation.trunk_outputs import run_trunk
from tests import tiny
from tests.closeness import assert_same_but_rounding


SEQUENCES = ["MKVLAWTNGH", "ACDEFGHIKLMNPQRSTVWYACDEF", "MK", "M"]


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


def random_head(model, seed=0):
    torch.manual_seed(seed)
    head = PairHead(model.config.hidden_size, 16).requires_grad_(False)
    for parameter in head.parameters():
        parameter.mul_(4)
    return head


def naive_probabilities(head, hidden_state):
    """One network on [h_i ; h_j], pair by pair, and the mean logits of both orders."""
    first = torch.nn.Linear(2 * hidden_state.shape[1], head.settings["width"])
    with torch.no_grad():
        first.weight.copy_(torch.cat([head.first.weight, head.second.weight], dim=1))
        first.bias.copy_(head.first.bias)
        network = torch.nn.Sequential(first, torch.nn.ReLU(), head.output)
        length = len(hidden_state)
        probabilities = torch.empty(length, length)
        for i in range(length):
            for j in range(length):
                orders = [network(torch.cat([hidden_state[a], hidden_state[b]])) for a, b in ((i, j), (j, i))]
                probabilities[i, j] = torch.stack(orders).mean(0).softmax(-1)[1]
    return probabilities


def last_hidden_state(model, tokenizer, sequence):
    with torch.no_grad():
        outputs = model(**tokenizer(sequence, return_tensors="pt"), output_hidden_states=True)
    return outputs.hidden_states[-1][0, 1:-1]


def test_the_hidden_state_is_the_last_one(family):
    tokenizer = family.tokenizer()
    for model in (family.model(), family.plain(family.config()).eval()):
        for batch in sequence_batches(SEQUENCES, tokenizer):
            hidden_state = run_trunk(model, batch)
            for index, own, mask in zip(batch.indices, hidden_state, batch.residue_mask):
                expected = last_hidden_state(model, tokenizer, SEQUENCES[index])
                assert_same_but_rounding(own[mask], expected, 16)


@pytest.mark.parametrize("block", [1, 60, 65_536])
def test_equal_to_the_network_on_pairs(family, block, monkeypatch):
    monkeypatch.setattr(pair_head, "PAIRS_AT_ONCE", block)
    model, tokenizer = family.model(), family.tokenizer()
    head = random_head(model)
    predicted = predict_contacts(model, SEQUENCES, head=head)
    for sequence, own in zip(SEQUENCES, predicted):
        hidden_state = last_hidden_state(model, tokenizer, sequence)
        expected = naive_probabilities(head, hidden_state)
        assert_same_but_rounding(own, expected)
        assert torch.equal(own, own.T)
        first, second = torch.triu_indices(len(sequence), len(sequence))
        logits = head(hidden_state, first, second)
        assert_same_but_rounding(logits.softmax(-1)[:, 1], expected[first, second])
    assert predicted[1].std() > 0.02


def composition_chain(index, length=40):
    """A chain whose contacts follow from its letters: cysteines all meet in one place, nothing else meets."""
    rng = np.random.default_rng(index)
    sequence = "".join(rng.choice(list("CDEK"), length, p=[0.3, 0.3, 0.2, 0.2]))
    coords = np.zeros((length, 5, 3), dtype=np.float32)
    for position, letter in enumerate(sequence):
        coords[position, :, 0] = 0 if letter == "C" else 100 * (position + 1)
    return tiny.chain(length, sequence=sequence, coords=coords, entry_id=f"letters{index}")


def test_fit_learns_what_the_hidden_states_tell(family, tmp_path):
    model = family.model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chains = [composition_chain(index) for index in range(24)]
    options = {"epochs": 12, "learning_rate": 1e-2, "max_pairs": 300}
    head = PairHead.fit(model, chains[:16], **options)
    rows = evaluate_contacts(model, chains[16:], head)
    rate = np.mean([row["all_contacts"] / row["all_pairs"] for row in rows])
    assert 0.03 < rate < 0.2 < 0.95 < min(row["all_AP"] for row in rows)
    random = evaluate_contacts(model, chains[16:], random_head(model))
    assert np.mean([row["all_AP"] for row in random]) < 0.9

    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in head.parameters())

    state = torch.get_rng_state()
    again = PairHead.fit(model, chains[:16], **options)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])

    model.save_pretrained(tmp_path)
    head.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(load_contact_head(tmp_path), PairHead)
    for one, other in zip(*(predict_contacts(loaded, SEQUENCES, head=own) for own in (head, tmp_path))):
        assert torch.equal(one, other)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    ContactRegression(layers, heads).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds ContactRegression and PairHead"):
        predict_contacts(loaded, SEQUENCES, head=tmp_path)


def test_the_first_layer_takes_up_the_standardisation():
    torch.manual_seed(0)
    hidden_state = torch.randn(20, 8) * torch.logspace(-2, 2, 8) + torch.linspace(-50, 50, 8)
    hidden_state[:, 3] = 7.0  # a constant feature
    mean, deviation = pair_head._moments([hidden_state[:12], hidden_state[12:]])
    assert deviation[3] < 1e-3
    # What cancels in the absorbed layer: products of about this size, whose differences are of the order of 1.
    cancelled = (hidden_state / deviation).abs().max().item()
    assert cancelled < 2e4
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(1)
        head = PairHead(8, 16).to(dtype).requires_grad_(False)
        expected = head.contact_probabilities((hidden_state.to(dtype) - mean) / deviation)
        head._absorb(mean.to(dtype), deviation.to(dtype))
        found = head.contact_probabilities(hidden_state.to(dtype))
        torch.testing.assert_close(found, expected, rtol=0, atol=torch.finfo(dtype).eps * cancelled)
        assert torch.isfinite(expected).all() and expected.std() > 0.01


def test_the_best_epoch_is_kept(monkeypatch):
    losses = iter([0.5, 0.3, 0.4, 0.35, 0.1])
    states = []

    def judge(head, *args):
        states.append({name: tensor.clone() for name, tensor in head.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(pair_head, "_mean_loss", judge)
    model = tiny.esm_model()
    chains = [composition_chain(index) for index in range(4)]
    head = PairHead.fit(model, chains[:2], validation_chains=chains[2:], epochs=5, patience=2)
    assert len(states) == 4
    assert torch.equal(head.output.weight, states[1]["output.weight"])
    assert not torch.equal(head.output.weight, states[3]["output.weight"])


def test_validation_loss_is_the_mean_over_pairs(monkeypatch):
    model, tokenizer = tiny.esm_model(), tiny.FAMILIES["esm"].tokenizer()
    head = random_head(model)
    chains = [composition_chain(index, length) for index, length in enumerate((30, 40))]
    states = [last_hidden_state(model, tokenizer, chain.sequence) for chain in chains]
    pairs = pair_head.labelled_pairs(chains)
    total = count = 0
    for hidden_state, own in zip(states, pairs):
        probability = head.contact_probabilities(hidden_state)[own.first, own.second].double()
        total -= torch.where(torch.from_numpy(own.contacts), probability, 1 - probability).log().sum().item()
        count += len(own.first)
    monkeypatch.setattr(pair_head, "PAIRS_AT_ONCE", 100)
    assert pair_head._mean_loss(head, states, pairs) == pytest.approx(total / count, rel=1e-4)


def test_what_is_wrong_is_said(family):
    model = family.model()
    with pytest.raises(ValueError, match="hidden_size 32 but this PairHead was fitted on one with hidden_size 16"):
        predict_contacts(model, SEQUENCES, head=PairHead(16))
    with pytest.raises(ValueError, match="expected at least 1 each"):
        PairHead.fit(model, [composition_chain(0)], epochs=0)
    apart = tiny.chain(12, coords=np.arange(12 * 15).reshape(12, 5, 3).astype(np.float32) * 10)
    with pytest.raises(ValueError, match="21 labelled pairs at least 6 residues apart, 0 of them contacts"):
        PairHead.fit(model, [apart])
