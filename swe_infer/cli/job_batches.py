"""Jobs of a sweep that share an engine or a connection.

Hydra's launcher hands over one job after the other. A job that may share is opened and waits, in one queue for each
engine or connection. When a queue is full, or no further job comes, its jobs run together. The answers of a local
model are decoded in the same batches: a forward pass reads the weights once, however many rows it has. Requests to an
API share its rate limits and connections.

Only jobs in the sweep's own process wait. A launcher's workers, a search, and a job with its own environment
variables run each job at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.cli.run_session import PreparedRun, RunSession
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.errors import UploadIncomplete
from swe_infer.interrupts import INTERRUPTED
from swe_infer.runners.base import ProcessResources
from swe_infer.runners.concurrent import run_concurrently
from swe_infer.text import clean

_MOST_WAITING = 64
"""Open jobs in all queues, at most: each has a locked directory."""


@dataclass(frozen=True, slots=True)
class _WaitingJob:
    prepared: PreparedRun
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
        self._queues: dict[Hashable, list[_WaitingJob]] = {}

    def submit(self, prepared: PreparedRun, sweep: SweepLog) -> bool:
        """Opens a run and queues it. Runs its queue when it is full.

        Returns:
            Whether the run was queued; False if this run may not share with other jobs.

        Raises:
            DataError, StoreError: see :meth:`PreparedRun.open`.
        """
        runner = prepared.experiment.runner
        sharing = runner.sharing or runner.connection
        if sharing is None or prepared.experiment.dry_run:
            return False
        waiting = [job for queue in self._queues.values() for job in queue]
        if any(job.prepared.identity == prepared.identity for job in waiting):
            self.run_waiting()  # this run reuses the answers of the other one
        elif len(waiting) >= _MOST_WAITING:
            self._run(max(self._queues, key=lambda key: len(self._queues[key])))
        key = sharing.engine_key
        session = prepared.open(self._resources)
        queue = self._queues.setdefault(key, [])
        queue.append(_WaitingJob(prepared, session, sweep))
        if len(queue) >= sharing.max_concurrent_jobs:
            self._run(key)
        return True

    def run_waiting(self) -> None:
        """Runs the queues and reports how each job ended."""
        while self._queues:
            self._run(next(iter(self._queues)))

    def _run(self, key: Hashable) -> None:
        """Runs the queue of ``key`` and reports how each job ended, in the order of submission."""
        jobs = self._queues.pop(key)
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
                directory = job.prepared.directory if isinstance(end, int) else None
                try:
                    with job.session:
                        if isinstance(end, int):
                            if len(jobs) > 1 and job.session.run.sweep is not None:  # the progress line named all
                                print(clean(job.session.run.sweep.label), file=sys.stderr)
                            job.session.print_summary()
                except UploadIncomplete as error:
                    self._on_end(job.sweep, directory, error)
                else:
                    self._on_end(job.sweep, directory, end)

    def abandon(self) -> None:
        """Drops the queues: the sweep ended early."""
        queues, self._queues = self._queues, {}
        for jobs in queues.values():
            self._report_interrupted(jobs)

    def _report_interrupted(self, jobs: Sequence[_WaitingJob]) -> None:
        for job in jobs:
            with job.session:
                self._on_end(job.sweep, None, INTERRUPTED)
