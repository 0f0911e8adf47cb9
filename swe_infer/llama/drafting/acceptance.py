"""Models of draft acceptance and of step cost, learned over all sequences of an engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

_DECAY = 0.98
"""Exponential decay of past observations, per draft of the same situation."""
_RATE_DECAY = 0.995
_PRIOR_ACCEPTANCE = 0.8
"""Prior acceptance rate of each position, with the weight of this many drafts:"""
_PRIOR_DRAFTS = 2.0
_CAUTION = 0.8
"""Share of the mean token rate that a row must earn: estimates are noisy, less so where sampled."""
_RETRY_AFTER = 16
"""Skipped drafts after which a situation that does not pay is retried, with this many tokens:"""
_RETRY_LENGTH = 4
_PRIOR_RATE = 0.5
"""Prior of accepted tokens per step, and the minimum for drafting to be promising:"""
_PROMISING = 0.05
_PRIOR_STRENGTH = 100.0
"""Weight of the prior in squared rows: steps that differ by 10 rows outweigh it at once; noise between steps that
differ by one or two does not."""
_OUTLIER = 4.0
"""Step times are clipped at this multiple of the mean, since longer ones have other causes."""


@dataclass(slots=True)
class _PositionStats:
    """For each position of a draft: how often it was requested, drafted, verified and accepted, given the position
    before."""

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
        """Update the counts. Positions after the first rejected token, and beyond the request, are censored (Kaplan
        and Meier, 1958)."""
        for place in range(min(requested, drafted + 1)):
            self.requested[place] = _DECAY * self.requested[place] + 1.0
            self.drafted[place] = _DECAY * self.drafted[place] + (place < drafted)
        for place in range(min(drafted, accepted + 1)):
            self.verified[place] = _DECAY * self.verified[place] + 1.0
            self.accepted[place] = _DECAY * self.accepted[place] + (place < accepted)


class AcceptanceModel:
    """Chooses the length of drafts, given the situation of the output.

    A drafter reports its *situation*, such as being within a copied line; drafts in the same situation are assumed to
    fare alike. The best length maximises the accepted tokens minus the cost of rows and drafting, where a step costs
    the tokens that it yields on average. Time is measured in steps.

    Args:
        max_length: of a draft.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._situations: dict[Hashable, _PositionStats] = {}
        self._tokens = self._steps = 1.0
        self._accepted = _PRIOR_RATE

    def best_length(self, situation: Hashable, row_cost: float, draft_cost: float) -> int:
        """Return the length with the largest gain; 0 if none pays."""
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
        """Record the result of a draft for which ``requested`` tokens were requested."""
        self._situations.setdefault(situation, _PositionStats(self.max_length)).record(requested, drafted, accepted)

    @property
    def promising(self) -> bool:
        """Whether drafts were accepted recently."""
        return self._accepted > _PROMISING

    def record_step(self, accepted: int) -> None:
        """Record a step of a sequence with a drafter."""
        self._accepted = _DECAY * self._accepted + (1.0 - _DECAY) * accepted

    def record_throughput(self, tokens: int, steps: float) -> None:
        """Record the tokens of a sequence's step, and its time in steps."""
        self._tokens = _RATE_DECAY * self._tokens + tokens
        self._steps = _RATE_DECAY * self._steps + steps


class StepCostModel:
    """Learns the cost of a forward pass as ``base + row * drafted rows`` from past steps.

    Exponentially weighted least squares with a prior, so that it follows load, batch size and context length. Rows of
    the sequences themselves are part of the base: a sequence costs more than its row.

    Args:
        row_share: prior cost of a row, as a share of a mean step.
    """

    def __init__(self, row_share: float = 0.01) -> None:
        self._prior = row_share
        self._weight = self._rows = self._seconds = self._rows2 = self._both = 0.0
        self.row_seconds = 0.0
        """Seconds of one more row; 0 before the first step."""
        self.base_seconds = 0.0
        """Seconds of a step without drafted rows; 0 before the first."""

    def record(self, rows: int, seconds: float) -> None:
        """Record a step with ``rows`` drafted rows."""
        if self._weight > 8:
            seconds = min(seconds, _OUTLIER * self._seconds / self._weight)
        self._weight = _DECAY * self._weight + 1.0
        self._rows = _DECAY * self._rows + rows
        self._seconds = _DECAY * self._seconds + seconds
        self._rows2 = _DECAY * self._rows2 + rows * rows
        self._both = _DECAY * self._both + rows * seconds
        self._fit()

    def _fit(self) -> None:
        """Fit the model, once per step rather than once per sequence."""
        spread = self._rows2 - self._rows * self._rows / self._weight
        both = self._both - self._rows * self._seconds / self._weight
        prior = self._prior * self._seconds / self._weight
        self.row_seconds = max(0.0, (both + _PRIOR_STRENGTH * prior) / (spread + _PRIOR_STRENGTH))
        self.base_seconds = max(0.1 * self._seconds, self._seconds - self.row_seconds * self._rows) / self._weight

    def relative_costs(self, draft_seconds: float) -> tuple[float, float]:
        """Cost of one more row and of ``draft_seconds`` of drafting, each as a share of a step without drafts."""
        if self.base_seconds <= 0.0:
            return self._prior, 0.0
        return min(1.0, self.row_seconds / self.base_seconds), draft_seconds / self.base_seconds
