"""Windows of long proteins, by brute force."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from structure_aligned.inference.windows import Assembly, window_batches, windows_of
from tests import tiny


@given(length=st.integers(1, 300), size=st.integers(1, 60))
def test_each_residue_is_read_once_from_the_window_nearest_to_whose_middle_it_is(length, size):
    windows = windows_of(7, length, size)
    assert [residue for window in windows for residue in range(window.first, window.last)] == list(range(length))
    assert all(window.index == 7 and window.length == length for window in windows)
    if length <= size:
        assert [(window.start, window.stop, window.whole) for window in windows] == [(0, length, True)]
        return
    assert (windows[0].start, windows[-1].stop) == (0, length)
    assert all(window.stop - window.start == size and not window.whole for window in windows)
    assert all(later.start - one.start <= max(1, size // 2) for one, later in pairwise(windows))
    middles = np.array([(window.start + window.stop - 1) / 2 for window in windows])
    for number, window in enumerate(windows):
        for residue in range(window.first, window.last):
            # Halves: between the middles of two windows of even size lies no residue.
            assert abs(middles[number] - residue) <= np.abs(middles - residue).min() + 0.5
            assert min(residue, residue - window.start) >= min(residue, size // 4 - 1)
            assert window.stop - 1 - residue >= min(length - 1 - residue, size // 4 - 1)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_batches_say_which_residues_are_read(name):
    tokenizer = tiny.FAMILIES[name].tokenizer()
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list(tiny.AMINO_ACIDS), length)) for length in (5, 47, 20, 1, 21)]
    assembly, whole = Assembly(), {}
    for windows, batch in window_batches(sequences, tokenizer, max_residues=20, max_tokens=70):
        assert batch.input_ids.shape[1] <= 22 and batch.input_ids.numel() <= 70
        for row, window in enumerate(windows):
            rows = batch.input_ids[row][batch.residue_mask[row]].numpy()[:, None]
            assert len(rows) == window.last - window.first
            if (done := assembly.add(window, rows)) is not None:
                whole[window.index] = "".join(tokenizer.convert_ids_to_tokens(done[:, 0].tolist()))
    assert [whole[index] for index in range(5)] == sequences
    assert not assembly._waiting


@pytest.mark.parametrize("options", [{"max_residues": 0, "max_tokens": 9}, {"max_residues": 9, "max_tokens": 0}])
def test_sizes_are_at_least_one(options):
    with pytest.raises(ValueError, match="is 0; expected at least 1"):
        list(window_batches(["MK"], tiny.FAMILIES["esm"].tokenizer(), **options))
