"""How many tokens to draft, and whether to begin: as much as pays, and never more than was earned."""

from __future__ import annotations

from collections.abc import Hashable

from swe_infer.llama.drafting.acceptance import Acceptance

__all__ = ["DraftLength", "MakingBudget"]

_INTEREST = 0.012
"""Share of the passes' time that may go into drafts of which nothing is accepted."""
_MOST = 4.0

_MAKING_SHARE = 0.005
"""Share of the passes' time that may go into making drafters of which nothing comes."""
_MAKING_GAIN = 0.1
"""Share of a pass that each accepted token adds."""
_MAKING_MOST = 32.0


class DraftLength:
    """Chooses the draft lengths of one sequence, and keeps its account.

    The account is kept in units of one pass. Drafts are paid from it; accepted tokens and a small interest on every
    step fill it. So what drafting can lose is bounded, whatever was learned from other sequences: ``_INTEREST`` of
    the passes and what the account began with.

    Args:
        acceptance: what is known of drafts; shared by the sequences of an engine.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._account = acceptance.credit
        self._gained = 0.0
        self._situation: Hashable = None
        self._asked = 0
        self._spent = 0.0

    def affords(self, cost: float) -> bool:
        """Whether the account holds more than ``cost`` passes, such as a look at the sequence and a guess take."""
        return self._account > cost

    def limit(self, situation: Hashable, row_cost: float, draft_cost: float, most: int) -> int:
        """The length of the next draft, ``most`` at the most; 0: none.

        Args:
            situation: the drafter's.
            row_cost: what one more row costs, as a share of the pass that is ahead anyway.
            draft_cost: what the guess itself costs, as a share of the same.
        """
        best = min(most, self._acceptance.best(situation, row_cost, draft_cost))
        if row_cost > 0:
            best = min(best, int((self._account - draft_cost) / row_cost))
        self._situation, self._asked = situation, max(0, best)
        return self._asked

    def spend(self, passes: float) -> None:
        """Pay for what this step's guess takes: looking, guessing, rows."""
        self._spent += passes

    def record(self, drafted: int, accepted: int, tokens: int) -> None:
        """What became of a step that gave the sequence ``tokens`` tokens."""
        if self._asked:
            self._acceptance.learn(self._situation, self._asked, drafted, accepted)
        self._account = min(_MOST, self._account + _INTEREST + accepted - self._spent)
        self._gained += accepted - self._spent
        self._acceptance.count(tokens, 1.0 + self._spent, self._gained)
        self._asked, self._spent = 0, 0.0


class MakingBudget:
    """What may be spent on making drafters, which happens once for a prompt, over all sequences of an engine.

    In units of one sequence's pass, as the accounts of :class:`DraftLength`. All sequences fill it, those as well
    that have no drafter. So where nothing is ever accepted, ``_MAKING_SHARE`` of the time is lost and what it began
    with.

    Args:
        passes: what it begins with.
    """

    def __init__(self, passes: float = 8.0) -> None:
        self._held = passes

    def earn(self, passes: float, accepted: int, batch: int) -> None:
        """Passes of one sequence, those of its prompt included, and its accepted tokens, in a batch of so many."""
        earned = _MAKING_SHARE * passes + _MAKING_GAIN * accepted
        self._held = max(self._held, min(_MAKING_MOST * batch, self._held + earned))

    def affords(self, passes: float) -> bool:
        return self._held > passes

    def spend(self, passes: float) -> None:
        self._held -= passes
