"""score_mutations against loops that run one row at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from structure_aligned.evaluation.fitness import STRATEGIES, score_mutations
from structure_aligned.evaluation.masked_lm import centred_window
from structure_aligned.evaluation.mutants import Substitution, mutated_sequence, parse_mutants
from tests import tiny


WILD_TYPE = "MKVLAWDERTXGHIYFCNPQSLLKA"
MUTANTS = ["K2A", "A25M", "M1W:L4P:A25C", "WT", "V3V", "K2A", "L4F:D7D", "K24R", "D7E"]


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


@pytest.fixture
def model(family):
    return family.model().double()


def log_probs(model, tokenizer, sequence, masked=None):
    """(L, vocab_size) of one sequence, alone in its batch, one residue masked or none."""
    input_ids = tokenizer(sequence, return_tensors="pt")["input_ids"]
    if masked is not None:
        input_ids[0, 1 + masked] = tokenizer.mask_token_id
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0, 1:-1].log_softmax(-1)


def naive(model, tokenizer, wild_type, mutant, strategy):
    """Of one mutant that fits into the context, straight from the definition."""
    if mutant == "WT":
        return 0.0
    changes = [(one[0], int(one[1:-1]) - 1, one[-1]) for one in mutant.split(":")]
    ids = dict(zip(tiny.AMINO_ACIDS, tokenizer.convert_tokens_to_ids(list(tiny.AMINO_ACIDS))))
    if strategy == "pseudo-ppl":
        changed = list(wild_type)
        for _, position, after in changes:
            changed[position] = after

        def likelihood(sequence):
            return sum(
                log_probs(model, tokenizer, sequence, position)[position, ids[letter]].item()
                for position, letter in enumerate(sequence)
                if letter in ids
            )

        return likelihood("".join(changed)) - likelihood(wild_type)
    total = 0.0
    for before, position, after in changes:
        masked = position if strategy == "masked-marginals" else None
        found = log_probs(model, tokenizer, wild_type, masked)[position]
        total += (found[ids[after]] - found[ids[before]]).item()
    return total


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_one_row_at_a_time(family, model, strategy):
    tokenizer = family.tokenizer()
    scores = score_mutations(model, WILD_TYPE, MUTANTS, strategy=strategy, max_tokens=100)
    expected = [naive(model, tokenizer, WILD_TYPE, mutant, strategy) for mutant in MUTANTS]
    assert scores.shape == (len(MUTANTS),) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    assert scores[3] == scores[4] == 0 and scores[0] == scores[5]
    assert np.ptp(scores) > 0.01  # a model that ignores its input would agree with everything


def test_float32_within_1e_5_and_any_budget(family):
    model, tokenizer = family.model(), family.tokenizer()
    expected = [naive(model, tokenizer, WILD_TYPE, mutant, "masked-marginals") for mutant in MUTANTS]
    for max_tokens in (1, 60, 4096):
        scores = score_mutations(model, WILD_TYPE, MUTANTS, tokenizer, max_tokens=max_tokens)
        # Differences of up to three pairs of log-probabilities of up to 4, each off by a few float32 roundings.
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_substitutions_of_one_mutant_add_up(model):
    together, *alone = score_mutations(model, WILD_TYPE, ["K2A:W6F:A25G", "K2A", "W6F", "A25G"])
    assert together == pytest.approx(sum(alone), abs=1e-12)
    by_ppl, *alone = score_mutations(model, WILD_TYPE, ["K2A:W6F:A25G", "K2A", "W6F", "A25G"], strategy="pseudo-ppl")
    assert abs(by_ppl - sum(alone)) > 1e-6


def test_one_row_per_position_and_only_those_needed(family, monkeypatch):
    model = family.model()
    rows = []
    forward = type(model).forward

    def counting(self, input_ids=None, **options):
        rows.extend(input_ids.tolist())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counting)
    every = [f"{WILD_TYPE[index]}{index + 1}{letter}" for index in (1, 5) for letter in tiny.AMINO_ACIDS]
    score_mutations(model, WILD_TYPE, every)
    assert len(rows) == 2
    rows.clear()
    score_mutations(model, WILD_TYPE, every, strategy="wt-marginals")
    assert len(rows) == 1
    rows.clear()
    score_mutations(model, WILD_TYPE, ["WT", "K2K"])
    assert not rows


def test_offset_is_the_number_of_the_first_residue(model):
    plain = score_mutations(model, WILD_TYPE, ["K2A", "A25M"])
    for offset in (24, 0, -5):
        moved = [f"K{1 + offset}A", f"A{24 + offset}M"]
        np.testing.assert_array_equal(score_mutations(model, WILD_TYPE, moved, offset=offset), plain)


def test_the_window_has_the_position_nearest_to_its_middle():
    assert centred_window(5, 12, 20) == (0, 12)
    assert [centred_window(position, 10, 4) for position in (0, 2, 3, 5, 8, 9)] == [
        *((0, 4), (0, 4), (1, 5), (3, 7), (6, 10), (6, 10))
    ]
    for size in (1, 4, 5):
        for position in range(10):
            start, stop = centred_window(position, 10, size)
            assert stop - start == size and start <= position < stop
            nearest = min(abs(begin + (size - 1) / 2 - position) for begin in range(10 - size + 1))
            assert abs(start + (size - 1) / 2 - position) == nearest


def test_masked_windows_of_a_long_protein(family, model):
    tokenizer = family.tokenizer()
    scores = score_mutations(model, WILD_TYPE, ["K2A", "I14F", "A25C", "K2A:A25C"], max_residues=8)
    expected = []
    for position, after, window in ((1, "A", (0, 8)), (13, "F", (9, 17)), (24, "C", (17, 25))):
        local = WILD_TYPE[slice(*window)]
        mutant = f"{WILD_TYPE[position]}{position - window[0] + 1}{after}"
        expected.append(naive(model, tokenizer, local, mutant, "masked-marginals"))
    np.testing.assert_allclose(scores, [*expected, expected[0] + expected[2]], atol=1e-9)


def test_wild_type_windows_overlap_by_half(family, model):
    tokenizer = family.tokenizer()
    # Of 25 residues in windows of 8: starts 0, 4, 8, 12, 16 and, to reach the end, 17.
    scores = score_mutations(model, WILD_TYPE, ["K2A", "I14F", "A25C"], strategy="wt-marginals", max_residues=8)
    expected = [
        naive(model, tokenizer, WILD_TYPE[start : start + 8], mutant, "wt-marginals")
        for start, mutant in ((0, "K2A"), (8, "I6F"), (17, "A8C"))
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-9)


def test_pseudo_ppl_in_windows_leaves_out_what_cancels(family, model):
    tokenizer = family.tokenizer()
    ids = dict(zip(tiny.AMINO_ACIDS, tokenizer.convert_tokens_to_ids(list(tiny.AMINO_ACIDS))))

    def likelihood(sequence):
        total = 0.0
        for position, letter in enumerate(sequence):
            start, stop = centred_window(position, len(sequence), 8)
            if letter in ids:
                found = log_probs(model, tokenizer, sequence[start:stop], position - start)
                total += found[position - start, ids[letter]].item()
        return total

    mutants = ["K2A", "I14F:A25C"]
    scores = score_mutations(model, WILD_TYPE, mutants, strategy="pseudo-ppl", max_residues=8)
    changed = (mutated_sequence(WILD_TYPE, parsed) for parsed in parse_mutants(mutants, WILD_TYPE))
    expected = [likelihood(sequence) - likelihood(WILD_TYPE) for sequence in changed]
    np.testing.assert_allclose(scores, expected, atol=1e-9)


def test_plain_models_and_their_aligned_forms_agree(family, tmp_path):
    aligned = family.model().double()
    aligned.save_pretrained(tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(plain) is family.plain
    scores = [score_mutations(model, WILD_TYPE, MUTANTS) for model in (aligned, plain)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-9)


def test_the_model_is_left_as_it_was(family):
    model = family.model().train()
    with torch.enable_grad():
        scores = score_mutations(model, WILD_TYPE, MUTANTS)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert model.training
    np.testing.assert_array_equal(scores, score_mutations(model.eval(), WILD_TYPE, MUTANTS))


def test_mutants_are_read():
    assert parse_mutants(["M1K:V3A", "wt", " K2A "], "MKV") == [
        (Substitution("M", 0, "K"), Substitution("V", 2, "A")),
        (),
        (Substitution("K", 1, "A"),),
    ]


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("A2G", r"Row 2 \('A2G'\) says A at position 2, where the wild type has K; check"),
        ("A0G", r"Row 2 \('A0G'\) is at position 0, but the wild type has the numbers 1 to 25"),
        ("A26G", r"Row 2 \('A26G'\) is at position 26, but"),
        ("K2X", r"Row 2 \('K2X'\) has the letter 'X'; expected one of ACDEF"),
        ("K2*", r"Row 2 .* has the letter '\*'"),
        ("k2A", r"Row 2 .* has the letter 'k'"),
        ("X11A", r"Row 2 .* has the letter 'X'"),
        ("K2A:V3A:K2C", r"Row 2 .* changes position 2 twice"),
        ("K2", r"Row 2 \('K2'\) cannot be read at 'K2'"),
        ("K2A,V3A", r"Row 2 .* cannot be read at 'K2A,V3A'; expected substitutions like A24G, joined by ':'"),
        ("K2A:", r"Row 2 .* cannot be read at ''"),
        ("p.Lys2Ala", r"Row 2 .* cannot be read"),
        ("K²A", r"Row 2 .* cannot be read"),
        (f"K{'9' * 5000}A", r"Row 2 \('K9{78}…\) cannot be read at 'K9{78}…; expected"),
        ("", r"Row 2 \(''\) has no mutant; expected one like A24G, or WT"),
        (None, r"Row 2 \(None\) has no mutant"),
    ],
)
def test_the_row_that_is_wrong_is_named(mutant, message):
    with pytest.raises(ValueError, match=message):
        score_mutations(tiny.esm_model(), WILD_TYPE, ["K2A", mutant])


def test_what_is_wrong_is_said():
    model = tiny.esm_model()
    with pytest.raises(ValueError, match="There are no mutants"):
        score_mutations(model, WILD_TYPE, [])
    with pytest.raises(ValueError, match="is the string 'K2A'"):
        score_mutations(model, WILD_TYPE, "K2A")
    with pytest.raises(ValueError, match="wild type is empty"):
        score_mutations(model, "", ["K2A"])
    with pytest.raises(ValueError, match=r"wild type contains '\*', 'k'; expected upper-case"):
        score_mutations(model, "Mk*", ["M1A"])
    with pytest.raises(ValueError, match="strategy is 'magic'; expected one of masked-marginals"):
        score_mutations(model, WILD_TYPE, MUTANTS, strategy="magic")
    for name in ("max_residues", "max_tokens"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            score_mutations(model, WILD_TYPE, MUTANTS, **{name: 0})


def test_scores_that_are_no_numbers_are_refused():
    model = tiny.esm_model()
    with torch.no_grad():
        model.lm_head.bias[5] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite .*float32"):
        score_mutations(model, WILD_TYPE, MUTANTS)


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = tiny.FAMILIES["AMPLIFY"].tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        score_mutations(tiny.FAMILIES["AMPLIFY"].model(), WILD_TYPE, MUTANTS, tokenizer)
