"""Statistics against SciPy, and against cases worked by hand."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.compare.statistics import bootstrap_means, holm, mcnemar_exact, pass_at_k, sign_flip, wilson

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


def test_the_bootstrap_interval_is_scipys_within_its_own_noise() -> None:
    values = np.random.default_rng(5).gamma(2.0, 0.1, size=300) - 0.15
    (ours,) = bootstrap_means(values[:, None], resamples=10_000, seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.interval.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.interval.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_bootstrap_p_value_agrees_with_the_t_test_where_that_holds() -> None:
    values = np.random.default_rng(7).normal(0.12, 1.0, size=400)
    (ours,) = bootstrap_means(values[:, None], resamples=20_000, seed=3)
    assert ours.p == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_for_each_column_alone() -> None:
    columns = np.random.default_rng(1).normal(size=(50, 3))
    together = bootstrap_means(columns, resamples=1000, seed=4)
    assert together == bootstrap_means(columns, resamples=1000, seed=4)
    assert together != bootstrap_means(columns, resamples=1000, seed=5)
    alone = bootstrap_means(columns[:, 1:2], resamples=1000, seed=4)[0]
    assert alone.interval.low == pytest.approx(together[1].interval.low)
    assert alone.p == together[1].p


def test_equal_costs_are_no_difference() -> None:
    (ours,) = bootstrap_means(np.zeros((20, 1)), resamples=1000, seed=0)
    assert (ours.mean, ours.interval.low, ours.interval.high, ours.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_certain_difference_has_the_smallest_p_value_but_not_zero() -> None:
    (ours,) = bootstrap_means(np.full((20, 1), 0.1), resamples=999, seed=0)
    assert ours.p == pytest.approx(1 / 1000)


def test_the_sign_flip_test_is_scipys_exact_permutation_test_within_its_noise() -> None:
    a = np.array([0.2, 0.4, 1.0, 0.6, 0.8, 0.2, 0.0, 1.0, 0.4, 0.6])
    b = np.array([0.4, 0.8, 1.0, 1.0, 0.6, 0.6, 0.2, 1.0, 0.8, 0.6])
    exact = scipy.stats.permutation_test(
        (b, a), lambda x, y: np.mean(x - y), permutation_type="samples", vectorized=False, n_resamples=np.inf
    ).pvalue
    (ours,) = sign_flip((b - a)[:, None], resamples=20_000, seed=0)
    assert ours == pytest.approx(exact, abs=0.01)


def test_the_sign_flip_test_of_yes_and_no_is_mcnemars() -> None:
    columns = np.array([[1.0] * 9 + [-1.0] * 2 + [0.0] * 30, [0.0] * 41]).T
    mixed, equal = sign_flip(columns, resamples=50_000, seed=1)
    assert mixed == pytest.approx(mcnemar_exact(2, 9), abs=0.005)
    assert equal == 1.0
