"""The statistics must find what is there, and must not find what is not."""

import warnings

import numpy as np
import pytest
from scipy import stats

from structure_aligned.evaluation.perplexity import pseudo_perplexity
from structure_aligned.evaluation.statistics import (
    TESTS,
    bootstrap_mean,
    bootstrap_ratio,
    compare,
    holm,
    mean_and_sd_over_seeds,
    paired_test,
)
from tests import tiny


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def two_models():
    """Mean −log p per protein of two models on the same 40 proteins: correlated, skewed, as real pairs are."""
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list(tiny.AMINO_ACIDS), length)) for length in rng.integers(4, 30, 40)]
    found = [pseudo_perplexity(tiny.esm_model(seed), sequences) for seed in (0, 1)]
    return [one.nll / one.count for one in found]


def binomial_interval(repeats, rate, confidence=0.999):
    return stats.binom.interval(confidence, repeats, rate)


# Tests of differences


@pytest.mark.parametrize("method", TESTS)
@pytest.mark.parametrize("n", [1, 2, 30])
def test_identical_models_have_p_1(method, n):
    values = np.random.default_rng(0).normal(size=n)
    found = paired_test(values, values.copy(), method)
    assert found.p == 1 and found.method == "identical" and found.n == n


@pytest.mark.parametrize("method", TESTS)
def test_swapped_labels_reject_at_the_rate_of_alpha(method, two_models):
    a, b = two_models
    repeats = 400
    swaps = np.random.default_rng(1).random((repeats, len(a))) < 0.5
    p = np.array(
        [
            paired_test(np.where(swap, b, a), np.where(swap, a, b), method, num_resamples=499, seed=index).p
            for index, swap in enumerate(swaps)
        ]
    )
    low, high = binomial_interval(repeats, 0.05)
    assert low <= (p < 0.05).sum() <= high
    # Not only at 0.05: all of the distribution is about uniform.
    assert abs(p.mean() - 0.5) < 0.06 and abs((p < 0.5).mean() - 0.5) < 0.09


@pytest.mark.parametrize("method", TESTS)
def test_a_real_shift_is_found_whichever_way_it_goes(method, two_models):
    rng = np.random.default_rng(2)
    a = two_models[0]
    b = a + 0.15 * a.std() * rng.normal(1, 1, len(a))
    # Unpaired, the shift would drown in what the proteins differ by.
    assert stats.ttest_ind(a, b).pvalue > 0.3
    forth, back = paired_test(a, b, method), paired_test(b, a, method)
    assert forth.p < 0.001 and back.p < 0.001


def test_permutation_and_wilcoxon_against_exact_values():
    difference = np.array([1.0, 2.0, 3.5, 4.0, -0.5])
    zeros = np.zeros(5)
    # All 32 swaps: the sum 10 is reached by none but all signs of the larger four equal and either sign of 0.5.
    sums = np.array([difference @ np.array([1 - 2 * (code >> bit & 1) for bit in range(5)]) for code in range(32)])
    exact = (np.abs(sums) >= 10).mean()
    assert paired_test(difference, zeros, "permutation").p == pytest.approx(exact)
    assert paired_test(difference, zeros, "wilcoxon").p == pytest.approx(stats.wilcoxon(difference).pvalue)


def test_bootstrap_p_agrees_with_the_t_test_on_normal_differences():
    rng = np.random.default_rng(3)
    for shift in (0.1, 0.2, 0.3):
        difference = rng.normal(shift, 1, 80)
        expected = stats.ttest_1samp(difference, 0).pvalue
        assert paired_test(difference, np.zeros(80), "bootstrap").p == pytest.approx(expected, abs=0.02)


def test_pairs_with_a_nan_are_dropped_and_counted(two_models):
    a, b = (values.copy() for values in two_models)
    a[3] = b[7] = np.nan
    kept = np.delete(np.arange(len(a)), [3, 7])
    for method in TESTS:
        found = paired_test(a, b, method)
        assert (found.n, found.dropped) == (38, 2)
        assert found.p == paired_test(a[kept], b[kept], method).p
    result = compare(a, b)
    assert (result.n, result.dropped, result.mean_a) == (38, 2, pytest.approx(a[kept].mean()))


@pytest.mark.parametrize("method", TESTS)
@pytest.mark.parametrize("difference", [[0.1], [0.1, 0.1], [0.1, -0.1], [0, 0, 0.3], [0.1] * 12, [1e-3] * 11 + [0]])
def test_few_and_equal_differences_have_a_p_that_is_no_nan(method, difference):
    found = paired_test(np.array(difference) + 0.7, np.full(len(difference), 0.7), method)
    assert 0 < found.p <= 1
    if len(difference) < 6 and method != "bootstrap":
        assert found.p > 0.05  # so few pairs cannot reject


def test_equal_differences_are_judged_by_permutation():
    found = paired_test(np.full(12, 0.3), np.full(12, 0.1), "bootstrap")
    assert found.method == "permutation" and found.p == pytest.approx(2 / 2**12)


def test_the_same_seed_gives_the_same_p(two_models):
    for method in ("permutation", "bootstrap"):
        assert paired_test(*two_models, method, seed=5) == paired_test(*two_models, method, seed=5)


# Intervals


def test_interval_of_a_mean_against_scipy():
    values = np.random.default_rng(0).exponential(size=50)
    found = bootstrap_mean(np.append(values, np.nan), num_resamples=999)
    expected = stats.bootstrap((values,), np.mean, n_resamples=999, rng=np.random.default_rng(0)).confidence_interval
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))
    assert (found.n, found.dropped, found.method) == (50, 1, "BCa")
    # The longer tail is on the right, and the interval knows.
    assert found.high - found.value > found.value - found.low


@pytest.mark.parametrize(
    ("n", "repeats"),
    [(30, 300), pytest.param(30, 3000, marks=pytest.mark.slow), pytest.param(100, 2000, marks=pytest.mark.slow)],
)
def test_coverage_is_about_nominal(n, repeats):
    rng = np.random.default_rng(4)
    covered = {"mean": 0, "ratio": 0}
    for index in range(repeats):
        count = rng.integers(50, 400, n)
        rate = rng.beta(4, 6, n)
        mean = bootstrap_mean(rate, num_resamples=499, seed=index)
        ratio = bootstrap_ratio(rate * count, count, num_resamples=499, seed=index)
        covered["mean"] += mean.low <= 0.4 <= mean.high
        covered["ratio"] += ratio.low <= 0.4 <= ratio.high
    # A bootstrap of 30 proteins falls a little short of 95 %.
    low, high = binomial_interval(repeats, 0.945)[0] - 0.02 * repeats, binomial_interval(repeats, 0.95)[1]
    for name in covered:
        assert low <= covered[name] <= high, covered


def test_an_interval_at_80_percent_is_narrower_and_covers_less():
    values = np.random.default_rng(0).normal(size=60)
    wide, narrow = bootstrap_mean(values), bootstrap_mean(values, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (narrow.high - narrow.low) / (wide.high - wide.low) == pytest.approx(1.2816 / 1.96, rel=0.05)


def test_ratio_weighs_residues_and_resamples_proteins():
    rng = np.random.default_rng(0)
    count = rng.integers(50, 400, 60)
    rate = rng.beta(4, 6, 60)
    found = bootstrap_ratio(rate * count, count)
    assert found.value == pytest.approx((rate * count).sum() / count.sum()) and found.method == "BCa"
    # Residues as units would give an interval many times too narrow.
    residues = 1.96 * np.sqrt(0.24 / count.sum())
    assert (found.high - found.low) / 2 > 3 * residues
    same = bootstrap_ratio(count * 0.4, count)
    assert (same.low, same.high) == pytest.approx((0.4, 0.4))


def test_proteins_that_count_nothing_are_dropped():
    found = bootstrap_ratio([1, 0, np.nan, 3, 2], [2, 0, 2, 4, np.nan])
    assert (found.value, found.n, found.dropped) == (4 / 6, 2, 3)


def test_degenerate_data_has_a_clear_interval():
    single = bootstrap_mean([0.4])
    assert (single.value, single.low, single.high, single.method) == (0.4, -np.inf, np.inf, "single")
    constant = bootstrap_mean([0.4] * 5)
    assert (constant.low, constant.high, constant.method) == (0.4, 0.4, "constant")
    for values in ([0, 1], [0, 0, 0, 0, 1], [1e-9, 1e9], [0.1, 0.1 + 1e-17, 0.1], [0.3, 0.1 + 0.2]):
        found = bootstrap_mean(values)
        assert np.isfinite([found.low, found.high]).all() and found.low <= found.value <= found.high
    # All ratios are the same though the counts are not: there is no acceleration to correct for.
    fallback = bootstrap_ratio([1, 2, 4], [2, 4, 8])
    assert (fallback.low, fallback.high, fallback.method) == (0.5, 0.5, "percentile")


def test_compare_says_it_all(two_models):
    a, b = two_models
    result = compare(a, b + 0.3)
    assert result.difference == pytest.approx(result.mean_a - result.mean_b) and result.difference < 0
    assert result.low < result.difference < result.high < 0 and result.p < 0.01
    assert (result.test, result.interval, result.confidence) == ("permutation", "BCa", 0.95)
    same = compare(a, a)
    assert (same.p, same.difference, same.low, same.high) == (1, 0, 0, 0)


# Corrections and seeds


def test_holm_by_hand():
    # 0.01·4, 0.02·3, 0.03·2, 0.04·1, each at least the one before.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    # statsmodels' multipletests(method="holm") gives these.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.6, 0.9]), [1, 1, 1])
    assert holm([0.2]) == [0.2] and holm([0.0, 1.0]).tolist() == [0, 1]
    assert holm({"contacts": 0.04, "folds": 0.01}) == {"contacts": pytest.approx(0.04), "folds": pytest.approx(0.02)}
    assert holm(np.full((2, 3), 0.01)).tolist() == [[0.06] * 3] * 2


def test_holm_against_its_definition_and_monotone():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        p = rng.random(n) ** 3
        p[n // 2 :] = p[n // 2 :].round(1)  # ties
        corrected = holm(p)
        order = np.argsort(p, kind="stable")
        assert (np.diff(corrected[order]) >= 0).all() and (corrected >= p).all() and (corrected <= 1).all()
        # Step-down: rejected at alpha are all before the first with p > alpha / (number left).
        for alpha in (0.01, 0.05, 0.2):
            rejected = np.zeros(n, dtype=bool)
            for left, index in zip(range(n, 0, -1), order):
                if p[index] > alpha / left:
                    break
                rejected[index] = True
            np.testing.assert_array_equal(corrected <= alpha, rejected)


def test_seeds():
    found = mean_and_sd_over_seeds([0.50, 0.52, 0.54])
    assert (found.mean, found.sd, found.n) == (pytest.approx(0.52), pytest.approx(0.02), 3)
    assert str(found) == "0.52 ± 0.02"
    one = mean_and_sd_over_seeds([0.5])
    assert one.sd is None and str(one) == "0.5 (one seed)"
    with pytest.raises(ValueError, match=r"1 of 2 seeds have no value"):
        mean_and_sd_over_seeds([0.5, np.nan])
    with pytest.raises(ValueError, match="no seeds"):
        mean_and_sd_over_seeds([])


def test_what_is_wrong_is_said():
    for call, message in (
        (lambda: paired_test([1, 2], [1]), "a has 2 values and b 1; expected the same proteins"),
        (lambda: paired_test([np.nan], [1]), "None of the 1 pairs has two values"),
        (lambda: paired_test([], []), "None of the 0 pairs"),
        (lambda: paired_test([1], [1], "t"), "method is 't'; expected one of permutation, bootstrap, wilcoxon"),
        (lambda: paired_test([np.inf, 1], [1, 2]), r"a has infinite values at \[0\]"),
        (lambda: bootstrap_mean([[1.0]]), r"values has shape \(1, 1\)"),
        (lambda: bootstrap_mean([np.nan, np.nan]), "nothing to average: 2 values"),
        (lambda: bootstrap_mean([1, 2], confidence=95), "confidence is 95"),
        (lambda: bootstrap_mean([1, 2], num_resamples=9), "num_resamples is 9; expected at least 99"),
        (lambda: bootstrap_ratio([1], [-1]), "denominators has negative"),
        (lambda: bootstrap_ratio([1], [0]), "nothing to average: 1 values"),
        (lambda: holm([]), "expected at least one"),
        (lambda: holm([0.1, np.nan]), "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
