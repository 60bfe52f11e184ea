"""Embeddings of sequences by a protein language model: of every residue, of the whole protein, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets.utils import tqdm
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenizing import SequenceBatch
from ..evaluation.trunk_outputs import run_trunk
from ..models.amplify import AmplifyModel
from ..models.trunks import tokenizer_of, trunk_of
from .fasta import clean_sequences
from .windows import Assembly, Window, split_rows, window_batches


POOLINGS = ("residue", "mean", "both")
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class SequenceEmbedding:
    """
    What was asked for of one protein; the other is `None`.

    Args:
        residues (`np.ndarray` of shape `(L, hidden_size)`, *optional*): Without special tokens.
        mean (`np.ndarray` of shape `(hidden_size,)`, *optional*): Their mean, taken in float32 or wider.
    """

    residues: np.ndarray | None = None
    mean: np.ndarray | None = None


def embed_sequences(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    pooling: str = "residue",
    layer: int = -1,
    max_residues: int = 1022,
    max_tokens: int = 4096,
    dtype: str = "float32",
    progress: bool = True,
) -> list[np.ndarray] | list[SequenceEmbedding]:
    """
    Embeddings of sequences of any length, in the order given.

    A protein of more than `max_residues` is read in windows of so many that overlap by half and more; each residue
    comes from the window that has it nearest to its middle. Letters are taken by the rule of [`clean_sequence`].

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY on any device and in any precision, with whatever heads.
        sequences (`Sequence[str]`): One-letter codes.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        pooling (`str`, *optional*, defaults to `"residue"`): `"residue"`, `"mean"` (over residues) or `"both"`.
        layer (`int`, *optional*, defaults to -1): As an index of ESM2's `hidden_states`: 0 is what goes into the first
            block, k what comes out of block k; −1 is the last hidden state (of ESM2 after the final norm, of AMPLIFY
            before `layer_norm_2`).
        max_residues (`int`, *optional*, defaults to 1022): Of a window.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included; a longer window goes alone.
        dtype (`str`, *optional*, defaults to `"float32"`): Of the result: also `"float16"` or `"float64"`.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[np.ndarray]` of shape `(L, hidden_size)` or, with `"mean"`, `(hidden_size,)`; with `"both"` a list of
        [`SequenceEmbedding`].

    Raises:
        ValueError: An option or a sequence is none, or embeddings are not finite (in float16: are too large for it).
    """
    cleaned = clean_sequences(sequences)
    found: list[SequenceEmbedding] = [SequenceEmbedding()] * len(cleaned)
    options = {"pooling": pooling, "layer": layer, "max_residues": max_residues, "max_tokens": max_tokens}
    with tqdm(total=len(cleaned), desc="Embedding", unit="protein", disable=not progress) as bar:
        for index, embedding in iterate_embeddings(model, cleaned, tokenizer, dtype=dtype, **options):
            if embedding.residues is not None and embedding.residues.base is not None:
                # Else whoever keeps one protein would keep its whole batch.
                embedding = replace(embedding, residues=embedding.residues.copy())
            found[index] = embedding
            bar.update()
    if pooling == "both":
        return found
    return [one.mean if pooling == "mean" else one.residues for one in found]


def iterate_embeddings(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    pooling: str = "residue",
    layer: int = -1,
    max_residues: int = 1022,
    max_tokens: int = 4096,
    dtype: str = "float32",
) -> Iterator[tuple[int, SequenceEmbedding]]:
    """
    As [`embed_sequences`], of clean sequences, as they come: the longest first, with their places in the list. Arrays
    may be views of a whole batch.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    source = layer_module(model, layer)
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    assembly, sums = Assembly(), _Sums()
    for windows, batch in window_batches(sequences, tokenizer, max_residues, max_tokens):
        batch = batch.to(model.device)
        hidden = _hidden_state(model, batch, source)
        rows = totals = [None] * len(windows)
        if pooling != "mean":
            rows = split_rows(_converted(hidden[batch.residue_mask], _DTYPES[dtype]), windows)
        if pooling != "residue":
            wide = torch.promote_types(hidden.dtype, torch.float32)
            totals = hidden.masked_fill(~batch.residue_mask.unsqueeze(-1), 0).sum(1, dtype=wide).cpu().numpy()
        for window, read, total in zip(windows, rows, totals):
            residues = None if read is None else assembly.add(window, read)
            mean = None if total is None else sums.add(window, total)
            if residues is not None or mean is not None:
                if mean is not None:
                    mean = _converted(torch.from_numpy(mean), _DTYPES[dtype]).numpy()
                yield window.index, SequenceEmbedding(residues, mean)


class _Sums:
    """Means of proteins whose windows come one by one."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[np.ndarray, int]] = {}

    def add(self, window: Window, total: np.ndarray) -> np.ndarray | None:
        """The mean of the window's protein once all of its windows have come, else `None`; `total` is a sum."""
        before, missing = self._waiting.pop(window.index, (None, window.length))
        total = total if before is None else before + total
        missing -= window.last - window.first
        if missing:
            self._waiting[window.index] = (total, missing)
            return None
        return total / window.length


def layer_module(model: nn.Module, layer: int) -> nn.Module | None:
    """The part of the trunk whose output is wanted; `None` for the last hidden state."""
    trunk = trunk_of(model)
    count = trunk.config.num_hidden_layers
    if not -count - 1 <= layer <= count:
        raise ValueError(
            f"layer is {layer}; expected {-count - 1} to {count} of a model with {count} layers: 0 is what goes into "
            "the first one, -1 what comes out of the last."
        )
    number = layer % (count + 1)
    if number == count:
        return None
    if not isinstance(trunk, AmplifyModel):
        return trunk.encoder.layer[number - 1] if number else trunk.embeddings
    if number:
        return trunk.transformer_encoder[number - 1]
    return trunk.layer_norm_1 if trunk.config.layer_norm_after_embedding else trunk.encoder


def _hidden_state(model: PreTrainedModel, batch: SequenceBatch, source: nn.Module | None) -> torch.Tensor:
    """`(batch_size, length, hidden_size)`, without keeping the other layers'."""
    if source is None:
        return run_trunk(model, batch)
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = source.register_forward_hook(keep)
    try:
        run_trunk(model, batch)
    finally:
        handle.remove()
    return seen[0]


def _converted(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    Raises:
        ValueError: They are not finite, before or after.
    """
    converted = values.to(dtype)
    if not converted.isfinite().all():
        if values.isfinite().all():
            advice = f"{values.abs().max().item():.3g} is too large for {dtype}; ask for float32"
        else:
            advice = (
                f"the model's output is not finite (in {values.dtype}); run it in float32 or bfloat16, and check that "
                "the checkpoint's own weights are finite"
            )
        raise ValueError(f"An embedding cannot be given: {advice}.")
    return converted
