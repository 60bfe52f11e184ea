"""Rows of a structure dataset to a padded, masked batch with all residue-level columns aligned."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..objectives.losses import IGNORE_INDEX
from .features import REFERENCE_COLUMNS, decode_embedding, decode_reference_losses
from .tokenizing import tokenize_residues


FORWARD_INPUTS = ("input_ids", "attention_mask", "structure_embeddings", "sequence_ids")
"""What of a batch the models' forward pass needs when the losses are computed outside of it."""


def count_proteins(batch: dict[str, torch.Tensor]) -> torch.Tensor | int:
    """Proteins of a padded or packed batch."""
    if "sequence_ids" in batch:
        return (batch["sequence_ids"].amax(dim=1) + 1).sum()
    return len(batch["input_ids"])


class DataCollatorForStructureAlignment:
    """
    Crops, masks and pads dataset rows; what the paper's training step gets.

    Masks and crops are a function of `seed`, the epoch and the row alone. They are the same however the rows are cut
    into batches, on whichever rank or worker they arrive, and after resuming.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): Of the protein language model. Must give one token per residue.
        mlm_probability (`float`, *optional*, defaults to 0.15): Each residue's chance of being replaced by the mask
            token (always the mask token, as in the paper). `X` is never a target.
        max_length (`int`, *optional*, defaults to 2048): Tokens per protein, special tokens included; longer ones are
            cropped at random.
        pad_to_multiple_of (`int`, *optional*, defaults to 8): Of the batch's length.
        seed (`int`, *optional*, defaults to 0): Of masks and crops.
        packing (`bool`, *optional*, defaults to `False`): Lay the proteins end to end in one row instead of one below
            the other. Masks and crops are the same.

    Returns:
        A dict of tensors, all aligned with `input_ids` of shape `(batch_size, length)`: `attention_mask`, `labels`
        and `structure_labels` (−100 where there is no target), and, where the rows hold embeddings,
        `structure_embeddings` of shape `(batch_size, length, structure_dim)` with their `residue_mask`. Rows with
        reference losses give `reference_losses` of shape `(batch_size, length, 6)`, NaN where there are none. Packed
        ones have a `batch_size` of 1 and `sequence_ids` of shape `(1, length)`: 0, 1, 2 …, −1 for padding.

    Example:

    ```python
    >>> from structure_aligned.models.esm2 import esm2_tokenizer
    >>> collator = DataCollatorForStructureAlignment(esm2_tokenizer(), mlm_probability=0.5)
    >>> row = {"id": "1abc_A", "sequence": "MKV", "structure_tokens": [2, 5, 2]}
    >>> row["structure_token_mask"] = [False, True, False]
    >>> collator([row])["structure_labels"].tolist()
    [[-100, -100, 5, -100, -100, -100, -100, -100]]

    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mlm_probability: float = 0.15,
        max_length: int = 2048,
        pad_to_multiple_of: int = 8,
        seed: int = 0,
        packing: bool = False,
    ) -> None:
        if not 0.0 <= mlm_probability < 1.0:
            raise ValueError(f"mlm_probability is {mlm_probability}; expected 0 <= p < 1 (the paper has 0.15).")
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has mask token {tokenizer.mask_token!r} and pad token "
                f"{tokenizer.pad_token!r}; masked language modelling needs both."
            )
        self.tokenizer = tokenizer
        self.mlm_probability = mlm_probability
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self.packing = packing
        self.num_special_tokens = tokenizer.num_special_tokens_to_add()
        if max_length <= self.num_special_tokens:
            raise ValueError(f"max_length is {max_length}; that leaves no residue beside the special tokens.")
        unknown = {tokenizer.convert_tokens_to_ids("X"), tokenizer.unk_token_id} - {None}
        self._never_target = np.array(sorted(unknown), dtype=np.int64)
        # In shared memory, so that persistent DataLoader workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def max_residues(self) -> int:
        """Residues of a protein that is not cropped."""
        return self.max_length - self.num_special_tokens

    def set_epoch(self, epoch: int) -> None:
        """New masks and crops; the Trainer calls this."""
        self._epoch.fill_(epoch)

    def at_epoch(self, epoch: int) -> DataCollatorForStructureAlignment:
        """A copy that stays at this epoch, whatever `set_epoch` says."""
        collator = copy.copy(self)
        collator._epoch = torch.tensor(epoch)
        return collator

    def for_evaluation(self) -> DataCollatorForStructureAlignment:
        """A padding copy with masks of its own that no `set_epoch` changes, so that evaluations can be compared."""
        return self._copy(seed=self.seed + 1, packing=False)

    def for_packing(self) -> DataCollatorForStructureAlignment:
        """A copy that packs, with the same masks."""
        return self._copy(seed=self.seed, packing=True)

    def _copy(self, **changes: Any) -> DataCollatorForStructureAlignment:
        return type(self)(self.tokenizer, self.mlm_probability, self.max_length, self.pad_to_multiple_of, **changes)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("There are no rows to collate.")
        examples = [self._example(row) for row in rows]
        lengths = [len(example["input_ids"]) for example in examples]
        longest = sum(lengths) if self.packing else max(lengths)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (1 if self.packing else len(rows), length)
        batch = {
            "input_ids": torch.full(shape, self.tokenizer.pad_token_id, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORE_INDEX, dtype=torch.long),
            "structure_labels": torch.full(shape, IGNORE_INDEX, dtype=torch.long),
        }
        if self.packing:
            batch["sequence_ids"] = torch.full(shape, -1, dtype=torch.long)
        if any("structure_embeddings" in example for example in examples):
            dims = {
                example["structure_embeddings"].shape[-1] for example in examples if "structure_embeddings" in example
            }
            if len(dims) != 1 or not all("structure_embeddings" in example for example in examples):
                raise ValueError(
                    f"The rows {[row.get('id') for row in rows]} hold embeddings of widths {sorted(dims)} and not all "
                    "hold one; build all of them with the same pGNN."
                )
            batch["structure_embeddings"] = torch.zeros((*shape, dims.pop()), dtype=torch.float32)
            batch["residue_mask"] = torch.zeros(shape, dtype=torch.bool)
        with_reference = ["reference_losses" in example for example in examples]
        if any(with_reference):
            # A row without any is all NaN: missing, which selection refuses or does without, as it is told.
            batch["reference_losses"] = torch.full((*shape, len(REFERENCE_COLUMNS)), torch.nan)
        start = 0
        for index, (example, length) in enumerate(zip(examples, lengths)):
            place = (0, slice(start, start + length)) if self.packing else (index, slice(length))
            batch["attention_mask"][place] = 1
            if self.packing:
                batch["sequence_ids"][place] = index
                start += length
            for name, values in example.items():
                batch[name][place] = torch.from_numpy(values)
        return batch

    def _example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """One protein, unpadded; every array spans its special tokens too."""
        sequence = row["sequence"]
        rng = self._generator(row)
        window = self._crop(len(sequence), rng)
        input_ids, is_residue = tokenize_residues(self.tokenizer, sequence[window], row.get("id"))
        # Drawn for the whole protein: which residues are masked does not depend on the crop.
        masked = (rng.random(len(sequence)) < self.mlm_probability)[window]
        masked &= ~np.isin(input_ids[is_residue], self._never_target)
        example = {"labels": np.full_like(input_ids, IGNORE_INDEX)}
        residue_positions = np.flatnonzero(is_residue)
        example["labels"][residue_positions[masked]] = input_ids[residue_positions[masked]]
        example["input_ids"] = input_ids.copy()
        example["input_ids"][residue_positions[masked]] = self.tokenizer.mask_token_id
        if "structure_tokens" in row:
            tokens = self._column(row, "structure_tokens")[window].astype(np.int64)
            valid = self._column(row, "structure_token_mask")[window].astype(bool)
            example["structure_labels"] = np.full_like(input_ids, IGNORE_INDEX)
            example["structure_labels"][is_residue] = np.where(valid, tokens, IGNORE_INDEX)
        if row.get("structure_embedding") is not None:
            embedding = decode_embedding(row)
            if len(embedding) != len(sequence):
                raise ValueError(self._length_message(row, "structure_embedding", len(embedding)))
            present = self._column(row, "structure_embedding_mask")[window].astype(bool)
            example["residue_mask"] = np.zeros(len(input_ids), dtype=bool)
            example["residue_mask"][is_residue] = present
            example["structure_embeddings"] = np.zeros((len(input_ids), embedding.shape[1]), dtype=np.float32)
            # Rows that are missing are NaN; they stay zero here and residue_mask leaves them out everywhere.
            example["structure_embeddings"][residue_positions[present]] = embedding[window][present]
            if not np.isfinite(example["structure_embeddings"]).all():
                raise ValueError(
                    f"{row.get('id', 'A row')} has NaN or infinity in structure_embedding at residues that "
                    "structure_embedding_mask says have an embedding; rebuild the dataset, or leave the row out."
                )
        if row.get("reference_losses") is not None:
            reference = decode_reference_losses(row)
            if len(reference) != len(sequence):
                raise ValueError(self._length_message(row, "reference_losses", len(reference)))
            if np.isinf(reference).any():
                raise ValueError(
                    f"{row.get('id', 'A row')} has an infinite number in reference_losses; attach them again with a "
                    "reference model whose losses are finite."
                )
            example["reference_losses"] = np.full((len(input_ids), reference.shape[1]), np.nan, dtype=np.float32)
            example["reference_losses"][is_residue] = reference[window]
        return example

    def _generator(self, row: dict[str, Any]) -> np.random.Generator:
        key = f"{self.seed}|{int(self._epoch)}|{row.get('id', '')}|{row['sequence']}"
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little"))

    def _crop(self, length: int, rng: np.random.Generator) -> slice:
        room = self.max_residues
        start = int(rng.integers(length - room + 1)) if length > room else 0
        return slice(start, start + min(length, room))

    def _column(self, row: dict[str, Any], name: str) -> np.ndarray:
        values = np.asarray(row[name])
        if len(values) != len(row["sequence"]):
            raise ValueError(self._length_message(row, name, len(values)))
        return values

    @staticmethod
    def _length_message(row: dict[str, Any], name: str, length: int) -> str:
        return (
            f"{row.get('id', 'A row')} has {len(row['sequence'])} residues but {name} has {length} entries; rebuild "
            "the dataset, or map all residue-level columns when you cut a sequence."
        )
