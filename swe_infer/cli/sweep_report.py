"""The end of a sweep: merges shards, compares the runs and names the jobs that failed.

Standard output carries the run directories and nothing else, for scripts. The comparison goes to standard error, as
``swe-infer-compare SWEEP_DIR`` would print it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from swe_infer import config
from swe_infer.cli.merge import is_merged, merge
from swe_infer.cli.sweep_jobs import (
    LOST,
    SearchPlan,
    SweepJob,
    best_jobs,
    distinguishing_overrides,
    swept_keys,
)  # fmt: skip
from swe_infer.cli.sweep_plan import SweepPlan
from swe_infer.cli.sweep_tracking import log_sweep
from swe_infer.cli.tables import print_estimate
from swe_infer.errors import ConfigError
from swe_infer.remote.paths import displayed
from swe_infer.remote.store import is_remote
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.tracking.writer import SweepWriter

log = logging.getLogger(__name__)


def print_sweep_report(
    directory: Path,
    jobs: Sequence[SweepJob],
    lost: Sequence[tuple[str, ...]],
    plan: SweepPlan | None,
    stopped: str | None = None,
    *,
    interrupted: bool = False,
    tracking: SweepWriter | None = None,
) -> int:
    """Prints the end of the sweep in ``directory`` and returns its exit status. A failure in here does not change it.

    Args:
        lost: overrides of the jobs that started and did not end.
        plan: of the sweep; its estimate is that of a dry run.
        stopped: why the sweep ended early.
        interrupted: the user waits for the prompt: merge and compare nothing.
        tracking: logs the runs of this process to W&B.
    """
    if (search := SearchPlan.read(directory)) is not None:
        jobs = search.points(jobs)
    status = max([job.status for job in jobs] + [LOST] * bool(lost or stopped), default=0)
    estimate = None if plan is None else plan.estimate
    if estimate is not None:
        print_estimate(estimate, f"all {len(jobs)} points")
    for job in jobs:
        if job.elsewhere and job.run:
            print(displayed(Path(job.run)))
    page = None
    if not interrupted and estimate is None and any(job.run for job in jobs):
        merged: Sequence[Path] | None = None
        if tracking is not None and "shard.index" in swept_keys(directory):
            tracking.wait()  # the W&B run of merged shards continues the data of theirs
        with _never_fatal("the shards were not merged"):
            merged = merge_shards(directory, jobs)
        page = _write_comparison(directory, merged) if merged is None or len(merged) > 1 else None
        with _never_fatal("the sweep was not logged to W&B"):
            log_sweep(directory, jobs, merged, status, tracking)
    with _never_fatal("the best point is unknown"):
        _print_best(directory, jobs)
    _print_failures(jobs, lost, stopped)
    unfinished = sum(1 for job in jobs if job.status) + len(lost)
    total = len(jobs) + len(lost)
    print(f"{total - unfinished} of {total} runs finished: {displayed(directory)}", file=sys.stderr)
    if estimate is not None and plan is not None and plan.line is not None:
        print(plan.line)
    if page is not None:
        url = displayed(page)
        print(f"comparison: {url if is_remote(url) else page.resolve().as_uri()}", file=sys.stderr)
    sys.stdout.flush()
    return status


def _write_comparison(directory: Path, runs: Sequence[Path] | None) -> Path | None:
    """Compares ``runs``, or all runs of the sweep. Returns the page, or None if there is none."""
    from swe_infer.compare.command import run

    page = directory / "comparison.html"
    with _never_fatal("the runs were not compared"), contextlib.redirect_stdout(sys.stderr):
        if run([*map(str, runs or [directory]), "--html", str(page)]) == 0:
            return page
    return None


@contextlib.contextmanager
def _never_fatal(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the runs are finished and paid for; a report must not fail them
        log.warning("%s: %s: %s", what, type(error).__name__, error)


def _print_best(directory: Path, jobs: Sequence[SweepJob]) -> None:
    """Prints the best points of a search: one, all that tie, or the Pareto front of several objectives."""
    if (plan := SearchPlan.read(directory)) is None:
        return
    objectives = plan.parsed
    best = best_jobs(plan.final(jobs), objectives)
    title = "Pareto front" if len(objectives) > 1 else "best" if len(best) == 1 else f"best ({len(best)} tie)"
    swept = set(swept_keys(directory))
    for job in best:
        point = " ".join(item for item in job.overrides if item.partition("=")[0].lstrip("+") in swept)
        values = zip(objectives, job.objective or (), strict=True)
        figures = ", ".join(f"{objective.name}={value:g}" for objective, value in values)
        print(f"{title}: {point} ({figures})", file=sys.stderr)
    for job in jobs:
        if job.status == 0 and job.objective is None and job.error:
            print(f"no objective: {job.error}", file=sys.stderr)


def _print_failures(jobs: Sequence[SweepJob], lost: Sequence[tuple[str, ...]], stopped: str | None) -> None:
    names = distinguishing_overrides([job.overrides for job in jobs] + list(lost))
    for job in jobs:
        if job.status:
            details = " ".join(filter(None, (job.error and f"({job.error})", job.run)))
            print(f"exit {job.status}: {names[job.overrides]} {details}".rstrip(), file=sys.stderr)
    for overrides in lost:
        print(f"lost: {names[overrides]} (its process ended before the run did)", file=sys.stderr)
    if stopped:
        print(f"error: {stopped}", file=sys.stderr)
    statuses = {job.status for job in jobs}
    if statuses & {1, 130} or lost or stopped:
        print("Run the same command again to finish the rest; finished answers are not paid again.", file=sys.stderr)
    if 3 in statuses:
        print("The budget is used up: run the same command with a larger one to continue.", file=sys.stderr)


def merge_shards(directory: Path, jobs: Sequence[SweepJob]) -> list[Path] | None:
    """Merges the runs of a sweep over ``shard.index`` into ``directory/merged`` once all of them are finished.

    If the sweep varies other keys too, each configuration becomes a run in that folder.

    Returns:
        The merged run directories; None if the jobs are not shards.
    """
    swept = swept_keys(directory)
    configs = {Path(job.run): RunDirectory(Path(job.run)).config() for job in jobs if job.run}
    overrides = {Path(job.run): job.overrides for job in jobs if job.run}
    if any(config.shard_of(plain)[0] is None for plain in configs.values()):
        return None
    unfinished = sum(1 for job in jobs if job.status or not job.run)
    if unfinished:
        print(f"Not merged yet: {unfinished} of {len(jobs)} shards are not finished.", file=sys.stderr)
        return []
    groups: dict[str, list[Path]] = {}
    for run, plain in configs.items():
        parts = [config.digest(config.unsharded(plain)), *config.job_name_parts(plain, swept, overrides[run])]
        if "output_dir" in swept:
            parts.append(str(plain.get("output_dir")).strip("/").replace("/", "-"))
        groups.setdefault("__".join(parts), []).append(run)
    out = directory / "merged"
    merged = []
    for name, runs in groups.items():
        target = out if len(groups) == 1 else out / name
        if not _is_up_to_date(target, runs):
            _replace_merged(target, runs)
        print(f"merged {len(runs)} shards into {target}", file=sys.stderr)
        print(target)
        merged.append(target)
    return merged


def _is_up_to_date(target: Path, runs: Sequence[Path]) -> bool:
    """Whether ``target`` already contains ``runs`` and their verdicts as they are now."""
    made = RunDirectory(target)
    try:
        merged = made.summary()
    except ConfigError:
        return False
    if not merged:
        return False
    verdicts = [key for run in runs for key in RunDirectory(run).resolved()]
    if not made.resolved().keys() >= set(verdicts):
        return False
    parts = [RunDirectory(run).summary() for run in runs]
    asked = [RunDirectory(run).covered_ids() for run in runs]
    together = None if None in asked else frozenset().union(*(ids for ids in asked if ids is not None))
    turns = {
        None if (coverage := RunDirectory(run).coverage()) is None else coverage.turns for run in (*runs, target)
    }
    rules = {summary.get("selection") for summary in (*parts, merged)}
    counts = [sum(each) for each in zip(*map(_counts, parts), strict=True)]
    same = len(turns) == len(rules) == 1
    return together == made.covered_ids() and same and counts == _counts(merged)


def _replace_merged(target: Path, runs: Sequence[Path]) -> None:
    """Merges ``runs`` into ``target`` and replaces the merge of an earlier launch there. Its W&B run and verdicts are
    kept."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():  # a launch that was killed in here left the new one unfinished
        if (target / "wandb").is_dir() and not (old / "wandb").exists():
            (target / "wandb").rename(old / "wandb")
        shutil.rmtree(target, ignore_errors=True)
    elif is_merged(target):
        target.rename(old)
    merge(target, runs, earlier=old if old.exists() else None)
    shutil.rmtree(old, ignore_errors=True)


def _counts(summary: Summary) -> list[int]:
    counts = [int(summary.get(key, 0)) for key in ("instances", "completed", "failed", "skipped")]  # type: ignore[call-overload]
    return [*counts, summary.get("feedback", {}).get("turns", 0)]
