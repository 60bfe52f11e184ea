"""
Batches by a budget of tokens instead of a number of proteins, padded or packed.

Proteins differ 50-fold in length: in a batch of 8 at random, a third or more of the positions is padding. Here every
protein gets a slot a little longer than itself, and slots are laid into batches once, from the lengths alone. In each
epoch the proteins are dealt anew to the slots of their length class. So batches change from epoch to epoch, while
their number, on which schedules and resuming rest, does not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


BATCHING = ("tokens", "packed", "proteins")

TOKENS_PER_PROTEIN = 256
"""Mean protein of the PDB with its special tokens, a little rounded up (240.5 in arXiv 2505.16896)."""

CLASS_WIDTH = {False: 0.08, True: 0.02}
"""How much shorter than the longest of its class a protein may be, padded and packed: half of it is what a padded
batch of the class wastes, and what a packed row leaves empty. Wider classes mix more proteins."""


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """
    Lists of rows whose batch, as the collator will make it, has at most `max_tokens` positions.

    Every row is in exactly one batch of an epoch. A longer one than the budget goes alone. The batches are a function
    of the lengths, the seed and the epoch, and their number of the lengths alone. To be sharded over ranks batch by
    batch, as Accelerate does.

    Args:
        lengths (`Sequence[int]`): Tokens of every row, special tokens included, after cropping.
        max_tokens (`int`): Positions of a batch, padding included.
        packed (`bool`, *optional*, defaults to `False`): Whether the rows of a batch are laid end to end.
        multiple_of (`int`, *optional*, defaults to 1): Their number is a multiple of this: ranks times accumulation
            steps. Batches are cut in two until it is.
        pad_to_multiple_of (`int`, *optional*, defaults to 1): As of the collator.
        seed (`int`, *optional*, defaults to 0): Of the shuffling.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        packed: bool = False,
        multiple_of: int = 1,
        pad_to_multiple_of: int = 1,
        seed: int = 0,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if self.lengths.ndim != 1 or not len(self.lengths) or self.lengths.min() < 1:
            raise ValueError(
                f"There are {len(self.lengths)} lengths, the shortest {min(lengths, default=None)}; expected at least "
                "one row, and at least one token in each."
            )
        for name, value in (("max_tokens", max_tokens), ("multiple_of", multiple_of)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if len(self.lengths) < multiple_of:
            raise ValueError(
                f"There are {len(self.lengths)} proteins for {multiple_of} micro-batches a step (ranks times "
                "accumulation steps); use fewer of either, or more proteins."
            )
        self.max_tokens, self.packed, self.seed, self.epoch = max_tokens, packed, seed, 0
        # Longest first; equal lengths in the order given.
        self._order = np.argsort(-self.lengths, kind="stable")
        sizes = self.lengths[self._order]
        slot_sizes = sizes if packed else -(-sizes // pad_to_multiple_of) * pad_to_multiple_of
        # A packed row is padded at its end only.
        budget = max_tokens // pad_to_multiple_of * pad_to_multiple_of if packed else max_tokens
        self._classes = _length_classes(slot_sizes, budget, packed)
        slots = np.empty_like(sizes)
        for members in self._classes:
            slots[members] = slot_sizes[members.start]
        batches = _pack(slots, budget, multiple_of) if packed else _cut(slots, budget, self._classes)
        self._batches = _to_multiple(batches, multiple_of)

    def __len__(self) -> int:
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Other proteins in the same slots, and another order of the batches."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = self._order.copy()
        for members in self._classes:
            rng.shuffle(rows[members])
        turns = rng.permutation(len(self._batches))
        if self.epoch == 0:
            # The largest batch at once: what does not fit into memory shall fail in the first minute.
            first = int(np.flatnonzero(turns == self._largest())[0])
            turns[[0, first]] = turns[[first, 0]]
        for turn in turns:
            yield rows[self._batches[turn]].tolist()

    def _largest(self) -> int:
        sizes = self.lengths[self._order]
        areas = [sizes[batch].sum() if self.packed else sizes[batch].max() * len(batch) for batch in self._batches]
        return int(np.argmax(areas))

    def padding(self) -> float:
        """Fraction of the positions of padded batches that holds no token, in this epoch."""
        if self.packed:
            return 0.0
        batches = list(self)
        positions = sum(len(batch) * self.lengths[batch].max() for batch in batches)
        return float(1 - self.lengths.sum() / positions)


def _length_classes(sizes: np.ndarray, budget: int, packed: bool) -> list[slice]:
    """
    Slices of the descending sizes. Those of padded batches hold whole batches, as long as the class has one.
    """
    classes, start = [], 0
    shortest = np.ceil(sizes * (1 - CLASS_WIDTH[packed])).astype(np.int64)
    while start < len(sizes):
        stop = int(np.searchsorted(-sizes, -shortest[start], side="right"))
        if not packed:
            fitting = max(1, budget // int(sizes[start]))
            stop = start + max(fitting, (stop - start) // fitting * fitting)
        classes.append(slice(start, min(stop, len(sizes))))
        start = classes[-1].stop
    return classes


def _cut(slots: np.ndarray, budget: int, classes: list[slice]) -> list[np.ndarray]:
    """Batches of consecutive slots within each class."""
    batches = []
    for members in classes:
        fitting = max(1, budget // int(slots[members.start]))
        places = np.arange(members.start, members.stop)
        batches += [places[start : start + fitting] for start in range(0, len(places), fitting)]
    return batches


def _pack(slots: np.ndarray, budget: int, multiple_of: int) -> list[np.ndarray]:
    """
    As few batches as the greedy rule "the longest slot into the emptiest batch" can do with: about equally full ones,
    so that ranks finish together.
    """
    count = max(1, math.ceil(slots.sum() / budget))
    while True:
        count = min(-(-count // multiple_of) * multiple_of, len(slots))
        loads: list[tuple[int, int]] = [(0, index) for index in range(count)]
        batches: list[list[int]] = [[] for _ in range(count)]
        fits = True
        for place, size in enumerate(slots.tolist()):
            load, index = loads[0]
            # One that is longer than the budget stays alone, because the others find emptier batches.
            fits = fits and (load + size <= budget or load == 0)
            heapq.heapreplace(loads, (load + size, index))
            batches[index].append(place)
        if fits or count == len(slots):
            return [np.array(batch) for batch in batches]
        count += max(1, count // 100)


def _to_multiple(batches: list[np.ndarray], multiple_of: int) -> list[np.ndarray]:
    """Cuts the batches with the most rows in two until their number is a multiple."""
    batches = list(batches)
    for _ in range(-len(batches) % multiple_of):
        index = int(np.argmax([len(batch) for batch in batches]))
        batch = batches[index]
        # Every other row: the halves are equally long.
        batches[index] = batch[::2]
        batches.append(batch[1::2])
    return batches


def row_lengths(dataset: Any, max_length: int, num_special_tokens: int) -> np.ndarray:
    """
    Tokens of every row of a dataset as the collator will make them.

    Args:
        dataset ([`datasets.Dataset`]): With a column `length` (in residues) or `sequence`.
        max_length (`int`): Tokens from which proteins are cropped.
        num_special_tokens (`int`): Of a protein.
    """
    columns = getattr(dataset, "column_names", None) or ()
    if "length" in columns:
        lengths = np.asarray(dataset.with_format(None)["length"][:], dtype=np.int64)
    elif "sequence" in columns:
        lengths = np.fromiter(map(len, dataset.with_format(None)["sequence"]), dtype=np.int64)
    else:
        raise ValueError(
            f"Batches by tokens need the lengths of the proteins, but the training set has columns {list(columns)} "
            "and no 'length' or 'sequence'. Use a datasets.Dataset with one of them, or batching='proteins'."
        )
    return np.minimum(lengths + num_special_tokens, max_length)
