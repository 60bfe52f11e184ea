"""Batches by tokens: every protein once, never over budget, the same number each epoch, others each time."""

from itertools import chain, pairwise

import numpy as np
import pytest

from structure_aligned.data.batching import TokenBudgetBatchSampler, row_lengths
from tests import tiny


def lengths_like_proteins(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.minimum(30 + rng.lognormal(5, 0.8, count).astype(int), 1024)


def positions(sampler, batch, multiple=8):
    lengths = sampler.lengths[batch]
    padded = -(-(lengths.sum() if sampler.packed else lengths.max()) // multiple) * multiple
    return padded if sampler.packed else padded * len(batch)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("multiple_of", [1, 3, 16])
@pytest.mark.parametrize("count", [16, 301, 2000])
def test_every_row_once_within_the_budget(packed, multiple_of, count):
    sampler = TokenBudgetBatchSampler(
        lengths_like_proteins(count), 2048, packed=packed, multiple_of=multiple_of, pad_to_multiple_of=8, seed=1
    )
    seen = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert len(batches) % multiple_of == 0
        assert sorted(chain.from_iterable(batches)) == list(range(count))
        assert all(positions(sampler, batch) <= 2048 for batch in batches)
        seen.append({frozenset(batch) for batch in batches})
        assert list(sampler) == batches  # the same again: a resumed run needs it
    if count == 2000:
        repeated = [len(one & other) / len(one) for one, other in pairwise(seen)]
        assert max(repeated) < 0.3


def test_little_is_padding():
    lengths = lengths_like_proteins(2000)
    rng = np.random.default_rng(0)
    at_random = np.array_split(rng.permutation(lengths), len(lengths) // 8)
    waste = 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in at_random)
    sampler = TokenBudgetBatchSampler(lengths, 4096, pad_to_multiple_of=8)
    assert waste > 0.4
    assert sampler.padding() < 0.06
    filled = sum(positions(sampler, batch) for batch in sampler) / (len(sampler) * 4096)
    assert filled > 0.9
    packed = TokenBudgetBatchSampler(lengths, 4096, packed=True, pad_to_multiple_of=8)
    assert lengths.sum() / (len(packed) * 4096) > 0.95
    assert packed.padding() == 0


@pytest.mark.parametrize("packed", [False, True])
def test_ranks_get_like_batches(packed):
    sampler = TokenBudgetBatchSampler(lengths_like_proteins(3000), 2048, packed=packed, multiple_of=4)
    sizes = [positions(sampler, batch, 1) for batch in sampler]
    assert np.median(sizes) > 0.9 * 2048
    if packed:
        assert min(sizes) > 0.9 * max(sizes)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_beyond_the_budget_goes_alone(packed):
    lengths = [100, 3000, 90, 80, 2500, 70]
    sampler = TokenBudgetBatchSampler(lengths, 2048, packed=packed)
    batches = list(sampler)
    assert [1] in batches and [4] in batches
    assert sorted(chain.from_iterable(batches)) == list(range(6))


def test_the_largest_batch_comes_first():
    sampler = TokenBudgetBatchSampler([10] * 50 + [500], 512)
    assert next(iter(sampler)) == [50]


def test_as_many_batches_as_proteins():
    lengths = lengths_like_proteins(333)
    assert len(TokenBudgetBatchSampler(lengths, 2048, multiple_of=333)) == 333


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 proteins for 4 micro-batches a step"):
        TokenBudgetBatchSampler([5, 6], 100, multiple_of=4)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        TokenBudgetBatchSampler([5], 0)
    with pytest.raises(ValueError, match="the shortest 0"):
        TokenBudgetBatchSampler([5, 0], 100)
    with pytest.raises(ValueError, match="There are 0 lengths"):
        TokenBudgetBatchSampler([], 100)


def test_row_lengths():
    dataset = tiny.dataset(5)
    expected = np.minimum(np.array(dataset["length"]) + 2, 30)
    assert np.array_equal(row_lengths(dataset, 30, 2), expected)
    assert np.array_equal(row_lengths(dataset.remove_columns("length"), 30, 2), expected)
    with pytest.raises(ValueError, match="no 'length' or 'sequence'"):
        row_lengths(dataset.select_columns(["id"]), 30, 2)
