"""How many tokens to draft, and whether to begin: as much as pays, and never more than was earned."""

from __future__ import annotations

from collections.abc import Hashable

from swe_infer.llama.drafting.acceptance import AcceptanceModel

_INTEREST = 0.005
"""Share of the passes' time that may go into drafting of which nothing is accepted."""
_MOST = 16.0
"""Passes that an account holds at the most, for each sequence of the batch: what can be lost once drafts fail, of
what they saved before. With 4, eight sequences wanted more rows in a step than it held, and what it allowed brought
no more than it cost (the bundled model: 1.2 times as fast as without drafts instead of 1.6)."""
_PATIENCE = 8
"""Looks in vain after which a sequence is looked at less often by a step, and the steps that are left out at most."""


class DraftBudget:
    """What drafting may cost, over all sequences of an engine.

    In units of one sequence's pass. Whatever drafting takes is paid from it: making drafters, looking where an output
    stands, drafting, rows to be verified. Accepted tokens fill it, and a small interest on every pass. So what can be
    lost is bounded, whatever drafters, costs and models do: ``_INTEREST`` of the time, and what the account holds.

    Args:
        passes: what it begins with, for each sequence of the largest batch so far.
    """

    def __init__(self, passes: float = 4.0) -> None:
        self._initial = passes
        self._balance = passes
        self._batch = self._largest = 1

    @property
    def batch(self) -> int:
        """Sequences in the making at once."""
        return self._batch

    @batch.setter
    def batch(self, count: int) -> None:
        self._batch = count
        if count > self._largest:
            self._balance += self._initial * (count - self._largest)
            self._largest = count

    def can_afford(self, passes: float) -> bool:
        return self._balance > passes

    def affordable_rows(self, cost: float, draft_cost: float) -> int:
        """How many rows it affords at ``cost`` each, and the draft itself."""
        return max(0, int((self._balance - draft_cost) / cost))

    def earn(self, passes: float, accepted: int = 0) -> None:
        """Passes of one sequence, those of its prompt included, and its accepted tokens."""
        held = self._balance + _INTEREST * passes + accepted
        most = _MOST * self._batch
        self._balance = held if held < most else max(self._balance, most)

    def spend(self, passes: float) -> None:
        self._balance -= passes


class DraftLength:
    """Chooses the draft lengths of one sequence.

    Args:
        acceptance: what is known of drafts; shared by the sequences of an engine.
        budget: what they may cost; shared as well.
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
        """Whether the sequence is to be left alone in this step; asked once a step, and cheap."""
        if self._steps_to_skip:
            self._steps_to_skip -= 1
            return True
        return False

    def can_afford(self, cost: float) -> bool:
        """Whether the account has ``cost`` passes, such as a look at the sequence and a draft take."""
        if self._budget.can_afford(cost):
            return True
        self.back_off()
        return False

    def back_off(self) -> None:
        """Leave the sequence alone for some steps."""
        self._steps_to_skip = _PATIENCE // 2

    def next_length(self, situation: Hashable, row_cost: float, draft_cost: float, most: int) -> int:
        """The length of the next draft, ``most`` at the most; 0: none.

        Args:
            situation: the drafter's.
            row_cost: what one more row costs, as a share of the pass that is ahead anyway.
            draft_cost: what the draft itself costs, as a share of the same.
        """
        best = min(most, self._acceptance.best_length(situation, row_cost, draft_cost))
        if row_cost > 0:
            best = min(best, self._budget.affordable_rows(row_cost, draft_cost))
        if best == 0:
            self._failures += 1
            self._steps_to_skip = min(_PATIENCE, self._failures // _PATIENCE)
        self._situation, self._requested = situation, best
        return best

    def spend(self, passes: float) -> None:
        """Pay for what this step's draft takes: looking, drafting, rows."""
        self._spent += passes
        self._budget.spend(passes)

    def record(self, drafted: int, accepted: int, tokens: int) -> None:
        """What became of a step that gave the sequence ``tokens`` tokens."""
        if self._requested:
            self._acceptance.record(self._situation, self._requested, drafted, accepted)
        if accepted:
            self._failures = self._steps_to_skip = 0
        self._budget.earn(1.0, accepted)
        self._acceptance.record_throughput(tokens, 1.0 + self._spent)
        self._requested, self._spent = 0, 0.0
