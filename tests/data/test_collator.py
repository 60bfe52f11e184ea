"""Exact tensors, alignment of all columns, and masks that depend on nothing but seed, epoch and row."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.data.features import decode_embedding
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.objectives.losses import IGNORE_INDEX
from tests import tiny


TOKENIZER = esm2_tokenizer()
CLS, PAD, EOS, MASK = 0, 1, 2, 32


def collator(**options):
    return DataCollatorForStructureAlignment(TOKENIZER, **options)


def test_exact_batch():
    embedding = np.arange(6, dtype=np.float16).reshape(3, 2)
    embedding[1] = np.nan
    row = {
        "id": "a",
        "sequence": "MKV",
        "structure_tokens": [7, 8, 9],
        "structure_token_mask": [False, True, False],
        "structure_embedding": embedding.tobytes(),
        "structure_embedding_shape": [3, 2],
        "structure_embedding_mask": [True, False, True],
    }
    batch = collator(mlm_probability=0.0)([row, row | {"sequence": "AAA"}])
    assert batch["input_ids"].tolist() == [[0, 20, 15, 7, 2, 1, 1, 1], [0, 5, 5, 5, 2, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert (batch["labels"] == IGNORE_INDEX).all()
    assert batch["structure_labels"].tolist() == [[-100, -100, 8, -100, -100, -100, -100, -100]] * 2
    assert batch["residue_mask"].tolist() == [[False, True, False, True, False, False, False, False]] * 2
    assert batch["structure_embeddings"][0].tolist() == [[0, 0], [0, 1], [0, 0], [4, 5]] + [[0, 0]] * 4


def test_masking_replaces_15_percent_by_the_mask_token_and_keeps_the_labels():
    rows = [tiny.row(index, length=400) for index in range(20)]
    batch = collator()(rows)
    plain = collator(mlm_probability=0.0)(rows)["input_ids"]
    masked = batch["labels"] != IGNORE_INDEX
    assert torch.equal(batch["input_ids"] == MASK, masked)
    assert torch.equal(batch["labels"][masked], plain[masked])
    assert torch.equal(batch["input_ids"][~masked], plain[~masked])
    assert not (masked & ((plain == CLS) | (plain == PAD) | (plain == EOS))).any()
    assert masked.sum().item() / (20 * 400) == pytest.approx(0.15, abs=0.02)


def test_unknown_residues_are_never_targets():
    row = tiny.row(0, length=60) | {"sequence": "X" * 30 + "A" * 30}
    labels = collator(mlm_probability=0.9)([row])["labels"]
    assert set(labels.unique().tolist()) == {IGNORE_INDEX, TOKENIZER.convert_tokens_to_ids("A")}


def test_masks_depend_on_seed_epoch_and_row_only():
    rows = [tiny.row(index, length=80) for index in range(4)]
    first = collator(seed=5)
    together = first(rows)["labels"]
    alone = torch.cat([collator(seed=5)([row])["labels"] for row in rows])
    assert torch.equal(together, alone)
    assert torch.equal(together.flip(0), first(rows[::-1])["labels"])
    assert not torch.equal(together, collator(seed=6)(rows)["labels"])
    evaluation = first.for_evaluation()
    before = evaluation(rows)["labels"]
    first.set_epoch(1)
    assert not torch.equal(together, first(rows)["labels"])
    assert torch.equal(before, evaluation(rows)["labels"])
    first.set_epoch(0)
    assert torch.equal(together, first(rows)["labels"])


def test_persistent_workers_see_the_new_epoch():
    rows = [tiny.row(index, length=50) for index in range(4)]
    shared = collator()
    loader = DataLoader(rows, batch_size=4, collate_fn=shared, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        shared.set_epoch(epoch)
        expected = collator()
        expected.set_epoch(epoch)
        assert torch.equal(next(iter(loader))["labels"], expected(rows)["labels"])


def test_crop_cuts_all_columns_alike():
    row = tiny.row(3, length=100)
    starts = set()
    cropping = collator(max_length=42, mlm_probability=0.0)
    for epoch in range(20):
        cropping.set_epoch(epoch)
        batch = cropping([row])
        letters = TOKENIZER.convert_ids_to_tokens(batch["input_ids"][0, 1:41])
        start = row["sequence"].index("".join(letters))
        starts.add(start)
        assert batch["input_ids"].shape == (1, 48) and batch["attention_mask"].sum() == 42
        window = slice(start, start + 40)
        valid = row["structure_token_mask"][window]
        assert batch["structure_labels"][0, 1:41].tolist() == [
            token if ok else IGNORE_INDEX for token, ok in zip(row["structure_tokens"][window].tolist(), valid)
        ]
        mask = batch["residue_mask"][0, 1:41]
        assert mask.tolist() == row["structure_embedding_mask"][window].tolist()
        expected = torch.from_numpy(decode_embedding(row)[window].astype(np.float32))
        assert torch.equal(batch["structure_embeddings"][0, 1:41][mask], expected[mask])
    assert len(starts) > 5 and min(starts) >= 0 and max(starts) <= 60


def test_rows_without_structure_make_a_plain_mlm_batch():
    batch = collator()([{"sequence": "MKVLAAG"}])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "structure_labels"}
    assert (batch["structure_labels"] == IGNORE_INDEX).all()


def test_column_lengths_must_agree():
    row = tiny.row(0)
    with pytest.raises(ValueError, match="row0_A has .* residues but structure_tokens has"):
        collator()([row | {"structure_tokens": row["structure_tokens"][:-1]}])
    with pytest.raises(ValueError, match="residues but structure_embedding has"):
        collator()(
            [
                row
                | {
                    "sequence": row["sequence"] + "A",
                    "structure_tokens": [0] * (row["length"] + 1),
                    "structure_token_mask": [True] * (row["length"] + 1),
                }
            ]
        )
    with pytest.raises(ValueError, match="made .* tokens of them"):
        collator()([{"sequence": "MK<mask>V"}])
    with pytest.raises(ValueError, match="widths"):
        collator()([row, {"sequence": "MKV"}])


def test_refuses_bad_options():
    for options in ({"mlm_probability": 1.0}, {"max_length": 2}):
        with pytest.raises(ValueError):
            collator(**options)
    with pytest.raises(ValueError, match="no rows"):
        collator()([])
