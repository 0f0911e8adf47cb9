"""How fast a quota may be used: requests a minute, tokens a minute.

A quota is known from the configuration, or learnt from the answers' headers, or not at all. Two accounts of it are
kept, and either of them may let a request go:

* the *schedule*: an even pace (the generic cell rate algorithm, ITU-T I.371) that remembers everything sent, so that
  the average never passes the quota whatever way a server counts it (bucket, fixed window, sliding window);
* the *statement*: what the server said was left, less what was sent since, plus what has flowed back where the
  headers show that the quota refills continuously. It lets bursts through that the server allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from swe_infer.api.coordination import Busy, SharedDatabase
from swe_infer.errors import StoreError

_MINUTE_S = 60.0
_USED = 0.995
"""Share of the quota that the schedule aims at: clocks and queues differ by more than nothing."""
_TOLERANCE_S = 0.25
"""How far the schedule may be caught up with after a late wake-up."""
_AGREEMENTS = 3
"""So many headers in a row must look like a bucket before its refill is counted on."""

_LONGEST_WAIT_S = 0.004
"""For other processes that have the shared file locked."""
_BUSY_S = 0.02
"""Before the next try, if the shared file is still locked."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS schedules (
    id INTEGER PRIMARY KEY CHECK (id = 1), paused_until REAL NOT NULL,
    requests_due REAL NOT NULL, tokens_due REAL NOT NULL, output_due REAL NOT NULL,
    requests_rate REAL NOT NULL, tokens_rate REAL NOT NULL, output_rate REAL NOT NULL)
"""
"""Times in seconds since the epoch, rates in amounts per second (0: not known)."""


class RateLimiter:
    """One quota. Amounts are requests or tokens, times are seconds of one monotonic clock.

    Args:
        per_minute: as configured; None: learn it. A configured quota is the upper bound of a learnt one.
        now: when counting begins.
        parts: how many share what the headers state, each of which takes an equal part of it.
    """

    def __init__(self, per_minute: float | None, now: float, parts: int = 1) -> None:
        self._configured = per_minute
        self._parts = parts
        self._rate = per_minute / _MINUTE_S if per_minute is not None else None
        self._burst = per_minute is None
        self._due = now  # when the schedule is level with what was sent
        self._began: float | None = None  # the first request: what lies before it was no time to use a quota in
        self._sent = 0.0
        self._left: float | None = None  # the statement, as of the request with `_left_at_sent` sent before it
        self._left_at_sent = 0.0
        self._left_time = now
        self._bucket = 0

    @property
    def per_minute(self) -> float | None:
        """The quota in force, or None while it is not known."""
        return None if self._rate is None else self._rate * _MINUTE_S

    @property
    def pace(self) -> float | None:
        """Amount a second that the schedule aims at, or None while the quota is not known."""
        return None if self._rate is None else self._rate * _USED

    @property
    def sent(self) -> float:
        """All that was ever taken; hand it back to :meth:`learn` with the answer."""
        return self._sent

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be sent; 0: now."""
        if self._rate is None:
            return 0.0
        if self._burst and self._available(now) >= amount:
            return 0.0
        wait = self._due - _TOLERANCE_S - now
        if wait <= 0.0:
            return 0.0
        if self._burst and self._bucket >= _AGREEMENTS and self._left is not None:
            wait = min(wait, (amount - self._available(now)) / self._rate)
        return wait

    def take(self, amount: float, now: float) -> None:
        """Note that ``amount`` is being sent."""
        if self._began is None:
            self._began = now
        self._sent += amount
        if self._rate is not None:
            self._due = _advanced(self._due, amount, self._rate * _USED, now)

    def correct(self, surplus: float) -> None:
        """``surplus`` of what was taken turned out not to be used; below 0, more was. Servers allow for that in what
        they state."""
        if self._rate is not None:
            self._due -= surplus / (self._rate * _USED)

    def refused(self) -> None:
        """The server refused a request: do not count on refills again, and forget what it said was left.

        A fixed window that was used up at once looks like a bucket until then.
        """
        self._bucket = -(10**9)
        if self._left is not None:
            self._left, self._left_at_sent = 0.0, self._sent

    def learn(
        self, limit: float | None, remaining: float | None, reset_s: float | None, *, sent_before: float, now: float
    ) -> None:
        """Take in an answer's headers.

        Args:
            limit, remaining, reset_s: as the headers state them; None where they are silent.
            sent_before: :attr:`sent` just after this answer's own request was taken.
        """
        if limit is None or limit <= 0:
            return
        rate = limit / _MINUTE_S
        if remaining is not None and reset_s is not None and remaining < limit:
            full_s = reset_s * limit / (limit - remaining)  # of an empty bucket, if it is one
            if reset_s > 1.5 * _MINUTE_S:
                rate = limit / full_s  # a quota for a longer time than a minute, such as a day
            is_bucket = abs(full_s - limit / rate) <= 0.1 * limit / rate + limit / (limit - remaining)
            self._bucket = self._bucket + 1 if is_bucket else 0
        rate /= self._parts
        if self._configured is not None:
            rate = min(rate, self._configured / _MINUTE_S)
        if self._rate is None:
            # The schedule begins with the first request, so what was sent before the quota was known is owed.
            began = now if self._began is None else self._began
            self._due = began + self._sent / (rate * _USED)
        self._rate = rate
        if remaining is not None and (self._left is None or sent_before >= self._left_at_sent):
            self._left, self._left_at_sent, self._left_time = remaining / self._parts, sent_before, now

    def _available(self, now: float) -> float:
        if self._left is None or self._rate is None:
            return 0.0
        refilled = (now - self._left_time) * self._rate if self._bucket >= _AGREEMENTS else 0.0
        return self._left + refilled - (self._sent - self._left_at_sent)


class SharedRateLimiter:
    """The schedules of several runs on one machine that use one key, kept in ``path``.

    No call waits for other processes, because the event loop calls them. Nothing is held between calls, so a killed
    process leaves nothing behind.

    Args:
        clock: seconds since the epoch, the same for all processes.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._paused_until = 0.0
        """Also for the case that the file was locked when the pause began."""
        name = f"runner.limits.shared={path}"
        # A link is followed: the path is the user's own.
        self._db = SharedDatabase(path.resolve(), name, _SCHEMA, timeout_s=_LONGEST_WAIT_S)
        try:
            self.pause(0.0)
        except StoreError:
            self._db.close()
            raise

    def acquire(self, amounts: Sequence[float], rates: Sequence[float | None]) -> float:
        """Schedules one request if it may be sent now. Returns 0 if so, else the seconds to wait before the next try.

        Args:
            amounts: requests, tokens and output tokens of the request.
            rates: amounts per second, as far as this run knows them; None: as other runs know them.

        Raises:
            StoreError: the file cannot be written.
        """
        with suppress(Busy), self._state() as state:
            now, due = self._clock(), state[1:4]
            known = [old if rate is None else rate for old, rate in zip(state[4:], rates, strict=True)]
            waits = [each - _TOLERANCE_S - now for each, rate in zip(due, known, strict=True) if rate > 0]
            wait_s = max(state[0] - now, *waits, 0.0)
            if wait_s == 0.0:
                due = [
                    _advanced(each, amount, rate, now) if rate > 0 else each
                    for each, amount, rate in zip(due, amounts, known, strict=True)
                ]
            state[1:] = due + known
            return wait_s
        return _BUSY_S

    def pause(self, seconds: float) -> None:
        """Lets no run send for ``seconds``."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
        with suppress(Busy), self._state():
            pass

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _state(self) -> Iterator[list[float]]:
        """The row, which is written back if it changed.

        Raises:
            Busy: another process has the file locked.
        """
        with self._db.transaction():
            rows = self._db.execute("SELECT * FROM schedules")
            before = list(rows[0][1:]) if rows else [0.0] * 7
            state = [max(before[0], self._paused_until), *before[1:]]
            yield state
            if state != before:
                self._db.execute("INSERT OR REPLACE INTO schedules VALUES (1, ?, ?, ?, ?, ?, ?, ?)", tuple(state))


def _advanced(due: float, amount: float, rate: float, now: float) -> float:
    """The time at which a schedule has caught up, after ``amount`` more is sent."""
    return min(max(due, now) + amount / rate, now + _MINUTE_S)
