"""One answer in the making: what was asked, what is written, and what of it lies in the cache."""

from __future__ import annotations

import time
from collections.abc import Hashable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field, replace

from swe_infer.llama.drafting import NO_SOURCE, Drafter, DraftLength, DraftSource
from swe_infer.llama.stopping import StopCriteria, StopParams
from swe_infer.types import DrafterKind, FinishReason


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the engine is asked.

    ``seed`` matters where ``temperature`` is above 0; ``key`` is the caller's; ``drafter`` and ``source``, which it
    copies from, change only the speed.
    """

    key: Hashable
    prompt_ids: tuple[int, ...]
    stop_params: StopParams
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    drafter: DrafterKind = "none"
    source: DraftSource = field(default=NO_SOURCE, compare=False, repr=False)

    def without_source(self) -> GenerationRequest:
        """As it travels between processes: a source, which many requests share, is sent once."""
        return self if self.source is NO_SOURCE else replace(self, source=NO_SOURCE)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What the engine answers.

    Args:
        token_ids: all generated tokens, the end token included.
        text: without special tokens and stop strings.
        cached_tokens: prompt tokens whose keys and values were there already.
        steps: forward passes that the sequence took part in.
        preemptions: how often it had to make room.
        drafted_tokens: tokens that were drafted.
        accepted_tokens: of these, those that the model says as well.
        first_token_s, latency_s: seconds from its first forward pass.
    """

    request: GenerationRequest
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    cached_tokens: int
    steps: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int
    first_token_s: float
    latency_s: float


MAX_DRAFT = 32
"""Most tokens of a draft."""


@dataclass(eq=False, slots=True)
class Sequence:
    """State of a request in the engine. ``computed`` tokens have their keys and values in ``blocks``."""

    request: GenerationRequest
    criteria: StopCriteria
    limit: int
    """Tokens, prompt included, at which the context window or the cache ends."""
    salt: bytes
    """Sets its blocks apart from those of other prompts; empty where tokens alone decide."""
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    allocation_id: int = 0
    """A number of its own for each time that it is given its blocks; the scheduler's."""
    block_hashes: list[bytes] = field(default_factory=list)
    computed: int = 0
    cached_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    drafter: Drafter | None = None
    """Made when the first draft is wanted."""
    drafter_synced: int = 0
    """Generated tokens that the drafter knows."""
    draft_length: DraftLength | None = None
    """Made with the first thought of a draft."""
    drafted: int = 0
    accepted: int = 0
    started: float | None = None
    first_token: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Tokens that must be run before the next one can be chosen; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def max_draft_tokens(self) -> int:
        """The longest draft of which every token could still become part of the output, with one more to follow."""
        longest = self.request.stop_params.max_new_tokens - self.generated - 1
        return max(0, min(MAX_DRAFT, longest, self.limit - len(self.tokens) - 1))

    def sync_drafter(self) -> None:
        """Let the drafter know what came since it was last told. Not done at each step, so that a sequence of which
        nothing is drafted costs nothing."""
        if self.drafter is None:
            return
        generated = self.generated
        self.drafter.extend(self.tokens[len(self.tokens) - generated + self.drafter_synced :])
        self.drafter_synced = generated

    def advance(self, chosen: Tokens[int], draft: Tokens[int]) -> tuple[list[int], FinishReason | None]:
        """Take the model's choice after the last token and after each token of ``draft``.

        A choice counts as long as all drafts before it are the model's own choices. With choices that are a function
        of logits, seed and place, the output is the one that would come about without drafts. For sampling this is
        speculative sampling with a deterministic draft: a draft is kept with the probability that the model gives it.

        Returns:
            The tokens that were taken, and a reason if the answer is complete.
        """
        taken: list[int] = []
        reason = None
        for place, token in enumerate(chosen):
            reason = self.append(token)
            taken.append(token)
            if reason is not None or place == len(draft) or token != draft[place]:
                break
        return taken, reason

    def append(self, token: int) -> FinishReason | None:
        """Take a chosen token. A reason means that the answer is complete."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.tokens.append(token)
        reason = self.criteria.push(token)
        if reason is None and len(self.tokens) >= self.limit:
            reason = self.criteria.end("length")
        return reason

    def result(self, reason: FinishReason) -> RequestOutput:
        now = time.perf_counter()
        started = self.started if self.started is not None else now
        return RequestOutput(
            request=self.request,
            token_ids=tuple(self.tokens[len(self.request.prompt_ids) :]),
            text=self.criteria.text,
            finish_reason=reason,
            cached_tokens=self.cached_tokens,
            steps=self.steps,
            preemptions=self.preemptions,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            first_token_s=(self.first_token or now) - started,
            latency_s=now - started,
        )
