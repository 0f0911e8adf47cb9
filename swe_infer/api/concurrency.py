"""How many requests may be in flight: a window that grows with answers and shrinks on refusals.

It starts at ``start`` and doubles every ``doubling_s`` while it is full and nothing is refused. Refusals come within
milliseconds but answers within seconds, so a window that grows with time reaches a limit as gently as one that grows
with answers, and is at full speed before the first answer. From the first answers on it doubles per window of
answers, until the first backoff. Afterwards it grows by a tenth per window of answers, by a twentieth above the size
of the last backoff, and only while it is full.

Refusals (429, and all statuses from 500 on) shrink the window if they are frequent. A fault that affects one request
in ten at any concurrency costs only those requests; a server above its limit refuses nearly everything beyond it.
Page's cumulative sum ("Continuous Inspection Schemes", Biometrika 1954) distinguishes them: each refusal adds one,
each answer subtracts a fraction, and the window does not grow while the sum is above zero. When the sum passes a
tolerance, an episode begins and the window backs off once, to ``backoff_factor`` of the requests in flight. Refusals
of requests that were sent before the backoff belong to the same episode.

The tolerance is estimated from the share of refusals while the window is below the last backoff, where its size
cannot be the cause. An answer subtracts three times that share, which keeps the sum near zero. So the window backs
off at the second refusal of a server whose refusals end with a backoff, and keeps its size for a server that refuses
a tenth of all requests.

A timeout shrinks the window if the server answered fewer requests in that time than are in flight: more of them would
time out too. The number of those answers is then about the size of the window, which grows again only while answers
take much less time than the timeout did: each probe of a server's queue costs a timeout and brings no more answers.
"""

from __future__ import annotations

_GROWTH = 0.05
_GROWTH_BELOW_LAST_BACKOFF = 0.1
_QUEUE_MARGIN = 0.9
"""Part of the answers within the time of a timeout that may be in flight after it."""
_NEAR_TIMEOUT = 0.7
"""The window does not grow with an answer that took longer than this part of the time of the last timeout."""
_TIMED_ANSWERS = 3
"""Answers after which the window does not grow with time."""
_LARGEST_STEP = 0.1
"""Doublings per call, at most."""
_BACKGROUND = 0.1
"""Share of refusals that are assumed to be independent of the concurrency, until it is estimated."""
_MEMORY = 1.0 / 64.0
_BELOW = 0.9
"""Below this part of the window before the last backoff, refusals are not due to concurrency."""
_LEAST_RELIEF, _MOST_RELIEF = 0.05, 0.35
_LEAST_PATIENCE, _MOST_PATIENCE = 1.0, 6.0


class ConcurrencyWindow:
    """How many requests may be in flight. Times are seconds of one monotonic clock.

    Args:
        start, doubling_s, backoff_factor: see :class:`swe_infer.api.limits.Limits`.
        maximum: the upper bound.
    """

    def __init__(self, start: int, doubling_s: float, backoff_factor: float, maximum: int) -> None:
        self._doubling_s = doubling_s
        self._backoff_factor = backoff_factor
        self._maximum = float(maximum)
        self._value = float(min(start, maximum))
        self._starting = True
        self._answers = 0
        self._grown_at: float | None = None
        self._backoff_at = float("-inf")
        self._backoff_from = 0.0
        self._timeout_s = float("inf")
        """Seconds after which the last request timed out in the server's queue."""
        self._refusal_sum = 0.0
        self._background = _BACKGROUND
        self.backoffs = 0

    @property
    def value(self) -> int:
        return int(self._value)

    def answered(self, sent_at: float, in_flight: int, now: float = float("-inf")) -> None:
        """Records the answer to a request that was sent at ``sent_at`` and still counts as in flight."""
        self._answers += 1
        if sent_at < self._backoff_at:
            return
        is_resting = self._refusal_sum > 0.0
        self._refusal_sum = max(
            0.0, self._refusal_sum - min(_MOST_RELIEF, max(_LEAST_RELIEF, 3.0 * self._background))
        )
        self._observe(0.0)
        if is_resting or in_flight < self.value or now - sent_at > _NEAR_TIMEOUT * self._timeout_s:
            return
        growth = _GROWTH_BELOW_LAST_BACKOFF if self._value < self._backoff_from else _GROWTH
        step = 1.0 if self._starting else max(1.0, growth * self._value) / self._value
        self._value = min(self._maximum, self._value + step)

    def refused(self, sent_at: float, in_flight: int, now: float) -> bool:
        """Records the refusal of a request that was sent at ``sent_at``. Returns whether it belongs to an episode."""
        if sent_at < self._backoff_at:
            return True
        self._refusal_sum += 1.0
        self._observe(1.0)
        if self._refusal_sum <= min(_MOST_PATIENCE, max(_LEAST_PATIENCE, 50.0 * self._background)):
            return False
        self._back_off(in_flight, now)
        return True

    def timed_out(self, sent_at: float, in_flight: int, answers: int, now: float) -> None:
        """Records that a request that was sent at ``sent_at`` timed out.

        Args:
            answers: to other requests since it was sent.
        """
        if sent_at < self._backoff_at or answers >= in_flight:
            return
        self._back_off(in_flight, now)
        self._timeout_s = now - sent_at
        if answers:
            self._value = min(self._value, max(1.0, _QUEUE_MARGIN * answers))

    def _back_off(self, in_flight: int, now: float) -> None:
        self._starting = False
        self._backoff_from = min(self._value, float(in_flight))
        self._value = max(1.0, self._backoff_from * self._backoff_factor)
        self._backoff_at = now
        self._refusal_sum = 0.0
        self.backoffs += 1

    def _observe(self, refused: float) -> None:
        if self._value < _BELOW * self._backoff_from:
            self._background += _MEMORY * (refused - self._background)

    def forget_refusals(self, now: float, *, restart: bool) -> None:
        """Ignores refusals of earlier requests: they exceeded a rate limit that is known from now on.

        Args:
            restart: continue with the exponential start.
        """
        self._refusal_sum = 0.0
        self._backoff_at = now
        self._starting |= restart
        if restart:
            self._answers = 0

    def grow(self, in_flight: int, now: float) -> None:
        """Grows the window with time during the exponential start, while it is full and nothing is refused."""
        if not self._grows_with_time:
            return
        if in_flight < self.value or self._refusal_sum > 0.0:
            self._grown_at = None
            return
        if self._grown_at is not None:
            # Time in which the event loop was blocked does not count: nothing was sent or received.
            doublings = min((now - self._grown_at) / self._doubling_s, _LARGEST_STEP)
            self._value = min(self._maximum, self._value * 2.0**doublings)
            self._starting = self._value < self._maximum
        self._grown_at = now

    @property
    def _grows_with_time(self) -> bool:
        return self._starting and self._answers < _TIMED_ANSWERS

    @property
    def next_growth_s(self) -> float:
        """Seconds until the window grows by one; 0 if it does not grow with time."""
        if not self._grows_with_time or self._refusal_sum > 0.0 or self._value >= self._maximum:
            return 0.0
        ratio = (self.value + 1) / self._value
        return max(0.001, self._doubling_s * (ratio - 1.0) * 1.45)
