"""The summary of a sweep in W&B: one run of job type ``sweep`` in the group of the sweep's runs."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swe_infer import config
from swe_infer.cli.command_line import command_line
from swe_infer.cli.sweep_charts import Value, parallel_coordinates, scatter
from swe_infer.cli.sweep_jobs import SearchPlan, SweepJob, best_jobs, membership, swept_keys
from swe_infer.run_directory.figures import FIGURES, Summary, figure
from swe_infer.run_directory.objective import Objective
from swe_infer.run_directory.provenance import SweepMembership, read_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.tracking.base import RunInfo, SweepSummary
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.tracking.writer import SweepWriter

_COUNTS = ("instances", "completed", "failed", "skipped", "resolved_by_any")
_AMOUNTS = ("resolved_rate", "apply_rate", "pass_at_k", "cost_usd", "cost_per_resolved_usd", "wall_s")


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    values: Mapping[str, str]
    job: SweepJob
    summary: Summary
    run_id: str | None


def log_sweep(
    directory: Path,
    jobs: Sequence[SweepJob],
    merged: Sequence[Path] | None,
    status: int,
    tracking: SweepWriter | None = None,
    *,
    online: bool = False,
) -> None:
    """Logs the sweep in ``directory`` where its first tracked run is logged. Does nothing without one.

    Args:
        merged: the runs of merged shards, in place of those of the jobs; None if the jobs are no shards.
        tracking: logs the runs of this process. All of them are logged afterwards.
        online: also if its runs were to be logged offline.
    """
    if merged is not None and len(merged) < 2:
        return  # the parts of one run
    runs = [Path(job.run) for job in jobs if job.run]
    tracker = None if tracking is None else WandbTracker.of_sweep(tracking)
    if tracker is None:
        tracker = next((found[0] for found in map(WandbTracker.of_run, runs) if found is not None), None)
        if tracker is None:
            return
        if tracking is not None:
            tracker.share(tracking)
    if online:
        tracker.options["mode"] = "online"
    plan = SearchPlan.read(directory)
    if plan is not None:
        jobs = plan.points(jobs)
    points = [_merged_point(run) for run in merged] if merged else [_point(directory, job) for job in jobs]
    candidates = None if plan is None else {job.number for job in plan.final(jobs)}
    name = directory.resolve().name
    info = RunInfo(
        run_id=config.run_id_of(directory, {}),
        name=name,
        config={
            "command": command_line(directory),
            "swept": list(swept_keys(directory)),
        },
        directory=directory.resolve(),
        resumed=False,
        group=name or None,
        job_type="sweep",
    )
    chosen = [] if plan is None else plan.parsed
    tracker.log_sweep(info, _summary(name, points, chosen, candidates), status)
    if tracking is not None:
        tracking.finish()
    if tracker.address is not None:
        print(f"W&B run of the sweep: {tracker.address}", file=sys.stderr)


def _point(directory: Path, job: SweepJob) -> _Point:
    member = membership(directory, job.overrides)
    return _of_run(Path(job.run), member, job) if job.run else _Point(member.name, _values(member), job, {}, None)


def _merged_point(run: Path) -> _Point:
    member = read_provenance(run).sweep or SweepMembership("", run.name)
    return _of_run(run, member, SweepJob(member.tags, str(run), 0))


def _of_run(run: Path, member: SweepMembership, job: SweepJob) -> _Point:
    path = run / "run_id"
    run_id = config.read_run_id(path) if path.is_file() else None
    return _Point(member.name or run.name, _values(member), job, RunDirectory(run).summary(), run_id)


def _values(member: SweepMembership) -> dict[str, str]:
    return {key: value for key, _, value in (tag.partition("=") for tag in member.tags)}


def _summary(
    name: str, points: Sequence[_Point], chosen: Sequence[Objective], candidates: Collection[int] | None
) -> SweepSummary:
    """The table, charts and figures of a sweep.

    Args:
        chosen: the objectives of a search.
        candidates: the numbers of the jobs that ran on all instances of a search; None for every job.
    """
    swept = list(dict.fromkeys(key for point in points for key in point.values))
    typed = {key: _typed([point.values.get(key) for point in points]) for key in swept}
    y, x = _axes(points, chosen)
    best = _front(points, y, x, candidates)
    known = [
        (index, figure(point.summary, x.name), figure(point.summary, y.name)) for index, point in enumerate(points)
    ]
    placed = [(index, a, b) for index, a, b in known if a is not None and b is not None]
    charts = {}
    if placed:
        charts["pareto"] = scatter(
            [(points[index].name, a, b) for index, a, b in placed],
            {number for number, (index, *_) in enumerate(placed) if index in best},
            x=x.name,
            y=y.name,
            title=f"{name}: Pareto front of {y.name} and {x.name}",
        )
        axes: dict[str, Sequence[Value]] = {
            **{key: [values[index] for index, *_ in placed] for key, values in typed.items()},
            x.name: [a for _, a, _ in placed],
            y.name: [b for _, _, b in placed],
        }
        charts["parallel_coordinates"] = parallel_coordinates(
            axes,
            [points[index].name for index, *_ in placed],
            {number for number, (index, *_) in enumerate(placed) if index in best},
            title=f"{name}: swept keys, {x.name} and {y.name}",
        )
    columns = {
        "point": "str",
        **{key: "str" if any(isinstance(value, str) for value in typed[key]) else "float" for key in swept},
        **dict.fromkeys(["exit_status", *_COUNTS], "int"),
        **dict.fromkeys(_AMOUNTS, "float"),
        "on_front": "str",
        "run_id": "str",
    }
    rows: list[list[Any]] = []
    for index, point in enumerate(points):
        figures = [figure(point.summary, key) for key in (*_COUNTS, *_AMOUNTS)]
        counts = [None if count is None else int(count) for count in figures[: len(_COUNTS)]]
        front = "yes" if index in best else "no"
        row = [point.job.status, *counts, *figures[len(_COUNTS) :], front, point.run_id]
        rows.append([point.name, *(typed[key][index] for key in swept), *row])
    return SweepSummary(columns, rows, charts, _figures(points, y, best))


def _figures(points: Sequence[_Point], y: Objective, best: Sequence[int]) -> dict[str, Any]:
    """The figures of the whole sweep; unknown ones are absent."""
    figures: dict[str, Any] = {
        "runs": len(points),
        "finished": sum(point.job.status == 0 for point in points),
    }
    costs = [point.summary.get("cost_usd") for point in points if point.summary]
    if costs and None not in costs:
        figures["cost_usd"] = sum(float(cost) for cost in costs if cost is not None)
    values = [(figure(points[index].summary, y.name), points[index].name) for index in best]
    known = [(value, name) for value, name in values if value is not None]
    if known:
        value, name = (min if y.direction == "minimize" else max)(known, key=lambda item: item[0])
        figures |= {f"best_{y.name}": value, "best_run": name}
    return figures


def _typed(values: Sequence[str | None]) -> list[Value]:
    """The values of a key: numbers, if all are."""
    try:
        numbers: list[Value] = [None if value is None else float(value) for value in values]
    except ValueError:
        return list(values)
    finite = all(number is None or abs(float(number)) < float("inf") for number in numbers)
    return numbers if finite else list(values)


def _axes(points: Sequence[_Point], chosen: Sequence[Objective]) -> tuple[Objective, Objective]:
    """The figures of the Pareto plot: the objectives of a search, or a rate and the cost (time, if nothing costs)."""
    summaries = [point.summary for point in points if point.summary]
    rate = "resolved_rate" if all("resolved_rate" in summary for summary in summaries) else "apply_rate"
    costs = [figure(summary, "cost_usd") for summary in summaries]
    expense = "cost_usd" if None not in costs and any(costs) else "wall_s"
    y = chosen[0] if chosen else Objective(rate, "maximize")
    x = chosen[1] if len(chosen) > 1 else Objective(rate if y.name == expense else expense, FIGURES[expense])
    return y, x if x.name != rate else Objective(rate, "maximize")


def _front(points: Sequence[_Point], y: Objective, x: Objective, candidates: Collection[int] | None) -> list[int]:
    """The indices of the finished points that are Pareto-optimal."""
    scored = []
    for index, point in enumerate(points):
        if candidates is not None and point.job.number not in candidates:
            continue
        values = [figure(point.summary, objective.name) for objective in (y, x)]
        known = [value for value in values if value is not None]
        scored.append(replace(point.job, objective=known if len(known) == len(values) else None, number=index))
    return [job.number for job in best_jobs(scored, (y, x))]
