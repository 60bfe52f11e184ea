"""
Whether a difference between models is one: intervals over proteins, paired tests, corrections, seeds.

The unit is the protein (or the assay), never the residue: residues of one protein are not independent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


TESTS = ("permutation", "bootstrap", "wilcoxon")


@dataclass(frozen=True)
class Estimate:
    """
    A number with its bootstrap interval; never NaN.

    Args:
        value (`float`): Of the proteins at hand.
        low, high (`float`): Ends of the interval. With one protein nothing is known about the others: −∞ and ∞.
        n (`int`): Proteins it rests on.
        dropped (`int`): Proteins left out because they had no value (NaN).
        confidence (`float`): Such as 0.95.
        method (`str`): `"BCa"`; `"percentile"` where BCa is not defined; `"constant"` where all proteins have the same
            value, so that resampling cannot say anything; `"single"` for one protein.
    """

    value: float
    low: float
    high: float
    n: int
    dropped: int
    confidence: float
    method: str

    def transformed(self, function: Callable[[float], float]) -> Estimate:
        """Value and interval through an increasing function, such as `np.exp`."""
        value, low, high = (float(function(number)) for number in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class PairedTest:
    """
    A two-sided test of paired values; `p` is never NaN.

    Args:
        p (`float`): Under the hypothesis that the two do not differ.
        n (`int`): Pairs used.
        dropped (`int`): Pairs left out because one of the two was NaN.
        method (`str`): The test that was run; `"identical"` where all pairs are equal and `"single"` where there is
            only one, p being 1 for both.
    """

    p: float
    n: int
    dropped: int
    method: str


@dataclass(frozen=True)
class Comparison:
    """
    Two models on the same proteins.

    Args:
        n, dropped (`int`): Pairs used, and left out because one of the two was NaN.
        mean_a, mean_b (`float`): Over the pairs used.
        difference (`float`): `mean_a` − `mean_b`.
        low, high, confidence (`float`): Bootstrap interval of the difference over proteins.
        p (`float`): Two-sided, of the paired test.
        test, interval (`str`): What was run, see [`PairedTest`] and [`Estimate`].
    """

    n: int
    dropped: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    confidence: float
    p: float
    test: str
    interval: str


@dataclass(frozen=True)
class SeedSummary:
    """Mean and standard deviation (divisor n − 1) over seeds; `sd` is `None` for one seed, which has none."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} (one seed)" if self.sd is None else f"{self.mean:.4g} ± {self.sd:.2g}"


def bootstrap_mean(values: ArrayLike, confidence: float = 0.95, num_resamples: int = 9999, seed: int = 0) -> Estimate:
    """
    Mean over proteins with a bootstrap interval (BCa; `scipy.stats.bootstrap`).

    Args:
        values (`ArrayLike` of shape `(n,)`): One per protein; NaN ones are dropped and counted.
        confidence (`float`, *optional*, defaults to 0.95): Of the interval.
        num_resamples (`int`, *optional*, defaults to 9999): Resamples of the proteins.
        seed (`int`, *optional*, defaults to 0): Of the resampling.
    """
    values = _vector(values, "values")
    kept = values[~np.isnan(values)]
    return _bootstrap((kept,), _mean, len(values) - len(kept), confidence, num_resamples, seed)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """
    Σ numerators / Σ denominators with a bootstrap interval: a mean over residues whose unit is the protein.

    Args:
        numerators, denominators (`ArrayLike` of shape `(n,)`): A sum and a count per protein, such as −log p and
            residues, or right pairs and pairs. Proteins that count nothing (0, or NaN in either) are dropped.
    """
    numerators, denominators = _pair(numerators, denominators, "numerators", "denominators")
    if (denominators < 0).any():
        raise ValueError("denominators has negative numbers; expected counts.")
    kept = ~np.isnan(numerators) & (denominators > 0)  # NaN is not
    data = (numerators[kept], denominators[kept])
    return _bootstrap(data, _ratio, int((~kept).sum()), confidence, num_resamples, seed)


def paired_test(
    a: ArrayLike, b: ArrayLike, method: str = "permutation", num_resamples: int = 9999, seed: int = 0
) -> PairedTest:
    """
    Whether two models differ on the same proteins, two-sided.

    Args:
        a, b (`ArrayLike` of shape `(n,)`): One value per protein; pairs with a NaN are dropped and counted.
        method (`str`, *optional*, defaults to `"permutation"`):
            * `"permutation"`: of the mean difference, under swaps of the two models within proteins
              (`scipy.stats.permutation_test`): all of them where there are no more than `num_resamples`. Exact when
              the two are exchangeable, for any number of proteins.
            * `"bootstrap"`: of the mean difference, studentised: the t statistic against that of resampled proteins
              around their own mean. Does not take the differences for symmetric; wants some 20 proteins or more.
            * `"wilcoxon"`: signed ranks (`scipy.stats.wilcoxon`), of the median difference.
        num_resamples (`int`, *optional*, defaults to 9999): p is at least 1 / (num_resamples + 1).
        seed (`int`, *optional*, defaults to 0): Of the resampling.

    Returns:
        [`PairedTest`]
    """
    if method not in TESTS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(TESTS)}.")
    _check_resampling(0.5, num_resamples)
    a, b = _pair(a, b, "a", "b")
    kept = ~(np.isnan(a) | np.isnan(b))
    difference = a[kept] - b[kept]
    n, dropped = len(difference), int((~kept).sum())
    if n == 0:
        raise ValueError(f"None of the {len(a)} pairs has two values; expected at least one.")
    if not difference.any():
        return PairedTest(1.0, n, dropped, "identical")
    if n == 1:
        return PairedTest(1.0, n, dropped, "single")  # swapped, it is as far from zero as it was
    if method == "bootstrap" and np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        method = "permutation"  # every resample is the same: the bootstrap knows no scale to judge the mean by
    if method == "wilcoxon":
        p = stats.wilcoxon(difference).pvalue
    elif method == "permutation":
        p = stats.permutation_test(
            (difference, np.zeros(n)),
            lambda x, y, axis: (x - y).mean(axis),
            permutation_type="samples",
            n_resamples=num_resamples,
            batch=_batch(2 * n),
            rng=np.random.default_rng(seed),
        ).pvalue
    else:
        p = _studentised_bootstrap(difference, num_resamples, seed)
    return PairedTest(float(p), n, dropped, method)


def compare(
    a: ArrayLike,
    b: ArrayLike,
    method: str = "permutation",
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """
    Two models on the same proteins: means, their difference with its interval, and a test. See [`paired_test`].

    Example:

    ```python
    result = compare(aligned_precision, plain_precision)
    print(f"{result.difference:+.3f} ({result.low:+.3f} to {result.high:+.3f}), p = {result.p:.2g}, n = {result.n}")
    ```
    """
    test = paired_test(a, b, method, num_resamples, seed)
    a, b = _pair(a, b, "a", "b")
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = a[kept], b[kept]
    difference = bootstrap_mean(a - b, confidence, num_resamples, seed)
    return Comparison(
        n=test.n,
        dropped=test.dropped,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        confidence=confidence,
        p=test.p,
        test=test.method,
        interval=difference.method,
    )


def holm(pvalues: ArrayLike | Mapping[Any, float]) -> Any:
    """
    p values corrected for the number of them (Holm's step-down), each at most 1 and in the order of the raw ones.

    Args:
        pvalues (`ArrayLike` or `Mapping[Any, float]`): Of one table: every comparison that was looked at, the
            unremarkable ones too. Of any shape; of a mapping, the names are kept.

    Returns:
        `np.ndarray` of the same shape, or `dict`: Below α, the hypothesis is rejected with a family-wise error of α.
    """
    if isinstance(pvalues, Mapping):
        return dict(zip(pvalues, holm(list(pvalues.values())).tolist()))
    raw = np.asarray(pvalues, dtype=float)
    flat = raw.ravel()
    if not len(flat) or not ((flat >= 0) & (flat <= 1)).all():
        raise ValueError(f"p values are {flat[:10].tolist()}; expected at least one, each between 0 and 1.")
    order = np.argsort(flat, kind="stable")
    stepped = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1))
    corrected = np.empty_like(flat)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.reshape(raw.shape)


def mean_and_sd_over_seeds(values: Sequence[float] | np.ndarray) -> SeedSummary:
    """One number per seed, as in "0.512 ± 0.004" (`str` of the result); standard deviation, not standard error."""
    values = _vector(values, "values")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} seeds have no value (NaN); run them again.")
    if len(values) == 0:
        raise ValueError("There are no seeds; expected at least one value.")
    return SeedSummary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def _bootstrap(
    data: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    dropped: int,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Estimate:
    _check_resampling(confidence, num_resamples)
    n = len(data[0])
    if n == 0:
        raise ValueError(f"There is nothing to average: {dropped} values, all of them NaN or counting nothing.")
    value = float(statistic(*data, axis=-1))
    if n == 1:
        return Estimate(value, -np.inf, np.inf, n, dropped, confidence, "single")
    if all(np.ptp(one) == 0 for one in data):
        return Estimate(value, value, value, n, dropped, confidence, "constant")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                data,
                statistic,
                n_resamples=num_resamples,
                batch=_batch(n),
                vectorized=True,
                paired=True,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            break
    return Estimate(value, float(found.low), float(found.high), n, dropped, confidence, method)


def _studentised_bootstrap(difference: np.ndarray, num_resamples: int, seed: int) -> float:
    """The difference's t statistic among those of resampled differences whose mean was moved to zero."""
    generator = np.random.default_rng(seed)
    n, mean = len(difference), difference.mean()
    observed = abs(mean) / difference.std(ddof=1)
    beyond = done = 0
    while done < num_resamples:
        size = min(_batch(n), num_resamples - done)
        drawn = difference[generator.integers(n, size=(size, n))]
        moved, spread = np.abs(drawn.mean(1) - mean), drawn.std(axis=1, ddof=1)
        # Compared as products: a resample of one protein n times over has no spread, and counts as beyond.
        beyond += int((moved >= observed * spread * (1 - 1e-12)).sum())
        done += size
    return (1 + beyond) / (1 + num_resamples)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis)


def _ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int = -1) -> np.ndarray:
    return numerators.sum(axis) / denominators.sum(axis)


def _batch(n: int) -> int:
    """Resamples at a time, so that a batch of them stays at some 32 MiB."""
    return max(1, 2**22 // n)


def _check_resampling(confidence: float, num_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95.")
    if num_resamples < 99:
        raise ValueError(f"num_resamples is {num_resamples}; expected at least 99, better thousands.")


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; expected one value per protein, (n,).")
    if np.isinf(values).any():
        raise ValueError(f"{name} has infinite values at {np.flatnonzero(np.isinf(values))[:10].tolist()}.")
    return values


def _pair(a: ArrayLike, b: ArrayLike, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _vector(a, name_a), _vector(b, name_b)
    if a.shape != b.shape:
        raise ValueError(f"{name_a} has {len(a)} values and {name_b} {len(b)}; expected the same proteins in both.")
    return a, b
