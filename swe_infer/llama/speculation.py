"""Speculative decoding in the engine: when to draft, how many tokens, and learning from the results.

Drafts change the number of steps and never an output, as long as a row's logits do not depend on the other rows of
the batch. That holds on a CPU in float32, and in bfloat16 if the matrix library sums a row the same way in every
batch (checked by ``tests/llama/test_bfloat16.py``). On a GPU a draft may change the choice between two tokens whose
logits are equal up to rounding.
"""

from __future__ import annotations

import logging
import sys
import time
from itertools import takewhile
from operator import index

from swe_infer.llama.drafting import Codec, Drafter, SharedPrompts, SharedSuffixes, drafter_of
from swe_infer.llama.drafting.gain import DraftGain, DraftState
from swe_infer.llama.drafting.suffix import TokenIndex
from swe_infer.llama.sequence import RequestOutput, Sequence
from swe_infer.llama.stats import EngineStats
from swe_infer.text import first_line
from swe_infer.types import DrafterFactory, DrafterKind

_log = logging.getLogger(__name__)


class Speculation:
    """The drafters of one engine and their shared state.

    Args:
        codec: the tokenizer.
        vocabulary: number of token ids of the model.
    """

    def __init__(self, codec: Codec, vocabulary: int) -> None:
        self._codec = codec
        self._vocabulary = vocabulary
        self.prompts = SharedPrompts()
        self.stats = EngineStats()
        """Counts drafted tokens."""
        self.gain = DraftGain()
        self._active: dict[int, tuple[DrafterKind, SharedSuffixes, TokenIndex]] = {}
        """The unfinished outputs that have a drafter."""
        self._build_s = 1e-6
        """Seconds to build a drafter, per prompt token."""
        self._inspect_s = 1e-4
        self._draft_s = 1e-4
        """Seconds to inspect a sequence, and to draft: running means that limit outliers."""
        self._warned = False

    def draft(self, sequence: Sequence, most: int, batch: int) -> list[int]:
        """Return a draft of at most ``most`` tokens, while ``batch`` sequences are decoded.

        A drafter that raises is not used again for its output. The first one is logged.
        """
        try:
            return self._draft(sequence, most, batch)
        except Exception as error:  # noqa: BLE001 - drafters of users may raise anything
            if not self._warned:
                why = f"{type(error).__name__}: {first_line(error)}"
                _log.warning("decoding.drafter raised %s; outputs continue without drafts", why)
            self._warned, sequence.drafter = True, None
            assert sequence.draft_state is not None
            sequence.draft_state.steps_to_skip = sys.maxsize
            return []

    def _draft(self, sequence: Sequence, most: int, batch: int) -> list[int]:
        gain, state = self.gain, sequence.draft_state
        gain.batch = batch
        kind = sequence.request.drafter
        if kind == "none" or (state is not None and state.should_skip()):
            return []
        most = min(most, sequence.max_draft_tokens)
        if most < 1:
            return []
        if state is None:
            state = sequence.draft_state = DraftState(kind if isinstance(kind, str) else type(kind))
            gain.earn(gain.row_cost * (len(sequence.request.prompt_ids) - sequence.cached_tokens))
        inspect_cost, draft_cost = gain.steps(self._inspect_s), gain.steps(self._draft_s)
        started = time.perf_counter()
        drafter = None
        if gain.can_afford(inspect_cost + draft_cost):
            drafter = sequence.drafter or self._build_drafter(sequence, kind)
        if drafter is None:
            state.back_off()
            return []
        prepared = time.perf_counter()
        sequence.sync_drafter()
        limit = gain.next_length(state, drafter.situation, draft_cost, most)
        inspected = time.perf_counter()
        draft = drafter.draft(limit) if limit else []
        now = time.perf_counter()
        self._inspect_s = _mean(self._inspect_s, inspected - prepared)
        cost = inspect_cost + gain.row_cost * len(draft)
        if limit:
            self._draft_s = _mean(self._draft_s, now - inspected)
            cost += draft_cost
        gain.spend(cost, state)
        self.stats.draft_s += now - started
        tokens = map(index, draft[:limit])  # JSON has no integers of numpy and torch
        return list(takewhile(lambda token: 0 <= token < self._vocabulary, tokens))

    def _build_drafter(self, sequence: Sequence, kind: DrafterKind | DrafterFactory) -> Drafter | None:
        """Build a drafter for a sequence; None while the budget does not cover its cost.

        Where drafts fail everywhere, only one sequence at a time keeps trying.
        """
        if not isinstance(kind, str):
            request = sequence.request
            own: Drafter = kind.create(request.prompt_ids, request.source.files, self._codec)
            sequence.drafter = own
            return own
        if not self.gain.promising(kind) and any(other == kind for other, _, _ in self._active.values()):
            return None
        prompt = sequence.request.prompt_ids
        shared = self.prompts.get(prompt, sequence.request.source)
        if not shared.is_prepared(kind):
            cost = self.gain.steps(len(prompt) * self._build_s)
            if not self.gain.can_afford(cost):
                return None
            self.gain.spend(cost)
            started = time.perf_counter()
            shared.prepare(kind)
            self._build_s = _mean(self._build_s, (time.perf_counter() - started) / len(prompt))
        drafter = drafter_of(kind, self._codec, shared)
        sequence.drafter = drafter
        shared.add_active(drafter.written)
        self._active[id(sequence)] = (kind, shared, drafter.written)
        return drafter

    def record_verified(self, sequence: Sequence, draft: tuple[int, ...], taken: list[int]) -> None:
        """Record the verification of a draft: ``taken`` are the model's tokens."""
        if sequence.drafter is None:
            if sequence.draft_state is not None:
                self.gain.earn(1.0)
            return
        accepted = sum(token == drafted for token, drafted in zip(taken, draft, strict=False))
        if sequence.draft_state is not None:
            self.gain.record(sequence.draft_state, len(draft), accepted, len(taken))
        sequence.drafted += len(draft)
        sequence.accepted += accepted
        self.stats.drafted_tokens += len(draft)
        self.stats.accepted_tokens += accepted

    def record_output(self, sequence: Sequence, answer: RequestOutput) -> None:
        """Add an output to the draft sources of later samples of its prompt."""
        self.discard(sequence)
        if sequence.request.drafter != "none":
            request = sequence.request
            self.prompts.get(request.prompt_ids, request.source).add_output(answer.token_ids, answer.text)

    def discard(self, sequence: Sequence) -> None:
        """Stop drafting from the unfinished output of ``sequence``."""
        if (active := self._active.pop(id(sequence), None)) is not None:
            _, shared, written = active
            shared.remove_active(written)


def _mean(mean: float, seconds: float) -> float:
    return mean + 0.1 * (min(seconds, 5 * mean) - mean)
