"""How fast a quota may be used: requests per minute, tokens per minute.

A quota is configured, or read from response headers, or unknown. A request may be sent if either of two accounts
allows it:

* the *schedule*: an even rate (the generic cell rate algorithm, ITU-T I.371) that counts everything sent, so that the
  average never exceeds the quota, however a server counts it (bucket, fixed window, sliding window);
* the *headers*: what the server reported as remaining, less what was sent since, plus what has been refilled if the
  headers show a continuous refill. It allows the bursts that the server allows.

What a refusal reports expires, unless an answer confirms it: servers report quotas of other tiers, models or
gateways, and many report none with their answers.
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
"""Share of the quota that the schedule uses; the rest covers differences between clocks and queues."""
_TOLERANCE_S = 0.25
"""Seconds of delay that the schedule may catch up on."""
_AGREEMENTS = 3
"""Consecutive responses that must match a bucket before its refill is relied on."""

_DAY_S = 86_400.0
_LONGEST_RESET_S = 32 * _DAY_S
"""A later reset is not one of a quota."""
_LONGEST_WAIT_S = 0.004
"""Seconds to wait for other processes that have the shared file locked."""
_BUSY_S = 0.02
"""Seconds before the next attempt if the shared file is still locked."""

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
        per_minute: the configured quota, an upper bound on what headers report; None: only headers count.
        now: when counting begins.
        parts: how many processes share the quota in the headers in equal parts.
    """

    def __init__(self, per_minute: float | None, now: float, parts: int = 1) -> None:
        self._configured = per_minute
        self._parts = parts
        self._rate = per_minute / _MINUTE_S if per_minute is not None else None
        self._burst = per_minute is None
        self._due = now  # when the schedule has caught up with what was sent
        self._first_sent_at: float | None = None  # the quota was not used before
        self._sent = 0.0
        self._remaining: float | None = None  # by the headers, as of `_remaining_at_sent`
        self._remaining_at_sent = 0.0
        self._remaining_at = now
        self._bucket_matches = 0
        self._expires_at: float | None = None
        self._confirmed_rate = self._rate
        """The rate that applies again when the current one expires."""

    @property
    def per_minute(self) -> float | None:
        """The current quota, or None while it is unknown."""
        return None if self._rate is None else self._rate * _MINUTE_S

    @property
    def target_rate(self) -> float | None:
        """Target rate of the schedule per second, or None while the quota is unknown."""
        return None if self._rate is None else self._rate * _USED

    @property
    def sent(self) -> float:
        """Total amount consumed so far, for :meth:`update_from_headers`."""
        return self._sent

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be sent; 0: now."""
        if self._rate is None:
            return 0.0
        self._due = min(self._due, now + _MINUTE_S)
        if self._burst and self._available(now) >= amount:
            return 0.0
        wait = self._due - _TOLERANCE_S - now
        if wait <= 0.0:
            return 0.0
        if self._burst and self._bucket_matches >= _AGREEMENTS and self._remaining is not None:
            wait = min(wait, (amount - self._available(now)) / self._rate)
        return wait

    def consume(self, amount: float, now: float) -> None:
        """Records that ``amount`` is being sent."""
        if self._first_sent_at is None:
            self._first_sent_at = now
        self._sent += amount
        if self._rate is not None:
            self._due = _advanced(self._due, amount, self._rate * _USED, now)

    def refund(self, surplus: float) -> None:
        """Returns ``surplus`` that was consumed but not used to the schedule; negative: more was used. What headers
        report includes this already."""
        if self._rate is not None:
            self._due -= surplus / (self._rate * _USED)

    def forget_expired(self, now: float) -> bool:
        """Forgets what a refusal reported, if it has expired. Returns whether it has."""
        if self._expires_at is None or now < self._expires_at:
            return False
        self._expires_at, self._remaining = None, None
        self._rate, self._due = self._confirmed_rate, now
        return True

    def expires_in_s(self, now: float) -> float:
        """Seconds until :meth:`forget_expired` returns True."""
        return float("inf") if self._expires_at is None else max(0.0, self._expires_at - now)

    def refused(self) -> None:
        """Records a refusal: refills are not relied on again, and nothing counts as remaining.

        Until then, a fixed window that was used up at once looks like a bucket.
        """
        self._bucket_matches = -(10**9)
        if self._remaining is not None:
            self._remaining, self._remaining_at_sent = 0.0, self._sent

    def update_from_headers(
        self,
        limit: float | None,
        remaining: float | None,
        reset_s: float | None,
        *,
        sent_before: float,
        now: float,
        expires_at: float | None = None,
    ) -> None:
        """Updates the quota from a response.

        Args:
            limit, remaining, reset_s: from the headers; None: not in the headers.
            sent_before: :attr:`sent` just after the request of this response was consumed.
            expires_at: when to forget the rate of a refusal; None: never, as it is from an answer.
        """
        if limit is None or limit <= 0:
            return
        self._expires_at = expires_at
        rate = limit / _MINUTE_S
        if remaining is not None and reset_s is not None and remaining < limit:
            full_s = reset_s * limit / (limit - remaining)  # seconds to fill an empty bucket, if it is one
            if 1.5 * _MINUTE_S < reset_s <= _LONGEST_RESET_S:  # a quota for more than a minute, such as a day
                rate = limit / (full_s if full_s <= 1.1 * _DAY_S else reset_s)
            matches_bucket = abs(full_s - limit / rate) <= 0.1 * limit / rate + limit / (limit - remaining)
            self._bucket_matches = self._bucket_matches + 1 if matches_bucket else 0
        rate /= self._parts
        if self._configured is not None:
            rate = min(rate, self._configured / _MINUTE_S)
        if self._rate is None:
            # The schedule starts at the first request: what was sent before the quota was known counts.
            start = now if self._first_sent_at is None else self._first_sent_at
            self._due = start + self._sent / (rate * _USED)
        self._rate = rate
        if expires_at is None:
            self._confirmed_rate = rate
        if remaining is not None and (self._remaining is None or sent_before >= self._remaining_at_sent):
            self._remaining, self._remaining_at_sent, self._remaining_at = remaining / self._parts, sent_before, now

    def _available(self, now: float) -> float:
        if self._remaining is None or self._rate is None:
            return 0.0
        refilled = (now - self._remaining_at) * self._rate if self._bucket_matches >= _AGREEMENTS else 0.0
        return self._remaining + refilled - (self._sent - self._remaining_at_sent)


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
            now = self._clock()
            due = [min(each, now + _MINUTE_S) for each in state[1:4]]  # later ones: the clock was set back
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
        if seconds > 0:  # a pause that is over would begin again if the clock is set back
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
