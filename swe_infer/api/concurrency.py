"""The level of concurrency: how many requests may be in flight, found from what comes back.

It starts at ``start`` and doubles every ``doubling_s`` while it is used to the full and nothing is refused: refusals
come within milliseconds but answers within seconds, so a start that grows by the clock finds a limit as gently as one
that waits for answers, and is at full speed before the first of them. Afterwards it grows by a tenth for each level's
worth of answers, by a twentieth where it was cut before, and only while it is used to the full.

Refusals (429, 503, 529) speak against the level when they come densely. A fault that strikes one request in ten
whatever the level is costs those requests alone; a limit that was passed refuses nearly everything that goes beyond
it. Page's cumulative sum ("Continuous Inspection Schemes", Biometrika 1954) tells them apart: each refusal adds one,
each answer takes a part of one, and growth rests while the sum is not zero. Where it passes what is to be borne, an
episode begins, which cuts the level once, to ``cut`` of what was in flight: refusals of requests that were sent
before the cut belong to the same episode.

How much is to be borne is learnt: the share of refusals at levels below the last cut, where the level cannot be what
is wrong. Three times that share leaves the sum near zero. So a server whose refusals end with a cut is backed off
from at the second one, and one that refuses a tenth of everything keeps its level.
"""

from __future__ import annotations

_GROWTH = 0.05
_GROWTH_BELOW_LAST_CUT = 0.1
_LARGEST_STEP = 0.1
"""Doublings that the start may make up for in one go."""
_BACKGROUND = 0.1
"""The share of refusals that is taken to have nothing to do with the level, until that is known."""
_MEMORY = 1.0 / 64.0
_BELOW = 0.9
"""A level under this part of the one that was cut was in order before."""
_LEAST_RELIEF, _MOST_RELIEF = 0.05, 0.35
_LEAST_PATIENCE, _MOST_PATIENCE = 1.0, 6.0


class ConcurrencyWindow:
    """How many requests may be in flight. Times are seconds of one monotonic clock.

    Args:
        start, doubling_s, cut: see :class:`swe_infer.api.limits.Limits`.
        most: the upper bound.
    """

    def __init__(self, start: int, doubling_s: float, cut: float, most: int) -> None:
        self._doubling_s = doubling_s
        self._cut = cut
        self._most = float(most)
        self._value = float(min(start, most))
        self._starting = True
        self._grown_at: float | None = None
        self._cut_at = float("-inf")
        self._cut_from = 0.0
        self._sum = 0.0
        self._background = _BACKGROUND
        self.cuts = 0

    @property
    def value(self) -> int:
        return int(self._value)

    def answered(self, sent_at: float, in_flight: int) -> None:
        """A request that was sent at ``sent_at`` is answered; it still counts as in flight."""
        if sent_at < self._cut_at:
            return
        rests = self._sum > 0.0
        self._sum = max(0.0, self._sum - min(_MOST_RELIEF, max(_LEAST_RELIEF, 3.0 * self._background)))
        self._observe(0.0)
        if rests or in_flight < self.value:
            return
        growth = _GROWTH_BELOW_LAST_CUT if self._value < self._cut_from else _GROWTH
        step = 1.0 if self._starting else max(1.0, growth * self._value) / self._value
        self._value = min(self._most, self._value + step)

    def refused(self, sent_at: float, in_flight: int, now: float) -> bool:
        """A request that was sent at ``sent_at`` is refused; whether that belongs to an episode."""
        if sent_at < self._cut_at:
            return True
        self._sum += 1.0
        self._observe(1.0)
        if self._sum <= min(_MOST_PATIENCE, max(_LEAST_PATIENCE, 50.0 * self._background)):
            return False
        self._starting = False
        self._cut_from = min(self._value, float(in_flight))
        self._value = max(1.0, self._cut_from * self._cut)
        self._cut_at = now
        self._sum = 0.0
        self.cuts += 1
        return True

    def _observe(self, refused: float) -> None:
        if self._value < _BELOW * self._cut_from:
            self._background += _MEMORY * (refused - self._background)

    def absolve(self, now: float, *, restart: bool) -> None:
        """What was sent so far was refused for its pace, which is kept from now on.

        Args:
            restart: go on with the start.
        """
        self._sum = 0.0
        self._cut_at = now
        self._starting |= restart

    def grow(self, in_flight: int, now: float) -> None:
        """The start: the level doubles every ``doubling_s`` as long as it is used to the full and nothing is
        refused."""
        if not self._starting:
            return
        if in_flight < self.value or self._sum > 0.0:
            self._grown_at = None
            return
        if self._grown_at is not None:
            # A loop that was kept busy meanwhile has sent nothing and heard nothing: such time does not count.
            doublings = min((now - self._grown_at) / self._doubling_s, _LARGEST_STEP)
            self._value = min(self._most, self._value * 2.0**doublings)
            self._starting = self._value < self._most
        self._grown_at = now

    @property
    def next_s(self) -> float:
        """Seconds until the start reaches the next whole number; 0 where it does not grow by the clock."""
        if not self._starting or self._sum > 0.0 or self._value >= self._most:
            return 0.0
        ratio = (self.value + 1) / self._value
        return max(0.001, self._doubling_s * (ratio - 1.0) * 1.45)
