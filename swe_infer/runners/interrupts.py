"""Ctrl-C: the first one lets runs finish what is in flight, the second one stops them at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts"]

log = logging.getLogger(__name__)


class Interrupts:
    """SIGINT and SIGTERM of one run, or of several that are made together.

    Args:
        stops: set by the first signal. The second one raises KeyboardInterrupt in the main thread.
    """

    def __init__(self, *stops: threading.Event) -> None:
        self._stops = list(stops)
        self.count = 0
        self._put_off = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within it the signals are ours."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals; a launcher's worker thread leaves them to it
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Within it no KeyboardInterrupt is raised; it is raised at the end instead."""
        self._put_off = True
        try:
            yield
        finally:
            self._put_off = False
        if self.count > 1:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            log.warning("interrupted: what is in flight is finished and kept; once more stops at once")
            for stop in self._stops:
                stop.set()
        elif not self._put_off:
            raise KeyboardInterrupt
