"""Jobs of a sweep that share one engine.

Hydra's launcher hands over one job after the other. A job of a local model is opened and waits. When the next job
cannot join, or no further one comes, all waiting jobs run together and their answers are decoded in the same batches:
a forward pass reads the weights once, however many rows it has.

Only jobs in the sweep's own process wait. A launcher's workers, a search, and a job with its own environment
variables run each job at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.cli.run_session import PreparedRun, RunSession
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.interrupts import INTERRUPTED
from swe_infer.runners.base import EngineSharing, ProcessResources
from swe_infer.runners.concurrent import run_concurrently


@dataclass(frozen=True, slots=True)
class _WaitingJob:
    prepared: PreparedRun
    sharing: EngineSharing
    session: RunSession
    sweep: SweepLog


class JobBatcher:
    """Collects jobs and runs them together.

    Args:
        resources: shared by the runs of this process.
        on_end: called with each job's sweep, directory, and exit status or error.
    """

    def __init__(
        self,
        resources: ProcessResources,
        on_end: Callable[[SweepLog, Path | None, int | Exception], Any],
    ) -> None:
        self._resources = resources
        self._on_end = on_end
        self._waiting: list[_WaitingJob] = []

    def submit(self, prepared: PreparedRun, sweep: SweepLog) -> bool:
        """Opens a run and queues it. Runs the queue before, if the new run cannot join it, or after, if it is full.

        Returns:
            Whether the run was queued; False if this run may not share an engine with other jobs.

        Raises:
            DataError, StoreError: see :meth:`PreparedRun.open`.
        """
        sharing = prepared.experiment.runner.sharing
        if sharing is None or prepared.experiment.dry_run:
            return False
        if self._waiting and not self._can_join(prepared, sharing):
            self.run_waiting()
        self._waiting.append(_WaitingJob(prepared, sharing, prepared.open(self._resources), sweep))
        if len(self._waiting) >= sharing.max_concurrent_jobs:
            self.run_waiting()
        return True

    def _can_join(self, prepared: PreparedRun, sharing: EngineSharing) -> bool:
        identities = [waiting.prepared.identity for waiting in self._waiting]  # the second reuses the first's answers
        return self._waiting[0].sharing.engine_key == sharing.engine_key and prepared.identity not in identities

    def run_waiting(self) -> None:
        """Runs the queue and reports how each job ended, in the order of submission."""
        jobs, self._waiting = self._waiting, []
        if not jobs:
            return
        if jobs[0].sweep.is_stopped:
            self._report_interrupted(jobs)
            return
        with ExitStack() as stack:
            for job in jobs:
                stack.enter_context(job.session)
            try:
                ends = run_concurrently([job.session.run for job in jobs])
            except Exception as error:  # noqa: BLE001 - a fault in our code fails these jobs and not the sweep
                ends = [error] * len(jobs)
            for job, end in zip(jobs, ends, strict=True):
                if isinstance(end, int):
                    job.session.print_summary()
                    self._on_end(job.sweep, job.prepared.directory, end)
                else:
                    self._on_end(job.sweep, None, end)

    def abandon(self) -> None:
        """Drops the queue: the sweep ended early."""
        jobs, self._waiting = self._waiting, []
        self._report_interrupted(jobs)

    def _report_interrupted(self, jobs: Sequence[_WaitingJob]) -> None:
        for job in jobs:
            with job.session:
                self._on_end(job.sweep, None, INTERRUPTED)
