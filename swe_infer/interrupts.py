"""Handling of SIGINT, SIGTERM and SIGHUP. Entry points import it first, so it imports nothing heavy.

The effect of a signal depends on what the command is doing:

* While it starts and imports, the process ends at once: there is nothing to finish yet.
* Within :meth:`Interrupts.stoppable` the signal raises KeyboardInterrupt: nothing there was paid for.
* Within :meth:`Interrupts.finishing` the first signal sets events, and requests in flight are finished. The second
  one raises KeyboardInterrupt, or calls the function of :meth:`Interrupts.second`.

Each signal prints one line on standard error, and the exit status is 130. A closed terminal and its shell may send
SIGHUP several times, so it has no effect after another signal.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from swe_infer.standard_streams import output_error, prepare_streams

INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COLLECT_AFTER = (250_000, 10, 10)
"""For :func:`gc.set_threshold`: imports create many objects, of which few become garbage."""
_UNWIND_S = 10.0
"""Seconds until the process is ended, if a library swallows KeyboardInterrupt or its threads do not end. Those of a
launcher stop its processes."""
_END_S = 2.0
"""The same, if there are threads of ``NATIVE``."""
NATIVE = "native"
"""Prefix of the names of threads that may be in native code for long. After an interrupt nothing needs it."""
_POLL_S = 0.1

_Result = TypeVar("_Result")


class Stopped(KeyboardInterrupt):
    """A signal ended a wait, also the first one within :meth:`Interrupts.finishing`."""


class _Scope:
    """The effect of a signal within one block of the main thread."""

    def __init__(self, finishes: bool, says: Callable[[], str]) -> None:
        self.finishes = finishes
        self.says = says


class Interrupts:
    """The signal handlers of this process; :data:`INTERRUPTS` is the only instance."""

    def __init__(self) -> None:
        self._installed = False
        self._owns_process = False
        self._reset()

    def _reset(self) -> None:
        self.count = 0
        """Signals so far."""
        self.stopping = False
        """Whether no new work may be started."""
        self._end_status = INTERRUPTED
        self._scopes: list[_Scope] = []
        self._stops: list[threading.Event] = []
        self._on_first: list[Callable[[], None]] = []
        self._second: Callable[[], object] | None = None
        self._deferring = self._deferred = False

    def install(self) -> None:
        """Install the handlers for the rest of the process. Only in the main thread."""
        atexit.register(_ignore_signals)  # registered first, so that it runs last
        sys.unraisablehook = _quiet(sys.unraisablehook)
        for number in _handled_signals():
            signal.signal(number, self._handle)
        self._installed = self._owns_process = True

    @contextmanager
    def finishing(self, *stops: threading.Event, says: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Within the block the first signal sets ``stops``. If it came before, they are set at once.

        Args:
            says: describes what is being finished, for the line that the signal prints.
        """
        with self._handlers():
            self._stops += stops
            try:
                if self.stopping:
                    self._set_stops()
                with self._scope(_Scope(True, says)):
                    yield
            finally:
                for stop in stops:
                    self._stops.remove(stop)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within the block a signal raises KeyboardInterrupt. So does entering it after a signal."""
        with self._scope(_Scope(False, lambda: "stopping now")):
            if self.stopping and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            yield

    def finish_from_now_on(self, on_first: Callable[[], None], says: Callable[[], str]) -> None:
        """Like :meth:`finishing` for the rest of the process; the first signal calls ``on_first``."""
        if threading.current_thread() is threading.main_thread():
            if not self._installed:
                self.install()
            self._on_first.append(on_first)
            self._scopes.append(_Scope(True, says))

    def spare_children(self) -> None:
        """Block SIGINT and SIGHUP in processes that are started later, such as those of a launcher: Ctrl-C or the end
        of the terminal would end them before they install handlers. They inherit the signal mask of the main thread;
        another thread receives the signals for this process."""
        receiving = threading.Event()

        def receive() -> None:
            receiving.set()
            threading.Event().wait()

        threading.Thread(target=receive, name="interrupts", daemon=True).start()
        receiving.wait()
        spared = {signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, spared)
        from multiprocessing import resource_tracker  # a single run does not need it

        resource_tracker.ensure_running()  # a launcher would start it, which unblocks SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, spared)

    @contextmanager
    def second(self, stop_now: Callable[[], object]) -> Iterator[None]:
        """Within the block the second signal calls ``stop_now`` instead of raising KeyboardInterrupt."""
        self._second = stop_now
        try:
            yield
        finally:
            self._second = None

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Delays KeyboardInterrupt to the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._deferred:
            self._deferred = False
            raise KeyboardInterrupt

    def call_native(self, work: Callable[[], _Result]) -> _Result:
        """Calls native code that may take long, in another thread if this is the main one: no signal is handled while
        that is within native code.

        Raises:
            Stopped: a signal came. The call continues, and nothing uses its result.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        from concurrent.futures import Future, wait  # imports logging

        called: Future[_Result] = Future()

        def call() -> None:
            try:
                called.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised in the main thread
                called.set_exception(error)

        # The process of a launcher or of another program ends without it. That may crash native code that returns
        # meanwhile, so a command, whose exit status counts, waits for some seconds.
        threading.Thread(target=call, name=NATIVE, daemon=not self._owns_process).start()
        while wait([called], _POLL_S).not_done:
            if self.stopping:
                raise Stopped
        return called.result()

    def stop(self) -> None:
        """Start no new work, as after a first signal. Thread-safe."""
        self.stopping = True
        self._set_stops()

    @contextmanager
    def _handlers(self) -> Iterator[None]:
        """Install the handlers for a block if no entry point has: in library use, or in a launcher's worker process.
        Does nothing outside the main thread."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _handled_signals()}
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # see spare_children()
        self._installed = True
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._installed = False
            self._reset()

    @contextmanager
    def _scope(self, scope: _Scope) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        depth = len(self._scopes)
        self._scopes.append(scope)
        try:
            yield
        finally:
            del self._scopes[depth:]

    def _set_stops(self) -> None:
        for stop in list(self._stops):
            stop.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.count:
            return
        self.count += 1
        if not self._scopes and not self._owns_process:
            raise KeyboardInterrupt  # in library use, between two blocks
        if not self._scopes:
            if self.count == 1 and self._end_status == INTERRUPTED:
                _print_line("interrupted")
            os._exit(self._end_status)
        scope = self._scopes[-1]
        if self.count == 1:
            for act in self._on_first:
                act()
            _print_line(f"interrupted: {scope.says()}{'; press Ctrl-C again to stop now' if scope.finishes else ''}")
            self.stop()
            if scope.finishes:
                return
        elif self._second is not None and self.count == 2:
            self._second()
            return
        if self._deferring:
            self._deferred = True
            return
        if self._owns_process and not any(other.finishes for other in self._scopes):
            _exit_after_timeout(_UNWIND_S)
        raise KeyboardInterrupt

    def call(self, module: str, function: str, *, stoppable: bool) -> int:
        """:func:`run_command` without exiting; returns the exit status."""
        status: int | str | None = 0
        try:
            command = getattr(import_module(module), function)
            with self.stoppable() if stoppable else nullcontext():
                status = command()
        except SystemExit as end:
            status = end.code
        except BaseException:
            if not self.count:
                raise
        self._scopes.clear()
        if self.count:
            return INTERRUPTED
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
        if (error := output_error()) is not None:
            print(f"error: {error}", file=sys.stderr)
            status = status or 1
        self._end_status = int(status or 0)  # from here a signal only ends the interpreter's shutdown
        return self._end_status


INTERRUPTS = Interrupts()


def run_command(module: str, function: str = "main", *, stoppable: bool = True) -> NoReturn:
    """Entry point: import ``module``, call ``function``, and exit with its result, or with 130 after a signal.

    Args:
        stoppable: a signal raises KeyboardInterrupt in ``function``, so that it can clean up; otherwise the process
            ends at once.
    """
    _use_utf8()
    INTERRUPTS.install()
    prepare_streams()
    gc.set_threshold(*COLLECT_AFTER)
    status = INTERRUPTS.call(module, function, stoppable=stoppable)
    gc.freeze()  # the interpreter's shutdown would search all modules for garbage: a tenth of a short command's time
    if status == INTERRUPTED:
        is_native = any(thread.name.startswith(NATIVE) for thread in threading.enumerate())
        _exit_after_timeout(_END_S if is_native else _UNWIND_S)
        # CPython sets a flag when a KeyboardInterrupt leaves an exec() of source text, as in the creation of a
        # dataclass, and would then end the process by SIGINT instead of an exit status. The next exec() clears it.
        exec("")
    sys.exit(status)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding.

    A path is bytes. Decoded with that encoding, it would be another path in a run's files, which are UTF-8.
    """
    if sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        return
    # A program on standard input cannot be read again, and a frozen one does not take Python's options.
    is_startable = sys.executable and sys.argv[0] not in ("", "-") and not getattr(sys, "frozen", False)
    if sys.getfilesystemencoding() != "utf-8" and is_startable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *_arguments()])


def _arguments() -> Sequence[str | bytes]:
    """The arguments of Python itself. Python's codec of an Asian encoding may differ from that of the C library,
    which decoded ``sys.orig_argv``."""
    try:
        return Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    except OSError:  # not Linux
        return sys.orig_argv[1:]


def _handled_signals() -> list[signal.Signals]:
    """All but an ignored SIGHUP: ``nohup`` lets a command outlive its terminal."""
    return [n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


def _quiet(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Wraps ``hook`` to ignore KeyboardInterrupt where Python cannot raise it."""

    def quiet(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)

    return quiet


def _print_line(line: str) -> None:
    """Print to standard error without Python's buffers, which may be in use when the signal arrives."""
    with suppress(OSError):
        start = "\r\x1b[2K" if os.isatty(2) else ""
        os.write(2, f"{start}{line}\n".encode())


def _exit_after_timeout(seconds: float) -> None:
    """End the process after some seconds, even if it is blocked."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(INTERRUPTED))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _ignore_signals() -> None:
    """Ignore signals during shutdown, where Python restores default handlers, which would change the exit status."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
