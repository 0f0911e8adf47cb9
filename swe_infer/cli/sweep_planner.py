"""Plans a sweep before its first job: the samples of each point, and what their answers may cost.

The prompts of each dataset are rendered and counted once, whatever the number of points."""

from __future__ import annotations

import functools
import logging
import operator
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from swe_infer.cli.choices import raw_overrides
from swe_infer.cli.run_session import PreparedRun
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_plan import PlannedPoint, SweepPlan
from swe_infer.data.base import RowsView
from swe_infer.errors import SweInferError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.run_directory.asked import Coverage
from swe_infer.text import dollars
from swe_infer.types import Estimate, Instance, Range, Skip

if TYPE_CHECKING:
    from swe_infer.data.base import Rows
    from swe_infer.data.select import Selection
    from swe_infer.runners.remainder import Remainder

log = logging.getLogger(__name__)

Compose = Callable[[Sequence[str]], DictConfig]
"""Composes the configuration of a job from its overrides, with the node ``hydra``."""

_MOST_CHARACTERS = 1 << 28
"""Characters of prompts that are cached for each dataset."""


def announce_sweep(config: DictConfig, jobs: Sequence[Sequence[str]], compose: Compose, label: str = "sweep") -> None:
    """Plans a sweep, and prints what it may cost in one line before anything is paid for. Sends no request.

    Args:
        config: the composed configuration of the sweep, with the node ``hydra``.
        jobs: the overrides of each job.
        label: what the line begins with.
    """
    with _Planner(dry_run=config.dry_run is True, label=label) as planner, _announcing(config) as announce:
        for number, overrides in enumerate(jobs):
            planner.add(functools.partial(_composed_job, compose, overrides, number))
        announce(planner.plan(is_parallel(config)))


def announce_search(config: DictConfig, count: int) -> None:
    """Plans a search of ``count`` points, as :func:`announce_sweep`. They are unknown in advance: each is assumed to
    cost as much as the sweep's own configuration."""
    with _Planner(dry_run=config.dry_run is True, search=count) as planner, _announcing(config) as announce:
        sweep = SweepLog(Path(config.hydra.sweep.dir), tuple(raw_overrides(config.hydra.overrides.task)))
        planner.add(lambda: (_without_hydra(config.copy()), sweep))
        plan = planner.plan(is_parallel(config))
        announce(replace(plan, points=[replace(point, directory=None) for point in plan.points] * count))


@contextmanager
def _announcing(config: DictConfig) -> Iterator[Callable[[SweepPlan], None]]:
    """Yields a function that writes and prints a plan. Errors are left to the jobs, which report them."""

    def announce(plan: SweepPlan) -> None:
        plan.write(Path(config.hydra.sweep.dir))
        if plan.line is not None and not config.dry_run:
            print(plan.line, file=sys.stderr, flush=True)

    try:
        with INTERRUPTS.stoppable():
            yield announce
    except (HydraException, OSError) as error:
        log.debug("the sweep is not planned: %s", error)


def _composed_job(compose: Compose, overrides: Sequence[str], number: int) -> tuple[DictConfig, SweepLog]:
    cfg = compose(overrides)
    with flag_override(cfg, ["readonly", "struct"], False), flag_override(cfg.hydra, ["readonly"], False):
        cfg.hydra.job.num = number
    sweep = SweepLog.from_hydra(cfg.hydra)
    assert sweep is not None
    return _without_hydra(cfg), sweep


def _without_hydra(cfg: DictConfig) -> DictConfig:
    with flag_override(cfg, ["readonly", "struct"], False):
        del cfg["hydra"]
    return cfg


def is_parallel(config: DictConfig) -> bool:
    """Whether the launcher runs jobs in other processes."""
    return not str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher")


@dataclass
class _Paid:
    """Sums over the points whose answers may be billed. ``divided``: shards get equal parts of max_usd."""

    points: int = 0
    requests: int = 0
    usd: Range = field(default_factory=lambda: Range(Decimal(0), Decimal(0)))
    unpriced_requests: int = 0
    spent_usd: Decimal = Decimal(0)
    divided: bool = False
    caps: dict[str, set[Decimal | None]] = field(default_factory=lambda: {"sweep_max_usd": set(), "max_usd": set()})


class _Planner:
    """Adds up the points of a sweep. Use it as a context manager.

    Args:
        dry_run: estimate local models too.
        search: the number of points of a search, of which one is added.
        label: what the line of the plan begins with.
    """

    def __init__(self, *, dry_run: bool, search: int | None = None, label: str = "sweep") -> None:
        self._label = label
        self._dry_run = dry_run
        self._search = search
        self._stack = ExitStack()
        self._rows: dict[str, Rows] = {}
        self._planned: dict[str, set[str]] = {}
        self._points: list[PlannedPoint] = []
        self._estimates: list[Estimate] = []
        self._paid = _Paid()

    def __enter__(self) -> _Planner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, composed: Callable[[], tuple[DictConfig, SweepLog]]) -> None:
        """Adds a point. An error in it is noted, and left for the job to report."""
        try:
            cfg, sweep = composed()
            point = self._plan_point(PreparedRun(cfg, sweep), sweep)
        except (SweInferError, HydraException, OmegaConfBaseException, OSError) as error:
            point = PlannedPoint(error=str(error).partition("\n")[0])
        self._points.append(point)

    def plan(self, parallel: bool) -> SweepPlan:
        """The plan of all points."""
        estimate = functools.reduce(operator.add, self._estimates) if self._dry_run and self._estimates else None
        return SweepPlan(self._points, parallel, time.time(), self._line(), estimate)

    def _plan_point(self, prepared: PreparedRun, sweep: SweepLog) -> PlannedPoint:
        from swe_infer.runners.remainder import Remainder

        experiment, runner = prepared.experiment, prepared.experiment.runner
        selection = self._selection(prepared)
        if self._search is None:
            rest = prepared.remainder(selection, sweep)
        else:  # the records of the sweep's own configuration are those of no point
            rest = Remainder(selection, runner.decoding, sweep.directory / "no-run", Coverage(None))
        samples, todo = len(selection) * runner.decoding.n, rest.count()
        done = samples - todo
        if runner.costs_money or self._dry_run:
            estimate = self._estimated(prepared, rest)
            self._estimates.append(estimate)
            if runner.costs_money:
                todo = self._pay(estimate, rest, experiment.budget)
                # With successive halving several points are one run, which grows.
                if str(prepared.directory) not in {point.directory for point in self._points}:
                    self._paid.spent_usd += rest.cost_usd or Decimal(0)
        cost = None if rest.cost_usd is None else str(rest.cost_usd)
        return PlannedPoint(str(prepared.directory), samples, done, rest.failed, todo, cost)

    def _estimated(self, prepared: PreparedRun, rest: Remainder) -> Estimate:
        planned = self._planned.setdefault(prepared.identity, set())
        return rest.estimate(prepared.experiment.runner, planned)

    def _pay(self, estimate: Estimate, rest: Remainder, budget: Any) -> int:
        """Adds the cost of a point; returns the number of its answers."""
        paid, times = self._paid, self._search or 1
        paid.points += times
        paid.requests += times * estimate.requests
        if (usd := estimate.expected_usd) is not None:
            paid.usd += Range(times * usd.low, times * usd.high)
        else:
            paid.unpriced_requests += times * estimate.requests
        paid.divided |= budget.across == "division"
        for key, values in paid.caps.items():
            values.add(getattr(budget, key))
        return int(estimate.output_tokens.low)  # at least one token for each answer

    def _selection(self, prepared: PreparedRun) -> Selection:
        """The instances of a point. Points with the same dataset and prompts share the rows."""
        from swe_infer.runners.instances import select_instances

        experiment = prepared.experiment
        prompts = prepared.prompt_source(self._stack)
        key = prepared.prompts_key()
        if key not in self._rows:
            opened = select_instances(experiment.runner, experiment.dataset, experiment.shard, prompts)
            self._rows[key] = _CachedRows(opened.rows)
        return select_instances(experiment.runner, experiment.dataset, experiment.shard, rows=self._rows[key])

    def _line(self) -> str | None:
        """Points, requests, dollars and cap; None if no point may be billed."""
        paid = self._paid
        if not paid.points:
            return None
        total = self._search or len(self._points)
        failed = sum(point.error is not None for point in self._points)
        unpaid = total - paid.points - failed
        points = f"{'a search of ' if self._search else ''}{total:,} point{'s' * (total != 1)}"
        points += f", {unpaid:,} of them local" if unpaid else ""
        points += f", {failed:,} of them invalid" if failed else ""
        about = "about " if self._search else ""
        parts = [points, f"{about}{paid.requests:,} request{'s' * (paid.requests != 1)}", about + _cost(paid)]
        if paid.spent_usd:
            parts.append(f"{dollars(paid.spent_usd)} paid before")
        return " · ".join([f"{self._label}: {parts[0]}", *parts[1:], _cap(paid)])


def _cost(paid: _Paid) -> str:
    unpriced = f"{paid.unpriced_requests:,} requests of unknown price" if paid.unpriced_requests else ""
    if paid.unpriced_requests and paid.unpriced_requests == paid.requests:
        return "unknown price"
    low, high = dollars(paid.usd.low), dollars(paid.usd.high)
    cost = low if low == high else f"{low} to {high}"
    return f"{cost} and {unpriced}" if unpriced else cost


def _cap(paid: _Paid) -> str:
    parts = []
    for key, scope in (("sweep_max_usd", ""), ("max_usd", " in equal parts" if paid.divided else " for each run")):
        known = sorted(value for value in paid.caps[key] if value is not None)
        if known:
            amount = " to ".join(dict.fromkeys(map(dollars, (known[0], known[-1]))))
            some = " for some points" if None in paid.caps[key] else scope
            parts.append(f"cap {amount}{some} (budget.{key})")
    return ", ".join(parts) or "no cap"


class _CachedRows(RowsView):
    """Rows of a dataset whose prompts are rendered once, up to a number of characters. Their instances have no files
    and no metadata."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._cached: dict[int, Instance | Skip] = {}
        self._characters = 0

    def fault(self, index: int) -> Skip | None:
        made = self._read(index)
        return made if isinstance(made, Skip) else None

    def __getitem__(self, index: int) -> Instance:
        made = self._read(index)
        return self._rows[index] if isinstance(made, Skip) else made

    def _read(self, index: int) -> Instance | Skip:
        if index in self._cached:
            return self._cached[index]
        made: Instance | Skip | None = self._rows.fault(index)
        if made is None:
            made = replace(self._rows[index], files={}, metadata={})
            self._characters += made.prompt.characters
        if self._characters <= _MOST_CHARACTERS:
            self._cached[index] = made
        return made
