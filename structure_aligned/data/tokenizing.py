"""Sequences to tokens, one per residue, with where the residues are: special tokens are found, never counted on."""

from __future__ import annotations

import string
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


class ResidueEncoder:
    """
    [`tokenize_residues`] by a table of letters: a hundred times as fast, which a small model on a GPU needs.

    The table is read off the tokenizer itself. Sequences with letters that have no token of their own, and tokenizers
    that do not go letter by letter, take the slow way.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): Of the protein language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._table: np.ndarray | None = None
        vocabulary = tokenizer.get_vocab()
        letters = [letter for letter in string.ascii_uppercase if letter in vocabulary]
        # Each letter twice, and then backwards: what depends on neighbours would show.
        probe = "".join(letter * 2 for letter in letters) + "".join(reversed(letters))
        try:
            ids, is_residue = tokenize_residues(tokenizer, probe)
        except ValueError:
            return
        places = np.flatnonzero(is_residue)
        expected = [vocabulary[letter] for letter in probe]
        if not letters or places[-1] - places[0] + 1 != len(places) or ids[places].tolist() != expected:
            return
        self._prefix, self._suffix = ids[: places[0]], ids[places[-1] + 1 :]
        self._table = np.full(256, -1, dtype=np.int64)
        self._table[np.frombuffer("".join(letters).encode(), dtype=np.uint8)] = [vocabulary[one] for one in letters]

    def encode(self, sequence: str, name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As [`tokenize_residues`]."""
        if self._table is not None and sequence.isascii():
            ids = self._table[np.frombuffer(sequence.encode(), dtype=np.uint8)]
            if (ids >= 0).all():
                is_residue = np.zeros(len(self._prefix) + len(ids) + len(self._suffix), dtype=bool)
                is_residue[len(self._prefix) : len(self._prefix) + len(ids)] = True
                return np.concatenate([self._prefix, ids, self._suffix]), is_residue
        return tokenize_residues(self.tokenizer, sequence, name)


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
    encoder, start = ResidueEncoder(tokenizer), 0
    while start < len(order):
        count = max(1, max_tokens // (len(sequences[order[start]]) + special))
        yield _pad(order[start : start + count], sequences, encoder)
        start += count


def _pad(indices: list[int], sequences: Sequence[str], encoder: ResidueEncoder) -> SequenceBatch:
    encoded = [encoder.encode(sequences[index], f"Sequence {index}") for index in indices]
    shape = (len(encoded), max(len(ids) for ids, _ in encoded))
    input_ids = torch.full(shape, encoder.tokenizer.pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    residue_mask = torch.zeros(shape, dtype=torch.bool)
    for row, (ids, is_residue) in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.from_numpy(ids)
        attention_mask[row, : len(ids)] = 1
        residue_mask[row, : len(ids)] = torch.from_numpy(is_residue)
    return SequenceBatch(indices, input_ids, attention_mask, residue_mask)
