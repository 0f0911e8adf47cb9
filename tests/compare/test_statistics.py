"""Statistics against SciPy, and against cases worked by hand."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.coverage import beta_rates, true_pass_at
from swe_infer.compare.power import power_of
from swe_infer.compare.statistics import (
    Bootstrap,
    Interval,
    agreement,
    bootstrap_means,
    bootstrap_ratio,
    cluster_degrees,
    clustered_mean,
    clustered_wilson,
    equivalence,
    holm,
    independent_outcomes,
    mcnemar_exact,
    paired_score,
    pass_at_k,
    student_quantile,
    wilson,
)

if TYPE_CHECKING:
    import numpy as np
    import scipy.stats


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_is_scipys(case: tuple[int, int]) -> None:
    successes, trials = case
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    interval = wilson(successes, trials)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_wilson_interval_of_no_trials_is_unknown() -> None:
    assert wilson(0, 0) is None


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_pairs(first: int, second: int) -> None:
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_worked_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(1, 0) == 1.0
    assert mcnemar_exact(0, 6) == 2 / 64
    assert mcnemar_exact(1, 8) == 2 * (1 + 9) / 512
    assert mcnemar_exact(5, 5) == 1.0


def test_mcnemar_of_thousands_of_discordant_pairs_neither_overflows_nor_vanishes() -> None:
    assert mcnemar_exact(2400, 2600) == pytest.approx(scipy.stats.binomtest(2400, 5000).pvalue, rel=1e-9)
    assert mcnemar_exact(800, 1600) == pytest.approx(scipy.stats.binomtest(800, 2400).pvalue, rel=1e-6)


def test_holm_worked_by_hand() -> None:
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_success(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    draws = list(combinations([True] * correct + [False] * (samples - correct), k))
    estimate = pass_at_k({"a": (samples, correct)}, k)
    assert estimate is not None
    assert estimate[0] == pytest.approx(sum(map(any, draws)) / len(draws))
    assert estimate[1] == 1


def test_pass_at_k_leaves_out_instances_with_fewer_samples() -> None:
    estimate = pass_at_k({"a": (4, 2), "b": (4, 0), "c": (1, 1)}, 2)
    assert estimate is not None
    assert estimate[0] == pytest.approx((1 - 1 / 6) / 2)
    assert estimate[1] == 2
    assert pass_at_k({"a": (4, 2)}, 5) is None


def test_the_bootstrap_of_means_follows_student_where_that_holds() -> None:
    values = np.random.default_rng(7).normal(0.12, 1.0, size=400)
    (ours,) = bootstrap_means(values[:, None], resamples=20_000, seed=3)
    assert ours is not None
    theirs = scipy.stats.ttest_1samp(values, 0)
    expected = theirs.confidence_interval()
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.01)
    width = expected.high - expected.low
    assert ours.interval.low == pytest.approx(expected.low, abs=0.03 * width)
    assert ours.interval.high == pytest.approx(expected.high, abs=0.03 * width)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_for_each_column_alone() -> None:
    columns = np.random.default_rng(1).normal(size=(50, 3))
    together = bootstrap_means(columns, resamples=1000, seed=4)
    assert together == bootstrap_means(columns, resamples=1000, seed=4)
    assert together != bootstrap_means(columns, resamples=1000, seed=5)
    alone, second = bootstrap_means(columns[:, 1:2], resamples=1000, seed=4)[0], together[1]
    assert alone is not None
    assert second is not None
    assert alone.interval.low == pytest.approx(second.interval.low)
    assert alone.p == second.p


def test_equal_costs_are_no_difference() -> None:
    (ours,) = bootstrap_means(np.zeros((20, 1)), resamples=1000, seed=0)
    assert ours == Bootstrap(0.0, Interval(0.0, 0.0), 1.0)


def test_a_certain_difference_has_the_smallest_p_value_but_not_zero() -> None:
    (ours,) = bootstrap_means(np.full((20, 1), 0.1), resamples=999, seed=0)
    assert ours is not None
    assert ours.p == pytest.approx(1 / 1000)


def test_one_instance_with_a_different_cost_has_no_interval() -> None:
    assert bootstrap_means(np.array([[1.0], *[[0.0]] * 29]), resamples=1000, seed=0) == [None]


def test_the_interval_of_a_quotient_contains_it_and_narrows() -> None:
    generator = np.random.default_rng(3)
    costs, solved = generator.gamma(4.0, 0.25, size=3200), (generator.random(3200) < 0.4).astype(float)
    widths = []
    for count in (200, 3200):
        interval = bootstrap_ratio(costs[:count], solved[:count], resamples=1000, seed=0)
        assert interval is not None
        assert interval.low < costs[:count].sum() / solved[:count].sum() < interval.high
        widths.append(interval.high - interval.low)
    assert 3 < widths[0] / widths[1] < 6  # 16 times as many instances
    assert bootstrap_ratio(costs[:50], np.zeros(50), resamples=1000, seed=0) is None


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_one_sample_for_each_instance_has_wilsons_interval(case: tuple[int, int]) -> None:
    successes, trials = case
    ours = clustered_wilson([1.0] * successes + [0.0] * (trials - successes), [1] * trials, samples=trials)
    expected = wilson(successes, trials)
    assert ours is not None
    assert expected is not None
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high))


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_paired_test_of_binary_scores_is_mcnemars(first: int, second: int) -> None:
    test = paired_score([-1.0] * first + [1.0] * second + [0.0] * 100)
    chi2 = (first - second) ** 2 / (first + second) if first + second else 0.0
    assert test.p == pytest.approx(scipy.stats.chi2.sf(chi2, 1))
    assert test.interval.low < test.mean < test.interval.high
    assert (test.interval.low <= 0 <= test.interval.high) == (chi2 <= scipy.stats.chi2.ppf(0.95, 1))


def test_the_paired_interval_is_about_students() -> None:
    values = np.random.default_rng(2).uniform(-0.8, 1.0, size=60)
    ours, theirs = paired_score(list(values)).interval, scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_standard_errors_clustered_by_group_are_the_t_tests_of_equal_groups() -> None:
    generator = np.random.default_rng(4)
    values = (generator.normal(size=(8, 1)) + generator.normal(size=(8, 5))) / 10
    test = clustered_mean(list(values.ravel()), [str(i) for i in range(8) for _ in range(5)])
    theirs = scipy.stats.ttest_1samp(values.mean(axis=1), 0)
    assert test.p == pytest.approx(theirs.pvalue)
    assert (test.interval.low, test.interval.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_degrees_of_freedom_are_those_of_the_residuals_covariance() -> None:
    assert cluster_degrees([5] * 8) == pytest.approx(7)
    sizes = np.array([73, 16, 14, 11, 10, 9, 7, 3, 3, 2, 1, 1], float)
    shares = sizes / sizes.sum()
    residuals = (np.eye(12) - np.outer(shares, np.ones(12))) / np.sqrt(1 - shares)[:, None]
    covariance = residuals @ np.diag(sizes) @ residuals.T
    expected = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert cluster_degrees(list(sizes)) == pytest.approx(expected)


def test_equivalence_needs_instances_even_if_no_outcome_differs() -> None:
    assert not equivalence([0.0] * 20, 0.05).equivalent
    assert equivalence([0.0] * 500, 0.05).equivalent
    assert not equivalence([0.0] * 200 + [1.0] * 20, 0.05).equivalent
    different = equivalence([1.0] * 60 + [0.0] * 40, 0.05)
    assert different.p > 0.999
    assert different.interval.low > 0.05


def test_kappa_worked_by_hand() -> None:
    pairs = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    assert agreement(pairs) == pytest.approx((0.7, 0.4))
    assert agreement([(1.0, 1.0)] * 3) == (1.0, None)


def test_power_is_millers_formula() -> None:
    """With one sample: variance 0.2 of the differences, (1.96 + 0.84)^2 x 0.2 / 0.05^2 = 628 instances."""
    pairs = [(0.0, 1.0)] * 10 + [(1.0, 0.0)] * 10 + [(1.0, 1.0)] * 80
    power = power_of(0, 1, pairs, (1, 1), 0.05)
    assert power is not None
    assert power.instances == {1: math.ceil((1.959964 + 0.841621) ** 2 * (20 / 99) / 0.05**2)}
    assert power.detectable == pytest.approx(2.801585 * math.sqrt(20 / 99 / 100), rel=1e-5)
    sampled = power_of(0, 1, [(0.5, 0.5)] * 50 + [(0.25, 0.75)] * 50, (4, 4), 0.05)
    assert sampled is not None
    assert list(sampled.instances) == [1, 2, 4, 8, 16]
    assert sampled.instances[1] > 3 * sampled.instances[4]
    assert power_of(0, 1, [(0.0, 1.0)], (1, 1), 0.05) is None


_CASES = [(100, 1, 0.3), (100, 4, 0.3), (200, 8, 0.6), (50, 2, 0.2)]  # instances, samples, correlation within


@pytest.mark.parametrize(("instances", "samples", "correlation"), _CASES)
def test_coverage_and_false_positives(instances: int, samples: int, correlation: float) -> None:
    """2,000 simulated comparisons. benchmarks/coverage.py has more."""
    generator = np.random.default_rng(instances + samples)
    rates = beta_rates(generator, 0.4, correlation, (2, 2000, instances))
    rates[1] = np.where(generator.random(rates[1].shape) < 0.5, rates[0], rates[1])  # half the instances are alike
    first, second = generator.binomial(samples, rates) / samples
    covered = false_positives = 0
    for a, b in zip(first, second, strict=True):
        interval = clustered_wilson(a.tolist(), [1] * instances, samples=instances * samples)
        covered += interval is not None and interval.low <= 0.4 <= interval.high
        false_positives += paired_score((b - a).tolist()).p < 0.05
    assert 0.94 <= covered / 2000 <= 0.96
    assert 0.04 <= false_positives / 2000 <= 0.06


@pytest.mark.parametrize("count", [30, 50, 100, 300])
def test_mean_coverage_of_a_rate_over_true_rates_from_10_to_60_percent(count: int) -> None:
    """One sample of each instance, computed from the binomial distribution (Brown, Cai and DasGupta 2001)."""
    intervals = [wilson(successes, count) for successes in range(count + 1)]
    rates = np.linspace(0.1, 0.6, 501)
    covered = [[i is not None and i.low <= rate <= i.high for i in intervals] for rate in rates]
    chances = scipy.stats.binom.pmf(np.arange(count + 1), count, rates[:, None])
    assert (chances * np.array(covered)).sum(axis=1).mean() == pytest.approx(0.95, abs=0.0025)


def test_true_pass_at_k_of_the_simulations_is_the_mean_over_instances() -> None:
    for k, mean, correlation in ((1, 0.3, 0.3), (4, 0.3, 0.6), (2, 0.4, 0.0)):
        drawn = beta_rates(np.random.default_rng(k), mean, correlation, (400_000,))
        assert true_pass_at(k, mean, correlation) == pytest.approx((1 - (1 - drawn) ** k).mean(), abs=0.002)


def test_the_interval_of_pass_at_k_covers_even_if_all_instances_are_equally_difficult() -> None:
    """The variance is less than that of the two disjoint groups of 4 samples: with 2 outcomes it covers 98 %."""
    counts = np.random.default_rng(5).binomial(8, 0.4, (2000, 60))
    covered = 0
    for row in np.array([1 - math.comb(8 - c, 4) / math.comb(8, 4) for c in range(9)])[counts]:
        outcomes = independent_outcomes(float(row.mean()), 4, 8)
        interval = clustered_wilson(row.tolist(), [1] * 60, samples=60 * outcomes)
        covered += interval is not None and interval.low <= 1 - 0.6**4 <= interval.high
    assert 0.94 <= covered / 2000 <= 0.96
    assert independent_outcomes(0.3, 1, 8) == pytest.approx(8)
    assert independent_outcomes(0.3, 8, 8) == pytest.approx(1)


def test_rates_of_several_samples_have_students_quantile_and_an_unbiased_variance() -> None:
    scores = [0.0, 0.25, 0.25, 0.5, 1.0, 1.0]
    rate = float(np.mean(scores))
    effective = rate * (1 - rate) / float(scipy.stats.sem(scores)) ** 2
    interval = clustered_wilson(scores, [1] * 6, samples=24)
    expected = wilson(rate * effective, effective, float(scipy.stats.t(5).ppf(0.975)))
    assert interval is not None
    assert expected is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_effective_number_may_exceed_the_samples_by_a_standard_error() -> None:
    """If instances are equally difficult, chance makes it larger half the time."""
    limit = 120 * (1 + math.sqrt(2 / 29))
    for pairs, effective in ((3, limit), (13, 0.25 * 29 * 30 / (26 / 16))):
        scores = [*[0.5] * (30 - 2 * pairs), *[0.25] * pairs, *[0.75] * pairs]
        interval = clustered_wilson(scores, [1] * 30, samples=120)
        expected = wilson(0.5 * effective, effective, student_quantile(29))
        assert interval is not None
        assert expected is not None
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
        assert 120 < effective <= limit
    assert clustered_wilson([0.3] * 30, [1] * 30, samples=120) == wilson(0.3 * 120, 120, student_quantile(29))


def test_interval_and_p_value_agree_with_few_instances_and_equal_differences() -> None:
    for count in (1, 2, 3, 4, 5, 30):
        for difference in (-1.0, -0.25, 0.0, 0.25, 1.0):
            test = paired_score([difference] * count)
            assert (test.interval.low <= 0 <= test.interval.high) == (test.p >= 0.05)


def test_runs_without_a_difference_do_not_detect_every_difference() -> None:
    power = power_of(0, 1, [(1.0, 1.0)] * 50, (1, 1), 0.05)
    assert power is not None
    assert power.detectable == pytest.approx(7.849 / (50 + 7.849), abs=1e-4)
    assert power.instances == {1: math.ceil(7.849 * 0.95 / 0.05)}


def test_the_quantile_of_student_is_scipys() -> None:
    for degrees in (3, 5, 11, 29, 499):
        assert student_quantile(degrees) == pytest.approx(scipy.stats.t(degrees).ppf(0.975), rel=2e-3)
