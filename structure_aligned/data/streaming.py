"""Batches of a stream of dataset rows, for datasets that are read as they come and have no length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset

from .batching import TokenBudgetBatchSampler


Row = dict[str, Any]

BUFFER_BATCHES = 32
"""How many batches by tokens are cut at once: proteins of similar length are found among these."""


def is_stream(dataset: Any) -> bool:
    """Whether the rows of a dataset can only be read in order."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


def first_row(dataset: Any) -> Any:
    """The first row of any dataset, or `None` where it has none. Of a shuffled stream this fills the buffer once."""
    return next(iter(dataset), None)


def column_names(dataset: Any) -> list[str]:
    """Those a dataset says that it has, or those of its first row."""
    names = getattr(dataset, "column_names", None)
    if names is None and dataset is not None:
        row = first_row(dataset)
        names = row if isinstance(row, Mapping) else None
    return list(names or ())


class ProteinStream(IterableDataset):
    """
    Collated batches of one rank, without end: a stream that was read to its end starts again, as a new epoch.

    Every row is in exactly one batch of an epoch. Batches by tokens are cut within a buffer of [`BUFFER_BATCHES`]
    batches. The rows are split over ranks here, and over the workers of a `DataLoader` by the stream itself, which
    [`datasets.IterableDataset`] does.

    Args:
        dataset ([`datasets.IterableDataset`] or [`torch.utils.data.IterableDataset`]): Starts again each time it is
            iterated over. One that was split with `split_dataset_by_node` is not split again.
        collator (`Callable`): Makes a batch of a list of rows.
        batching (`str`): One of [`BATCHING`].
        batch_size (`int`): Proteins of a batch, for `batching="proteins"`.
        max_tokens (`int`): Positions of a batch otherwise.
        seed (`int`, *optional*, defaults to 0): Seed of the order within a buffer.
        drop_last (`bool`, *optional*, defaults to `False`): Leave out an incomplete batch of proteins at the end of an
            epoch.
        pgnn (`str`, *optional*): Rows from another pGNN than this are refused.
        rank, world_size (`int`, *optional*, default to 0 and 1): Rank of this process, and number of processes.
    """

    def __init__(
        self,
        dataset: Iterable[Row],
        collator: Callable[[list[Row]], dict[str, torch.Tensor]],
        batching: str,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int = 0,
        drop_last: bool = False,
        pgnn: str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.collator, self.batching = dataset, collator, batching
        self.batch_size, self.max_tokens, self.drop_last = batch_size, max_tokens, drop_last
        self.seed, self.pgnn, self.rank, self.world_size = seed, pgnn, rank, world_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        cut = self._by_proteins if self.batching == "proteins" else self._by_tokens
        for epoch in count():
            # A copy for each epoch, because the workers of a loader share the collator's own epoch.
            collator = self.collator.at_epoch(epoch) if hasattr(self.collator, "at_epoch") else self.collator
            empty = True
            for rows in cut(self._rows(epoch), epoch):
                empty = False
                yield collator(rows)
            if empty:  # a worker without a share, or a stream that does not start again
                return

    def _rows(self, epoch: int) -> Iterator[Row]:
        """The rows of this rank."""
        if isinstance(self.dataset, datasets.IterableDataset):
            split = self.dataset._distributed is not None
            # Always a new dataset, because the workers of a loader share the epoch of this one too.
            dataset = split_dataset_by_node(
                self.dataset, rank=0 if split else self.rank, world_size=1 if split else self.world_size
            )
            dataset.set_epoch(epoch)
            rows = iter(dataset)
        else:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            rows = islice(self.dataset, self.rank, None, self.world_size)
        for row in rows:
            if self.pgnn is not None and row.get("pgnn", self.pgnn) != self.pgnn:
                raise ValueError(
                    f"The embedding of {row.get('id', 'a row')} comes from the pGNN {row['pgnn']}, but the model was "
                    f"aligned with {self.pgnn}. Build all of the dataset with that pGNN."
                )
            yield row

    def _by_proteins(self, rows: Iterator[Row], epoch: int) -> Iterator[list[Row]]:
        while batch := list(islice(rows, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def _by_tokens(self, rows: Iterator[Row], epoch: int) -> Iterator[list[Row]]:
        for index, (buffer, lengths) in enumerate(self._buffers(rows)):
            sampler = TokenBudgetBatchSampler(
                lengths,
                self.max_tokens,
                packed=self.batching == "packed",
                pad_to_multiple_of=self.collator.pad_to_multiple_of,
                seed=self.seed + index,
            )
            sampler.set_epoch(epoch)
            for batch in sampler:
                yield [buffer[row] for row in batch]

    def _buffers(self, rows: Iterator[Row]) -> Iterator[tuple[list[Row], list[int]]]:
        """Rows with their tokens."""
        buffer: list[Row] = []
        lengths: list[int] = []
        room = BUFFER_BATCHES * self.max_tokens
        for row in rows:
            tokens = len(row["sequence"]) + self.collator.num_special_tokens
            buffer.append(row)
            lengths.append(min(tokens, self.collator.max_length))
            room -= lengths[-1]
            if room <= 0:
                yield buffer, lengths
                buffer, lengths, room = [], [], BUFFER_BATCHES * self.max_tokens
        if buffer:
            yield buffer, lengths
