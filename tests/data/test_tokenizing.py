import numpy as np
import pytest

from structure_aligned.data.tokenizing import ResidueEncoder, sequence_batches, tokenize_residues
from tests import tiny


@pytest.fixture(params=list(tiny.FAMILIES))
def tokenizer(request):
    return tiny.FAMILIES[request.param].tokenizer()


def test_every_sequence_once_and_its_residues_in_order(tokenizer):
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list(tiny.AMINO_ACIDS), length)) for length in (5, 40, 12, 1, 40, 33, 7)]
    seen = []
    for batch in sequence_batches(sequences, tokenizer, max_tokens=90):
        assert batch.input_ids.numel() <= 90
        for row, index in enumerate(batch.indices):
            seen.append(index)
            tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[row][batch.residue_mask[row]].tolist())
            assert "".join(tokens) == sequences[index]
            assert batch.attention_mask[row].sum() == len(sequences[index]) + tokenizer.num_special_tokens_to_add()
    assert sorted(seen) == list(range(7))
    assert len(sequences[seen[0]]) == 40


def test_a_sequence_beyond_the_budget_goes_alone(tokenizer):
    batches = list(sequence_batches(["M" * 50, "MK", "MKV"], tokenizer, max_tokens=20))
    assert [batch.indices for batch in batches] == [[0], [2, 1]]


def test_unknown_letters_are_residues(tokenizer):
    _, is_residue = tokenize_residues(tokenizer, "MXBJ")
    assert is_residue.sum() == 4


def test_what_is_wrong_is_said(tokenizer):
    with pytest.raises(ValueError, match=r"positions \[1\] are empty"):
        list(sequence_batches(["MK", ""], tokenizer))
    with pytest.raises(ValueError, match="max_tokens is 0"):
        list(sequence_batches(["MK"], tokenizer, max_tokens=0))
    with pytest.raises(ValueError, match="1abc_A has 3 residues"):
        tokenize_residues(tokenizer, "M V", "1abc_A")


def test_the_table_equals_the_tokenizer(tokenizer):
    encoder = ResidueEncoder(tokenizer)
    assert encoder._table is not None
    rng = np.random.default_rng(0)
    letters = list(tiny.AMINO_ACIDS + "XBUZO")
    for sequence in ["".join(rng.choice(letters, length)) for length in (1, 2, 50)] + ["XX", "M", "MJK", "ACB"]:
        for found, expected in zip(encoder.encode(sequence), tokenize_residues(tokenizer, sequence)):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="chain has 3 residues"):
        encoder.encode("M V", "chain")


def test_tokenizers_that_merge_letters_get_no_table(tokenizer):
    class Merging(type(tokenizer)):
        def __call__(self, sequence, **options):
            return super().__call__(sequence.replace("AA", "<mask>"), **options)

    merging = Merging.__new__(Merging)
    merging.__dict__ = tokenizer.__dict__
    assert ResidueEncoder(merging)._table is None
    assert ResidueEncoder(merging).encode("MKV")[1].sum() == 3
