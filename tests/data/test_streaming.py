"""Batches of a stream: every row once an epoch, within the budget, split over ranks."""

from itertools import chain, islice

import pytest
from datasets.distributed import split_dataset_by_node

from structure_aligned.data import streaming
from structure_aligned.data.collator import DataCollatorForStructureAlignment, count_proteins
from structure_aligned.data.streaming import ProteinStream, column_names, first_row, is_stream
from structure_aligned.models.esm2 import esm2_tokenizer
from tests import tiny


class Recording:
    """Stands for the collator: a batch is the epoch and the ids of its rows."""

    max_length, num_special_tokens, pad_to_multiple_of = 2048, 2, 8

    def __init__(self, epoch=0):
        self.epoch = epoch

    def at_epoch(self, epoch):
        return Recording(epoch)

    def __call__(self, rows):
        return self.epoch, [int(row["id"][3:-2]) for row in rows]


def stream(rows, batching="proteins", **options):
    options = {"batch_size": 2, "max_tokens": 90} | options
    return ProteinStream(rows, Recording(), batching, **options)


@pytest.mark.parametrize(("drop_last", "per_epoch"), [(False, [[0, 1], [2, 3], [4]]), (True, [[0, 1], [2, 3]])])
def test_proteins_come_in_order_again_and_again(drop_last, per_epoch):
    found = list(islice(stream(tiny.dataset(5).to_iterable_dataset(), drop_last=drop_last), 2 * len(per_epoch)))
    assert found == [(epoch, batch) for epoch in (0, 1) for batch in per_epoch]


@pytest.mark.parametrize("batching", ["tokens", "packed"])
def test_batches_by_tokens_hold_every_row_once(monkeypatch, batching):
    """In three buffers an epoch, whose orders differ from epoch to epoch."""
    monkeypatch.setattr(streaming, "BUFFER_BATCHES", 2)
    rows = tiny.dataset(16)
    lengths = [length + 2 for length in rows["length"]]
    epochs = {0: [], 1: [], 2: []}
    for epoch, batch in stream(rows.to_iterable_dataset(), batching):
        if epoch == 2:
            break
        epochs[epoch].append(batch)
        padded = sum(lengths[row] for row in batch)
        if batching == "tokens":
            padded = len(batch) * -(-max(lengths[row] for row in batch) // 8) * 8
        assert padded <= 90 or len(batch) == 1
    assert epochs[0] != epochs[1]
    for batches in (epochs[0], epochs[1]):
        assert sorted(chain.from_iterable(batches)) == list(range(16))
        # A buffer is cut before more than two batches' tokens are read.
        assert max(batches[0]) < 16 - 4


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_ranks_share_the_rows(shards):
    rows = tiny.dataset(9).to_iterable_dataset(num_shards=shards)
    for make in (
        lambda rank: stream(rows, rank=rank, world_size=2),
        lambda rank: stream(split_dataset_by_node(rows, rank, 2), rank=rank, world_size=2),
    ):
        batches = [batch for rank in (0, 1) for epoch, batch in islice(make(rank), 3) if epoch == 0]
        assert sorted(chain.from_iterable(batches)) == list(range(9))


def test_masks_are_those_of_the_epoch():
    collator = DataCollatorForStructureAlignment(esm2_tokenizer(), mlm_probability=0.5)
    rows = tiny.dataset(1)
    batches = list(
        islice(ProteinStream(rows.to_iterable_dataset(), collator, "proteins", batch_size=1, max_tokens=9), 2)
    )
    for epoch, batch in enumerate(batches):
        collator.set_epoch(epoch)
        assert batch["labels"].equal(collator([rows[0]])["labels"])
        assert count_proteins(batch) == 1
    assert not batches[0]["labels"].equal(batches[1]["labels"])


def test_rows_and_columns_of_any_dataset():
    rows = tiny.dataset(2)
    assert [is_stream(one) for one in (rows, list(rows), rows.to_iterable_dataset())] == [False, False, True]
    for one in (rows, list(rows), rows.to_iterable_dataset()):
        assert first_row(one)["id"] == "row0_A" and column_names(one) == rows.column_names
    assert first_row([]) is None and column_names([]) == column_names(None) == []
