"""The rates of one run with their intervals, computed as a comparison computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from swe_infer.compare.analysis import Rate, figures_of
from swe_infer.compare.loading import LoadedRun
from swe_infer.compare.statistics import clustered_wilson
from swe_infer.run_directory.figures import Summary, applying, covered_samples
from swe_infer.run_directory.intervals import wilson
from swe_infer.run_directory.totals import Totals


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a run.

    Args:
        applies, resolved: over every requested instance; None if the run has no such rate yet.
        finished: the rate of patches that apply over the finished samples alone, while some remain. Its interval
            narrows as the run goes on.
        errors: failed samples by the class of their error; None: not counted yet.
    """

    applies: Rate | None = None
    resolved: Rate | None = None
    finished: Rate | None = None
    errors: Mapping[str, int] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing is left to compute from the records."""
        return self.errors is not None


def rates_of_summary(summary: Summary) -> Rates:
    """The rates that follow from the counts alone. With several samples for each instance, intervals depend on the
    outcomes of each instance: then rates have none."""
    total, good = covered_samples(summary), applying(summary)
    done = total - (summary.get("remaining") or 0)
    if total <= 0 or not 0 <= good <= done <= total:
        return Rates(errors={})
    resolved = summary.get("resolved")
    several = (summary.get("samples") or 1) > 1
    return Rates(
        applies=_rate(good, total, summary, several),
        resolved=None if resolved is None or not 0 <= resolved <= total else _rate(resolved, total, summary, several),
        finished=_rate(good, done, summary, several) if 0 < done < total else None,
        errors=None if several or summary.get("failed") else {},
    )


def _rate(good: int, total: int, summary: Summary, several: bool) -> Rate:
    samples = summary.get("samples") or 1
    successes, instances = good / samples, max(1, total // samples)
    # The same arithmetic as in a comparison, so that not even the last digit differs.
    return Rate(successes, instances, None if several else wilson(successes / instances * instances, instances))


def rates_of_records(totals: Totals, summary: Summary) -> Rates:
    """The rates of a run in progress, from all its records."""
    good: Counter[str] = Counter()
    finished: Counter[str] = Counter()
    for key, status in totals.statuses():
        if totals.counts(key[0]):
            finished[key[0]] += 1
            good[key[0]] += status == "completed" and totals.patch_status(key) in ("applies", "repaired")
    samples, instances = summary.get("samples") or 1, summary.get("instances") or 0
    known = rates_of_summary(summary)
    values = [good[name] / samples for name in finished]
    missing = max(0, instances - len(values))
    interval = clustered_wilson(values, [1] * len(values), samples=instances * samples, failed=missing)
    return Rates(
        applies=Rate(sum(values), instances, interval) if instances else None,
        resolved=known.resolved,
        finished=_finished_rate(good, finished) if summary.get("remaining") else None,
        errors=totals.failure_reasons(),
    )


def _finished_rate(good: Mapping[str, int], finished: Mapping[str, int]) -> Rate | None:
    values = [good[name] / count for name, count in finished.items()]
    interval = clustered_wilson(values, [1] * len(values), samples=sum(finished.values()))
    return Rate(sum(values), len(values), interval) if values else None


def rates_of_run(run: LoadedRun) -> Rates:
    """The rates of a run whose records were loaded."""
    figures = figures_of(run, "", [])
    good: Counter[str] = Counter()
    finished: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for result in run.results.values():
        finished[result.instance_id] += 1
        good[result.instance_id] += result.applies
        if result.status == "failed":
            errors[str(result.error)] += 1
    remains = bool(run.summary.get("remaining", 1))
    return Rates(figures.applies, figures.resolved, _finished_rate(good, finished) if remains else None, errors)
