"""The statistics of a comparison, with their sources (docs/statistics.md). Random functions take a seed.

Only the resampling functions import numpy, which keeps the import of this module fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swe_infer.errors import ConfigError
from swe_infer.run_directory.intervals import Z95
from swe_infer.run_directory.intervals import Interval as Interval
from swe_infer.run_directory.intervals import wilson as wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 250  # resamples in memory at once
_Z90 = 1.6448536269514722  # the 95th percentile of the normal distribution


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The mean of one column: its estimate, 95 % interval, and two-sided p-value against 0."""

    mean: float
    interval: Interval
    p: float


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's test by the binomial distribution of the discordant pairs (McNemar 1947).

    Args:
        first_only: instances that only the first run solved.
        second_only: instances that only the second run solved.
    """
    discordant = first_only + second_only
    term = tail = 1
    for k in range(min(first_only, second_only)):
        term = term * (discordant - k) // (k + 1)  # the next binomial coefficient, exact
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))  # a quotient of integers of any size


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the family-wise error rate (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def pass_at_k(samples: Mapping[str, tuple[int, int]], k: int) -> tuple[float, int] | None:
    """Unbiased pass@k, ``mean(1 - C(n-c, k) / C(n, k))`` (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Args:
        samples: (n, c) for each instance: recorded samples, and correct ones among them.

    Returns:
        The estimate over the instances with at least ``k`` samples, and their number; None without any.
    """
    enough = [(n, c) for n, c in samples.values() if n >= k]
    if not enough:
        return None
    return sum(1 - math.comb(n - c, k) / math.comb(n, k) for n, c in enough) / len(enough), len(enough)


def clustered_wilson(
    successes: Sequence[float],
    trials: Sequence[float],
    *,
    samples: float,
    few_clusters_quantile: float | None = None,
    failed: int = 0,
) -> Interval | None:
    """Wilson's interval of a rate with the effective number of trials (Korn and Graubard 1998; Franco et al. 2019).

    The effective number is ``r (1 - r)`` over the variance of the rate between clusters, which is estimated: the
    quantile is Student's. If all trials of each cluster have the same outcome, the interval is Wilson's own.

    Args:
        successes, trials: of each cluster; the rate is the quotient of their sums.
        failed: further clusters of one trial without success; their number may be that of an untrusted summary.
        samples: independent outcomes in total. They limit the effective number, which may be larger by chance: up to
            one standard error of the estimated variance is allowed.
        few_clusters_quantile: estimate the variance without bias for few clusters of different sizes (CR2, Bell and
            McCaffrey 2002), with this 97.5th percentile of Student's t with ``cluster_degrees``.
    """
    clusters, total, good = len(successes) + failed, math.fsum(trials) + failed, math.fsum(successes)
    if not total:
        return None
    rate = good / total
    equal_sizes = len({*trials, *([1] if failed else [])}) == 1
    binary = equal_sizes and all(s in (0, t) for s, t in zip(successes, trials, strict=True))
    if few_clusters_quantile is None and (binary or clusters < 2):
        return wilson(rate * clusters, clusters)
    quantile = few_clusters_quantile or student_quantile(clusters - 1)
    if not 0 < rate < 1:
        return wilson(rate * clusters, clusters, quantile)
    residuals = ((s - rate * t, t / total) for s, t in zip(successes, trials, strict=True))
    limit = samples
    if few_clusters_quantile is None:
        squares = (math.fsum(r * r for r, _ in residuals) + failed * rate**2) * clusters / (clusters - 1)
        limit *= 1 + math.sqrt(2 / (clusters - 1))
    else:
        squares = math.fsum(r * r / (1 - share) for r, share in residuals) + failed * rate**2
    effective = min(rate * (1 - rate) * total**2 / squares, limit) if squares > 1e-18 else samples
    return wilson(rate * effective, effective, quantile)


def independent_outcomes(rate: float, k: int, samples: int) -> float:
    """The independent outcomes of one instance's pass@k: ``r (1 - r)`` over its variance if all instances are equally
    difficult. It is ``samples`` for k = 1, and 1 for k = ``samples``.

    Args:
        rate: pass@k of all instances.
        samples: of each instance.
    """
    if not 0 < rate < 1:
        return 1.0
    p = 1 - (1 - rate) ** (1 / k)
    variance = 0.0
    for correct in range(samples + 1):
        ways = math.lgamma(samples + 1) - math.lgamma(correct + 1) - math.lgamma(samples - correct + 1)
        probability = math.exp(ways + correct * math.log(p) + (samples - correct) * math.log1p(-p))
        value = 1 - math.comb(samples - correct, k) / math.comb(samples, k)
        variance += probability * (value - rate) ** 2
    return rate * (1 - rate) / variance


def student_quantile(degrees: float) -> float:
    """The 97.5th percentile of Student's t, within 0.2 % from 3 degrees of freedom (Abramowitz and Stegun 1964,
    26.7.5)."""
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True, slots=True)
class PairedMean:
    """The mean of paired differences, its 95 % interval, and the two-sided p-value against 0."""

    mean: float
    interval: Interval
    p: float


def paired_score(differences: Sequence[float]) -> PairedMean:
    """The score test of a mean of differences between -1 and 1, and the interval of the means that it accepts.

    With differences of -1, 0 and 1 the test is McNemar's without continuity correction (McNemar 1947; Fagerland,
    Lydersen and Laake 2013). The standard error is clustered by instance: each difference is that of one instance
    (Miller 2024, section 4).
    """
    count, mean = len(differences), math.fsum(differences) / len(differences)
    half = _half_width(differences, mean, Z95)
    square = math.fsum(d * d for d in differences) / count
    statistic = abs(mean) / math.sqrt(square / count) if square else 0.0
    return PairedMean(
        mean, Interval(max(-1.0, mean - half), min(1.0, mean + half)), math.erfc(statistic / math.sqrt(2))
    )


def _half_width(differences: Sequence[float], mean: float, quantile: float) -> float:
    """Half the width of the score interval. Equal differences have that of the score interval of Tango (1998) without
    discordant pairs, or less, so that it agrees with the test."""
    count, z2 = len(differences), quantile * quantile
    variance = math.fsum((d - mean) ** 2 for d in differences) / count
    if variance <= 1e-18 and not mean:
        return z2 / (count + z2)
    if count <= z2:
        return 2.0
    if variance <= 1e-18:
        return min(z2 / (count + z2), abs(mean) * z2 / count)
    return quantile * math.sqrt(variance / (count - z2))


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests that a difference is between ``-margin`` and ``margin`` (Schuirmann 1987).

    Args:
        interval: 90 %.
        p: the larger p-value of the two tests.
    """

    margin: float
    interval: Interval
    p: float

    @property
    def equivalent(self) -> bool:
        return self.p < 0.05


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Tests the equivalence of two rates by score tests, each with the variance at its limit.

    At a difference of ``margin`` at least that share of the pairs is discordant: a lower bound of the variance.
    """
    count, mean = len(differences), math.fsum(differences) / len(differences)
    p = 0.0
    for limit in (-margin, margin):
        variance = max(math.fsum((d - limit) ** 2 for d in differences) / count, margin * (1 - margin))
        distance = mean + margin if limit < 0 else margin - mean
        p = max(p, math.erfc(distance / math.sqrt(2 * variance / count)) / 2)
    half = _half_width(differences, mean, _Z90)
    return Equivalence(margin, Interval(max(-1.0, mean - half), min(1.0, mean + half)), p)


def clustered_mean(differences: Sequence[float], groups: Sequence[str]) -> PairedMean:
    """The mean of differences, its interval and t test, with a standard error clustered by group.

    The variance is CR2 with the degrees of freedom of Bell and McCaffrey (2002; Imbens and Kolesar 2016), which hold
    for few groups of different sizes. Groups of one size give the t test of their means.

    Args:
        groups: the group of each difference; at least two distinct ones.

    Raises:
        ConfigError: SciPy is not installed.
    """
    sums: dict[str, list[float]] = {}
    for group, difference in zip(groups, differences, strict=True):
        sums.setdefault(group, []).append(difference)
    count = len(differences)
    mean = math.fsum(differences) / count
    sizes = [len(own) for own in sums.values()]
    residuals = zip((math.fsum(own) - mean * len(own) for own in sums.values()), sizes, strict=True)
    error = math.sqrt(math.fsum(r * r / (1 - size / count) for r, size in residuals)) / count
    distribution = student_t(cluster_degrees(sizes))
    half = float(distribution.ppf(0.975)) * error
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    return PairedMean(
        mean, Interval(max(-1.0, mean - half), min(1.0, mean + half)), 2 * float(distribution.sf(statistic))
    )


def cluster_degrees(sizes: Sequence[float]) -> float:
    """Degrees of freedom of a mean over clusters of these sizes (Bell and McCaffrey 2002): one less than clusters if
    all sizes are equal, and fewer otherwise."""
    total = math.fsum(sizes)
    shares = [size / total for size in sizes]
    squares = [share * share / (1 - share) for share in shares]
    return 1 / (math.fsum(p * p for p in shares) + math.fsum(squares) ** 2 - math.fsum(u * u for u in squares))


def student_t(degrees: float) -> Any:
    """SciPy's distribution of Student's t.

    Raises:
        ConfigError: SciPy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise ConfigError("--cluster repository needs SciPy: pip install 'swe_infer[statistics]'") from None
    return t(degrees)


def agreement(pairs: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """The probability that a sample of each run has the same outcome, and Cohen's kappa (Cohen 1960), which is None
    if all outcomes are equal.

    Args:
        pairs: the share of successful samples of each instance, in both runs.
    """
    observed = math.fsum(a * b + (1 - a) * (1 - b) for a, b in pairs) / len(pairs)
    first, second = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    expected = first * second + (1 - first) * (1 - second)
    return observed, (observed - expected) / (1 - expected) if expected < 1 else None


def bootstrap_means(columns: NDArray[np.float64], *, resamples: int, seed: int) -> list[Bootstrap | None]:
    """Bootstraps the studentised mean of each column over the rows (Hall 1992, sections 3.5 and 3.6, symmetric).

    All columns share their resamples, so that paired columns stay paired.

    Args:
        columns: (instances, columns).
        resamples: number of draws of the rows with replacement.

    Returns:
        For each column its figures; the p-value is at least ``1 / (resamples + 1)``. None if too few values differ
        from the others for an interval.
    """
    import numpy as np

    rows, width = columns.shape
    generator = np.random.default_rng(seed)
    estimates = columns.mean(axis=0)
    centred = columns - estimates
    tolerance = 1e-12 * np.abs(columns).max(axis=0, initial=0.0)  # rounding: sums of equal costs may differ
    error = np.sqrt((centred**2).mean(axis=0))
    constant = error <= tolerance
    distances = np.empty((resamples, width))
    for begin in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - begin)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size)
        means = weights @ centred / rows
        errors = np.sqrt(np.maximum(weights @ centred**2 / rows - means**2, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            distances[begin : begin + size] = np.where(errors > tolerance, np.abs(means) / errors, np.inf)
    found: list[Bootstrap | None] = []
    for i in range(width):
        mean = float(estimates[i])
        if constant[i]:
            p = 1.0 if abs(mean) <= tolerance[i] else 1 / (resamples + 1)
            found.append(Bootstrap(mean, Interval(mean, mean), p))
            continue
        ordered = np.sort(distances[:, i])
        half = float(ordered[min(resamples - 1, math.ceil(0.95 * (resamples + 1)) - 1)] * error[i])
        extreme = int((distances[:, i] >= abs(mean) / error[i]).sum())
        interval = Interval(mean - half, mean + half)
        found.append(Bootstrap(mean, interval, (extreme + 1) / (resamples + 1)) if math.isfinite(half) else None)
    return found


def bootstrap_ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], *, resamples: int, seed: int
) -> Interval | None:
    """The 95 % interval of a quotient of sums: the studentised bootstrap of its logarithm over the rows (Hall 1992,
    section 3.5). None if the data determine none.

    Args:
        numerators, denominators: (instances,); such as cost and successes.
    """
    import numpy as np

    rows = len(numerators)
    if numerators.sum() <= 0 or denominators.sum() <= 0:
        return None
    products = np.stack([numerators, denominators, numerators**2, numerators * denominators, denominators**2], axis=1)

    def estimates(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        top, bottom, top2, mixed, bottom2 = (weights @ products).T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = top / bottom
            variance = np.maximum(top2 - 2 * ratio * mixed + ratio**2 * bottom2, 0)
            return np.log(ratio), np.sqrt(variance) / top

    (log_ratio,), (error,) = estimates(np.ones((1, rows)))
    generator = np.random.default_rng(seed)
    distances = []
    for begin in range(0, resamples, _CHUNK):
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(_CHUNK, resamples - begin))
        logs, errors = estimates(weights.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            distances.append((logs - log_ratio) / errors)
    every = np.concatenate(distances)
    if error <= 1e-12 or not np.isfinite(every).all():
        return None
    low, high = np.percentile(every, [2.5, 97.5])
    return Interval(float(np.exp(log_ratio - high * error)), float(np.exp(log_ratio - low * error)))
