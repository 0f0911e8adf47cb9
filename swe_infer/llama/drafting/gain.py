"""Decides how many tokens to draft: what drafts cost, what they gain, and how much they may lose.

Costs and gains are in *steps*: the time in which one sequence gets its next token without a draft.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

MAX_DRAFT = 32
"""Maximum tokens of a draft."""

_DECAY = 0.98
"""Exponential decay of past observations."""
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
_INTEREST = 0.005
"""Share of step time that may be spent on drafts without any acceptance."""
_INITIAL_BALANCE = 4.0
"""Steps for each sequence of the largest batch so far."""
_MAX_BALANCE = 16.0
"""Steps for each sequence of the batch. Bounds what wrong drafts may cost after good ones. Figures:
``benchmarks/README.md``."""
_PATIENCE = 8
"""Rejected inspections after which a sequence is inspected less often, and the maximum of skipped steps."""
_PRIOR_ROW = 0.01
"""Prior cost of a row, as a share of a mean step, with this weight in squared rows: steps that differ by 10 rows
outweigh it at once; noise between steps that differ by one or two does not."""
_PRIOR_STRENGTH = 100.0
_OUTLIER = 4.0
"""Step times are clipped at this multiple of the mean, since longer ones have other causes."""


@dataclass(slots=True)
class DraftState:
    """The drafts of one sequence.

    Args:
        kind: of its drafter. Drafters of one kind learn together.
        situation: of the drafter at the last draft, see :class:`DraftGain`.
        requested: tokens of the last draft that were requested.
        spent: steps paid since the sequence's last token.
        failures: times that no draft paid since a token was accepted.
        steps_to_skip: steps before the next inspection.
    """

    kind: Hashable
    situation: Hashable = None
    requested: int = 0
    spent: float = 0.0
    failures: int = 0
    steps_to_skip: int = 0

    def should_skip(self) -> bool:
        """Whether to skip the sequence in this step. Call it once per step; it is cheap."""
        if self.steps_to_skip:
            self.steps_to_skip -= 1
            return True
        return False

    def back_off(self) -> None:
        """Skip the sequence for some steps."""
        self.steps_to_skip = _PATIENCE // 2


class _Rate:
    """A success rate over past trials, which decay exponentially."""

    __slots__ = ("hits", "trials")

    def __init__(self, prior: float) -> None:
        self.hits, self.trials = _PRIOR_DRAFTS * prior, _PRIOR_DRAFTS

    def record(self, success: bool) -> None:
        self.hits, self.trials = _DECAY * self.hits + success, _DECAY * self.trials + 1.0


@dataclass(slots=True)
class _Situation:
    """For each position of a draft: how often the drafter reached it, and how often it was accepted, given the
    position before."""

    positions: list[tuple[_Rate, _Rate]] = field(
        default_factory=lambda: [(_Rate(1.0), _Rate(_PRIOR_ACCEPTANCE)) for _ in range(MAX_DRAFT)]
    )
    idle: int = 0

    def record(self, requested: int, drafted: int, accepted: int) -> None:
        """Update the rates. Positions after the first rejected token, and beyond the request, are censored (Kaplan
        and Meier, 1958)."""
        for place in range(min(requested, drafted + 1)):
            self.positions[place][0].record(place < drafted)
        for place in range(min(drafted, accepted + 1)):
            self.positions[place][1].record(place < accepted)

    def best_length(self, worth: float, row_cost: float, draft_cost: float) -> int:
        """Return the length with the largest gain: accepted tokens less the cost of rows and drafting, where a step
        is worth ``worth`` tokens. 0 if none pays, except for a retry after every ``_RETRY_AFTER`` skipped drafts."""
        best, most = 0, 0.0
        there, good, gain = 1.0, 1.0, -worth * draft_cost
        for length, (drafted, accepted) in enumerate(self.positions, 1):
            there *= drafted.hits / drafted.trials
            good *= accepted.hits / accepted.trials
            gain += there * (good - worth * row_cost)
            if gain > most:
                best, most = length, gain
        if best == 0:
            self.idle += 1
            if self.idle >= _RETRY_AFTER:
                self.idle, best = 0, _RETRY_LENGTH
        return best


class StepCost:
    """Learns the time of a forward pass as ``base + row * drafted rows``.

    Exponentially weighted least squares with a prior, so that it follows load, batch size and context length. Rows of
    the sequences themselves are part of the base: a sequence costs more than its row.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows2 = self._both = 0.0
        self.row = _PRIOR_ROW
        """Time of one more row, as a share of the base."""
        self.steps_per_s = 0.0
        """Steps without drafted rows in a second; 0 before the first step."""

    def record(self, rows: int, seconds: float) -> None:
        """Record a step with ``rows`` drafted rows."""
        if self._weight > 8:
            seconds = min(seconds, _OUTLIER * self._seconds / self._weight)
        self._weight = _DECAY * self._weight + 1.0
        self._rows = _DECAY * self._rows + rows
        self._seconds = _DECAY * self._seconds + seconds
        self._rows2 = _DECAY * self._rows2 + rows * rows
        self._both = _DECAY * self._both + rows * seconds
        spread = self._rows2 - self._rows * self._rows / self._weight
        both = self._both - self._rows * self._seconds / self._weight
        prior = _PRIOR_ROW * self._seconds / self._weight
        row = max(0.0, (both + _PRIOR_STRENGTH * prior) / (spread + _PRIOR_STRENGTH))
        base = max(0.1 * self._seconds, self._seconds - row * self._rows) / self._weight
        if base > 0.0:
            self.row, self.steps_per_s = min(1.0, row / base), 1.0 / base


class DraftGain:
    """The cost and gain of drafts, learned over all sequences of an engine.

    A drafter reports its *situation*, such as being within a copied line; drafts in the same situation are assumed to
    fare alike. A budget in steps pays for building drafters, inspecting outputs, drafting, and verified rows.
    Accepted tokens fill it, and a small interest on every step. So the loss has a bound for all drafters
    and models: ``_INTEREST`` of the time, plus the balance.
    """

    def __init__(self) -> None:
        self.cost = StepCost()
        self._balance = _INITIAL_BALANCE
        self._batch = self._largest_batch = 1
        self._situations: dict[Hashable, _Situation] = {}
        self._accepted: dict[Hashable, float] = {}
        self._tokens = self._steps = 1.0

    @property
    def batch(self) -> int:
        """Sequences decoded concurrently."""
        return self._batch

    @batch.setter
    def batch(self, count: int) -> None:
        self._batch = count
        if count > self._largest_batch:
            self._balance += _INITIAL_BALANCE * (count - self._largest_batch)
            self._largest_batch = count

    @property
    def row_cost(self) -> float:
        """Cost of a drafted row. It delays the whole batch and speeds up one sequence, so it counts ``batch``
        times."""
        return self._batch * self.cost.row

    def steps(self, seconds: float) -> float:
        """The cost of ``seconds`` of drafting, which delay the whole batch."""
        return seconds * self._batch * self.cost.steps_per_s

    def can_afford(self, steps: float) -> bool:
        return self._balance > steps

    def spend(self, steps: float, state: DraftState | None = None) -> None:
        """Pay ``steps``, for the next step of one sequence or for several."""
        self._balance -= steps
        if state is not None:
            state.spent += steps

    def earn(self, steps: float, accepted: int = 0) -> None:
        """Add the interest on steps of one sequence, prompt included, and its accepted tokens."""
        earned, most = self._balance + _INTEREST * steps + accepted, _MAX_BALANCE * self._batch
        self._balance = earned if earned < most else max(self._balance, most)

    def promising(self, kind: Hashable) -> bool:
        """Whether drafts of this kind were accepted recently."""
        return self._accepted.get(kind, _PRIOR_RATE) > _PROMISING

    def next_length(self, state: DraftState, situation: Hashable, draft_cost: float, most: int) -> int:
        """Return the length of a sequence's next draft, at most ``most``; 0: no draft.

        Args:
            situation: of the drafter.
            draft_cost: of drafting, without the rows, in steps.
        """
        worth, row_cost = max(1.0, _CAUTION * self._tokens / self._steps), self.row_cost
        key = state.kind, situation
        if key not in self._situations:
            self._situations[key] = _Situation()
        best = min(most, self._situations[key].best_length(worth, row_cost, draft_cost))
        if row_cost > 0:
            best = min(best, max(0, int((self._balance - draft_cost) / row_cost)))
        if best == 0:
            state.failures += 1
            state.steps_to_skip = min(_PATIENCE, state.failures // _PATIENCE)
        state.situation, state.requested = situation, best
        return best

    def record(self, state: DraftState, drafted: int, accepted: int, tokens: int) -> None:
        """Record the result of a step that gave the sequence ``tokens`` tokens."""
        if state.requested:
            self._situations[state.kind, state.situation].record(state.requested, drafted, accepted)
        if accepted:
            state.failures = state.steps_to_skip = 0
        self.earn(1.0, accepted)
        self._tokens = _RATE_DECAY * self._tokens + tokens
        self._steps = _RATE_DECAY * self._steps + 1.0 + state.spent
        mean = self._accepted.get(state.kind, _PRIOR_RATE)
        self._accepted[state.kind] = _DECAY * mean + (1.0 - _DECAY) * accepted
        state.requested, state.spent = 0, 0.0
