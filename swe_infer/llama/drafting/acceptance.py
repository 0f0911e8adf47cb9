"""What becomes of drafts, learned over all sequences of an engine, and what their rows cost."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

_DECAY = 0.98
"""Weight that what was seen keeps with each further draft of the same situation."""
_RATE_DECAY = 0.995
_PRIOR_ACCEPTANCE = 0.8
"""Share of each place's tokens that are held to be right before any was seen, with the weight of so many drafts:"""
_PRIOR_DRAFTS = 2.0
_CAUTION = 0.8
"""Share of the mean rate that a row must earn: what is known of a situation errs, and errs less where it is tried."""
_RETRY_AFTER = 16
"""Drafts that are left out before a situation in which none pays is tried again, with so many tokens:"""
_RETRY_LENGTH = 4
_PRIOR_RATE = 0.5
"""Accepted tokens for each step of a sequence with a drafter before any was seen, and what it must stay above:"""
_PROMISING = 0.05
_PRIOR_STRENGTH = 100.0
"""What the prior counts for, in squared rows: passes that differ by 10 rows outweigh it at once, and the scatter of a
busy machine's passes, which differ by one or two, does not."""
_OUTLIER = 4.0
"""A pass that takes so many times the mean was held up by something else, and counts as no longer than that."""


@dataclass(slots=True)
class _PositionStats:
    """For each place of a draft: how often it was in question and came about, given the place before it."""

    max_length: int
    idle: int = 0
    verified: list[float] = field(init=False)
    accepted: list[float] = field(init=False)
    requested: list[float] = field(init=False)
    drafted: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.verified, self.requested = [_PRIOR_DRAFTS] * self.max_length, [_PRIOR_DRAFTS] * self.max_length
        self.accepted = [_PRIOR_DRAFTS * _PRIOR_ACCEPTANCE] * self.max_length
        self.drafted = [_PRIOR_DRAFTS] * self.max_length

    def record(self, requested: int, drafted: int, accepted: int) -> None:
        """Places after the first wrong token, and beyond what was asked for, say nothing (Kaplan and Meier, 1958)."""
        for place in range(min(requested, drafted + 1)):
            self.requested[place] = _DECAY * self.requested[place] + 1.0
            self.drafted[place] = _DECAY * self.drafted[place] + (place < drafted)
        for place in range(min(drafted, accepted + 1)):
            self.verified[place] = _DECAY * self.verified[place] + 1.0
            self.accepted[place] = _DECAY * self.accepted[place] + (place < accepted)


class AcceptanceModel:
    """How long drafts should be, given where the output stands.

    A drafter says in which *situation* it is, such as within a copied line; drafts of one situation are taken to fare
    alike. The best length is that at which accepted tokens less the time of rows and draft, valued at the tokens that
    this time yields on the mean, are the most. Time is counted in passes.

    Args:
        most: the greatest length.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._situations: dict[Hashable, _PositionStats] = {}
        self._tokens = self._steps = 1.0
        self._accepted = _PRIOR_RATE

    def best_length(self, situation: Hashable, row_cost: float, draft_cost: float) -> int:
        """The length that pays most; 0: none does."""
        stats = self._situations.setdefault(situation, _PositionStats(self.max_length))
        worth = max(1.0, _CAUTION * self._tokens / self._steps)
        best, most = 0, 0.0
        there, good, gain = 1.0, 1.0, -worth * draft_cost
        for place in range(self.max_length):
            there *= stats.drafted[place] / stats.requested[place]
            good *= stats.accepted[place] / stats.verified[place]
            gain += there * (good - worth * row_cost)
            if gain > most:
                best, most = place + 1, gain
        if best == 0:
            stats.idle += 1
            if stats.idle >= _RETRY_AFTER:
                stats.idle = 0
                best = min(_RETRY_LENGTH, self.max_length)
        return best

    def record(self, situation: Hashable, requested: int, drafted: int, accepted: int) -> None:
        """What became of a draft of which ``asked`` tokens were wanted."""
        self._situations.setdefault(situation, _PositionStats(self.max_length)).record(requested, drafted, accepted)

    @property
    def promising(self) -> bool:
        """Whether drafts have been right of late."""
        return self._accepted > _PROMISING

    def record_step(self, accepted: int) -> None:
        """A step of a sequence that has a drafter."""
        self._accepted = _DECAY * self._accepted + (1.0 - _DECAY) * accepted

    def record_throughput(self, tokens: int, steps: float) -> None:
        """A sequence's step: its tokens, and its time in passes."""
        self._tokens = _RATE_DECAY * self._tokens + tokens
        self._steps = _RATE_DECAY * self._steps + steps


class StepCostModel:
    """Learns what a forward pass costs as ``base + row * drafted rows``, from the passes that were run.

    Least squares over exponentially weighted passes, so that it follows load, batch and context, drawn towards a
    prior. The rows that sequences bring anyway are part of the base: a sequence costs more than its row.

    Args:
        row_share: what a row is held to cost, as a share of a mean pass, as long as passes do not tell.
    """

    def __init__(self, row_share: float = 0.01) -> None:
        self._prior = row_share
        self._weight = self._rows = self._seconds = self._rows2 = self._both = 0.0
        self.row_seconds = 0.0
        """What one more row adds; 0 before the first pass."""
        self.base_seconds = 0.0
        """What a pass without drafted rows takes; 0 before the first."""

    def record(self, rows: int, seconds: float) -> None:
        """A pass with so many drafted rows."""
        if self._weight > 8:
            seconds = min(seconds, _OUTLIER * self._seconds / self._weight)
        self._weight = _DECAY * self._weight + 1.0
        self._rows = _DECAY * self._rows + rows
        self._seconds = _DECAY * self._seconds + seconds
        self._rows2 = _DECAY * self._rows2 + rows * rows
        self._both = _DECAY * self._both + rows * seconds
        self._fit()

    def _fit(self) -> None:
        """Once for each pass: every sequence asks for the costs before the next one."""
        spread = self._rows2 - self._rows * self._rows / self._weight
        both = self._both - self._rows * self._seconds / self._weight
        prior = self._prior * self._seconds / self._weight
        self.row_seconds = max(0.0, (both + _PRIOR_STRENGTH * prior) / (spread + _PRIOR_STRENGTH))
        self.base_seconds = max(0.1 * self._seconds, self._seconds - self.row_seconds * self._rows) / self._weight

    def relative_costs(self, draft_seconds: float) -> tuple[float, float]:
        """What one more row and ``draft_seconds`` of drafting cost, each as a share of a pass without drafts."""
        if self.base_seconds <= 0.0:
            return self._prior, 0.0
        return min(1.0, self.row_seconds / self.base_seconds), draft_seconds / self.base_seconds
