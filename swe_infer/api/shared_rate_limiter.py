"""One pace for several runs that use one key: who may send next is kept in a small file that all of them lock.

File format: seven little-endian doubles, in seconds since the epoch and amounts a second: a time before which nobody
sends (a server's Retry-After), then for requests, tokens and output tokens when the schedule is level with what was
sent, and the rate (0: not known). Taking a turn is one locked read and write; nothing is held, so a killed process
leaves nothing behind. Nobody waits for the lock within a call: the event loop goes on, and hears Ctrl-C.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from swe_infer.errors import StoreError
from swe_infer.locks import has_no_locks

_STATE = struct.Struct("<7d")
_TOLERANCE_S = 0.25
_LONGEST_DEBT_S = 60.0
_TRIES = 5
_PAUSE_S = 0.001
_BUSY_S = 0.02
"""After so long a file that another process has locked is looked at again."""


class SharedRateLimiter:
    """The pace kept in ``path``.

    Args:
        clock: seconds since the epoch, as all who share the file count them.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._paused_until = 0.0
        """Not in the file yet, which was locked."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"runner.limits.shared={path}: {error.strerror}") from error
        try:
            with suppress(BlockingIOError), self._state():
                pass
        except OSError as error:
            os.close(self._file)
            why = "its file system has no file locks" if has_no_locks(error) else "cannot be used"
            raise StoreError(f"runner.limits.shared={path}: {why} ({error.strerror})") from error

    def take(self, amounts: Sequence[float], rates: Sequence[float | None]) -> float:
        """Take a turn: 0 where it was taken, else the seconds to wait before asking again.

        Args:
            amounts: requests, tokens and output tokens of one request.
            rates: amounts a second as far as this run knows them; None: as the others know them.
        """
        with suppress(BlockingIOError), self._state() as state:
            return self._taken(state, amounts, rates)
        return _BUSY_S

    def pause(self, seconds: float) -> None:
        """Nobody sends for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
        with suppress(BlockingIOError), self._state():
            pass

    def close(self) -> None:
        os.close(self._file)

    def _taken(self, state: list[float], amounts: Sequence[float], rates: Sequence[float | None]) -> float:
        """:meth:`take`, with the file's content, which is changed."""
        now = self._clock()
        paused_until, *pairs = state
        wait = paused_until - now
        for index, rate in enumerate(rates):
            if rate is not None:
                pairs[2 * index + 1] = rate
            if pairs[2 * index + 1] > 0:
                wait = max(wait, pairs[2 * index] - _TOLERANCE_S - now)
        if wait <= 0:
            for index, amount in enumerate(amounts):
                due, rate_known = pairs[2 * index], pairs[2 * index + 1]
                if rate_known > 0:
                    pairs[2 * index] = min(max(due, now) + amount / rate_known, now + _LONGEST_DEBT_S)
        state[1:] = pairs
        return max(0.0, wait)

    @contextmanager
    def _state(self) -> Iterator[list[float]]:
        """The file's content, which is written back.

        Raises:
            BlockingIOError: another process has locked it.
        """
        import fcntl

        for tries_left in reversed(range(_TRIES)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise
                time.sleep(_PAUSE_S)
        try:
            raw = os.pread(self._file, _STATE.size, 0)
            state = list(_STATE.unpack(raw)) if len(raw) == _STATE.size else [0.0] * 7
            state[0] = max(state[0], self._paused_until)
            yield state
            os.pwrite(self._file, _STATE.pack(*state), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
