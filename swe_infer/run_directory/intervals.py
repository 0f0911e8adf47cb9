"""Confidence intervals of rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054  # the 97.5th percentile of the normal distribution


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def wilson(successes: float, trials: float, quantile: float = Z95) -> Interval | None:
    """The 95 % score interval of a rate; None without trials (Wilson 1927; Brown, Cai and DasGupta 2001).

    ``successes`` may be a sum of fractions, with several samples per instance. A fraction varies at most as much as a
    binary outcome with the same mean, so the interval is then conservative.
    """
    if not trials:
        return None
    rate, z2 = successes / trials, quantile * quantile
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = quantile / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))
