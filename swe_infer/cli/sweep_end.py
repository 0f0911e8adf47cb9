"""The end of a sweep: shards become one run, the runs are compared, and what failed is named.

Standard output holds the run directories and nothing else, so that a script can read them; the comparison is for
people and goes to standard error, as ``swe-infer-compare SWEEP_DIR`` would print it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from swe_infer.cli.shards import merge_shards
from swe_infer.cli.sweep_jobs import LOST, SweepJob, distinguishing_overrides
from swe_infer.cli.tables import print_estimate
from swe_infer.types import Estimate

log = logging.getLogger(__name__)

_BEST = "optimization_results.yaml"  # Optuna's plug-in writes it


def close_sweep(
    directory: Path,
    points: Sequence[SweepJob],
    lost: Sequence[tuple[str, ...]],
    estimate: Estimate | None,
    stopped: str | None = None,
    *,
    interrupted: bool = False,
) -> int:
    """Print the end of the sweep in ``directory``; returns its exit status, which no failure in here changes.

    Args:
        lost: points that were begun and did not end.
        estimate: what a dry run of the whole sweep found.
        stopped: why the sweep ended before its time.
        interrupted: somebody waits for the end: nothing is merged or compared.
    """
    status = max([point.status for point in points] + [LOST] * bool(lost or stopped), default=0)
    if estimate is not None:
        print_estimate(estimate, f"all {len(points)} points")
    for point in points:
        if point.elsewhere and point.run:
            print(point.run)
    page = None
    if not interrupted and estimate is None and any(point.run for point in points):
        merged: Sequence[Path] | None = None
        with _never_fatal("the shards were not merged"):
            merged = merge_shards(directory, points)
        page = _compared(directory, merged) if merged is None or len(merged) > 1 else None
    with _never_fatal("the best point is not known"):
        _print_best(directory / _BEST)
    _print_failures(points, lost, stopped)
    unfinished = sum(1 for point in points if point.status) + len(lost)
    total = len(points) + len(lost)
    print(f"{total - unfinished} of {total} runs finished: {directory}", file=sys.stderr)
    if page is not None:
        print(f"comparison: {page.resolve().as_uri()}", file=sys.stderr)
    sys.stdout.flush()
    return status


def _compared(directory: Path, runs: Sequence[Path] | None) -> Path | None:
    """Print the comparison of the sweep's runs, or of ``runs``; returns the page, or None where there is none."""
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
    except Exception as error:  # noqa: BLE001 - the runs are done and paid for; their sweep must not fail for this
        log.warning("%s: %s: %s", what, type(error).__name__, error)


def _print_best(results: Path) -> None:
    """The best point of a search, or the Pareto front of one with several objectives."""
    if not results.is_file():
        return
    found: Any = OmegaConf.to_container(OmegaConf.load(results))
    front = found.get("solutions") or [{"params": found["best_params"], "values": [found["best_value"]]}]
    for solution in front:
        params = " ".join(f"{key}={value}" for key, value in solution["params"].items())
        print(f"best: {params} ({', '.join(f'{value:g}' for value in solution['values'])})", file=sys.stderr)


def _print_failures(points: Sequence[SweepJob], lost: Sequence[tuple[str, ...]], stopped: str | None) -> None:
    names = distinguishing_overrides([point.overrides for point in points] + list(lost))
    for point in points:
        if point.status:
            details = " ".join(filter(None, (point.error and f"({point.error})", point.run)))
            print(f"exit {point.status}: {names[point.overrides]} {details}".rstrip(), file=sys.stderr)
    for overrides in lost:
        print(f"lost: {names[overrides]} (its process ended before the point did)", file=sys.stderr)
    if stopped:
        print(f"error: {stopped}", file=sys.stderr)
    statuses = {point.status for point in points}
    if statuses & {1, 130} or lost or stopped:
        print("The same command finishes what is missing; what is finished is not paid again.", file=sys.stderr)
    if 3 in statuses:
        print("The budget is used up: the same command with a larger one goes on.", file=sys.stderr)
