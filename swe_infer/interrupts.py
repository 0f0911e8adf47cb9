"""Ctrl-C at any moment of a command. Light to import: an entry point imports it before anything else.

What SIGINT and SIGTERM do depends on what the command is doing:

* While it starts and imports, the process ends at once: there is nothing to finish yet.
* Within :meth:`Interrupts.stoppable` the signal raises KeyboardInterrupt: nothing there was paid for.
* Within :meth:`Interrupts.finishing` the first signal sets events, and what is in flight is finished. The second one
  raises KeyboardInterrupt, or does what :meth:`Interrupts.second` says.

In each case one line on standard error says what happens, and the exit status is 130.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNWIND_S = 10.0
"""A library may swallow KeyboardInterrupt, or keep threads that the interpreter waits for at its end."""


class _Level:
    """What a signal does within one block of the main thread."""

    def __init__(self, finishes: bool, says: Callable[[], str]) -> None:
        self.finishes = finishes
        self.says = says


class Interrupts:
    """SIGINT and SIGTERM of this process; there is one instance, :data:`INTERRUPTS`."""

    def __init__(self) -> None:
        self._installed = False
        self._forget()

    def _forget(self) -> None:
        self.count = 0
        """Signals so far."""
        self.stopping = False
        """Whether nothing new is to be begun."""
        self._end_status = INTERRUPTED
        self._levels: list[_Level] = []
        self._stops: list[threading.Event] = []
        self._on_first: list[Callable[[], None]] = []
        self._second: Callable[[], object] | None = None
        self._put_off = self._owed = False

    def install(self) -> None:
        """Take the signals for the rest of the process. Only in the main thread."""
        atexit.register(_ignore_signals)  # the first callback to be registered runs last
        sys.unraisablehook = _quiet(sys.unraisablehook)
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        self._installed = True

    @contextmanager
    def finishing(self, *stops: threading.Event, says: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Within it the first signal sets ``stops``, at once where it came before.

        Args:
            says: what is being finished, in a few words, for the line that the signal prints.
        """
        with self._taken():
            self._stops += stops
            try:
                if self.stopping:
                    self._set_stops()
                with self._level(_Level(True, says)):
                    yield
            finally:
                for stop in stops:
                    self._stops.remove(stop)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within it a signal raises KeyboardInterrupt; so does entering it once a signal has come."""
        with self._level(_Level(False, lambda: "stopping now")):
            if self.stopping and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            yield

    def finish_from_now_on(self, on_first: Callable[[], None], says: Callable[[], str]) -> None:
        """As :meth:`finishing` for the rest of the process, with a function to call at the first signal."""
        if threading.current_thread() is threading.main_thread():
            if not self._installed:
                self.install()
            self._on_first.append(on_first)
            self._levels.append(_Level(True, says))

    def spare_children(self) -> None:
        """Keep a terminal's Ctrl-C from the processes that are started from now on, as a launcher's are: it would end
        those that do not run our code yet with a trace. They inherit a mask in which it is blocked; a thread without
        that mask receives it for this process."""
        receiving = threading.Event()

        def receive() -> None:
            receiving.set()
            threading.Event().wait()

        threading.Thread(target=receive, name="interrupts", daemon=True).start()
        receiving.wait()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    @contextmanager
    def second(self, stop_now: Callable[[], object]) -> Iterator[None]:
        """Within it the second signal calls ``stop_now`` in the place of raising KeyboardInterrupt."""
        self._second = stop_now
        try:
            yield
        finally:
            self._second = None

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Within it no KeyboardInterrupt is raised; it is raised at the end instead."""
        self._put_off = True
        try:
            yield
        finally:
            self._put_off = False
        if self._owed:
            self._owed = False
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Begin nothing new, as after a first signal. For any thread."""
        self.stopping = True
        self._set_stops()

    @contextmanager
    def _taken(self) -> Iterator[None]:
        """Take the signals where no entry point has: in a library's use, and in a launcher's worker process. Only the
        main thread may; elsewhere the signals are left to it."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # see spare_children()
        self._installed = True
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._installed = False
            self._forget()

    @contextmanager
    def _level(self, level: _Level) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        depth = len(self._levels)
        self._levels.append(level)
        try:
            yield
        finally:
            del self._levels[depth:]

    def _set_stops(self) -> None:
        for stop in list(self._stops):
            stop.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if not self._levels:
            if self.count == 1 and self._end_status == INTERRUPTED:
                _say("interrupted")
            os._exit(self._end_status)
        level = self._levels[-1]
        if self.count == 1:
            for act in self._on_first:
                act()
            _say(f"interrupted: {level.says()}{'; press Ctrl-C again to stop now' if level.finishes else ''}")
            self.stop()
            if level.finishes:
                return
        elif self._second is not None and self.count == 2:
            self._second()
            return
        if self._put_off:
            self._owed = True
            return
        if not any(other.finishes for other in self._levels):
            _end_soon()
        raise KeyboardInterrupt

    def run(self, module: str, function: str, *, stoppable: bool) -> int:
        """:func:`run_command` without its end; returns the exit status."""
        status: int | str | None = 0
        try:
            command = getattr(import_module(module), function)
            with self.stoppable() if stoppable else nullcontext():
                status = command()
        except SystemExit as end:
            status = end.code
        except BrokenPipeError:  # whoever read standard output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = 1
        except BaseException:
            if not self.count:
                raise
        self._levels.clear()
        if self.count:
            return INTERRUPTED
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        self._end_status = int(status or 0)  # all is done: from here a signal only cuts the interpreter's end short
        return self._end_status


INTERRUPTS = Interrupts()


def run_command(module: str, function: str = "main", *, stoppable: bool = True) -> NoReturn:
    """An entry point: call ``function`` of ``module``, which is imported only now, and exit with what it returns, or
    with 130 where a signal came.

    Args:
        stoppable: a signal raises KeyboardInterrupt in it, so that it can clean up; else the process ends at once.
    """
    INTERRUPTS.install()
    status = INTERRUPTS.run(module, function, stoppable=stoppable)
    if status == INTERRUPTED:
        _end_soon()
        # CPython notes a KeyboardInterrupt that left an exec() of source text, such as a dataclass is made by, and
        # would end the process by SIGINT in the place of an exit status. The next exec() takes the note back.
        exec("")
    sys.exit(status)


def _quiet(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """``hook`` without a word about a KeyboardInterrupt that came up where Python cannot raise it."""

    def quiet(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)

    return quiet


def _say(line: str) -> None:
    """One line to standard error, past Python's own buffers, which the signal may have found in use."""
    with suppress(OSError):
        start = "\r\x1b[2K" if os.isatty(2) else ""
        os.write(2, f"{start}{line}\n".encode())


def _end_soon() -> None:
    """End the process in a few seconds, whatever it waits for."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(INTERRUPTED))
    signal.setitimer(signal.ITIMER_REAL, _UNWIND_S)


def _ignore_signals() -> None:
    """For the interpreter's last steps, which put the default handlers back: those would change the exit status."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
