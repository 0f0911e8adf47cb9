"""Chooses how many tokens to draft, within a budget earned by accepted tokens."""

from __future__ import annotations

from collections.abc import Hashable

from swe_infer.llama.drafting.acceptance import AcceptanceModel

_INTEREST = 0.005
"""Share of step time that may be spent on drafts without any acceptance."""
_MOST = 16.0
"""Maximum balance in steps, for each sequence of the batch. Bounds what wrong drafts may cost after good ones.
Figures: ``benchmarks/README.md``."""
_PATIENCE = 8
"""Rejected inspections after which a sequence is inspected less often, and the maximum of skipped steps."""


class DraftBudget:
    """The time budget of drafting, over all sequences of an engine, in steps of one sequence.

    It pays for building drafters, inspecting outputs, drafting, and verified rows. Accepted tokens fill it, and a
    small interest on every step. So the possible loss is bounded, whatever drafters and models do: ``_INTEREST`` of
    the time, plus the balance.

    Args:
        steps: initial balance, for each sequence of the largest batch so far.
    """

    def __init__(self, steps: float = 4.0) -> None:
        self._initial = steps
        self._balance = steps
        self._batch = self._largest = 1

    @property
    def batch(self) -> int:
        """Sequences decoded concurrently."""
        return self._batch

    @batch.setter
    def batch(self, count: int) -> None:
        self._batch = count
        if count > self._largest:
            self._balance += self._initial * (count - self._largest)
            self._largest = count

    def can_afford(self, steps: float) -> bool:
        return self._balance > steps

    def affordable_rows(self, cost: float, draft_cost: float) -> int:
        """Number of rows that it can pay at ``cost`` each, after ``draft_cost``."""
        return max(0, int((self._balance - draft_cost) / cost))

    def earn(self, steps: float, accepted: int = 0) -> None:
        """Add the interest on steps of one sequence, prompt included, and its accepted tokens."""
        held = self._balance + _INTEREST * steps + accepted
        most = _MOST * self._batch
        self._balance = held if held < most else max(self._balance, most)

    def spend(self, steps: float) -> None:
        self._balance -= steps


class DraftLength:
    """Chooses the draft lengths of one sequence.

    Args:
        acceptance: shared by the sequences of an engine.
        budget: shared as well.
    """

    def __init__(self, acceptance: AcceptanceModel, budget: DraftBudget) -> None:
        self._acceptance = acceptance
        self._budget = budget
        self._situation: Hashable = None
        self._requested = 0
        self._spent = 0.0
        self._failures = 0
        self._steps_to_skip = 0

    def should_skip(self) -> bool:
        """Whether to skip the sequence in this step. Call it once per step; it is cheap."""
        if self._steps_to_skip:
            self._steps_to_skip -= 1
            return True
        return False

    def can_afford(self, cost: float) -> bool:
        """Whether the budget covers ``cost`` steps. Backs off if not."""
        if self._budget.can_afford(cost):
            return True
        self.back_off()
        return False

    def back_off(self) -> None:
        """Skip the sequence for some steps."""
        self._steps_to_skip = _PATIENCE // 2

    def next_length(self, situation: Hashable, row_cost: float, draft_cost: float, most: int) -> int:
        """Return the length of the next draft, at most ``most``; 0: no draft.

        Args:
            situation: of the drafter.
            row_cost: cost of one more row, as a share of a step.
            draft_cost: cost of drafting, as a share of a step.
        """
        best = min(most, self._acceptance.best_length(situation, row_cost, draft_cost))
        if row_cost > 0:
            best = min(best, self._budget.affordable_rows(row_cost, draft_cost))
        if best == 0:
            self._failures += 1
            self._steps_to_skip = min(_PATIENCE, self._failures // _PATIENCE)
        self._situation, self._requested = situation, best
        return best

    def spend(self, steps: float) -> None:
        """Pay for this step's draft: inspection, drafting, rows."""
        self._spent += steps
        self._budget.spend(steps)

    def record(self, drafted: int, accepted: int, tokens: int) -> None:
        """Record the result of a step that gave the sequence ``tokens`` tokens."""
        if self._requested:
            self._acceptance.record(self._situation, self._requested, drafted, accepted)
        if accepted:
            self._failures = self._steps_to_skip = 0
        self._budget.earn(1.0, accepted)
        self._acceptance.record_throughput(tokens, 1.0 + self._spent)
        self._requested, self._spent = 0, 0.0
