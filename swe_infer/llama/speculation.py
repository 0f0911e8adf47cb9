"""Guesses in the engine: when one is asked for, how long it may be, and what is learned from what became of it.

A guess changes the number of passes and never an answer, as long as a row's logits do not depend on the rows beside
it. In float32 on a CPU they do not, nor in bfloat16 where the matrix library sums a row alike in every batch
(``tests/llama/test_bfloat16.py`` says whether it does here). On a GPU a guess may turn a choice between two tokens
whose logits are equal but for rounding.
"""

from __future__ import annotations

import time
from itertools import takewhile

from swe_infer.llama.drafting import (
    AcceptanceModel,
    Codec,
    DraftBudget,
    Drafter,
    DraftLength,
    NoDrafter,
    SharedPrompts,
    SharedSuffixes,
    StepCostModel,
    drafter_of,
)
from swe_infer.llama.drafting.suffix import TokenIndex
from swe_infer.llama.sequence import MAX_DRAFT, RequestOutput, Sequence
from swe_infer.llama.stats import EngineStats
from swe_infer.types import DrafterKind


class Speculation:
    """The drafters of one engine, and what they have in common.

    Args:
        codec: the tokenizer.
        vocabulary: token ids that the model has.
    """

    def __init__(self, codec: Codec, vocabulary: int) -> None:
        self._codec = codec
        self._vocabulary = vocabulary
        self.prompts = SharedPrompts()
        self.stats = EngineStats()
        self._written: dict[int, tuple[DrafterKind, SharedSuffixes, TokenIndex]] = {}
        """The outputs that are being written and have a drafter."""
        self.pass_cost = StepCostModel()
        """What rows cost in this engine's passes, so far."""
        self._acceptance: dict[DrafterKind, AcceptanceModel] = {}
        self._account = DraftBudget()
        self._making_s = 1e-6
        """Seconds that it takes to make a drafter, for each token of its prompt."""
        self._look_s = 1e-4
        self._guess_s = 1e-4
        """Seconds that it takes to see where a sequence stands, and to guess: running means in which a single slow
        one counts little."""

    def count_in(self, stats: EngineStats) -> None:
        """Add what is guessed from now on to ``stats``."""
        self.stats = stats

    def passed(self, guessed: int, seconds: float) -> None:
        """A pass in which every sequence decoded was run, with so many guessed rows."""
        self.pass_cost.record(guessed, seconds)

    def draft(self, sequence: Sequence, most: int, batch: int) -> list[int]:
        """A guess of at most ``most`` tokens, with ``batch`` sequences in the making.

        A row holds up the whole batch and speeds up one sequence of it, so its cost is that of a batch of rows.
        """
        self._account.batch = batch
        kind, length = sequence.request.drafter, sequence.length
        if kind == "none" or (length is not None and length.waits()):
            return []
        most = min(most, sequence.draftable)
        if most < 1:
            return []
        row, passes_per_s = self.pass_cost.shares(batch)
        look, guess = self._look_s * passes_per_s, self._guess_s * passes_per_s
        if length is None:
            acceptance = self._acceptance.setdefault(kind, AcceptanceModel(MAX_DRAFT))
            length = sequence.length = DraftLength(acceptance, self._account)
            self._account.earn(batch * row * (len(sequence.request.prompt_ids) - sequence.cached_tokens))
        if not length.affords(look + guess):
            return []
        started = time.perf_counter()
        drafter = sequence.drafter or self._drafter(sequence, kind, passes_per_s)
        if drafter is None:
            length.rest()
            return []
        prepared = time.perf_counter()
        sequence.tell()
        limit = length.limit(drafter.situation, batch * row, guess, most)
        looked = time.perf_counter()
        draft = drafter.draft(limit) if limit else []
        now = time.perf_counter()
        self._look_s = _mean(self._look_s, looked - prepared)
        length.spend(look + batch * row * len(draft))
        if limit:
            self._guess_s = _mean(self._guess_s, now - looked)
            length.spend(guess)
        self.stats.draft_s += now - started
        return list(takewhile(lambda token: token < self._vocabulary, draft))

    def _drafter(self, sequence: Sequence, kind: DrafterKind, passes_per_s: float) -> Drafter | None:
        """A drafter for a sequence; None as long as the time that it takes is not earned.

        Where guesses fail everywhere, one sequence of all that are in the making goes on trying.
        """
        if not self._acceptance[kind].promising and any(other == kind for other, _, _ in self._written.values()):
            return None
        prompt = sequence.request.prompt_ids
        shared = self.prompts.get(prompt, sequence.request.source)
        if not shared.is_prepared(kind):
            cost = len(prompt) * self._making_s * passes_per_s
            if not self._account.affords(cost):
                return None
            self._account.spend(cost)
            started = time.perf_counter()
            shared.prepare(kind)
            self._making_s = _mean(self._making_s, (time.perf_counter() - started) / len(prompt))
        made = drafter_of(kind, self._codec, shared)
        sequence.drafter = made
        if not isinstance(made, NoDrafter):
            shared.enter(made.written)
            self._written[id(sequence)] = (kind, shared, made.written)
        return made

    def settle(self, sequence: Sequence, draft: tuple[int, ...], taken: list[int]) -> None:
        """Learn what became of a guess: ``taken`` is what the model said."""
        if sequence.drafter is None:
            if sequence.length is not None:
                self._account.earn(1.0)
            return
        accepted = sum(token == guess for token, guess in zip(taken, draft, strict=False))
        if sequence.length is not None:
            sequence.length.record(len(draft), accepted, len(taken))
            self._acceptance[sequence.request.drafter].step(accepted)
        sequence.drafted += len(draft)
        sequence.accepted += accepted
        self.stats.drafted_tokens += len(draft)
        self.stats.accepted_tokens += accepted

    def finished(self, sequence: Sequence, answer: RequestOutput) -> None:
        """Keep an answer for later samples of its prompt."""
        self.dropped(sequence)
        if sequence.request.drafter != "none":
            request = sequence.request
            self.prompts.get(request.prompt_ids, request.source).add(answer.token_ids, answer.text)

    def dropped(self, sequence: Sequence) -> None:
        """The output of ``sequence`` is no longer being written."""
        if (entered := self._written.pop(id(sequence), None)) is not None:
            _, shared, written = entered
            shared.leave(written)


def _mean(mean: float, seconds: float) -> float:
    return mean + 0.1 * (min(seconds, 5 * mean) - mean)
