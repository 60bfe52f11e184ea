"""What masked-LM evaluations share: windows of long proteins, and distributions at residues of masked rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenizing import tokenize_residues


AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 letters that are targets; everything else (X, B, U …) is only ever context."""


@dataclass(frozen=True)
class MaskedRow:
    """
    One row of a batch.

    Args:
        sequence (`str`): L one-letter codes.
        masked (`Collection[int]`): Residues (0-based) that the mask token replaces.
        read (`Collection[int]`): Residues whose distributions are wanted.
    """

    sequence: str
    masked: Collection[int]
    read: Collection[int]


def centred_window(position: int, length: int, max_residues: int) -> tuple[int, int]:
    """
    `(start, stop)` of the window of `max_residues` residues that has a residue nearest to its middle; the whole
    protein where it fits. ProteinGym calls this the optimal window.
    """
    start = min(max(position - max_residues // 2, 0), max(length - max_residues, 0))
    return start, min(start + max_residues, length)


def amino_acid_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids of [`AMINO_ACIDS`], int64 of shape `(20,)`."""
    ids = np.asarray(tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS)))
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None or (ids == tokenizer.unk_token_id).any():
        raise ValueError(
            f"{type(tokenizer).__name__} has no mask token, no padding token or not all of {AMINO_ACIDS}; expected "
            "the tokenizer of a masked protein language model."
        )
    return ids


def residue_log_probs(
    model: PreTrainedModel, rows: Iterable[MaskedRow], tokenizer: PreTrainedTokenizerBase, max_tokens: int = 4096
) -> Iterator[np.ndarray]:
    """
    Log-probabilities over the whole vocabulary at the residues that each row wants read.

    Args:
        model ([`PreTrainedModel`]): Whatever `AutoModelForMaskedLM` loads, in evaluation mode.
        rows (`Iterable[MaskedRow]`): Taken as they come, so that many need not exist at once; rows of like length
            beside each other waste least.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included; a longer row goes alone.

    Yields:
        `np.ndarray` of shape `(len(read), vocab_size)`: float32 (float64 of such models), one per row, in order.
    """
    batch, longest = [], 0
    for row in rows:
        longest = max(longest, len(row.sequence) + tokenizer.num_special_tokens_to_add())
        if batch and (len(batch) + 1) * longest > max_tokens:
            yield from _run(model, batch, tokenizer)
            batch, longest = [], len(row.sequence) + tokenizer.num_special_tokens_to_add()
        batch.append(row)
    if batch:
        yield from _run(model, batch, tokenizer)


# Not around the generator above: a suspended one would leave its caller in inference mode.
@torch.inference_mode()
def _run(model: PreTrainedModel, rows: list[MaskedRow], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    encoded = {sequence: tokenize_residues(tokenizer, sequence) for sequence in {row.sequence for row in rows}}
    shape = (len(rows), max(len(ids) for ids, _ in encoded.values()))
    input_ids = np.full(shape, tokenizer.pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    columns = []
    for index, row in enumerate(rows):
        ids, is_residue = encoded[row.sequence]
        places = np.flatnonzero(is_residue)
        input_ids[index, : len(ids)] = ids
        input_ids[index, places[list(row.masked)]] = tokenizer.mask_token_id
        attention_mask[index, : len(ids)] = 1
        columns.append(places[list(row.read)])
    counts = [len(places) for places in columns]
    at = (
        torch.from_numpy(np.repeat(np.arange(len(rows)), counts)).to(model.device),
        torch.from_numpy(np.concatenate(columns)).to(model.device),
    )
    # The mask always goes along: ESM2 scales its embeddings by each row's own share of masked tokens.
    logits = model(
        input_ids=torch.from_numpy(input_ids).to(model.device),
        attention_mask=torch.from_numpy(attention_mask).to(model.device),
    ).logits[at]
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu().numpy()
    if not np.isfinite(log_probs).all():
        raise ValueError(
            f"The model's logits are not finite (its weights are {model.dtype}); load it in float32 or bfloat16, and "
            "check that the checkpoint's own weights are finite."
        )
    return np.split(log_probs, np.cumsum(counts)[:-1])


def check_protein(sequence: str, name: str) -> None:
    """Raises `ValueError` for what is no sequence of upper-case one-letter codes."""
    if not sequence:
        raise ValueError(f"{name} is empty; expected at least one residue.")
    if strange := sorted({letter for letter in sequence if not ("A" <= letter <= "Z")}):
        raise ValueError(
            f"{name} contains {', '.join(map(repr, strange[:5]))}; expected upper-case one-letter codes only: remove "
            "gaps, stops and white space, and write letters in upper case."
        )


def check_budget(max_residues: int, max_tokens: int) -> None:
    for name, value in (("max_residues", max_residues), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
