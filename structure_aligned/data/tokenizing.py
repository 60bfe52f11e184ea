"""Sequences to tokens, one per residue, with where the residues are: special tokens are found, never counted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


def tokenize_residues(
    tokenizer: PreTrainedTokenizerBase, sequence: str, name: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Token ids of one protein and which of them are residues.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): Of the protein language model.
        sequence (`str`): L one-letter codes, upper-case.
        name (`str`, *optional*): Of the protein, for the error.

    Returns:
        `tuple[np.ndarray, np.ndarray]`, each of shape `(num_tokens,)`: int64 ids, and a bool mask with L True entries.

    Raises:
        ValueError: The tokenizer does not make one token of each letter.
    """
    encoded = tokenizer(sequence, return_special_tokens_mask=True)
    input_ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    is_residue = np.asarray(encoded["special_tokens_mask"]) == 0
    if is_residue.sum() != len(sequence):
        # Some tokenizers count unknown letters among the special tokens; those are residues all the same.
        is_residue |= input_ids == tokenizer.unk_token_id
    if is_residue.sum() != len(sequence):
        raise ValueError(
            f"{name or 'A row'} has {len(sequence)} residues but {type(tokenizer).__name__} made "
            f"{int(is_residue.sum())} tokens of them; expected upper-case one-letter codes, one token each. "
            f"The sequence begins with {sequence[:20]!r}."
        )
    return input_ids, is_residue


@dataclass
class SequenceBatch:
    """
    Some of a list's sequences as a padded batch.

    Args:
        indices (`list[int]`): Which sequences of the list, one per row.
        input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, length)`): What a model takes.
        residue_mask (`torch.BoolTensor` of shape `(batch_size, length)`): True at residues, in order.
    """

    indices: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    residue_mask: torch.Tensor

    def to(self, device: torch.device | str) -> SequenceBatch:
        moved = (tensor.to(device) for tensor in (self.input_ids, self.attention_mask, self.residue_mask))
        return SequenceBatch(self.indices, *moved)


def sequence_batches(
    sequences: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int = 4096
) -> Iterator[SequenceBatch]:
    """
    Batches of sequences of like length, the longest first: what does not fit into memory fails at once.

    Args:
        sequences (`Sequence[str]`): One-letter codes; none may be empty.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the protein language model.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included; a longer sequence goes alone.

    Yields:
        [`SequenceBatch`]: Each sequence is in exactly one; `indices` say which.
    """
    if empty := [index for index, sequence in enumerate(sequences) if not sequence]:
        raise ValueError(f"The sequences at the positions {empty[:10]} are empty; expected at least one residue each.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1.")
    special = tokenizer.num_special_tokens_to_add()
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    start = 0
    while start < len(order):
        count = max(1, max_tokens // (len(sequences[order[start]]) + special))
        yield _pad(order[start : start + count], sequences, tokenizer)
        start += count


def _pad(indices: list[int], sequences: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> SequenceBatch:
    encoded = [tokenize_residues(tokenizer, sequences[index], f"Sequence {index}") for index in indices]
    shape = (len(encoded), max(len(ids) for ids, _ in encoded))
    input_ids = torch.full(shape, tokenizer.pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    residue_mask = torch.zeros(shape, dtype=torch.bool)
    for row, (ids, is_residue) in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.from_numpy(ids)
        attention_mask[row, : len(ids)] = 1
        residue_mask[row, : len(ids)] = torch.from_numpy(is_residue)
    return SequenceBatch(indices, input_ids, attention_mask, residue_mask)
