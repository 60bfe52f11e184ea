"""Packed rows against padded ones: the same proteins, the same numbers."""

import pytest
import torch

from structure_aligned.models.packing import PackedLayout
from tests import tiny
from tests.closeness import assert_same_but_rounding


LENGTHS = (9, 31, 1, 17, 24)
IMPLEMENTATIONS = ("packed", "sdpa", "eager")


def proteins(family, masked=0.3, seed=0, lengths=LENGTHS):
    """Token ids with special tokens, some of them masked: very unevenly, which ESM's token dropout must notice."""
    tokenizer = family.tokenizer()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, length in enumerate(lengths):
        letters = torch.randint(len(tiny.AMINO_ACIDS), (length,), generator=generator)
        ids = torch.tensor(tokenizer("".join(tiny.AMINO_ACIDS[i] for i in letters))["input_ids"])
        is_masked = torch.rand(len(ids), generator=generator) < masked * index / 2
        is_masked[[0, -1]] = False
        rows.append(torch.where(is_masked, tokenizer.mask_token_id, ids))
    return rows


def padded_batch(family, rows):
    pad = family.tokenizer().pad_token_id
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": input_ids, "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()}


def packed_batch(family, rows, cuts=(3,), padding=4):
    """The proteins in two rows: those before and from each of `cuts`; the shorter row padded, the longer one too."""
    pad = family.tokenizer().pad_token_id
    groups = [rows[start:stop] for start, stop in zip((0, *cuts), (*cuts, len(rows)))]
    width = max(sum(map(len, group)) for group in groups) + padding
    input_ids = torch.full((len(groups), width), pad)
    sequence_ids = torch.full((len(groups), width), -1)
    for index, group in enumerate(groups):
        filled = torch.cat(group)
        input_ids[index, : len(filled)] = filled
        ids = torch.repeat_interleave(torch.arange(len(group)), torch.tensor([len(row) for row in group]))
        sequence_ids[index, : len(filled)] = ids
    return {"input_ids": input_ids, "attention_mask": (sequence_ids >= 0).long(), "sequence_ids": sequence_ids}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES.keys())
def test_packed_equals_padded(family, implementation):
    model = family.model()
    rows = proteins(family)
    padded, packed = padded_batch(family, rows), packed_batch(family, rows)
    with torch.no_grad():
        expected = model(**padded)
        model.set_attn_implementation(implementation)
        found = model(**packed)
    there, here = padded["attention_mask"].bool(), packed["attention_mask"].bool()
    for name in ("logits", "structure_logits", "sequence_projection"):
        assert_same_but_rounding(found[name][here], expected[name][there])
    assert found.logits.isfinite().all()


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES.keys())
def test_gradients_of_packed_rows(family):
    """In float64, through the implementation that cuts the rows up, with checkpointing as well."""
    rows = proteins(family)
    padded, packed = padded_batch(family, rows), packed_batch(family, rows)
    gradients = []
    for batch, implementation in ((padded, "sdpa"), (packed, "packed"), (packed, "packed")):
        model = family.model().double().train()
        model.set_attn_implementation(implementation)
        if len(gradients) == 2:
            model.gradient_checkpointing_enable()  # the name that all supported versions know
        logits = model(**batch).logits[batch["attention_mask"].bool()]
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for found in gradients[1:]:
        assert found.keys() == gradients[0].keys()
        for name, expected in gradients[0].items():
            # ESM's rotary angles are float32; both sides have the same ones.
            torch.testing.assert_close(found[name], expected, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES.keys())
def test_proteins_of_a_row_do_not_see_each_other(family):
    model = family.model()
    model.set_attn_implementation("packed")
    rows = proteins(family)
    changed = [rows[0], rows[1].flip(0), *rows[2:]]
    with torch.no_grad():
        before, after = (model(**packed_batch(family, each)).logits for each in (rows, changed))
    first = len(rows[0])
    assert torch.equal(before[0, :first], after[0, :first])
    assert not torch.allclose(before[0, first : first + len(rows[1])], after[0, first : first + len(rows[1])])
    assert torch.equal(before[1], after[1])


def test_the_packed_implementation_takes_padded_rows_too():
    family = tiny.FAMILIES["esm"]
    model, batch = family.model(), padded_batch(family, proteins(family))
    with torch.no_grad():
        expected = model(**batch).logits
        model.set_attn_implementation("packed")
        assert_same_but_rounding(model(**batch).logits, expected)


def test_layout():
    layout = PackedLayout.from_sequence_ids(torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 2]]))
    assert layout.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0]]
    assert layout.protein_of.tolist() == [[0, 0, 0, 1, 1, 2], [3, 4, 4, 4, 4, 5]]
    assert layout.lengths == [3, 2, 1, 1, 4, 1]
    is_mask = torch.tensor([[True, False, False, True, True, False], [False, True, False, False, False, False]])
    expected = [[1 / 3] * 3 + [1.0] * 2 + [0.0], [0.0] + [0.25] * 4 + [0.0]]
    torch.testing.assert_close(layout.mask_ratio(is_mask), torch.tensor(expected))
    mask, options = layout.attention_inputs("flash_attention_2")
    assert mask is None
    assert options["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 7, 11, 12]
    assert options["max_length_k"] == 4


def test_what_cannot_be_packed_is_refused():
    family = tiny.FAMILIES["esm"]
    model, batch = family.model(), packed_batch(family, proteins(family))
    with pytest.raises(ValueError, match="packed rows need both, of the same shape"):
        model(**batch | {"sequence_ids": batch["sequence_ids"][:, 1:]})
    with pytest.raises(ValueError, match=r"\['position_ids'\] came with sequence_ids"):
        model(**batch, position_ids=torch.zeros_like(batch["input_ids"]))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="cannot keep packed proteins apart"):
        model(**batch)
    absolute = family.model(position_embedding_type="absolute")
    with pytest.raises(ValueError, match="need rotary positions"):
        absolute(**batch)
    with pytest.raises(ValueError, match=r"expected \(batch_size, length\)"):
        PackedLayout.from_sequence_ids(torch.zeros(3))
