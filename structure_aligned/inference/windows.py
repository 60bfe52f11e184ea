"""Proteins of any length as batches: windows of long ones, what is read from which, and putting it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..data.tokenizing import SequenceBatch, sequence_batches
from ..evaluation.masked_lm import centred_window, check_budget


@dataclass(frozen=True)
class Window:
    """
    A stretch of a protein that a model sees at once. Residues are counted from 0 in the protein.

    Args:
        index (`int`): Which protein of a list.
        start, stop (`int`): The residues seen.
        first, last (`int`): Those of them that are read, `last` excluded.
        length (`int`): Of the protein.
    """

    index: int
    start: int
    stop: int
    first: int
    last: int
    length: int

    @property
    def whole(self) -> bool:
        return self.last - self.first == self.length


def windows_of(index: int, length: int, max_residues: int) -> list[Window]:
    """
    The windows of a protein, one where it fits.

    As few windows of `max_residues` as overlap by half and more, spread evenly. Each residue is read from the one that
    has it nearest to its middle, so that it sees at least a quarter of a window to each side, or all there is.
    """
    if length <= max_residues:
        return [Window(index, 0, length, 0, length, length)]
    half = max_residues // 2
    count = 1 + -(-(length - max_residues) // max(1, half))
    middles = np.linspace(half, length - max_residues + half, count).round().astype(int).tolist()
    bounds = [centred_window(middle, length, max_residues) for middle in middles]
    # Halfway between two middles; the middle residue of three goes to the earlier window.
    cuts = [(left[0] + left[1] + right[0] + right[1] + 2) // 4 for left, right in pairwise(bounds)]
    reads = zip([0, *cuts], [*cuts, length])
    return [Window(index, *bound, first, last, length) for bound, (first, last) in zip(bounds, reads)]


def window_batches(
    sequences: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_residues: int, max_tokens: int
) -> Iterator[tuple[list[Window], SequenceBatch]]:
    """
    Batches of windows of like length, the longest first.

    Yields:
        `tuple[list[Window], SequenceBatch]`: A window per row; the batch's `residue_mask` is True where it is read.
    """
    check_budget(max_residues, max_tokens)
    windows = [window for index, one in enumerate(sequences) for window in windows_of(index, len(one), max_residues)]
    seen = [sequences[window.index][window.start : window.stop] for window in windows]
    for batch in sequence_batches(seen, tokenizer, max_tokens):
        rows = [windows[number] for number in batch.indices]
        for row, window in enumerate(rows):
            if not window.whole:
                places = batch.residue_mask[row].nonzero().flatten()
                batch.residue_mask[row] = False
                batch.residue_mask[row, places[window.first - window.start : window.last - window.start]] = True
        yield rows, batch


class Assembly:
    """Puts the rows read from windows together to whole proteins; holds only those that are not complete yet."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[np.ndarray, int]] = {}

    def add(self, window: Window, rows: np.ndarray) -> np.ndarray | None:
        """
        The array `(length, width)` of the window's protein once all of its residues have come, else `None`.

        Args:
            rows (`np.ndarray` of shape `(last - first, width)`): Given back where they are all, else copied.
        """
        if window.whole:
            return rows
        whole, missing = self._waiting.pop(window.index, (None, window.length))
        if whole is None:
            whole = np.empty((window.length, rows.shape[1]), dtype=rows.dtype)
        whole[window.first : window.last] = rows
        missing -= len(rows)
        if missing:
            self._waiting[window.index] = (whole, missing)
            return None
        return whole


def split_rows(values: torch.Tensor, windows: list[Window]) -> list[np.ndarray]:
    """Rows of all windows, laid end to end on any device, as one array `(last - first, width)` for each."""
    counts = [window.last - window.first for window in windows]
    return np.split(values.cpu().numpy(), np.cumsum(counts)[:-1])
