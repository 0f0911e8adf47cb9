"""Paired significance tests of two runs' rates and costs, over the instances that both have."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from swe_infer.compare.levels import repository_of
from swe_infer.compare.loading import LoadedRun, total_cost
from swe_infer.compare.statistics import (
    Bootstrap,
    Equivalence,
    Interval,
    PairedMean,
    agreement,
    bootstrap_means,
    clustered_mean,
    equivalence,
    holm,
    mcnemar_exact,
    paired_score,
)

FEWEST_FOR_BOOTSTRAP = 30  # instances

_Scores = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Pair:
    """The test of two runs over the instances that both have a record of.

    Args:
        first, second: indices of the runs.
        first_only, second_only: instances with the higher score in that run.
        difference: of the rates over the common instances, second minus first, with its 95 % interval.
        decided_by_failures: instances with different scores on which infrastructure failed a sample of either run.
        without_failures: the test without the instances on which infrastructure failed a sample of either run; None
            if there are no such instances.
        test: the test that ``p`` is from; ``p_holm`` is corrected for the number of pairs.
        p_exact: of the exact McNemar test, which is conservative; None if an instance is solved in part.
        agreement, kappa: the probability that a sample of each run has the same outcome, and Cohen's kappa.
        equivalence: None without a margin.
        cost: difference in cost per instance, second minus first; None if a price is unknown, or with fewer than 30
            common instances, where a bootstrap is unreliable.
    """

    first: int
    second: int
    instances: int
    both: int
    first_only: int
    second_only: int
    neither: int
    difference: float
    interval: Interval
    test: str
    p: float
    p_holm: float
    p_exact: float | None
    agreement: float
    kappa: float | None
    cost: Bootstrap | None
    cost_p_holm: float | None
    equivalence: Equivalence | None = None
    decided_by_failures: int = 0
    without_failures: RateTest | None = None


@dataclass(frozen=True, slots=True)
class RateTest:
    """The difference of two rates, second minus first, over ``instances`` instances, its p-value and 95 % interval.
    All are None without instances."""

    instances: int
    difference: float | None
    p: float | None
    interval: Interval | None


def paired_tests(
    runs: Sequence[LoadedRun],
    scores: _Scores,
    *,
    seed: int,
    resamples: int,
    baseline: int | None = None,
    margin: float | None = None,
    by_repository: bool = False,
) -> list[Pair]:
    """Tests every pair of runs with common instances, and corrects for the number of pairs.

    Args:
        scores: for each instance and run the share of samples that solved it; None without a record.
        baseline: the index of the run that every other one is compared with; None: all pairs.
        margin: test equivalence within this difference of the rates.
        by_repository: cluster standard errors by repository, not by instance.

    Raises:
        ConfigError: ``by_repository``, and SciPy is not installed.
    """
    drafts = []
    for first, second in _index_pairs(len(runs), baseline):
        common = tuple(n for n, row in scores.items() if row[first] is not None and row[second] is not None)
        if common:
            drafts.append(_Draft(first, second, common, scores, by_repository))
    tests = [draft.test() for draft in drafts]
    costs = _cost_tests(runs, drafts, seed, resamples)
    adjusted = holm([test.p for test in tests])
    known = [index for index, cost in enumerate(costs) if cost is not None]
    cost_adjusted = dict(zip(known, holm([cost.p for cost in costs if cost is not None]), strict=True))
    failures = [frozenset(r.instance_id for r in run.results.values() if r.infrastructure_failure) for run in runs]
    pairs = []
    for index, (draft, test) in enumerate(zip(drafts, tests, strict=True)):
        excluded = failures[draft.first] | failures[draft.second]
        agreed, kappa = agreement(draft.pairs)
        pairs.append(
            Pair(
                first=draft.first,
                second=draft.second,
                instances=len(draft.common),
                both=draft.both,
                first_only=draft.first_only,
                second_only=draft.second_only,
                neither=draft.neither,
                difference=test.mean,
                interval=test.interval,
                test=draft.test_name,
                p=test.p,
                p_holm=adjusted[index],
                p_exact=mcnemar_exact(draft.first_only, draft.second_only) if draft.is_binary else None,
                agreement=agreed,
                kappa=kappa,
                cost=costs[index],
                cost_p_holm=cost_adjusted.get(index),
                equivalence=None if margin is None else equivalence(draft.differences, margin),
                decided_by_failures=len(draft.differing & excluded),
                without_failures=_test_without(draft, excluded, scores),
            )
        )
    return pairs


def _index_pairs(count: int, baseline: int | None) -> list[tuple[int, int]]:
    if baseline is None:
        return list(itertools.combinations(range(count), 2))
    return [(baseline, other) for other in range(count) if other != baseline]


class _Draft:
    """Two runs and their common instances, before the test."""

    def __init__(
        self, first: int, second: int, common: tuple[str, ...], scores: _Scores, by_repository: bool
    ) -> None:
        self.first, self.second, self.common = first, second, common
        self.pairs = [(scores[name][first] or 0.0, scores[name][second] or 0.0) for name in common]
        self.both = sum(a == b and a > 0 for a, b in self.pairs)
        self.neither = sum(a == b == 0 for a, b in self.pairs)
        self.first_only = sum(a > b for a, b in self.pairs)
        self.second_only = sum(a < b for a, b in self.pairs)
        self.differences = [b - a for a, b in self.pairs]
        self.differing = {name for name, (a, b) in zip(common, self.pairs, strict=True) if a != b}
        self.is_binary = all(value in (0.0, 1.0) for pair in self.pairs for value in pair)
        repositories = [repository_of(name) for name in common]
        self.by_repository = by_repository and len(set(repositories)) > 1
        self.repositories = repositories

    @property
    def test_name(self) -> str:
        if self.by_repository:
            return "t, clustered by repository"
        return "McNemar" if self.is_binary else "paired score"

    def test(self) -> PairedMean:
        if not self.by_repository:
            return paired_score(self.differences)
        return clustered_mean(self.differences, self.repositories)


def _test_without(draft: _Draft, excluded: frozenset[str], scores: _Scores) -> RateTest | None:
    """The test without the instances on which infrastructure failed; None if there are no such instances."""
    if excluded.isdisjoint(draft.common):
        return None
    common = tuple(name for name in draft.common if name not in excluded)
    if not common:
        return RateTest(0, None, None, None)
    test = _Draft(draft.first, draft.second, common, scores, draft.by_repository).test()
    return RateTest(len(common), test.mean, test.p, test.interval)


def _cost_tests(
    runs: Sequence[LoadedRun], drafts: Sequence[_Draft], seed: int, resamples: int
) -> list[Bootstrap | None]:
    """Bootstraps the paired differences in cost per instance."""
    import numpy as np

    costs = [cost_by_instance(run) for run in runs]
    possible = [
        len(draft.common) >= FEWEST_FOR_BOOTSTRAP
        and all(costs[run][name] is not None for run in (draft.first, draft.second) for name in draft.common)
        for draft in drafts
    ]
    tests: list[Bootstrap | None] = [None] * len(drafts)
    for indices in _grouped(drafts, possible):
        pairs = [(costs[drafts[index].first], costs[drafts[index].second]) for index in indices]
        common = drafts[indices[0]].common
        table = np.array([[float((b[name] or 0) - (a[name] or 0)) for a, b in pairs] for name in common])
        for index, test in zip(indices, bootstrap_means(table, resamples=resamples, seed=seed), strict=True):
            tests[index] = test
    return tests


def _grouped(drafts: Sequence[_Draft], selected: Sequence[bool]) -> list[list[int]]:
    """Groups the selected drafts by their instances, so that drafts with the same ones share one resampling."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, draft in enumerate(drafts):
        if selected[index]:
            groups.setdefault(draft.common, []).append(index)
    return list(groups.values())


def cost_by_instance(run: LoadedRun) -> dict[str, Decimal | None]:
    """Dollars of each instance; None if a price is unknown."""
    costs: dict[str, Decimal | None] = {}
    for name, samples in run.instances().items():
        costs[name] = total_cost([*(r.cost_usd for r in samples), run.auxiliary_usd.get(name, Decimal(0))])
    return costs
