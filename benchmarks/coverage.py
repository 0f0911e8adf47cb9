"""Coverage and false positives of a comparison's statistics, on simulated runs.

``python -m benchmarks.coverage [--repetitions 4000]`` prints, in percent, for each number of instances and samples
and each correlation: the coverage of the intervals of a rate, of pass@k and of a paired difference, the false
positives of the paired tests, and the same of the costs. docs/statistics.md describes the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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

_CASES = (  # rate, correlation within an instance, share of instances that are equally difficult for both runs
    (0.1, 0.3, 0.5),
    (0.3, 0.3, 0.5),
    (0.3, 0.6, 0.9),
    (0.4, 0.0, 0.5),
    (0.5, 0.2, 0.9),
)
_SHARES = (73, 16, 14, 11, 10, 9, 7, 3, 3, 2, 1, 1)  # instances of twelve repositories, like those of SWE-bench


def beta_rates(
    generator: np.random.Generator, mean: float, correlation: float, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Success rates of instances whose samples have this correlation within an instance (a beta distribution)."""
    if not correlation:
        return np.full(shape, mean)
    scale = (1 - correlation) / correlation
    return generator.beta(mean * scale, (1 - mean) * scale, size=shape)


def rates(generator: np.random.Generator, repetitions: int) -> None:
    """Intervals of rates and pass@k, paired intervals and tests."""
    print("instances  samples  mean  within  alike |  rate  pass@k  paired |  false positives  exact McNemar")
    for n in (30, 50, 100, 300, 500):
        for k in (1, 2, 4, 8):
            for mean, within, alike in (
                (0.1, 0.3, 0.5),
                (0.3, 0.3, 0.5),
                (0.3, 0.6, 0.9),
                (0.4, 0.0, 0.5),
                (0.5, 0.2, 0.9),
            ):
                first = beta_rates(generator, mean, within, (repetitions, n))
                same = generator.random(first.shape) < alike
                second = np.where(same, first, beta_rates(generator, mean, within, first.shape))
                counts = generator.binomial(k, np.stack([first, second]))
                most = max(1, k // 2)
                pass_k = np.array([(pass_at_k({"": (k, c)}, most) or (0.0,))[0] for c in range(k + 1)])
                draws = beta_rates(generator, mean, within, (1_000_000,))
                true_pass = float((1 - (1 - draws) ** most).mean()) if within else 1 - (1 - mean) ** most
                hits = np.zeros(5)
                for a, b in zip(*counts, strict=True):
                    interval = clustered_wilson((a / k).tolist(), [1] * n, samples=n * k)
                    hits[0] += interval is not None and interval.low <= mean <= interval.high
                    outcomes = independent_outcomes(float(pass_k[a].mean()), most, k)
                    interval = clustered_wilson(pass_k[a].tolist(), [1] * n, samples=n * outcomes)
                    hits[1] += interval is not None and interval.low <= true_pass <= interval.high
                    test = paired_score(((b - a) / k).tolist())
                    hits[2] += test.interval.low <= 0 <= test.interval.high
                    hits[3] += test.p < 0.05
                    hits[4] += k == 1 and mcnemar_exact(int((a > b).sum()), int((a < b).sum())) < 0.05
                shown = 100 * hits / repetitions
                exact = f"{shown[4]:14.1f}" if k == 1 else f"{'-':>14}"
                case = f"{n:9}  {k:7}  {mean:4}  {within:6}  {alike:5}"
                coverage = f"{shown[0]:5.1f}  {shown[1]:6.1f}  {shown[2]:6.1f}"
                print(f"{case} | {coverage} |  {shown[3]:15.1f} {exact}", flush=True)


def repositories(generator: np.random.Generator, repetitions: int) -> None:
    """Standard errors clustered by repository, with instances that a repository makes alike."""
    groups = [str(index) for index, share in enumerate(_SHARES) for _ in range(share)]
    index = np.array([int(group) for group in groups])
    print("\nclustered by repository: effect of the repository | paired, by repository  paired, by instance")
    for effect in (0.0, 0.1, 0.2):
        hits = np.zeros(2)
        for _ in range(repetitions):
            shift = generator.normal(0, effect, size=len(_SHARES))[index]
            second = generator.random(len(index)) < np.clip(0.5 + shift / 2, 0, 1)
            first = generator.random(len(index)) < np.clip(0.5 - shift / 2, 0, 1)
            differences = (second.astype(float) - first.astype(float)).tolist()
            interval = clustered_mean(differences, groups).interval
            hits[0] += interval.low <= 0 <= interval.high
            own = paired_score(differences).interval
            hits[1] += own.low <= 0 <= own.high
        print(f"{effect:49} | {100 * hits[0] / repetitions:21.1f}  {100 * hits[1] / repetitions:19.1f}", flush=True)


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
    parser.add_argument("--part", choices=["rates", "repositories", "costs"], action="append")
    options: Any = parser.parse_args(arguments)
    parts = {"rates": rates, "repositories": repositories, "costs": costs}
    for name in options.part or parts:
        parts[name](np.random.default_rng(options.seed), options.repetitions)


if __name__ == "__main__":
    main()
