"""The differences that runs can detect, and the instances that a difference needs (Miller 2024, section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swe_infer.run_directory.intervals import Z95

_Z = Z95 + 0.8416212335729143  # of a two-sided 5 % test, and of a power of 80 %
_SAMPLES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Power:
    """The power of the comparison of two runs.

    Args:
        first, second: indices of the runs.
        detectable: the smallest difference of the rates that these runs detect with a power of 80 %.
        difference: the difference that ``instances`` is for.
        instances: by samples per instance, the instances that both runs need; only the runs' own number of samples
            if one of them has a single sample, which does not separate the variances.
    """

    first: int
    second: int
    detectable: float
    difference: float
    instances: Mapping[int, int]


def power_of(
    first: int, second: int, pairs: Sequence[tuple[float, float]], samples: tuple[int, int], difference: float
) -> Power | None:
    """The power from the scores of both runs on their common instances; None with fewer than two.

    Args:
        pairs: the share of successful samples of each instance, in both runs.
        samples: samples per instance of both runs.
        difference: of the rates, to be detected.
    """
    count = len(pairs)
    if count < 2:
        return None
    mean = math.fsum(b - a for a, b in pairs) / count
    variance = math.fsum((b - a - mean) ** 2 for a, b in pairs) / (count - 1)
    detectable = _Z * math.sqrt(variance / count)
    if samples == (1, 1) or not variance:  # a difference d needs a share d of discordant pairs: variance d (1 - d)
        detectable = max(detectable, _Z * _Z / (count + _Z * _Z))
    needed = {}
    if min(samples) > 1:
        within = [
            math.fsum(pair[i] * (1 - pair[i]) for pair in pairs) / count * samples[i] / (samples[i] - 1)
            for i in (0, 1)
        ]
        between = max(0.0, variance - within[0] / samples[0] - within[1] / samples[1])
        needed = {k: _instances(between + sum(within) / k, difference) for k in _SAMPLES}
    elif samples == (1, 1):
        needed = {1: _instances(max(variance, difference * (1 - difference)), difference)}
    return Power(first, second, detectable, difference, needed)


def _instances(variance: float, difference: float) -> int:
    return max(2, math.ceil(_Z * _Z * variance / difference**2))
