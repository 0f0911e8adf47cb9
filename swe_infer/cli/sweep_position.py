"""Where a run is in its sweep, for its progress line. Other points may run in other processes, so their figures are
read from the sweep's directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.cli.sweep_jobs import swept_keys
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_plan import PlannedPoint, SweepPlan
from swe_infer.errors import ConfigError
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import covered_samples, sum_usd
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.runners.progress import OtherRuns, SweepView
from swe_infer.text import short_keys

_REFRESH_S = 2.0
_LONGEST_LABEL = 60


@dataclass(slots=True)
class SweepPosition:
    """One point of a sweep, or several that run concurrently in this process.

    Args:
        numbers: their indices, from 0.
        differs: how the point differs: ``temperature=0.6``.
    """

    plan: SweepPlan
    sweep: SweepLog
    numbers: tuple[int, ...]
    differs: str
    _others: OtherRuns | None = field(default=None, repr=False)
    _refresh_at: float = field(default=0.0, repr=False)

    @classmethod
    def of(cls, sweep: SweepLog | None) -> SweepPosition | None:
        """The position of the current job; None for a single run, or without a plan."""
        if sweep is None or (plan := SweepPlan.read(sweep.directory)) is None:
            return None
        return cls(plan, sweep, (sweep.number,), short_overrides(sweep.overrides, swept_keys(sweep.directory)))

    @property
    def label(self) -> str:
        first, last = self.numbers[0] + 1, self.numbers[-1] + 1
        total = max(last, len(self.plan.points))
        point = f"point {first} of {total}" if first == last else f"points {first} to {last} of {total}"
        return f"{point} · {self.differs}" if self.differs else point

    @property
    def parallel(self) -> bool:
        return self.plan.parallel

    def joined(self, others: Sequence[SweepView]) -> SweepView:
        points = [self, *(other for other in others if isinstance(other, SweepPosition))]
        numbers = sorted(number for point in points for number in point.numbers)
        return SweepPosition(self.plan, self.sweep, tuple(numbers), self.differs if len(points) == 1 else "")

    def elapsed_s(self) -> float:
        return max(0.0, time.time() - self.plan.started)

    def others(self) -> OtherRuns:
        now = time.monotonic()
        if self._others is None or now >= self._refresh_at:
            self._others, self._refresh_at = self._read_others(), now + _REFRESH_S
        return self._others

    def _read_others(self) -> OtherRuns:
        ended = {job.number: job for job in self.sweep.jobs() if job.number >= 0}
        samples = done = answered = todo = resolved = evaluated = 0
        cost: Decimal | None = Decimal(0)
        points = self.plan.points
        seen = {_place(points[number].directory) for number in self.numbers if number < len(points)} - {None}
        # The last first: with successive halving several points are one run, which grows.
        for number, point in reversed(list(enumerate(points))):
            job = ended.get(number)
            run = point.directory if job is None or job.run is None else job.run
            if number in self.numbers or (place := _place(run)) in seen:
                continue
            if place is not None:
                seen.add(place)
            summary, is_new = self._summary(run)
            known = is_new or job is not None
            finished = sum(int(summary.get(key) or 0) for key in ("completed", "skipped")) if known else point.done
            failed = int(summary.get("failed") or 0) if known else 0
            new = min(point.todo, max(0, finished - point.done) + max(0, failed - point.failed)) if is_new else 0
            samples += point.samples
            done += min(point.samples, max(finished + failed, point.done))
            answered += new
            todo += point.todo - new if job is None else 0
            if job is not None and "resolved" in summary:
                resolved += int(summary["resolved"])
                evaluated += covered_samples(summary)
            cost = sum_usd(cost, _cost_of(summary, point))
        return OtherRuns(samples, done, answered, todo, resolved, evaluated, cost)

    def _summary(self, run: str | None) -> tuple[Mapping[str, Any], bool]:
        """The summary of a run, and whether this sweep has written it."""
        if run is None:
            return {}, False
        try:
            written = (Path(run) / layout.SUMMARY).stat().st_mtime
            return RunDirectory(Path(run)).summary(), written >= self.plan.started
        except (OSError, ConfigError):
            return {}, False


def _place(run: str | None) -> Path | None:
    return None if run is None else Path(run).resolve()


def _cost_of(summary: Mapping[str, Any], point: PlannedPoint) -> Decimal | None:
    if "cost_usd" not in summary:
        return None if point.cost_usd is None else Decimal(point.cost_usd)
    cost = summary["cost_usd"]
    return None if cost is None else Decimal(repr(float(cost)))


def short_overrides(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """The overrides of swept keys by the last part of the key: ``temperature=0.6 n=4``."""
    names = short_keys(swept)
    assigned = (override.lstrip("+").partition("=") for override in overrides)
    text = " ".join(f"{names[key]}={value}" for key, _, value in assigned if key in names)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
