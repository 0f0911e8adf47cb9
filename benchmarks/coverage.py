"""Coverage and false positives of a comparison's statistics, on simulated runs.

``python -m benchmarks.coverage [--repetitions 4000]`` prints, in percent, for each number of instances and samples
and each correlation: the coverage of the intervals of a rate, of pass@k and of a paired difference, the false
positives of the paired tests, and the same of the costs. docs/statistics.md describes the methods.

With ``--drawn-rates`` each repetition draws its true rate from 0.1 to 0.6, which gives mean coverage over the rate:
the criterion of Brown, Cai and DasGupta (2001) for a rate, which is discrete.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swe_infer.compare.statistics import (
    bootstrap_means,
    bootstrap_ratio,
    clustered_mean,
    clustered_wilson,
    independent_outcomes,
    mcnemar_exact,
    paired_score,
    pass_at_k,
)

_Case = tuple[float | None, float, float]
"""Rate (None: drawn for each repetition), correlation within an instance, share of instances that are equally
difficult for both runs."""
_FIXED: tuple[_Case, ...] = ((0.1, 0.3, 0.5), (0.3, 0.3, 0.5), (0.3, 0.6, 0.9), (0.4, 0.0, 0.5), (0.5, 0.2, 0.9))
_DRAWN: tuple[_Case, ...] = ((None, 0.0, 0.5), (None, 0.2, 0.9), (None, 0.3, 0.5), (None, 0.6, 0.9))
_LOWEST, _HIGHEST = 0.1, 0.6
"""The range of drawn rates."""
_REPOSITORIES = {  # instances of each repository
    "like SWE-bench": (73, 16, 14, 11, 10, 9, 7, 3, 3, 2, 1, 1),
    "Lite": (114, 77, 23, 23, 17, 16, 6, 6, 6, 5, 4, 3),
    "Verified": (231, 75, 44, 34, 32, 22, 22, 19, 10, 8, 2, 1),
    "twelve equal": (12,) * 12,
    "six": (60, 30, 20, 15, 5, 5),
}
_RESAMPLES = 2048  # of signs; all of them for twelve repositories, as opposite signs give the same statistic


def beta_rates(
    generator: np.random.Generator,
    mean: float | NDArray[np.float64],
    correlation: float,
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Success rates of instances whose samples have this correlation within an instance (a beta distribution).

    Args:
        mean: of all instances; an array is broadcast to ``shape``.
    """
    if not correlation:
        return np.broadcast_to(mean, shape).astype(float)
    scale = (1 - correlation) / correlation
    return generator.beta(mean * scale, (1 - mean) * scale, size=shape)


def true_pass_at(k: int, mean: float, correlation: float) -> float:
    """pass@k of instances with the rates of :func:`beta_rates`."""
    failure = 1.0  # the mean of (1 - rate) ** k: each failure makes the next one likelier
    for before in range(k):
        failure *= ((1 - mean) * (1 - correlation) + before * correlation) / (1 - correlation + before * correlation)
    return 1 - failure


def rates(generator: np.random.Generator, repetitions: int, cases: Sequence[_Case]) -> None:
    """Intervals of rates and pass@k, paired intervals and tests."""
    print("instances  samples   mean  within  alike |  rate  pass@k  paired |  false positives  exact McNemar")
    for n in (30, 50, 100, 300, 500):
        for k in (1, 2, 4, 8):
            for rate, within, alike in cases:
                bounds = (_LOWEST, _HIGHEST) if rate is None else (rate, rate)
                means = generator.uniform(*bounds, size=repetitions)
                first = beta_rates(generator, means[:, None], within, (repetitions, n))
                same = generator.random(first.shape) < alike
                second = np.where(same, first, beta_rates(generator, means[:, None], within, first.shape))
                counts = generator.binomial(k, np.stack([first, second]))
                most = max(1, k // 2)
                pass_k = np.array([(pass_at_k({"": (k, c)}, most) or (0.0,))[0] for c in range(k + 1)])
                hits = np.zeros(5)
                for mean, a, b in zip(means.tolist(), *counts, strict=True):
                    interval = clustered_wilson((a / k).tolist(), [1] * n, samples=n * k)
                    hits[0] += interval is not None and interval.low <= mean <= interval.high
                    outcomes = independent_outcomes(float(pass_k[a].mean()), most, k)
                    interval = clustered_wilson(pass_k[a].tolist(), [1] * n, samples=n * outcomes)
                    true = true_pass_at(most, mean, within)
                    hits[1] += interval is not None and interval.low <= true <= interval.high
                    test = paired_score(((b - a) / k).tolist())
                    hits[2] += test.interval.low <= 0 <= test.interval.high
                    hits[3] += test.p < 0.05
                    hits[4] += k == 1 and mcnemar_exact(int((a > b).sum()), int((a < b).sum())) < 0.05
                shown = 100 * hits / repetitions
                exact = f"{shown[4]:14.1f}" if k == 1 else f"{'-':>14}"
                case = f"{n:9}  {k:7}  {'drawn' if rate is None else rate:>5}  {within:6}  {alike:5}"
                coverage = f"{shown[0]:5.1f}  {shown[1]:6.1f}  {shown[2]:6.1f}"
                print(f"{case} | {coverage} |  {shown[3]:15.1f} {exact}", flush=True)


def wild_bootstrap_p(sums: NDArray[np.float64], sizes: NDArray[np.int64], signs: NDArray[np.int64]) -> float:
    """Two-sided p-value of a mean of 0 by the wild cluster bootstrap under the null hypothesis (Cameron, Gelbach and
    Miller 2008), for comparison.

    Args:
        sums: of each cluster; the first row of ``signs`` (resamples, clusters) keeps them.
    """
    drawn = signs * sums
    means = drawn.sum(axis=1) / sizes.sum()
    squares = ((drawn - means[:, None] * sizes) ** 2).sum(axis=1)
    statistics = means**2 / np.maximum(squares, 1e-30)
    return float((statistics >= statistics[0] * (1 - 1e-9)).mean())


def repositories(generator: np.random.Generator, repetitions: int) -> None:
    """Standard errors clustered by repository, with instances that a repository makes alike."""
    print("\nrepositories    effect of the repository | paired, by repository  wild bootstrap  by instance")
    for name, shares in _REPOSITORIES.items():
        index, sizes = np.repeat(np.arange(len(shares)), shares), np.array(shares)
        groups = [str(repository) for repository in index]
        signs = np.array(list(itertools.product((1, -1), repeat=len(shares))))[:_RESAMPLES]
        for effect in (0.0, 0.1, 0.2):
            hits = np.zeros(3)
            for _ in range(repetitions):
                shift = generator.normal(0, effect, size=len(shares))[index]
                second = generator.random(len(index)) < np.clip(0.5 + shift / 2, 0, 1)
                first = generator.random(len(index)) < np.clip(0.5 - shift / 2, 0, 1)
                differences = second.astype(float) - first.astype(float)
                interval = clustered_mean(differences.tolist(), groups).interval
                hits[0] += interval.low <= 0 <= interval.high
                sums = np.bincount(index, differences).astype(float)
                hits[1] += wild_bootstrap_p(sums, sizes, signs) > 0.05
                own = paired_score(differences.tolist()).interval
                hits[2] += own.low <= 0 <= own.high
            by_repository, wild, by_instance = 100 * hits / repetitions
            case = f"{name:15} {effect:24}"
            print(f"{case} | {by_repository:21.1f}  {wild:14.1f}  {by_instance:11.1f}", flush=True)


def costs(generator: np.random.Generator, repetitions: int) -> None:
    """Paired differences in cost, and cost per success, of log-normal costs."""
    print("\ninstances  sd of log cost | false positives  coverage, 2nd 3 x as dear | cost per success (rate 0.4)")
    for n in (12, 30, 50, 100, 300):
        for sd in (0.5, 0.8):
            hits, intervals = np.zeros(3), 0
            for _ in range(repetitions):
                shared = 0.8 * generator.normal(size=n)
                first, second = np.exp(sd * (shared + 0.6 * generator.normal(size=(2, n))))
                table = np.stack([second - first, 3 * second - first], axis=1)
                equal, dearer = bootstrap_means(table, resamples=1000, seed=int(generator.integers(1 << 30)))
                hits[0] += equal is not None and equal.p < 0.05
                true = 2 * np.exp(sd * sd / 2)
                hits[1] += dearer is not None and dearer.interval.low <= true <= dearer.interval.high
                solved = (generator.random(n) < 0.4).astype(float)
                if solved.sum() >= 10:
                    ratio = bootstrap_ratio(first, solved, resamples=1000, seed=int(generator.integers(1 << 30)))
                    intervals += 1
                    hits[2] += ratio is not None and ratio.low <= np.exp(sd * sd / 2) / 0.4 <= ratio.high
            share = 100 * hits / np.array([repetitions, repetitions, max(1, intervals)])
            print(f"{n:9}  {sd:14} | {share[0]:15.1f}  {share[1]:25.1f} | {share[2]:27.1f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000, help="simulated comparisons for each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn-rates", action="store_true", help="a true rate for each repetition, from 0.1 to 0.6")
    parser.add_argument("--part", choices=["rates", "repositories", "costs"], action="append")
    options: Any = parser.parse_args(arguments)
    cases = _DRAWN if options.drawn_rates else _FIXED
    parts: dict[str, Callable[[np.random.Generator, int], None]] = {
        "rates": partial(rates, cases=cases),
        "repositories": repositories,
        "costs": costs,
    }
    for name in options.part or parts:
        parts[name](np.random.default_rng(options.seed), options.repetitions)


if __name__ == "__main__":
    main()
