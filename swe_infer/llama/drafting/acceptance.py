"""What becomes of drafts, learned over all sequences of an engine, and what their rows cost."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

_MEMORY = 0.98
"""Weight that what was seen keeps with each further draft of the same situation."""
_RATE_MEMORY = 0.995
_RIGHT = 0.8
"""Share of each place's tokens that are held to be right before any was seen, with the weight of so many drafts:"""
_WEIGHT = 2.0
_CAUTION = 0.8
"""Share of the mean rate that a row must earn: what is known of a situation errs, and errs less where it is tried."""
_LOOK_AGAIN = 16
"""Drafts that are left out before a situation in which none pays is tried again, with so many tokens:"""
_TRIAL = 4
_HOPE = 0.5
"""Accepted tokens for each step of a sequence with a drafter before any was seen, and what it must stay above:"""
_PROMISING = 0.05
_PRIOR_WEIGHT = 100.0
"""What the prior counts for, in squared rows: passes that differ by 10 rows outweigh it at once, and the scatter of a
busy machine's passes, which differ by one or two, does not."""
_LATE = 4.0
"""A pass that takes so many times the mean was held up by something else, and counts as no longer than that."""


@dataclass(slots=True)
class _Places:
    """For each place of a draft: how often it was in question and came about, given the place before it."""

    most: int
    idle: int = 0
    seen: list[float] = field(init=False)
    right: list[float] = field(init=False)
    asked: list[float] = field(init=False)
    filled: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.seen, self.asked = [_WEIGHT] * self.most, [_WEIGHT] * self.most
        self.right, self.filled = [_WEIGHT * _RIGHT] * self.most, [_WEIGHT] * self.most

    def learn(self, asked: int, drafted: int, accepted: int) -> None:
        """Places after the first wrong token, and beyond what was asked for, say nothing (Kaplan and Meier, 1958)."""
        for place in range(min(asked, drafted + 1)):
            self.asked[place] = _MEMORY * self.asked[place] + 1.0
            self.filled[place] = _MEMORY * self.filled[place] + (place < drafted)
        for place in range(min(drafted, accepted + 1)):
            self.seen[place] = _MEMORY * self.seen[place] + 1.0
            self.right[place] = _MEMORY * self.right[place] + (place < accepted)


class AcceptanceModel:
    """How long drafts should be, given where the output stands.

    A drafter says in which *situation* it is, such as within a copied line; drafts of one situation are taken to fare
    alike. The best length is that at which accepted tokens less the time of rows and guess, valued at the tokens that
    this time yields on the mean, are the most. Time is counted in passes.

    Args:
        most: the greatest length.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: dict[Hashable, _Places] = {}
        self._tokens = self._passes = 1.0
        self._accepted = _HOPE

    def best(self, situation: Hashable, row_cost: float, draft_cost: float) -> int:
        """The length that pays most; 0: none does."""
        places = self._places.setdefault(situation, _Places(self.most))
        worth = max(1.0, _CAUTION * self._tokens / self._passes)
        best, most = 0, 0.0
        there, good, gain = 1.0, 1.0, -worth * draft_cost
        for place in range(self.most):
            there *= places.filled[place] / places.asked[place]
            good *= places.right[place] / places.seen[place]
            gain += there * (good - worth * row_cost)
            if gain > most:
                best, most = place + 1, gain
        if best == 0:
            places.idle += 1
            if places.idle >= _LOOK_AGAIN:
                places.idle = 0
                best = min(_TRIAL, self.most)
        return best

    def learn(self, situation: Hashable, asked: int, drafted: int, accepted: int) -> None:
        """What became of a draft of which ``asked`` tokens were wanted."""
        self._places.setdefault(situation, _Places(self.most)).learn(asked, drafted, accepted)

    @property
    def promising(self) -> bool:
        """Whether guesses have been right of late."""
        return self._accepted > _PROMISING

    def step(self, accepted: int) -> None:
        """A step of a sequence that has a drafter."""
        self._accepted = _MEMORY * self._accepted + (1.0 - _MEMORY) * accepted

    def count(self, tokens: int, passes: float) -> None:
        """A sequence's step: its tokens, and its time in passes."""
        self._tokens = _RATE_MEMORY * self._tokens + tokens
        self._passes = _RATE_MEMORY * self._passes + passes


class StepCostModel:
    """Learns what a forward pass costs as ``base + row * guessed rows``, from the passes that were run.

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
        """What a pass without guessed rows takes; 0 before the first."""

    def record(self, rows: int, seconds: float) -> None:
        """A pass with so many guessed rows."""
        if self._weight > 8:
            seconds = min(seconds, _LATE * self._seconds / self._weight)
        self._weight = _MEMORY * self._weight + 1.0
        self._rows = _MEMORY * self._rows + rows
        self._seconds = _MEMORY * self._seconds + seconds
        self._rows2 = _MEMORY * self._rows2 + rows * rows
        self._both = _MEMORY * self._both + rows * seconds
        self._fit()

    def _fit(self) -> None:
        """Once for each pass: every sequence asks for the costs before the next one."""
        spread = self._rows2 - self._rows * self._rows / self._weight
        both = self._both - self._rows * self._seconds / self._weight
        prior = self._prior * self._seconds / self._weight
        self.row_seconds = max(0.0, (both + _PRIOR_WEIGHT * prior) / (spread + _PRIOR_WEIGHT))
        self.base_seconds = max(0.1 * self._seconds, self._seconds - self.row_seconds * self._rows) / self._weight

    def shares(self, draft_seconds: float) -> tuple[float, float]:
        """What one more row and ``draft_seconds`` of guessing cost, each as a share of a pass without guesses."""
        if self.base_seconds <= 0.0:
            return self._prior, 0.0
        return min(1.0, self.row_seconds / self.base_seconds), draft_seconds / self.base_seconds
