"""What a sweep writes down: which points were begun, which ran where and with what end, and that it is to stop."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from swe_infer.cli.choices import unresolved
from swe_infer.cli.sweep_jobs import LOST, SweepJob, keep_swept_keys, overrides_of
from swe_infer.errors import StoreError
from swe_infer.files import open_regular, read_regular, write_atomically
from swe_infer.interrupts import INTERRUPTS
from swe_infer.run_directory import layout
from swe_infer.types import Estimate

_STOP = "stopped"
_POLL_S = 0.5
_MOST_BYTES = 1 << 28
_PASSWORD = re.compile(r"(\\?://)[^/@\s]+@")  # of an address; Hydra escapes its colons


@dataclass(frozen=True, slots=True)
class SweepLog:
    """``runs.jsonl`` in the sweep's directory: one line for each point, from whichever process ran it.

    ``begun.jsonl`` names the points that were begun, so that those of a worker that died can be told.
    """

    directory: Path
    overrides: tuple[str, ...] = ()
    number: int = 0

    @staticmethod
    def of(hydra: Any) -> SweepLog | None:
        """The log of the sweep that the current job belongs to; None for a single run."""
        if hydra.mode != RunMode.MULTIRUN:
            return None
        overrides = tuple(_PASSWORD.sub(r"\1***@", override) for override in unresolved(hydra.overrides.task))
        return SweepLog(Path(hydra.sweep.dir), overrides, hydra.job.num)

    def start(self, *, keep: bool, swept: Sequence[str] = ()) -> None:
        """Forget what an earlier launch of the same sweep noted, unless its points are to be kept: what it ran lies
        in the run directories.

        Args:
            swept: the keys that the sweep varies.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        # What an earlier process ran was printed by it; this one names all runs of the sweep.
        earlier = [*self.points(), *(SweepJob(overrides, None, LOST) for overrides in self.lost())] if keep else []
        kept = [
            dataclasses.replace(point, elsewhere=True, number=place - len(earlier))
            for place, point in enumerate(earlier)
        ]
        write_atomically(self.directory / "runs.jsonl", "".join(point.line() for point in kept))
        for name in ("begun.jsonl", "estimates.jsonl", _STOP):
            (self.directory / name).unlink(missing_ok=True)
        keep_swept_keys(self.directory, swept)

    @property
    def is_stopped(self) -> bool:
        """Whether the sweep was interrupted, so that no further point is to begin."""
        return (self.directory / _STOP).exists()

    def stop_on_interrupt(self) -> None:
        """From now on the first Ctrl-C ends the sweep with the points that are running, the second one at once."""
        INTERRUPTS.finish_from_now_on(self._stop, says=lambda: "no further point is begun")

    def _stop(self) -> None:
        with suppress(OSError):
            os.close(open_regular(self.directory / _STOP, os.O_WRONLY | os.O_CREAT))

    @contextmanager
    def interrupts_passed_on(self) -> Iterator[None]:
        """Within it an interrupt of the sweep interrupts the run of this process too. A signal may reach the sweep's
        process alone: a worker of a cluster is elsewhere, and ``kill`` names one process."""
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

    def begin(self) -> None:
        """Note that this point's job has begun."""
        self._append("begun.jsonl", json.dumps(self.overrides).encode() + b"\n")

    def add(
        self,
        run: Path | None,
        status: int,
        *,
        objective: list[float] | None = None,
        error: str | None = None,
        elsewhere: bool = False,
    ) -> None:
        """Note how this point ended. ``elsewhere``: in a process whose standard output is not the sweep's."""
        point = SweepJob(self.overrides, str(run) if run else None, status, objective, error, elsewhere, self.number)
        self._append("runs.jsonl", point.line().encode())

    def _append(self, name: str, line: bytes) -> None:
        descriptor = open_regular(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line)  # one write: points of other processes append too
        finally:
            os.close(descriptor)

    def add_estimate(self, found: Estimate) -> None:
        """Keep what a dry run of one point found; they are added up at the end."""
        from pydantic import TypeAdapter

        self._append("estimates.jsonl", TypeAdapter(Estimate).dump_json(found) + b"\n")

    def estimate(self) -> Estimate | None:
        """The sum over all points of a dry run; None where there was none. A line that is no estimate is left out."""
        from pydantic import TypeAdapter, ValidationError

        found = []
        for line in self._lines("estimates.jsonl"):
            with suppress(ValidationError):
                found.append(TypeAdapter(Estimate).validate_json(line))
        return functools.reduce(operator.add, found) if found else None

    def points(self) -> list[SweepJob]:
        """The points that ended, each once, with its last end, in the sweep's order."""
        found = [point for point in map(SweepJob.of_line, self._lines("runs.jsonl")) if point is not None]
        last = {point.overrides: point for point in found}
        return sorted(last.values(), key=lambda point: point.number)

    def lost(self) -> list[tuple[str, ...]]:
        """The points that were begun and have no end."""
        ended = {point.overrides for point in self.points()}
        begun = filter(None, map(overrides_of, self._lines("begun.jsonl")))
        return [point for point in dict.fromkeys(begun) if point not in ended]

    def _lines(self, name: str) -> list[bytes]:
        """The lines of a file of the sweep's directory; none where it is not there.

        Raises:
            StoreError: it cannot be read, or is no regular file.
        """
        try:
            return read_regular(self.directory / name, _MOST_BYTES).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(layout.unreadable(self.directory, error)) from None

    def close(self) -> None:
        """Leave one line for each point, and not the whole configuration, which Hydra has put beside it: it holds
        addresses as they were given, with a password that may be in one."""
        (self.directory / "multirun.yaml").unlink(missing_ok=True)
        write_atomically(self.directory / "runs.jsonl", "".join(point.line() for point in self.points()))
