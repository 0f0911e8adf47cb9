"""Paired significance tests of two runs' rates and costs, over the instances that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from swe_infer.compare.loading import LoadedRun, total_cost
from swe_infer.compare.statistics import Bootstrap, bootstrap_means, holm, mcnemar_exact, sign_flip

_FEWEST_FOR_BOOTSTRAP = 10  # instances

_Scores = Mapping[str, Sequence[float | None]]
_Test = Literal["exact McNemar", "sign-flip permutation"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The test of two runs over the instances that both have a record of.

    Args:
        first, second: indices of the runs.
        first_only, second_only: instances with the higher score in that run.
        difference: of the rates over the common instances, second minus first.
        decided_by_failures: instances with different scores on which infrastructure failed a sample of either run.
        without_failures: the test without the instances on which infrastructure failed a sample of either run; None
            if there are no such instances.
        test: the test that ``p`` is from; ``p_holm`` is corrected for the number of pairs.
        cost: difference in cost per instance, second minus first; None if a price is unknown, or with fewer than ten
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
    test: _Test
    p: float
    p_holm: float
    cost: Bootstrap | None
    cost_p_holm: float | None
    decided_by_failures: int = 0
    without_failures: RateTest | None = None


@dataclass(frozen=True, slots=True)
class RateTest:
    """The difference of two rates, second minus first, over ``instances`` instances, and its p-value. Both are None
    without instances."""

    instances: int
    difference: float | None
    p: float | None


def paired_tests(runs: Sequence[LoadedRun], scores: _Scores, *, seed: int, resamples: int) -> list[Pair]:
    """Tests every pair of runs with common instances, and corrects for the number of pairs.

    Args:
        scores: for each instance and run the share of samples that solved it; None without a record.
    """
    drafts = []
    for first in range(len(runs)):
        for second in range(first + 1, len(runs)):
            common = tuple(n for n, row in scores.items() if row[first] is not None and row[second] is not None)
            if common:
                drafts.append(_Draft(first, second, common, scores))
    p_values = _rate_tests(drafts, seed, resamples)
    costs = _cost_tests(runs, drafts, seed, resamples)
    adjusted = holm(p_values)
    known = [index for index, cost in enumerate(costs) if cost is not None]
    cost_adjusted = dict(zip(known, holm([cost.p for cost in costs if cost is not None]), strict=True))
    failures = [frozenset(r.instance_id for r in run.results.values() if r.infrastructure_failure) for run in runs]
    without = _tests_without(drafts, failures, scores, seed, resamples)
    return [
        Pair(
            first=draft.first,
            second=draft.second,
            instances=len(draft.common),
            both=draft.both,
            first_only=draft.first_only,
            second_only=draft.second_only,
            neither=draft.neither,
            difference=sum(draft.differences) / len(draft.common),
            test="exact McNemar" if draft.is_binary else "sign-flip permutation",
            p=p_values[index],
            p_holm=adjusted[index],
            cost=costs[index],
            cost_p_holm=cost_adjusted.get(index),
            decided_by_failures=len(draft.differing & (failures[draft.first] | failures[draft.second])),
            without_failures=without[index],
        )
        for index, draft in enumerate(drafts)
    ]


class _Draft:
    """Two runs and their common instances, before the test."""

    def __init__(self, first: int, second: int, common: tuple[str, ...], scores: _Scores) -> None:
        self.first, self.second, self.common = first, second, common
        pairs = [(scores[name][first] or 0.0, scores[name][second] or 0.0) for name in common]
        self.both = sum(a == b and a > 0 for a, b in pairs)
        self.neither = sum(a == b == 0 for a, b in pairs)
        self.first_only = sum(a > b for a, b in pairs)
        self.second_only = sum(a < b for a, b in pairs)
        self.differences = [b - a for a, b in pairs]
        self.differing = {name for name, (a, b) in zip(common, pairs, strict=True) if a != b}
        self.is_binary = all(value in (0.0, 1.0) for pair in pairs for value in pair)


def _tests_without(
    drafts: Sequence[_Draft], failures: Sequence[frozenset[str]], scores: _Scores, seed: int, resamples: int
) -> list[RateTest | None]:
    """The tests without the instances on which infrastructure failed; None for pairs without such instances."""
    kept: dict[int, _Draft] = {}
    for index, draft in enumerate(drafts):
        excluded = failures[draft.first] | failures[draft.second]
        if not excluded.isdisjoint(draft.common):
            common = tuple(name for name in draft.common if name not in excluded)
            kept[index] = _Draft(draft.first, draft.second, common, scores)
    tested = {index: draft for index, draft in kept.items() if draft.common}
    p_values = dict(zip(tested, _rate_tests(list(tested.values()), seed, resamples), strict=True))
    tests: list[RateTest | None] = [None] * len(drafts)
    for index, draft in kept.items():
        count = len(draft.common)
        difference = sum(draft.differences) / count if count else None
        tests[index] = RateTest(count, difference, p_values.get(index))
    return tests


def _rate_tests(drafts: Sequence[_Draft], seed: int, resamples: int) -> list[float]:
    import numpy as np

    p_values = [mcnemar_exact(draft.first_only, draft.second_only) if draft.is_binary else 1.0 for draft in drafts]
    for indices in _grouped(drafts, [not draft.is_binary for draft in drafts]):
        table = np.array([drafts[index].differences for index in indices]).T
        for index, p in zip(indices, sign_flip(table, resamples=resamples, seed=seed), strict=True):
            p_values[index] = p
    return p_values


def _cost_tests(
    runs: Sequence[LoadedRun], drafts: Sequence[_Draft], seed: int, resamples: int
) -> list[Bootstrap | None]:
    """Bootstraps the paired differences in cost per instance."""
    import numpy as np

    costs = [_cost_by_instance(run) for run in runs]
    possible = [
        len(draft.common) >= _FEWEST_FOR_BOOTSTRAP
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


def _cost_by_instance(run: LoadedRun) -> dict[str, Decimal | None]:
    costs: dict[str, Decimal | None] = {}
    for name, samples in run.instances().items():
        costs[name] = total_cost([*(r.cost_usd for r in samples), run.auxiliary_usd.get(name, Decimal(0))])
    return costs
