"""Hydra's callback for the two ends of a sweep: it prepares the sweep's log and reports the sweep's exit status."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from swe_infer.cli import extras, study
from swe_infer.cli.choices import resolve_choices, swept_keys
from swe_infer.cli.points import POINT
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_plan import SweepPlan
from swe_infer.cli.sweeper import expand_for_search
from swe_infer.errors import SweInferError
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS

if TYPE_CHECKING:
    from swe_infer.tracking.writer import SweepWriter

log = logging.getLogger(__name__)


class SweepTask(Protocol):
    """The task function of a sweep."""

    def allow_batching(self) -> None:
        """Jobs may be deferred: :meth:`run_waiting` will be called once all were launched."""
        ...

    def run_waiting(self) -> None:
        """Run the deferred jobs."""
        ...

    @property
    def tracking(self) -> SweepWriter:
        """Logs the runs of this process to W&B."""
        ...


class SweepReport(Callback):
    """Hydra's callback for a sweep. Jobs may run in other processes, so the report reads their log."""

    def __init__(self) -> None:
        self._task: SweepTask | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Resets the log. A plug-in that is not installed ends the process here, in one line."""
        if (missing := extras.missing_plugin(config.hydra)) is not None:
            print(f"error: {missing}", file=sys.stderr)
            raise SystemExit(2)
        sweep = SweepLog(Path(config.hydra.sweep.dir))
        try:
            resolve_choices(config)
            if config["from"] or config.sweep.points:
                expand_for_search(config, GlobalHydra.instance().config_loader())
            swept = [*swept_keys(config), *([POINT] if config.sweep.points else [])]
            sweep.reset(keep=study.is_search(config.hydra), swept=swept)
        except (SweInferError, OSError) as error:  # Hydra would print a warning and continue
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        sweep.stop_on_interrupt()
        if not str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher"):
            INTERRUPTS.spare_children()

    def on_job_start(self, config: DictConfig, *, task_function: Any, **kwargs: Any) -> None:
        """Lets the task defer jobs, except in a search, which needs the result of each job before it chooses the
        next.
        """
        if config.hydra.mode == RunMode.MULTIRUN:
            self._task = task_function
            if not study.is_search(config.hydra):
                task_function.allow_batching()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Runs the deferred jobs, prints the report and ends the process with the sweep's exit status."""
        tracking = None
        if self._task is not None:
            self._task.run_waiting()
            tracking = self._task.tracking
        # SystemExit, because Hydra's own entry point has no way to return a sweep's status to its caller.
        raise SystemExit(report_sweep(Path(config.hydra.sweep.dir), tracking=tracking))


def report_sweep(directory: Path, stopped: str | None = None, *, tracking: SweepWriter | None = None) -> int:
    """Prints the report of the sweep in ``directory`` and returns its exit status.

    Args:
        stopped: why the sweep ended early.
        tracking: logs the runs of this process to W&B; None if other processes ran them.
    """
    from swe_infer.cli.sweep_report import print_sweep_report  # a single run does not need it

    sweep = SweepLog(directory)
    sweep.close()
    jobs, lost, plan = sweep.jobs(), sweep.lost_jobs(), SweepPlan.read(directory)
    if INTERRUPTS.stopping:
        return max(INTERRUPTED, print_sweep_report(directory, jobs, lost, plan, interrupted=True))
    if jobs and all(job.status or (job.objective is None and job.error) for job in jobs) and not lost:
        stopped = None  # a search stops when no job has an objective; the jobs' own errors say why
    with INTERRUPTS.stoppable():
        return print_sweep_report(directory, jobs, lost, plan, stopped, tracking=tracking)
