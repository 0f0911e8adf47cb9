"""The two ends of a sweep: what it begins with, and the exit status of the whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from swe_infer.cli import extras, study
from swe_infer.cli.choices import settle_choices, swept_keys
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.errors import SweInferError
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS


class SweepTask(Protocol):
    """The task function of a sweep."""

    def allow_waiting(self) -> None:
        """Points may wait until all jobs were launched: :meth:`finish` will be called then."""
        ...

    def finish(self) -> None:
        """Run the points that wait."""
        ...


class SweepReport(Callback):
    """Hydra's callback at both ends of a sweep. Points may have run in other processes, so it reads their log."""

    def __init__(self) -> None:
        self._task: SweepTask | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the log. A plug-in that is not installed ends the process here, in one line."""
        if (missing := extras.missing(config.hydra)) is not None:
            print(f"error: {missing}", file=sys.stderr)
            raise SystemExit(2)
        sweep = SweepLog(Path(config.hydra.sweep.dir))
        search = study.is_search(config.hydra)
        try:
            settle_choices(config)
            sweep.start(keep=search, swept=swept_keys(config))
            if search:
                study.go_on(config, sweep.points())
        except (SweInferError, OSError) as error:  # Hydra would make a warning of it and go on
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        sweep.stop_on_interrupt()
        if not str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher"):
            INTERRUPTS.spare_children()

    def on_job_start(self, config: DictConfig, *, task_function: Any, **kwargs: Any) -> None:
        """Tell the task that :meth:`on_multirun_end` will come. A search chooses a point by how those before ended,
        so none can be put off there."""
        if config.hydra.mode == RunMode.MULTIRUN and not study.is_search(config.hydra):
            self._task = task_function
            task_function.allow_waiting()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Run what was put off, say which points did not end well, compare the runs, and end the process with the
        sweep's exit status."""
        if self._task is not None:
            self._task.finish()
        # SystemExit, because Hydra's own entry point has no way to hand a sweep's status to its caller.
        raise SystemExit(finish(Path(config.hydra.sweep.dir)))


def finish(directory: Path, stopped: str | None = None) -> int:
    """Close the sweep in ``directory``; returns its exit status. ``stopped`` says why it ended before its time."""
    from swe_infer.cli.sweep_end import close_sweep  # a run has no need of it

    sweep = SweepLog(directory)
    sweep.close()
    points, lost = sweep.points(), sweep.lost()
    if INTERRUPTS.stopping:
        return max(INTERRUPTED, close_sweep(directory, points, lost, sweep.estimate(), interrupted=True))
    if points and all(point.status for point in points) and not lost:
        stopped = None  # a searching sweeper gives up where no point has a figure, and the points say why
    with INTERRUPTS.stoppable():
        return close_sweep(directory, points, lost, sweep.estimate(), stopped)
