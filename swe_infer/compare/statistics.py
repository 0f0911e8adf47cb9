"""The statistics of a comparison, with their sources. Random functions take a seed.

Only the resampling functions import numpy, which keeps the import of this module fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swe_infer.run_directory.intervals import Interval as Interval
from swe_infer.run_directory.intervals import wilson as wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 250  # resamples in memory at once


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The mean of one column: its estimate, 95 % percentile interval, and two-sided p-value against 0."""

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


def bootstrap_means(columns: NDArray[np.float64], *, resamples: int, seed: int) -> list[Bootstrap]:
    """Bootstraps the mean of each column over the rows (Efron and Tibshirani 1993, chapters 13 and 15).

    All columns share their resamples, so that paired columns stay paired.

    Args:
        columns: (instances, columns).
        resamples: number of draws of the rows with replacement.

    The p-value is twice the smaller share of resampled means on one side of 0, at least ``1 / (resamples + 1)``.
    """
    import numpy as np

    rows, width = columns.shape
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, width))
    for begin in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - begin)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size)
        means[begin : begin + size] = weights @ columns / rows
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    estimates = columns.mean(axis=0)
    tolerance = 1e-12 * np.abs(columns).max(axis=0, initial=0.0)  # rounding: sums of equal costs may differ
    below = (means <= tolerance).sum(axis=0)
    above = (means >= -tolerance).sum(axis=0)
    return [
        Bootstrap(
            float(estimates[i]),
            Interval(float(low[i]), float(high[i])),
            min(1.0, (2 * int(min(below[i], above[i])) + 1) / (resamples + 1)),
        )
        for i in range(width)
    ]


def sign_flip(columns: NDArray[np.float64], *, resamples: int, seed: int) -> list[float]:
    """Two-sided p-values of a paired permutation test of each column's mean (Fisher 1935; Good 2005, section 3.6).

    Under the null hypothesis the two runs are exchangeable, so each difference may change its sign.
    With differences of -1, 0 and 1 the exact distribution is McNemar's, for which :func:`mcnemar_exact` is exact.
    The p-value counts the observed arrangement too (Phipson and Smyth 2010).

    Args:
        columns: (instances, columns) of differences; all columns share their random signs.
        resamples: number of draws of the signs.
    """
    import numpy as np

    rows, width = columns.shape
    generator = np.random.default_rng(seed)
    least = np.abs(columns.sum(axis=0)) - 1e-12 * np.abs(columns).sum(axis=0)
    extreme = np.zeros(width, dtype=int)
    for begin in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - begin)
        signs = generator.integers(0, 2, size=(size, rows), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ columns) >= least).sum(axis=0)
    return [(int(count) + 1) / (resamples + 1) for count in extreme]
