"""The process that logs runs to W&B: one for a single run, or one for all runs of a sweep.

Nothing here raises, and only :meth:`RunWriter.finish` and :meth:`SweepWriter.finish` wait. The process is
:mod:`swe_infer.tracking.worker`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from swe_infer.errors import StoreError
from swe_infer.files import open_regular
from swe_infer.interrupts import INTERRUPTS
from swe_infer.tracking.guest import Message, send, start
from swe_infer.tracking.state import checked_folder, folder_of, mark_incomplete

_log = logging.getLogger(__name__)

_ADDRESS_S = 2.0
"""Seconds of a whole sweep that its runs wait for their addresses, for their closing tables."""
_INTERRUPTED_S = 10.0
"""Seconds that an interrupted sweep waits for its finished runs, at most."""
_MOST_FAILURES = 3
"""Processes of a sweep that end before W&B has started a run, after which no other is started."""
_POLL_S = 0.1
_NOTICE_S = 5.0


class LoggedRun:
    """One run, and what is to be sent about it.

    Args:
        start: the ``start`` message.
        on_address: called in another thread with the address of the W&B run.
    """

    def __init__(
        self, start: Mapping[str, Any], directory: Path, interval_s: float, on_address: Callable[[str], None]
    ) -> None:
        self.directory = directory.absolute()
        self.on_address = on_address
        self.addressed = threading.Event()
        self.ended = threading.Event()
        """Set once nothing more will be logged."""
        self.warned = False
        self.history: list[dict[str, Any]] = []
        self._start: Mapping[str, Any] | None = start
        self._interval_s = interval_s
        self._due = 0.0
        self._latest: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._final: dict[str, Any] | None = None
        self._wake = threading.Event()

    def wake_with(self, event: threading.Event) -> None:
        """Set ``event`` whenever there is something to send."""
        self._wake = event

    def update_totals(self, totals: Mapping[str, Any]) -> None:
        if self.ended.is_set():
            return
        with self._lock:
            is_awaited, self._latest = self._latest is not None, {**totals, "_time": time.time()}
        if not is_awaited:  # otherwise the writer thread wakes when totals are due: a wake per record is expensive
            self._wake.set()

    def end(self, final: dict[str, Any]) -> None:
        """Send ``final`` as the last message."""
        self._final = final
        self._wake.set()

    def messages(self, now: float) -> Iterator[Message]:
        """The messages that are due."""
        if self._start is not None:
            first, self._start = self._start, None
            checked_folder(self.directory)
            yield {"start": first}
        final = self._final
        if self._latest is not None and (final is not None or now >= self._due):
            with self._lock:
                latest, self._latest = self._latest, None
            self._due = now + self._interval_s
            yield {"totals": latest}
        if final is not None:
            if self.history:
                yield {"history": self.history}
            yield {"finish": final}

    def next_due_s(self, now: float) -> float | None:
        """Seconds until the next message is due; None if there is nothing to send."""
        return None if self._latest is None else max(0.0, self._due - now)


class RunWriter:
    """A process that logs runs, a thread that writes requests to it, and one that reads replies.

    Args:
        is_shared: whether further runs may be added; otherwise the process ends with the first one.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self._runs: dict[int, LoggedRun] = {}
        self._pending: list[tuple[int, LoggedRun]] = []
        """The runs whose last message is not sent."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._ended = threading.Event()
        self._done = False
        self._silent = False
        self._topics: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = threading.Thread(target=self._write, name="wandb-writer", daemon=True)
        self.has_worked = False
        """Whether W&B has started a run."""

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def add(self, run: LoggedRun) -> None:
        """Log a run in the background."""
        with suppress(OSError):  # the process reports it
            mark_incomplete(run.directory)
        run.wake_with(self._wake)
        with self._lock:
            number = len(self._runs)
            self._runs[number] = run
            self._pending.append((number, run))
        self._wake.set()
        if number == 0:
            try:
                self._writer.start()
            except RuntimeError as error:  # no more threads
                self._warn(f"cannot start: {error}")
                self._end()
        elif self._ended.is_set():
            run.ended.set()

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of all runs, at most ``timeout_s``, and end the process.

        Raises:
            KeyboardInterrupt: the process is killed.
        """
        self._closing = True
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        notice = time.monotonic() + _NOTICE_S if self._is_shared else deadline
        try:
            while not self._ended.wait(max(0.0, min(_POLL_S, deadline - time.monotonic()))):
                now = time.monotonic()
                if self._is_shared and INTERRUPTS.stopping:
                    deadline = min(deadline, now + _INTERRUPTED_S)
                if now >= deadline:
                    break
                if now >= notice:
                    notice = deadline
                    _log.info("W&B: finishing %d runs, at most %.0f s", len(self._unfinished()), deadline - now)
        except KeyboardInterrupt:
            self._kill()
            raise
        if not self._ended.is_set():
            unfinished = self._unfinished()
            data = str(folder_of(unfinished[0].directory)) if len(unfinished) == 1 else "the run directories"
            what = f"{len(unfinished)} runs did" if len(unfinished) > 1 else "did"
            self._warn(f"{what} not finish in {timeout_s:g} s; the data is in {data}")
            self._kill()

    def _unfinished(self) -> list[LoggedRun]:
        return [run for run in self._runs.values() if not run.ended.is_set()]

    def _write(self) -> None:
        """The writer thread. Whatever ends it ends the runs, so that none waits for it."""
        try:
            self._run_process()
        finally:
            self._end()

    def _run_process(self) -> None:
        """Start the process, write to it, and wait for its end."""
        try:
            process = self._process = self._spawn()
        except (OSError, ValueError, StoreError) as error:
            self._warn(f"the worker cannot be started: {error}")
            return
        reader = threading.Thread(target=self._read, args=(process,), name="wandb-reader", daemon=True)
        reader.start()
        try:
            assert process.stdin is not None
            with process.stdin as pipe:
                self._send_messages(pipe)
        except BrokenPipeError:
            pass  # the worker has ended; its replies say why
        except OSError as error:
            self._warn(f"{type(error).__name__}: {error}")
        process.wait()
        reader.join()
        if not self._done:
            log_file = folder_of(self._runs[0].directory) / "worker.log"
            self._warn(f"the worker ended with status {process.returncode} (see {log_file})")

    def _end(self) -> None:
        self._ended.set()
        for run in list(self._runs.values()):
            run.ended.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        folder = checked_folder(self._runs[0].directory)
        log = open_regular(folder / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return start("worker", folder, log)
        finally:
            os.close(log)

    def _send_messages(self, pipe: IO[bytes]) -> None:
        """Write until every run has sent its last message and no run can be added."""
        while True:
            closing = self._closing  # before the runs are read, so that none is missed
            with self._lock:
                pending = list(self._pending)
            waits = [self._send_due(pipe, number, run) for number, run in pending]
            if closing and not self._pending:
                return
            self._wake.wait(min((wait for wait in waits if wait is not None), default=None))
            self._wake.clear()

    def _send_due(self, pipe: IO[bytes], number: int, run: LoggedRun) -> float | None:
        """Write the messages of one run that are due. Returns the seconds until its next one."""
        try:
            messages = list(run.messages(time.monotonic()))
        except (OSError, StoreError) as error:  # of its folder; the other runs are logged
            self._warn(str(error), run)
            run.ended.set()
            self._pending.remove((number, run))
            return None
        for message in messages:
            try:
                send(pipe, {"run": number, **message})
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - JSON cannot express a value, or its own code failed
                self._warn(f"{type(error).__name__}: {error}", run)
            if "finish" in message:
                self._pending.remove((number, run))
                return None
        return run.next_due_s(time.monotonic())

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """The reader thread: handles the replies."""
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                self._handle(message, self._runs.get(message.get("run", -1)))

    def _handle(self, message: Message, run: LoggedRun | None) -> None:
        if "address" in message and run is not None:
            self.has_worked = True
            run.on_address(message["address"])
            run.addressed.set()
        if "warning" in message:
            self._warn(message["warning"], run, message.get("topic"))
        if "error" in message:
            self._warn(f"{message['kind']}: {message['error']}", run, message["kind"])
        if run is not None and message.keys() & {"done", "error"}:
            run.ended.set()
        if run is None and "done" in message:
            self._done = True
            self._end()  # the files are written; do not wait for the interpreter's shutdown

    def _warn(self, text: str, run: LoggedRun | None = None, topic: str | None = None) -> None:
        """Log the first problem of a run; later ones usually have the same cause.

        Args:
            topic: a problem of the same topic is logged for one run only.
        """
        runs = [run] if run is not None else list(self._runs.values())
        if self._silent or all(one.warned for one in runs) or topic in self._topics:
            return
        for one in runs:
            one.warned = True
        if topic is not None:
            self._topics.add(topic)
        goes_on = "sweep" if self._is_shared else "run"
        _log.warning("W&B: %s. The %s goes on.", " ".join(text.split())[:500].rstrip("."), goes_on)

    def _kill(self) -> None:
        self._silent = True
        for run in self._unfinished():
            run.ended.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # its wandb-core then exits
            self._writer.join(2.0)


class SweepWriter:
    """Logs all runs of a sweep in one process. It starts with the first run, and runs end in the background."""

    def __init__(self) -> None:
        self.options: Mapping[str, Any] | None = None
        """The tracker's options of the first run."""
        self._writer: RunWriter | None = None
        self._last: dict[Path, LoggedRun] = {}
        self._timeout_s = 0.0
        self._patience_s = _ADDRESS_S
        self._failures = 0

    def add(self, run: LoggedRun, options: Mapping[str, Any]) -> None:
        """Log a run.

        Args:
            options: of its tracker. ``finish_timeout_s`` bounds the wait for the end of the run.
        """
        self.options = self.options or options
        timeout_s: float = options["finish_timeout_s"]
        self._timeout_s = max(self._timeout_s, timeout_s)
        before = self._last.get(run.directory)
        if before is not None:  # a run that grows: its files must not change while they are copied
            before.ended.wait(timeout_s)
        self._last[run.directory] = run
        if self._writer is not None and self._writer.has_ended:
            self._failures += not self._writer.has_worked
            self._writer = self._writer if self._failures >= _MOST_FAILURES else None
        if self._writer is None:
            self._writer = RunWriter(is_shared=True)
        self._writer.add(run)

    def await_address(self, run: LoggedRun) -> None:
        """Wait for the address of a run, unless the sweep has waited long already."""
        started = time.monotonic()
        while self._patience_s > 0 and not run.addressed.wait(_POLL_S) and not run.ended.is_set():
            self._patience_s -= time.monotonic() - started
            started = time.monotonic()

    def wait(self) -> None:
        """Wait for the end of all runs so far, a limited time."""
        deadline = time.monotonic() + self._timeout_s
        for run in self._last.values():
            run.ended.wait(max(0.0, deadline - time.monotonic()))

    def finish(self) -> None:
        """Wait for the end of all runs, a limited time, and end the process.

        Raises:
            KeyboardInterrupt: the process is killed.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish(self._timeout_s)

    def close(self) -> None:
        """As :meth:`finish`, for :meth:`swe_infer.runners.base.ProcessResources.close`."""
        self.finish()
