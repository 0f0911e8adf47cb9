"""One pace for several runs that use one key: who may send next is kept in a small file that all of them lock.

File format: seven little-endian doubles, in seconds since the epoch and amounts a second: a time before which nobody
sends (a server's Retry-After), then for requests, tokens and output tokens when the schedule is level with what was
sent, and the rate (0: not known). Taking a turn is one locked read and write; nothing is held, so a killed process
leaves nothing behind.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swe_infer.errors import StoreError
from swe_infer.locks import has_no_locks

__all__ = ["SharedPace"]

_STATE = struct.Struct("<7d")
_TOLERANCE_S = 0.25
_LONGEST_DEBT_S = 60.0


class SharedPace:
    """The pace kept in ``path``.

    Args:
        clock: seconds since the epoch, as all who share the file count them.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"runner.limits.shared={path}: {error.strerror}") from error
        try:
            with self._state():
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
        now = self._clock()
        with self._state() as state:
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

    def pause(self, seconds: float) -> None:
        """Nobody sends for so long."""
        with self._state() as state:
            state[0] = max(state[0], self._clock() + seconds)

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def _state(self) -> Iterator[list[float]]:
        import fcntl

        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            raw = os.pread(self._file, _STATE.size, 0)
            state = list(_STATE.unpack(raw)) if len(raw) == _STATE.size else [0.0] * 7
            yield state
            os.pwrite(self._file, _STATE.pack(*state), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
