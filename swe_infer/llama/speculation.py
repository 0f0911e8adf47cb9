"""Drafts in the engine: when one is asked for, how long it may be, and what is learned from what became of it.

A draft changes the number of passes and never an answer, as long as a row's logits do not depend on the rows beside
it. In float32 on a CPU they do not, nor in bfloat16 where the matrix library sums a row alike in every batch
(``tests/llama/test_bfloat16.py`` says whether it does here). On a GPU a draft may turn a choice between two tokens
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
        self._active: dict[int, tuple[DrafterKind, SharedSuffixes, TokenIndex]] = {}
        """The outputs that are being written and have a drafter."""
        self.step_cost = StepCostModel()
        """What rows cost in this engine's passes, so far."""
        self._acceptance: dict[DrafterKind, AcceptanceModel] = {}
        self._budget = DraftBudget()
        self._build_s = 1e-6
        """Seconds that it takes to make a drafter, for each token of its prompt."""
        self._inspect_s = 1e-4
        self._draft_s = 1e-4
        """Seconds that it takes to see where a sequence stands, and to draft: running means in which a single slow
        one counts little."""

    def set_stats(self, stats: EngineStats) -> None:
        """Add what is drafted_rows from now on to ``stats``."""
        self.stats = stats

    def record_step(self, drafted_rows: int, seconds: float) -> None:
        """A pass in which every sequence decoded was run, with so many drafted_rows rows."""
        self.step_cost.record(drafted_rows, seconds)

    def draft(self, sequence: Sequence, most: int, batch: int) -> list[int]:
        """A draft of at most ``most`` tokens, with ``batch`` sequences in the making.

        A row holds up the whole batch and speeds up one sequence of it, so its cost is that of a batch of rows.
        """
        self._budget.batch = batch
        kind, length = sequence.request.drafter, sequence.draft_length
        if kind == "none" or (length is not None and length.should_skip()):
            return []
        most = min(most, sequence.max_draft_tokens)
        if most < 1:
            return []
        row, steps_per_s = self.step_cost.relative_costs(batch)
        inspect_cost, draft_cost = self._inspect_s * steps_per_s, self._draft_s * steps_per_s
        if length is None:
            acceptance = self._acceptance.setdefault(kind, AcceptanceModel(MAX_DRAFT))
            length = sequence.draft_length = DraftLength(acceptance, self._budget)
            self._budget.earn(batch * row * (len(sequence.request.prompt_ids) - sequence.cached_tokens))
        if not length.can_afford(inspect_cost + draft_cost):
            return []
        started = time.perf_counter()
        drafter = sequence.drafter or self._build_drafter(sequence, kind, steps_per_s)
        if drafter is None:
            length.back_off()
            return []
        prepared = time.perf_counter()
        sequence.sync_drafter()
        limit = length.next_length(drafter.situation, batch * row, draft_cost, most)
        inspected = time.perf_counter()
        draft = drafter.draft(limit) if limit else []
        now = time.perf_counter()
        self._inspect_s = _mean(self._inspect_s, inspected - prepared)
        length.spend(inspect_cost + batch * row * len(draft))
        if limit:
            self._draft_s = _mean(self._draft_s, now - inspected)
            length.spend(draft_cost)
        self.stats.draft_s += now - started
        return list(takewhile(lambda token: token < self._vocabulary, draft))

    def _build_drafter(self, sequence: Sequence, kind: DrafterKind, steps_per_s: float) -> Drafter | None:
        """A drafter for a sequence; None as long as the time that it takes is not earned.

        Where drafts fail everywhere, one sequence of all that are in the making goes on trying.
        """
        if not self._acceptance[kind].promising and any(other == kind for other, _, _ in self._active.values()):
            return None
        prompt = sequence.request.prompt_ids
        shared = self.prompts.get(prompt, sequence.request.source)
        if not shared.is_prepared(kind):
            cost = len(prompt) * self._build_s * steps_per_s
            if not self._budget.can_afford(cost):
                return None
            self._budget.spend(cost)
            started = time.perf_counter()
            shared.prepare(kind)
            self._build_s = _mean(self._build_s, (time.perf_counter() - started) / len(prompt))
        made = drafter_of(kind, self._codec, shared)
        sequence.drafter = made
        if not isinstance(made, NoDrafter):
            shared.add_active(made.written)
            self._active[id(sequence)] = (kind, shared, made.written)
        return made

    def record_verified(self, sequence: Sequence, draft: tuple[int, ...], taken: list[int]) -> None:
        """Learn what became of a draft: ``taken`` is what the model said."""
        if sequence.drafter is None:
            if sequence.draft_length is not None:
                self._budget.earn(1.0)
            return
        accepted = sum(token == drafted for token, drafted in zip(taken, draft, strict=False))
        if sequence.draft_length is not None:
            sequence.draft_length.record(len(draft), accepted, len(taken))
            self._acceptance[sequence.request.drafter].record_step(accepted)
        sequence.drafted += len(draft)
        sequence.accepted += accepted
        self.stats.drafted_tokens += len(draft)
        self.stats.accepted_tokens += accepted

    def record_output(self, sequence: Sequence, answer: RequestOutput) -> None:
        """Keep an answer for later samples of its prompt."""
        self.discard(sequence)
        if sequence.request.drafter != "none":
            request = sequence.request
            self.prompts.get(request.prompt_ids, request.source).add_output(answer.token_ids, answer.text)

    def discard(self, sequence: Sequence) -> None:
        """The output of ``sequence`` is no longer being written."""
        if (entered := self._active.pop(id(sequence), None)) is not None:
            _, shared, written = entered
            shared.remove_active(written)


def _mean(mean: float, seconds: float) -> float:
    return mean + 0.1 * (min(seconds, 5 * mean) - mean)
