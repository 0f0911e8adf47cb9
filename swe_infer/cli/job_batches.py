"""Points of a sweep that one engine answers at once.

Hydra's launcher hands over one job after the other. A point of a local model is opened and waits; when the next one
does not fit, or no further one comes, all that wait are run together. So their answers decode together, which costs
little more than those of one point: a forward pass reads the weights once, however many rows it has.

Points wait in the process of the sweep alone. A launcher's workers, a searching sweeper, which wants to know how a
point ended before it chooses the next, and a job with an environment of its own run each point when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.cli.run_session import PreparedRun, RunSession
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.conf_files import Objective
from swe_infer.interrupts import INTERRUPTED
from swe_infer.runners.base import EngineSharing, ProcessResources
from swe_infer.runners.concurrent import run_concurrently


@dataclass(frozen=True, slots=True)
class _Waiting:
    built: PreparedRun
    sharing: EngineSharing
    opened: RunSession
    sweep: SweepLog


class JobBatcher:
    """Collects points and runs them.

    Args:
        resources: shared by the runs of this process.
        on_end: told of each point's sweep, directory, exit status or error, and objectives.
    """

    def __init__(
        self,
        resources: ProcessResources,
        on_end: Callable[[SweepLog, Path | None, int | Exception, Sequence[Objective]], Any],
    ) -> None:
        self._resources = resources
        self._on_end = on_end
        self._waiting: list[_Waiting] = []

    def add(self, built: PreparedRun, sweep: SweepLog) -> bool:
        """Open a run and let it wait; run those before it where it cannot join them, or no further one may. Returns
        False, with nothing done, where its runner answers each run by itself.

        Raises what :meth:`PreparedRun.open` raises.
        """
        sharing = built.experiment.runner.sharing
        if sharing is None or built.experiment.dry_run:
            return False
        if self._waiting and not self._joins(built, sharing):
            self.run()
        self._waiting.append(_Waiting(built, sharing, built.open(self._resources), sweep))
        if len(self._waiting) >= sharing.max_concurrent_jobs:
            self.run()
        return True

    def _joins(self, built: PreparedRun, sharing: EngineSharing) -> bool:
        identities = [waiting.built.identity for waiting in self._waiting]  # one takes the answers of another
        return self._waiting[0].sharing.engine_key == sharing.engine_key and built.identity not in identities

    def run(self) -> None:
        """Run what waits, and say how it ended, in the order in which it came."""
        points, self._waiting = self._waiting, []
        if not points:
            return
        if points[0].sweep.is_stopped:
            self._end_unrun(points)
            return
        with ExitStack() as stack:
            for point in points:
                stack.enter_context(point.opened)
            try:
                ends = run_concurrently([point.opened.run for point in points])
            except Exception as error:  # noqa: BLE001 - a fault in our code costs these points; others are still wanted
                ends = [error] * len(points)
            for point, end in zip(points, ends, strict=True):
                if isinstance(end, int):
                    point.opened.print_summary()
                    self._on_end(point.sweep, point.built.directory, end, point.built.experiment.objectives)
                else:
                    self._on_end(point.sweep, None, end, ())

    def give_up(self) -> None:
        """The sweep ended before its time: what waits is not run."""
        points, self._waiting = self._waiting, []
        self._end_unrun(points)

    def _end_unrun(self, points: Sequence[_Waiting]) -> None:
        for point in points:
            with point.opened:
                self._on_end(point.sweep, None, INTERRUPTED, ())
