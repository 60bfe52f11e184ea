"""Closeness on any processor: differences are counted in roundings of the largest entry, not in absolute numbers."""

from typing import Any

import numpy as np
import torch


def assert_same_but_rounding(found: Any, expected: Any, roundings: int = 32, msg: str | None = None) -> None:
    """
    Asserts that two arrays differ by at most so many roundings (`finfo.eps`) of the largest expected entry.

    Processors, numbers of threads and shapes of a batch add up the same numbers in another order. What that changes in
    one entry is set by the largest terms of its sums, however small the entry itself. The tiny models of the tests sum
    up to 128 products a few times over, which makes some 4 roundings; the default leaves room for 8 times that.
    """
    found, expected = (x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x)) for x in (found, expected))
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    scale = expected.detach()[expected.isfinite()].abs().max().item()
    tolerance = roundings * torch.finfo(expected.dtype).eps * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True, msg=msg)
