"""Embeddings and structure tokens, against one protein and one window at a time by plain Transformers."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMaskedLM, EsmModel

from structure_aligned.inference.embeddings import embed_sequences
from structure_aligned.inference.structure_tokens import predict_structure_tokens
from structure_aligned.inference.windows import windows_of
from structure_aligned.models.amplify import AmplifyModel
from structure_aligned.structure.tokens import STRUCTURE_ALPHABET_3DI
from tests import tiny


LENGTHS = (30, 3, 75, 1, 24, 25, 26, 30)
WINDOW = 25


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list(tiny.AMINO_ACIDS + "XBUZO"), length)) for length in LENGTHS]


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model().double()


@torch.no_grad()
def one_at_a_time(model, tokenizer, sequence, read):
    """`read(outputs)` of each window alone; residues are all but the first and the last token."""
    parts = []
    for window in windows_of(0, len(sequence), WINDOW):
        inputs = tokenizer(sequence[window.start : window.stop], return_tensors="pt")
        rows = read(model(**inputs, output_hidden_states=True))[0, 1:-1]
        parts.append(rows[window.first - window.start : window.last - window.start])
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("max_tokens", [27, 90, 4096])
def test_residues_and_means_equal_one_at_a_time(family, model, sequences, max_tokens):
    tokenizer = family.tokenizer()
    options = {"max_residues": WINDOW, "max_tokens": max_tokens, "dtype": "float64", "progress": False}
    both = embed_sequences(model, sequences, pooling="both", **options)
    for sequence, found in zip(sequences, both):
        expected = one_at_a_time(model, tokenizer, sequence, lambda outputs: outputs.hidden_states[-1])
        assert found.residues.shape == (len(sequence), 32)
        assert found.residues.base is None  # a view would keep its whole batch alive
        np.testing.assert_allclose(found.residues, expected, atol=1e-10)
        np.testing.assert_allclose(found.mean, expected.mean(0), atol=1e-10)
    for index, found in enumerate(embed_sequences(model, sequences, tokenizer, pooling="mean", **options)):
        np.testing.assert_array_equal(found, both[index].mean)
    for index, found in enumerate(embed_sequences(model, sequences, tokenizer, **options)):
        np.testing.assert_array_equal(found, both[index].residues)


def test_windows_differ_from_the_whole_protein(model, sequences):
    # Otherwise the windows of the test above would prove nothing.
    options = {"dtype": "float64", "progress": False}
    whole, cut = (embed_sequences(model, [sequences[2]], max_residues=size, **options)[0] for size in (75, WINDOW))
    assert np.abs(whole - cut).max() > 1e-3


def test_layers(family, model, sequences):
    tokenizer = family.tokenizer()
    offset = 3 - family.hidden_states  # AMPLIFY's do not begin with what goes into the first block
    for layer in (1, -2, 2, -1):
        number = layer % 3
        found = embed_sequences(model, sequences, layer=layer, max_residues=WINDOW, dtype="float64", progress=False)
        for sequence, rows in zip(sequences, found):
            expected = one_at_a_time(model, tokenizer, sequence, lambda out, at=number - offset: out.hidden_states[at])
            np.testing.assert_allclose(rows, expected, atol=1e-10, err_msg=f"layer {layer}")
    first = embed_sequences(model, sequences, layer=0, dtype="float64", progress=False)
    np.testing.assert_array_equal(first[2], embed_sequences(model, sequences, layer=-3, dtype="float64")[2])
    same = [row for letter, row in zip(sequences[2], first[2]) if letter == sequences[2][0]]
    np.testing.assert_allclose(same, same[:1] * len(same), atol=1e-12)  # nothing of the surroundings yet
    with pytest.raises(ValueError, match="layer is 3; expected -3 to 2 of a model with 2 layers"):
        embed_sequences(model, sequences, layer=3)


def test_any_class_and_adapters_give_the_trunk(family, sequences, tmp_path):
    model = family.model().double()
    model.save_pretrained(tmp_path)
    options = {"dtype": "float64", "progress": False}
    expected = embed_sequences(model, sequences, **options)
    plain = EsmModel if family.model_type == "esm" else AmplifyModel
    targets = ["query", "value"] if family.model_type == "esm" else ["q", "v"]
    adapted = get_peft_model(family.model().double(), LoraConfig(target_modules=targets))  # begins as the identity
    loaded = [auto.from_pretrained(tmp_path, dtype=torch.float64) for auto in (AutoModelForMaskedLM, plain)]
    for other in (*loaded, adapted):
        for one, two in zip(expected, embed_sequences(other, sequences, **options)):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)
    assert predict_structure_tokens(adapted, sequences) == predict_structure_tokens(model, sequences)


def test_types_and_modes(family, sequences):
    model = family.model().train()
    single = embed_sequences(model, sequences, pooling="both")
    assert model.training
    half = embed_sequences(model, sequences, pooling="both", dtype="float16")
    coarse = embed_sequences(family.model().bfloat16(), sequences, pooling="both")
    for one, two, three in zip(single, half, coarse):
        assert one.residues.dtype == one.mean.dtype == three.residues.dtype == three.mean.dtype == np.float32
        assert two.residues.dtype == two.mean.dtype == np.float16
        np.testing.assert_array_equal(two.residues, one.residues.astype(np.float16))
        np.testing.assert_array_equal(two.mean, one.mean.astype(np.float16))
        assert np.abs(three.mean - one.mean).max() < 0.1 * np.abs(one.mean).max()


@pytest.mark.parametrize("pooling", ["residue", "mean"])
def test_numbers_that_are_none_are_refused(family, pooling):
    model = family.model()
    trunk = model.esm.encoder.emb_layer_norm_after if family.model_type == "esm" else model.transformer_encoder[1].wo
    with torch.no_grad():
        trunk.weight.mul_(1e7)
        with pytest.raises(ValueError, match="is too large for torch.float16; ask for float32"):
            embed_sequences(model, ["MKVLA"], pooling=pooling, dtype="float16")
        trunk.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model's output is not finite"):
        embed_sequences(model, ["MKVLA"], pooling=pooling)


def test_what_is_asked_for_wrongly(family):
    model = family.model()
    for options, message in (
        ({"pooling": "max"}, "pooling is 'max'; expected one of residue, mean, both"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float16"),
        ({"max_residues": 0}, "max_residues is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_sequences(model, ["MK"], **options)
    with pytest.raises(ValueError, match="Sequence 1 is empty"):
        embed_sequences(model, ["MK", "*"])
    assert embed_sequences(model, []) == []
    np.testing.assert_array_equal(embed_sequences(model, ["mk j*"])[0], embed_sequences(model, ["MKX"])[0])


def test_structure_tokens_equal_one_at_a_time(family, model, sequences):
    tokenizer = family.tokenizer()
    options = {"max_residues": WINDOW, "max_tokens": 90, "progress": False}
    pairs = predict_structure_tokens(model, sequences, probabilities=True, **options)
    assert predict_structure_tokens(model, sequences, tokenizer, **options) == [string for string, _ in pairs]
    for sequence, (string, probabilities) in zip(sequences, pairs):
        logits = one_at_a_time(model, tokenizer, sequence, lambda outputs: outputs.structure_logits)
        expected = torch.from_numpy(logits).softmax(-1).numpy()
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, rtol=1e-6, atol=1e-10)  # float64, rounded at the end
        assert string == "".join(STRUCTURE_ALPHABET_3DI[index] for index in expected.argmax(1))
    assert len({letter for string, _ in pairs for letter in string}) > 1


def test_structure_tokens_need_a_trained_3di_head(family, caplog):
    with pytest.raises(ValueError, match="has no token head; load an aligned checkpoint"):
        predict_structure_tokens(family.plain(family.config()), ["MK"])
    with pytest.raises(ValueError, match="has 10 classes; expected the 20 of 3Di"):
        predict_structure_tokens(family.model(structure_alignment={"num_structure_tokens": 10}), ["MK"])
    predict_structure_tokens(family.model(structure_alignment={"pgnn": "GearNet"}), ["MK"])
    assert "may be random" not in caplog.text
