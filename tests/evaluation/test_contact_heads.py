import json
import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from transformers import AutoModel, AutoModelForMaskedLM, EsmForMaskedLM, EsmModel

from structure_aligned.data.tokenizing import sequence_batches
from structure_aligned.evaluation import trunk_outputs
from structure_aligned.evaluation.contact_heads import ContactRegression, attention_features, labelled_pairs
from structure_aligned.evaluation.contact_prediction import checkpoint_contact_head, predict_contacts
from structure_aligned.evaluation.contacts import contact_map
from structure_aligned.models.trunks import fresh_trunk, trunk_digest
from tests import tiny
from tests.closeness import assert_same_but_rounding
from tests.evaluation.planted import planted_attention, sharpened


SEQUENCES = ["MKVLAWTNGH", "ACDEFGHIKLMNPQRSTVWYACDEF", "MK", "GXWB" * 4, "M"]


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("structure_aligned")]


def sharp(family, **changes):
    return sharpened(family.model(**changes), 15.0 if family.model_type == "esm" else 3.0)


def random_head(model, seed=0):
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    head = ContactRegression(layers, heads)
    generator = torch.Generator().manual_seed(seed)
    head.weight.copy_(torch.randn(layers, heads, generator=generator) * 5)
    head.bias.copy_(torch.tensor(-0.5))
    return head


def random_esm_head(model):
    linear = model.base_model.contact_head.regression
    torch.manual_seed(1)
    torch.nn.init.normal_(linear.weight, std=5)
    torch.nn.init.constant_(linear.bias, -1.0)
    return model


def naive_features(model, tokenizer, sequence):
    """(layers · heads, L, L): every map of a single sequence at once, by the definition."""
    encoded = tokenizer(sequence, return_tensors="pt")
    with trunk_outputs.eager_attention(model), torch.no_grad():
        attentions = torch.stack(model(**encoded, output_attentions=True).attentions, dim=1)[0]
    maps = attentions[..., 1:-1, 1:-1].flatten(0, 1).double()
    maps = maps + maps.transpose(1, 2)
    product = maps.sum(2)[:, :, None] * maps.sum(1)[:, None]
    return maps - product / maps.sum((1, 2))[:, None, None]


@pytest.mark.parametrize("kind", [EsmModel, EsmForMaskedLM, tiny.FAMILIES["esm"].aligned])
def test_equal_to_transformers_own_contacts(kind):
    torch.manual_seed(0)
    model = random_esm_head(sharpened(kind(tiny.esm_config()).eval()))
    tokenizer = tiny.FAMILIES["esm"].tokenizer()
    batch = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    with trunk_outputs.eager_attention(model), torch.no_grad():
        expected = model.base_model.predict_contacts(batch["input_ids"], batch["attention_mask"])
    assert model.config._attn_implementation == "sdpa"
    contacts = predict_contacts(model, SEQUENCES)
    for sequence, own, theirs in zip(SEQUENCES, contacts, expected):
        length = len(sequence)
        assert_same_but_rounding(own, theirs[:length, :length])
    assert torch.cat([own.flatten() for own in contacts]).std() > 0.05


def test_equal_to_the_definition(family):
    model, tokenizer = sharp(family).double(), family.tokenizer()
    head = random_head(model)
    for sequence, own in zip(SEQUENCES, predict_contacts(model, SEQUENCES, head=head)):
        maps = naive_features(model, tokenizer, sequence)
        expected = (torch.einsum("c,cij->ij", head.weight.flatten().double(), maps) + head.bias).sigmoid()
        assert_same_but_rounding(own, expected.float(), 4)  # float64, rounded at the end
        assert torch.equal(own, own.T)


def test_batches_and_order_do_not_matter(family):
    model = sharp(family)
    head = random_head(model)
    alone = [predict_contacts(model, [sequence], head=head)[0] for sequence in SEQUENCES]
    for max_tokens in (1, 30, 60, 4096):
        together = predict_contacts(model, SEQUENCES[::-1], head=head, max_tokens=max_tokens)[::-1]
        for one, other in zip(alone, together):
            assert_same_but_rounding(one, other)
    assert predict_contacts(model, [], head=head) == []


def test_any_attention_and_low_precision(family):
    model = sharp(family)
    head = random_head(model)
    expected = predict_contacts(model, SEQUENCES, head=head)
    model.set_attn_implementation("eager")
    for one, other in zip(expected, predict_contacts(model, SEQUENCES, head=head)):
        assert_same_but_rounding(one, other)
    assert model.config._attn_implementation == "eager"
    for one, other in zip(expected, predict_contacts(model.bfloat16(), SEQUENCES, head=head)):
        assert other.dtype == torch.float32
        # Probabilities, from sharpened attention in bfloat16 (a rounding is 0.008): some 13 roundings.
        torch.testing.assert_close(one, other, rtol=0, atol=0.1)


def test_adapters_count(family):
    from peft import LoraConfig, get_peft_model

    model = sharp(family)
    head = random_head(model)
    before = predict_contacts(model, SEQUENCES, head=head)
    targets = ["query", "key"] if family.model_type == "esm" else ["q", "k"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    contacts = predict_contacts(adapted, SEQUENCES, head=head)
    assert (contacts[1] - before[1]).abs().max() > 1e-2
    assert adapted.config._attn_implementation == "sdpa"
    for one, other in zip(contacts, predict_contacts(adapted.merge_and_unload(), SEQUENCES, head=head)):
        assert_same_but_rounding(one, other)


def test_the_model_is_left_as_it_was(family):
    model = family.model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]

    def fail(layer, attentions):
        raise RuntimeError("no")

    predict_contacts(model, SEQUENCES, head=random_head(model))
    batch = next(sequence_batches(SEQUENCES, family.tokenizer()))
    with pytest.raises(RuntimeError, match="no"):
        trunk_outputs.stream_attentions(model, batch, fail)
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_layer_at_a_time(family):
    model = family.model()
    seen = []

    def receive(layer, attentions):
        assert attentions.shape[1] == 4
        assert not [reference for reference in seen if reference() is not None], "an earlier layer's is still held"
        seen.append(weakref.ref(attentions))

    trunk_outputs.stream_attentions(model, next(sequence_batches(SEQUENCES, family.tokenizer())), receive)
    assert len(seen) == 2
    batch = next(sequence_batches(SEQUENCES, family.tokenizer()))
    with trunk_outputs.eager_attention(model), torch.no_grad():
        outputs = model(batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True)
    assert len(outputs.attentions) == 2, "asking for all of them is no longer possible"


def test_features_are_those_of_the_definition(family):
    model, tokenizer = sharp(family).double(), family.tokenizer()
    chains = [tiny.chain(length, seed=length) for length in (25, 18, 31)]
    pairs = labelled_pairs(chains)
    features = attention_features(model, [chain.sequence for chain in chains], pairs, max_tokens=60)
    expected = [
        naive_features(model, tokenizer, chain.sequence)[:, own.first, own.second].T
        for chain, own in zip(chains, pairs)
    ]
    assert_same_but_rounding(features, torch.cat(expected).float(), 4)  # float64, rounded at the end


def test_fit_is_the_regression_on_these_features(family):
    model, tokenizer = family.model(), family.tokenizer()
    chains = [tiny.chain(length, seed=length) for length in (40, 30)]
    coords = chains[0].coords.copy()
    coords[10] = np.nan
    chains[0] = tiny.chain(40, seed=40, coords=coords)
    maps = [contact_map(chain.coords, chain.sequence) for chain in chains]
    wanted = {chain.sequence: contacts.astype(float) for chain, (contacts, _) in zip(chains, maps)}
    with planted_attention(model, tokenizer, wanted, layer=1, head=2):
        head = ContactRegression.fit(model, chains, C=1.0)
        features, labels = [], []
        for chain, (contacts, valid) in zip(chains, maps):
            own = naive_features(model, tokenizer, chain.sequence)
            for i in range(len(chain)):
                for j in range(i + 6, len(chain)):
                    if valid[i, j]:
                        features.append(own[:, i, j].numpy())
                        labels.append(contacts[i, j])
        predicted = predict_contacts(model, [chain.sequence for chain in chains], head=head)
    l1 = {"l1_ratio": 1.0} if LogisticRegression().penalty == "deprecated" else {"penalty": "l1"}
    expected = LogisticRegression(C=1.0, solver="liblinear", max_iter=200, random_state=0, **l1).fit(features, labels)
    np.testing.assert_allclose(head.weight.flatten().numpy(), expected.coef_[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(head.bias.item(), expected.intercept_[0], rtol=1e-3)
    assert head.weight[1, 2] == head.weight.max() > 1
    for (contacts, _), own in zip(maps, predicted):
        first, second = np.triu_indices(len(own), k=6)
        assert average_precision_score(contacts[first, second], own.numpy()[first, second]) > 0.9


def test_a_regression_without_any_head_is_warned_of(family, caplog):
    head = ContactRegression.fit(family.model(), [tiny.chain(40)], C=1e-6)
    assert not head.weight.any()
    assert "left none of the 8 attention heads" in caplog.text


def test_a_solver_that_stops_early_is_warned_of(family, caplog):
    ContactRegression.fit(family.model(), [tiny.chain(40)], C=1e4, max_iter=1)
    assert "has not converged after 1 iterations" in caplog.text


def test_saved_beside_a_checkpoint(family, tmp_path, caplog):
    family.model().save_pretrained(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    head = random_head(model)
    head.trunk = trunk_digest(model)
    head.save_pretrained(tmp_path)
    after = {path.name for path in tmp_path.iterdir()}
    assert after - before == {"contact_regression.safetensors", "contact_regression.json"}
    expected = predict_contacts(model, SEQUENCES, head=head)
    for auto in (AutoModel, AutoModelForMaskedLM):
        loaded = auto.from_pretrained(tmp_path).eval()
        for given in (None, tmp_path, str(tmp_path), ContactRegression.from_pretrained(tmp_path)):
            for one, other in zip(expected, predict_contacts(loaded, SEQUENCES, head=given)):
                assert_same_but_rounding(one, other)
    assert not warnings_of(caplog)
    with torch.no_grad():
        next(loaded.parameters()).mul_(1.5)
    predict_contacts(loaded, SEQUENCES)
    assert "fitted on other weights" in caplog.text


def test_digest_of_the_trunk_alone(family, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    digest = trunk_digest(model)
    assert trunk_digest(AutoModel.from_pretrained(tmp_path)) == digest
    assert trunk_digest(AutoModelForMaskedLM.from_pretrained(tmp_path)) == digest
    assert trunk_digest(family.model().bfloat16()) == digest
    assert trunk_digest(family.model(seed=1)) != digest
    with torch.no_grad():
        for parameter in model.alignment.parameters():
            parameter.add_(1)
    assert trunk_digest(model) == digest


def test_no_head(tmp_path):
    model = tiny.FAMILIES["AMPLIFY"].model()
    with pytest.raises(ValueError, match=r"no contact head in its checkpoint. Fit one with ContactRegression.fit"):
        predict_contacts(model, SEQUENCES)
    with pytest.raises(ValueError, match="holds no contact head"):
        predict_contacts(model, SEQUENCES, head=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no contact_regression.json"):
        ContactRegression.from_pretrained(tmp_path)


def test_a_fresh_head_is_refused_and_a_stale_one_warned_of(caplog):
    model = tiny.esm_model()
    with pytest.raises(ValueError, match="never been fitted"):
        predict_contacts(model, SEQUENCES)
    random_esm_head(model)
    predict_contacts(model, SEQUENCES)
    assert not warnings_of(caplog)
    model.config.structure_alignment["pgnn"] = "gearnet:last:1234"
    predict_contacts(model, SEQUENCES)
    assert "fitted before its trunk was aligned with gearnet:last:1234" in caplog.text
    caplog.clear()
    predict_contacts(model, SEQUENCES, head=checkpoint_contact_head(model))
    assert len(warnings_of(caplog)) == 1  # of looking it up, not of using it


def test_what_is_wrong_is_said(family, tmp_path):
    model = family.model()
    config, _ = fresh_trunk(family.model_type, 2, 32, 2)
    other = family.plain(config)
    with pytest.raises(ValueError, match="num_attention_heads 4 but this .* one with num_attention_heads 2"):
        predict_contacts(model, SEQUENCES, head=random_head(other))
    with pytest.raises(ValueError, match="expected a list of sequences"):
        predict_contacts(model, SEQUENCES[0], head=random_head(model))
    with pytest.raises(ValueError, match="solver is 'lbfgs'"):
        ContactRegression.fit(model, [tiny.chain()], solver="lbfgs")
    unresolved = tiny.chain(coords=np.full((30, 5, 3), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="1 chains have 0 labelled pairs"):
        ContactRegression.fit(model, [unresolved])
    random_head(model).save_pretrained(tmp_path)
    description = tmp_path / "contact_regression.json"
    content = json.loads(description.read_text())
    content["settings"]["num_hidden_layers"] = 3
    description.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not fit contact_regression.json: of another shape are weight"):
        ContactRegression.from_pretrained(tmp_path)
    description.write_text("{}")
    with pytest.raises(ValueError, match="does not describe a ContactRegression"):
        ContactRegression.from_pretrained(tmp_path)


def test_other_families_are_refused():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=33, **sizes))
    tokenizer = tiny.FAMILIES["esm"].tokenizer()
    with pytest.raises(ValueError, match="BertModel holds neither an ESM2 nor an AMPLIFY"):
        predict_contacts(model, SEQUENCES, tokenizer, head=ContactRegression(1, 2))
