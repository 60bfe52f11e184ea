import numpy as np
import pytest
import torch

from structure_aligned.evaluation.masked_lm import centred_window
from structure_aligned.evaluation.perplexity import PseudoPerplexity, pseudo_perplexity
from tests import tiny
from tests.evaluation.test_fitness import log_probs


SEQUENCES = ["MKVLA", "XX", "MKXVLWAADERTGHIY", "W", "MKVLA"]


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


def naive(model, tokenizer, sequence, positions, max_residues=1022):
    total = 0.0
    for position in positions:
        start, stop = centred_window(position, len(sequence), max_residues)
        found = log_probs(model, tokenizer, sequence[start:stop], position - start)[position - start]
        total -= found[tokenizer.convert_tokens_to_ids(sequence[position])].item()
    return total


@pytest.mark.parametrize("max_residues", [1022, 4])
def test_one_by_one_as_a_loop(family, max_residues):
    model, tokenizer = family.model().double(), family.tokenizer()
    found = pseudo_perplexity(model, SEQUENCES, max_residues=max_residues, max_tokens=40)
    for index, sequence in enumerate(SEQUENCES):
        positions = [position for position, letter in enumerate(sequence) if letter != "X"]
        assert found.count[index] == len(positions)
        assert found.nll[index] == pytest.approx(naive(model, tokenizer, sequence, positions, max_residues), abs=1e-9)
    assert found.value == pytest.approx(np.exp(found.nll.sum() / 26))
    assert np.isnan(found.per_protein[1]) and np.isfinite(np.delete(found.per_protein, 1)).all()


def test_uniform_predictions_have_the_vocabulary_as_perplexity():
    model = tiny.esm_model()
    with torch.no_grad():
        model.lm_head.decoder.weight.zero_()
        model.lm_head.bias.zero_()
    for method in ("one-by-one", "masked"):
        assert pseudo_perplexity(model, SEQUENCES, method=method).value == pytest.approx(33, rel=1e-5)


def test_masked_rows_hold_masks_only_and_never_x(family, monkeypatch):
    model, tokenizer = family.model(), family.tokenizer()
    seen = []
    forward = type(model).forward

    def recording(self, input_ids=None, **options):
        seen.extend(input_ids.tolist())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", recording)
    sequence = "MKVLAXDERTGHIYFCNPQS" * 2
    found = pseudo_perplexity(model, [sequence], method="masked", num_maskings=5)
    original = np.array(tokenizer(sequence)["input_ids"])
    masked = np.array(seen) != original
    assert masked.shape == (5, 42) and (masked.sum(1) == round(0.15 * 38)).all()
    assert (np.array(seen)[masked] == tokenizer.mask_token_id).all()
    assert not masked[:, [0, 6, 26, 41]].any()  # the X and the special tokens
    assert len({tuple(row) for row in masked.tolist()}) > 1
    assert found.count.tolist() == [30]


def test_masked_as_a_loop(family, monkeypatch):
    model, tokenizer = family.model().double(), family.tokenizer()
    sequence = "MKVLAWDERTGHIYFCNPQSXXK"
    seen = []
    forward = type(model).forward

    def recording(self, input_ids=None, **options):
        seen.extend(input_ids.tolist())
        return forward(self, input_ids=input_ids, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", recording)
        found = pseudo_perplexity(model, [sequence], method="masked", num_maskings=3, max_residues=12)
    assert len(seen) == 6  # two pieces of 12 and 11 residues, three times each
    total = 0.0
    for row in seen:
        piece = sequence[:12] if len([one for one in row if one != tokenizer.pad_token_id]) == 14 else sequence[12:]
        input_ids = torch.tensor([row])[:, : len(piece) + 2]
        original = torch.tensor(tokenizer(piece)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
        masked = input_ids[0] != original
        total -= logits[masked].log_softmax(-1).gather(1, original[masked, None]).sum().item()
    assert found.nll[0] == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("options", [{"method": "masked"}, {"position_fraction": 0.3}])
def test_draws_depend_on_seed_and_sequence_only(family, options):
    model = family.model()
    some = pseudo_perplexity(model, SEQUENCES, **options)
    again = pseudo_perplexity(model, SEQUENCES[::-1], **options)
    np.testing.assert_allclose(some.nll, again.nll[::-1], atol=1e-4)
    np.testing.assert_array_equal(some.count, again.count[::-1])
    assert some.nll[0] == pytest.approx(some.nll[4], abs=1e-4)
    assert abs(some.nll[2] - pseudo_perplexity(model, SEQUENCES, seed=1, **options).nll[2]) > 1e-6


def test_proteins_of_one_length_are_masked_at_different_places(monkeypatch):
    model, tokenizer = tiny.esm_model(), tiny.FAMILIES["esm"].tokenizer()
    masked = []
    forward = type(model).forward

    def recording(self, input_ids=None, **options):
        masked.extend(tuple(row) for row in (input_ids == tokenizer.mask_token_id).tolist())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", recording)
    pseudo_perplexity(model, ["MKVLA" * 8, "WDERT" * 8], method="masked", num_maskings=1)
    assert len(set(masked)) == 2


def test_a_share_of_positions_is_drawn_in_proportion():
    found = pseudo_perplexity(tiny.esm_model(), ["MKVLA" * 8, "W", "XX", "MKVX" * 10], position_fraction=0.1)
    assert found.count.tolist() == [4, 1, 0, 3]


def test_interval_over_proteins():
    rng = np.random.default_rng(0)
    count = rng.integers(50, 400, 60)
    rows = PseudoPerplexity(count * rng.normal(2.5, 0.2, 60), count)
    interval = rows.interval()
    assert interval.low < rows.value < interval.high and interval.value == pytest.approx(rows.value)
    # Delta method: the log-perplexity's standard error is 0.2 times the root of Σ count² over Σ count.
    expected = 1.96 * 0.2 * np.sqrt((count**2).sum()) / count.sum()
    assert np.log(interval.high / interval.low) / 2 == pytest.approx(expected, rel=0.3)
    assert PseudoPerplexity(np.array([9.0]), np.array([4])).interval().low == 0


def test_what_is_wrong_is_said():
    model = tiny.esm_model()
    for options, message in (
        ({"method": "magic"}, "method is 'magic'; expected one of one-by-one, masked"),
        ({"position_fraction": 0}, "position_fraction is 0"),
        ({"mask_fraction": 15}, "mask_fraction is 15"),
        ({"num_maskings": 0}, "num_maskings is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pseudo_perplexity(model, ["MK"], **options)
    for sequences, message in (
        ([], "expected a list"),
        ("MKV", "expected a list"),
        (["MK", ""], "Sequence 1 is empty"),
        (["MK", "M-K"], "Sequence 1 contains '-'"),
        (["XX"], "nothing to predict"),
    ):
        with pytest.raises(ValueError, match=message):
            pseudo_perplexity(model, sequences)
