"""The log of a sweep: which jobs started, how each ended, and whether the sweep was interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from swe_infer.cli.choices import raw_overrides
from swe_infer.cli.command_line import write_command
from swe_infer.cli.sweep_jobs import LOST, SweepJob, parse_overrides, write_swept_keys
from swe_infer.files import open_regular, write_atomically
from swe_infer.interrupts import INTERRUPTS
from swe_infer.run_directory import layout
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS, from_stored, to_stored

_STOP = "stopped"
_POLL_S = 0.5
_MOST_BYTES = 1 << 28
_PASSWORD = re.compile(r"(\\?://)[^/@\s]+@")  # in a URL; Hydra escapes its colons


@dataclass(frozen=True, slots=True)
class SweepLog:
    """``runs.jsonl`` in the sweep's directory: one line for each job that ended, in any process.

    The file contains paths relative to the sweep's directory, see :mod:`swe_infer.run_directory.sweep_paths`.
    ``begun.jsonl`` lists the jobs that started, which reveals those of a worker that died.
    """

    directory: Path
    overrides: tuple[str, ...] = ()
    number: int = 0

    @staticmethod
    def from_hydra(hydra: Any) -> SweepLog | None:
        """The log of the current job's sweep, from the composed ``hydra`` node; None for a single run."""
        if hydra.mode != RunMode.MULTIRUN:
            return None
        overrides = tuple(_PASSWORD.sub(r"\1***@", override) for override in raw_overrides(hydra.overrides.task))
        return SweepLog(Path(hydra.sweep.dir), overrides, hydra.job.num)

    def reset(self, *, keep: bool, swept: Sequence[str] = ()) -> None:
        """Starts the log of a launch.

        Args:
            keep: keep the jobs of earlier launches, for a search. Otherwise their run directories suffice.
            swept: the keys that the sweep varies.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        # `elsewhere`, so that this launch prints the run directories of earlier ones too.
        earlier = [*self.jobs(), *(SweepJob(overrides, None, LOST) for overrides in self.lost_jobs())] if keep else []
        kept = [
            dataclasses.replace(job, elsewhere=True, number=index - len(earlier)) for index, job in enumerate(earlier)
        ]
        self.write_jobs(kept)
        for name in ("begun.jsonl", "plan.json", _STOP):
            (self.directory / name).unlink(missing_ok=True)
        write_swept_keys(self.directory, swept)
        write_command(self.directory)

    def write_jobs(self, jobs: Iterable[SweepJob]) -> None:
        """Replaces the jobs of the log."""
        write_atomically(self.directory / SWEEP_JOBS, "".join(map(self._line, jobs)))

    @property
    def is_stopped(self) -> bool:
        """Whether the sweep was interrupted, so that no further job may start."""
        return (self.directory / _STOP).exists()

    def stop_on_interrupt(self) -> None:
        """From now on the first Ctrl-C ends the sweep after the running jobs, the second one at once."""
        INTERRUPTS.finish_from_now_on(self._stop, says=lambda: "no further run starts")

    def _stop(self) -> None:
        with suppress(OSError):
            os.close(open_regular(self.directory / _STOP, os.O_WRONLY | os.O_CREAT))

    @contextmanager
    def forwarding_interrupts(self) -> Iterator[None]:
        """Forwards an interrupt of the sweep to this process, which a signal to the sweep's process may not reach."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_POLL_S):
                if self.is_stopped:
                    INTERRUPTS.stop()
                    return

        watcher = threading.Thread(target=watch, name="sweep-interrupt", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def record_start(self) -> None:
        """Records that this job started."""
        self._append("begun.jsonl", json.dumps(self.overrides).encode() + b"\n")

    def record_end(
        self,
        run: Path | None,
        status: int,
        *,
        objective: list[float] | None = None,
        error: str | None = None,
        elsewhere: bool = False,
    ) -> None:
        """Records how this job ended. See :class:`SweepJob` for the arguments."""
        job = SweepJob(self.overrides, str(run) if run else None, status, objective, error, elsewhere, self.number)
        self._append(SWEEP_JOBS, self._line(job).encode())

    def _line(self, job: SweepJob) -> str:
        run = None if job.run is None else to_stored(self.directory, Path(job.run))
        return dataclasses.replace(job, run=run).line()

    def _append(self, name: str, line: bytes) -> None:
        descriptor = open_regular(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line)  # one write, because other processes append too
        finally:
            os.close(descriptor)

    def jobs(self) -> list[SweepJob]:
        """The jobs that ended, each with its last status, in the sweep's order."""
        found = [job for job in map(SweepJob.from_line, self._lines(SWEEP_JOBS)) if job is not None]
        found = [
            job if job.run is None else dataclasses.replace(job, run=str(from_stored(self.directory, job.run)))
            for job in found
        ]
        last = {job.overrides: job for job in found}
        return sorted(last.values(), key=lambda job: job.number)

    def lost_jobs(self) -> list[tuple[str, ...]]:
        """The overrides of the jobs that started and did not end."""
        ended = {job.overrides for job in self.jobs()}
        started = filter(None, map(parse_overrides, self._lines("begun.jsonl")))
        return [overrides for overrides in dict.fromkeys(started) if overrides not in ended]

    def _lines(self, name: str) -> list[bytes]:
        return (layout.content(self.directory, name, _MOST_BYTES) or b"").splitlines()

    def close(self) -> None:
        """Reduces the log to one line per job and removes Hydra's ``multirun.yaml``, whose URLs may contain
        passwords."""
        (self.directory / "multirun.yaml").unlink(missing_ok=True)
        self.write_jobs(self.jobs())
