"""Computes the figures of a comparison from loaded runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from swe_infer.compare.keys import deciding_keys, differing_keys, labels, repeated_runs
from swe_infer.compare.levels import Group, Level, levels_of, repository_of
from swe_infer.compare.loading import LoadedRun, Result, total_cost
from swe_infer.compare.pairs import FEWEST_FOR_BOOTSTRAP, Pair, cost_by_instance, paired_tests
from swe_infer.compare.power import Power, power_of
from swe_infer.compare.selections import RuleFigures, rule_figures
from swe_infer.compare.statistics import (
    Interval,
    bootstrap_ratio,
    cluster_degrees,
    clustered_wilson,
    independent_outcomes,
    pass_at_k,
    student_t,
    wilson,
)
from swe_infer.errors import ConfigError
from swe_infer.progress import progress
from swe_infer.remote.paths import displayed
from swe_infer.text import p_value
from swe_infer.types import Usage

Metric = Literal["resolved", "applies"]
Cluster = Literal["instance", "repository"]

RESAMPLES = 10_000
FULL = 50
"""Number of instances that a page has with their prompts and answers, if the user names no other."""
_FEWEST_FOR_INTERVALS = 50  # instances; see the simulations in docs/statistics.md
_FEWEST_SUCCESSES = 10  # for an interval of the cost per success
_MOST_DRAWS = 50_000_000  # instances drawn in all resamples together: a few seconds


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate over instances with its 95 % interval. Each sample is a fraction of its instance (pass@1)."""

    successes: float
    instances: int
    interval: Interval | None

    @property
    def value(self) -> float | None:
        return self.successes / self.instances if self.instances else None


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run.

    Args:
        letter: the run's short name in tables.
        label: what distinguishes the run, see :func:`swe_infer.compare.keys.labels`.
        recorded: instances with a record. Failed and skipped ones are included and count as not solved.
        remaining: (instance, sample) pairs without a record; None if it is unknown.
        applies: rate over every requested instance.
        checked: rate over the samples whose patch was checked.
        resolved: None if the run was not evaluated.
        selections: what each rule of selection brings on the same answers, if they were evaluated.
        infrastructure_failures: samples without an answer of which infrastructure is the cause.
        applies_without_failures, resolved_without_failures: the rates without those samples.
        unverified: completed samples of an evaluated run without a verdict; they count as not resolved.
        cost_usd: None if a price is unknown.
        possibly_billed_usd: what may have been billed beyond ``cost_usd``, from the summary.
        cost_per_success_interval: 95 %; None with fewer than 30 instances or 10 successes.
        pass_at: k, the estimate, and the number of instances in it.
        pass_at_intervals: 95 %, by k.
        on_front: whether the run is Pareto-optimal in cost per instance and rate.
    """

    letter: str
    label: str
    run: LoadedRun
    differs: Mapping[str, Any]
    recorded: int
    samples: int
    statuses: Mapping[str, int]
    patches: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    errors: Mapping[str, int]
    remaining: int | None
    applies: Rate
    checked: Rate
    resolved: Rate | None
    unverified: int
    usage: Usage
    cost_usd: Decimal | None
    possibly_billed_usd: float
    cost_per_success: Decimal | None
    cost_per_success_interval: Interval | None
    wall_s: float | None
    output_tokens_per_s: float | None
    median_latency_s: float | None
    pass_at: Sequence[tuple[int, float, int]]
    pass_at_intervals: Mapping[int, Interval | None]
    selections: Sequence[RuleFigures]
    infrastructure_failures: int
    applies_without_failures: Rate
    resolved_without_failures: Rate | None
    on_front: bool = False

    def rate(self, metric: Metric) -> Rate:
        return self.resolved if metric == "resolved" and self.resolved is not None else self.applies


@dataclass(frozen=True, slots=True)
class Pool:
    """Runs that repeat one configuration, such as with different seeds.

    Args:
        runs: their indices.
        mean, deviation: of the rates of the runs; the deviation is the sample standard deviation.
        rate: over the instances of any of the runs; the score of an instance is the mean of its runs'.
    """

    runs: Sequence[int]
    mean: float
    deviation: float
    rate: Rate


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of several runs.

    Args:
        metric: what counts as solved: ``resolved`` if every run was evaluated, else ``applies``.
        keys: configuration keys whose values differ, in order.
        deciding: those of them that decide answers or which of them is submitted.
        scores: for each instance and run the share of samples that solved it; None without a record.
        cluster: what standard errors are clustered by.
        baseline: index of the run that the others are compared with; None: all pairs.
        pools: repeated runs of one configuration.
        levels: the rates by the requested groups.
        power: of each pair, if requested.
        overlap: for each set of runs that solved the same instances, the number of those instances; largest first.
    """

    metric: Metric
    runs: Sequence[Figures]
    keys: Sequence[str]
    pairs: Sequence[Pair]
    scores: Mapping[str, Sequence[float | None]]
    overlap: Sequence[tuple[tuple[bool, ...], int]]
    notes: Sequence[str]
    seed: int
    resamples: int
    deciding: Sequence[str] = ()
    cluster: Cluster = "instance"
    baseline: int | None = None
    pools: Sequence[Pool] = ()
    levels: Sequence[Level] = ()
    power: Sequence[Power] = ()


def compare(
    runs: Sequence[LoadedRun],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    notes: Sequence[str] = (),
    baseline: str | None = None,
    margin: float | None = None,
    by: Sequence[Group] = (),
    cluster: Cluster = "instance",
    power: float | None = None,
) -> Comparison:
    """Compares runs.

    Args:
        seed: seed of the resampling.
        resamples: number of resamples; reduced, to 1,000 at least, for very many instances.
        notes: further notes for the reader.
        baseline: compare every other run with this one: its name, letter, label or directory.
        margin: test the equivalence of rates within this difference, such as 0.02.
        by: groups to break the rates down by.
        cluster: what standard errors are clustered by.
        power: a difference of rates to compute the power for, such as 0.05.

    Raises:
        ConfigError: there is no such baseline, the levels of a group are unknown, or SciPy is required and missing.
    """
    metric: Metric = "resolved" if runs and all(run.evaluated for run in runs) else "applies"
    scores = _scores(runs, metric)
    resamples = max(1000, min(resamples, _MOST_DRAWS // max(1, len(scores))))
    keys = differing_keys(runs)
    deciding = deciding_keys(runs)
    names = labels(runs, deciding)
    base = None if baseline is None else _baseline(runs, names, baseline)
    by_repository = cluster == "repository"
    with progress("computing figures", len(runs) + 1) as advance:
        figures = []
        for index, run in enumerate(runs):
            found = figures_of(run, _letter(index), keys, by_repository=by_repository)
            interval = _cost_interval(run, seed, resamples)
            figures.append(replace(found, label=names[index], cost_per_success_interval=interval))
            advance()
        front = _pareto_front(figures, metric)
        figures = [replace(one, on_front=index in front) for index, one in enumerate(figures)]
        pairs = paired_tests(
            runs,
            scores,
            seed=seed,
            resamples=resamples,
            baseline=base,
            margin=margin,
            by_repository=by_repository,
        )
        advance()
    solved_by = Counter(tuple(bool(value) for value in row) for row in scores.values())
    return Comparison(
        metric=metric,
        runs=figures,
        keys=keys,
        pairs=pairs,
        scores=scores,
        overlap=sorted(solved_by.items(), key=lambda item: (-item[1], item[0])),
        notes=[*_notes(figures, metric), *_notes_on_pairs(figures, pairs), *notes],
        seed=seed,
        resamples=resamples,
        deciding=deciding,
        cluster=cluster,
        baseline=base,
        pools=[_pool(group, figures, scores, metric, by_repository) for group in repeated_runs(runs)],
        levels=[level for group in by for level in levels_of(group, runs, lambda result: solved(result, metric))],
        power=[] if power is None else _power(pairs, runs, scores, power),
    )


def _baseline(runs: Sequence[LoadedRun], names: Sequence[str], baseline: str) -> int:
    directory = Path(baseline).resolve()
    for index, run in enumerate(runs):
        known = (run.name, _letter(index), names[index], run.address)
        place = run.directory.resolve()
        if baseline in known or place == directory or displayed(place) == baseline.rstrip("/"):
            return index
    known_names = ", ".join(f"{_letter(index)} ({run.name})" for index, run in enumerate(runs))
    raise ConfigError(f"--baseline {baseline}: no such run; the runs are {known_names}")


def _pool(
    group: Sequence[int],
    figures: Sequence[Figures],
    scores: Mapping[str, Sequence[float | None]],
    metric: Metric,
    by_repository: bool,
) -> Pool:
    values = {}
    for name, row in scores.items():
        known = [value for index in group if (value := row[index]) is not None]
        if known:
            values[name] = statistics.fmean(known)
    rates = [figures[index].rate(metric) for index in group]
    asked = max(len(values), *(rate.instances for rate in rates))
    samples = sum(figures[index].run.samples for index in group)
    return Pool(
        runs=tuple(group),
        mean=statistics.fmean(rate.value or 0.0 for rate in rates),
        deviation=statistics.stdev(rate.value or 0.0 for rate in rates),
        rate=_clustered_rate(values, asked, samples, by_repository),
    )


def _power(
    pairs: Sequence[Pair], runs: Sequence[LoadedRun], scores: Mapping[str, Sequence[float | None]], difference: float
) -> list[Power]:
    found = []
    for pair in pairs:
        first, second = pair.first, pair.second
        common = [
            (a, b) for row in scores.values() if (a := row[first]) is not None and (b := row[second]) is not None
        ]
        one = power_of(first, second, common, (runs[first].samples, runs[second].samples), difference)
        found += [] if one is None else [one]
    return found


def solved(result: Result, metric: Metric) -> bool:
    """Whether a sample counts as a success."""
    return result.resolved is True if metric == "resolved" else result.applies


def differ(row: Sequence[float | None]) -> bool:
    """Whether the runs with a record of an instance have different scores."""
    return len({value for value in row if value is not None}) > 1


def score(results: Sequence[Result], metric: Metric, samples: int) -> float:
    """The share of an instance's ``samples`` that are successes. A sample without a record is not."""
    return sum(solved(result, metric) for result in results) / samples


def figures_of(run: LoadedRun, letter: str, keys: Sequence[str], *, by_repository: bool = False) -> Figures:
    """The figures of one run, without the interval of its cost per success."""
    instances = run.instances()
    results = list(run.results.values())
    stated, remaining = run.summary.get("instances"), run.summary.get("remaining")
    asked = max(len(instances), stated if isinstance(stated, int) else 0)
    cost = total_cost([*(result.cost_usd for result in results), *run.auxiliary_usd.values(), run.unreadable_usd])
    usage = sum((result.usage for result in results), run.unreadable_usage + run.auxiliary_usage)
    wall = _number(run.summary.get("wall_s"))
    successes = sum(_successes(run).values())
    completed = [result for result in results if result.status == "completed"]
    pass_at = _pass_at(run, asked, by_repository)
    return Figures(
        letter=letter,
        label=run.name,
        run=run,
        differs={key: run.config.get(key) for key in keys},
        recorded=len(instances),
        samples=run.samples,
        statuses=Counter(result.status for result in results),
        patches=Counter(result.patch_status for result in results if result.patch_status is not None),
        finish_reasons=Counter(result.finish_reason for result in results if result.finish_reason is not None),
        errors=Counter(result.error for result in results if result.error is not None),
        remaining=remaining if type(remaining) is int and remaining >= 0 else None,
        applies=_rate(run, "applies", asked, by_repository),
        checked=_checked(results),
        resolved=_rate(run, "resolved", asked, by_repository) if run.evaluated else None,
        unverified=sum(result.resolved is None for result in completed) if run.evaluated else 0,
        usage=usage,
        cost_usd=cost,
        possibly_billed_usd=_number(run.summary.get("possibly_billed_usd")) or 0.0,
        cost_per_success=cost / successes if cost is not None and successes else None,
        cost_per_success_interval=None,
        wall_s=wall,
        output_tokens_per_s=usage.output_tokens / wall if wall else None,
        median_latency_s=statistics.median(result.latency_s for result in completed) if completed else None,
        pass_at=[(k, rate.successes / asked, asked) for k, rate in pass_at.items()],
        pass_at_intervals={k: rate.interval for k, rate in pass_at.items()},
        selections=rule_figures(run, asked),
        infrastructure_failures=_infrastructure_failures(run, asked),
        applies_without_failures=_rate_without_failures(run, "applies", asked, by_repository),
        resolved_without_failures=_rate_without_failures(run, "resolved", asked, by_repository)
        if run.evaluated
        else None,
    )


def _rate(run: LoadedRun, metric: Metric, asked: int, by_repository: bool) -> Rate:
    """The rate over all ``asked`` instances, including those without a record."""
    values = {name: score(results, metric, run.samples) for name, results in run.instances().items()}
    return _clustered_rate(values, asked, run.samples, by_repository)


def _clustered_rate(values: Mapping[str, float], asked: int, samples: float, by_repository: bool) -> Rate:
    """The mean of ``values`` over ``asked`` instances, with an interval clustered by instance or by repository.
    Instances without a value count as 0.

    Args:
        samples: independent outcomes of each instance.
    """
    total = sum(values.values())
    missing = asked - len(values)
    if by_repository and values:
        clusters: dict[str, list[float]] = {}
        for name, value in values.items():
            clusters.setdefault(repository_of(name), []).append(value)
        if len(clusters) > 1:
            sums, sizes = [sum(own) for own in clusters.values()], [len(own) for own in clusters.values()]
            if missing:
                sums, sizes = [*sums, 0.0], [*sizes, missing]
            quantile = float(student_t(cluster_degrees(sizes)).ppf(0.975))
            interval = clustered_wilson(sums, sizes, samples=asked * samples, few_clusters_quantile=quantile)
            return Rate(total, asked, interval)
    each = list(values.values())
    return Rate(total, asked, clustered_wilson(each, [1] * len(each), samples=asked * samples, failed=missing))


def _cost_interval(run: LoadedRun, seed: int, resamples: int) -> Interval | None:
    """The interval of the cost per success over the instances with a record."""
    import numpy as np

    costs, successes = cost_by_instance(run), _successes(run)
    if len(costs) < FEWEST_FOR_BOOTSTRAP or sum(successes.values()) < _FEWEST_SUCCESSES or None in costs.values():
        return None
    names = list(successes)
    dollars = np.array([float(costs[name] or 0) for name in names])
    return bootstrap_ratio(
        dollars, np.array([float(successes[name]) for name in names]), resamples=resamples, seed=seed
    )


def _infrastructure_failures(run: LoadedRun, asked: int) -> int:
    """The samples that infrastructure failed, including those without a record if it stopped the run."""
    failed = sum(result.infrastructure_failure for result in run.results.values())
    return failed + (max(0, asked * run.samples - len(run.results)) if run.stopped_by_infrastructure else 0)


def _rate_without_failures(run: LoadedRun, metric: Metric, asked: int, by_repository: bool) -> Rate:
    """The rate over the samples that infrastructure did not fail. Instances without such a sample do not count."""
    instances = run.instances()
    if run.stopped_by_infrastructure:
        asked = len(instances)
    values = {}
    for name, results in instances.items():
        samples = len(results) if run.stopped_by_infrastructure else run.samples
        samples -= sum(result.infrastructure_failure for result in results)
        if samples:
            values[name] = score(results, metric, samples)
        else:
            asked -= 1
    return _clustered_rate(values, asked, run.samples, by_repository)


def _checked(results: Sequence[Result]) -> Rate:
    checked = [result for result in results if result.applies or result.patch_status == "does_not_apply"]
    applied = sum(result.applies for result in checked)
    return Rate(applied, len(checked), wilson(applied, len(checked)))


def _own_metric(run: LoadedRun) -> Metric:
    return "resolved" if run.evaluated else "applies"


def _successes(run: LoadedRun) -> dict[str, int]:
    """The number of successful samples of each instance."""
    metric = _own_metric(run)
    return {name: sum(solved(result, metric) for result in results) for name, results in run.instances().items()}


def _pass_at(run: LoadedRun, asked: int, by_repository: bool) -> dict[int, Rate]:
    """pass@k by k over all ``asked`` instances. A sample without a record is not a success."""
    most = run.samples if run.results else 0
    if most < 2:
        return {}
    counts, rates = _successes(run), {}
    for k in sorted({k for k in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100) if k <= most} | {most}):
        each = {count: pass_at_k({"": (most, count)}, k) for count in set(counts.values())}
        values = {name: found[0] for name, count in counts.items() if (found := each[count]) is not None}
        outcomes = independent_outcomes(sum(values.values()) / asked, k, most)
        rates[k] = _clustered_rate(values, asked, outcomes, by_repository)
    return rates


def _scores(runs: Sequence[LoadedRun], metric: Metric) -> dict[str, list[float | None]]:
    grouped = [run.instances() for run in runs]
    names = sorted({name for instances in grouped for name in instances})
    return {
        name: [
            score(instances[name], metric, run.samples) if name in instances else None
            for run, instances in zip(runs, grouped, strict=True)
        ]
        for name in names
    }


def _pareto_front(figures: Sequence[Figures], metric: Metric) -> set[int]:
    """The indices of the Pareto-optimal runs in cost per instance and rate."""
    points = [
        (index, one.cost_usd / one.recorded, one.rate(metric).value or 0.0)
        for index, one in enumerate(figures)
        if one.cost_usd is not None and one.recorded
    ]
    return {
        index
        for index, cost, rate in points
        if not any(c <= cost and r >= rate and (c < cost or r > rate) for _, c, r in points)
    }


def _notes(figures: Sequence[Figures], metric: Metric) -> list[str]:
    """Notes without which the figures would mislead."""
    notes = []
    if metric == "applies":
        some = [one.letter for one in figures if one.resolved is not None]
        notes.append(
            "No run was evaluated: a patch that applies counts as solved."
            if not some
            else f"Only {', '.join(some)} evaluated: in tests and plots a patch that applies counts as solved."
        )
    for what, counts in (
        ("Not finished; remaining samples", [one.remaining for one in figures]),
        (
            "Infrastructure failures (network, provider, account, repository) count as not solved",
            [one.infrastructure_failures for one in figures],
        ),
        ("Unreadable records, of which only the cost counts", [one.run.unreadable for one in figures]),
        (
            "Patches that could not be checked count as not applying",
            [one.patches.get("unchecked") for one in figures],
        ),
        ("Answers without a verdict count as not resolved", [one.unverified for one in figures]),
        (
            "Answers that another run paid for, which cost nothing here",
            [sum(result.shared for result in one.run.results.values()) for one in figures],
        ),
    ):
        concerned = [f"{one.letter} {count:,}" for one, count in zip(figures, counts, strict=True) if count]
        if concerned:
            notes.append(f"{what}: {', '.join(concerned)}.")
    few = [
        f"{one.letter} {one.rate(metric).instances}"
        for one in figures
        if one.rate(metric).instances < _FEWEST_FOR_INTERVALS
    ]
    if few:
        notes.append(
            f"Fewer than {_FEWEST_FOR_INTERVALS} instances ({', '.join(few)}): intervals and p-values are rough."
        )
    notes += [f"{one.letter} is {one.run.remark}." for one in figures if one.run.remark]
    versions = [
        sorted({result.extractor for result in one.run.results.values() if result.status == "completed"})
        for one in figures
    ]
    if len({version for found in versions for version in found}) > 1:
        shown = ", ".join(
            f"{one.letter} {' and '.join(map(str, v))}" for one, v in zip(figures, versions, strict=True) if v
        )
        notes.append(
            f"Different versions of the extractor found the patches ({shown}), so patch figures are not comparable; "
            "swe-infer-patches RUN_DIR computes them again."
        )
    unknown = [one.letter for one in figures if not one.run.config]
    if unknown:
        notes.append(f"No configuration, so the differences are unknown: {', '.join(unknown)}.")
    if len({frozenset(name for name, _ in one.run.results) for one in figures}) > 1:
        notes.append("The runs have different instances: rates are over each run's own, tests over the common ones.")
    return notes


_MOST_PAIR_NOTES = 10


def _notes_on_pairs(figures: Sequence[Figures], pairs: Sequence[Pair]) -> list[str]:
    """Notes on pairs whose difference rests on failures of infrastructure."""
    notes = []
    for pair in pairs:
        without = pair.without_failures
        if not pair.decided_by_failures or without is None:
            continue
        differing = pair.first_only + pair.second_only
        rest = (
            f"without them {100 * without.difference:+.1f} points over {without.instances:,} instances, "
            f"p {p_value(without.p)}"
            if without.difference is not None and without.p is not None
            else "without them no instance is left"
        )
        notes.append(
            f"{figures[pair.first].letter} : {figures[pair.second].letter} rests on infrastructure failures: on "
            f"{pair.decided_by_failures:,} of the {differing:,} instances that differ, a run has no answer; {rest}."
        )
    if len(notes) > _MOST_PAIR_NOTES:
        notes[_MOST_PAIR_NOTES:] = [f"{len(notes) - _MOST_PAIR_NOTES} more pairs rest on infrastructure failures."]
    return notes


def _letter(index: int) -> str:
    """A, B, … Z, AA, AB, …"""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) else None
