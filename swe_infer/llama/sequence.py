"""Generation requests, their state in the engine, and their outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Tokens
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from swe_infer.llama.drafting import NO_SOURCE, Drafter, DraftSource
from swe_infer.llama.drafting.gain import MAX_DRAFT, DraftState
from swe_infer.llama.stopping import StopCriteria, StopParams
from swe_infer.patches.pipeline import make_patch
from swe_infer.types import DrafterFactory, DrafterKind, EditFormat, Failure, FinishReason, PatchResult, Prompt, Skip

_CHARACTERS_PER_TOKEN = 4  # of English prose; code and other languages have fewer


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to the engine.

    ``key`` identifies it to the caller. Without ``prompt_ids`` the engine encodes the prompt of ``source``. ``seed``
    matters for a ``temperature`` above 0. ``drafter`` and the files of ``source`` change only the speed.
    ``makes_patch`` asks for the output's patch, checked against these files; ``edit_format`` is the form that the
    prompt requests.
    """

    key: Hashable
    prompt_ids: tuple[int, ...]
    stop_params: StopParams
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    drafter: DrafterKind | DrafterFactory = "none"
    source: DraftSource = field(default=NO_SOURCE, compare=False, repr=False)
    makes_patch: bool = False
    edit_format: EditFormat | None = None

    def has_prompt_of(self, other: GenerationRequest) -> bool:
        """Whether both have the same prompt. Samples of a prompt share their source."""
        return self.source is other.source and self.prompt_ids == other.prompt_ids

    @property
    def estimated_tokens(self) -> int:
        """Tokens of the prompt, estimated if it is not encoded yet."""
        return len(self.prompt_ids) or self.source.prompt.characters // _CHARACTERS_PER_TOKEN + 1


OnRejected: TypeAlias = Callable[[GenerationRequest, Failure | Skip], None]


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The result of a request.

    Args:
        token_ids: all generated tokens, the end token included.
        text: without special tokens and stop strings.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that were in the prefix cache.
        steps: forward passes of the sequence.
        preemptions: number of preemptions.
        drafted_tokens: tokens that were drafted.
        accepted_tokens: drafted tokens that the model confirmed.
        first_token_s, latency_s: seconds since its first forward pass.
        patch: None if none was requested, or if an error in our code prevented it.
    """

    request: GenerationRequest
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    steps: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int
    first_token_s: float
    latency_s: float
    patch: PatchResult | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """State of a request in the engine. The keys and values of the first ``computed`` tokens are in ``blocks``."""

    request: GenerationRequest
    criteria: StopCriteria
    limit: int
    """Maximum tokens, prompt included: the context window or the cache size."""
    salt: bytes
    """Separates its block hashes from those of other prompts; empty if tokens alone decide."""
    switch: int | None = None
    """Its largest length with the present angles, see :attr:`swe_infer.llama.rope.RotaryEmbedding.switch`."""
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    computed: int = 0
    cached_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    drafter: Drafter | None = None
    """Created for the first draft."""
    drafter_synced: int = 0
    """Generated tokens that the drafter has received."""
    draft_state: DraftState | None = None
    """Created when a draft is first considered."""
    drafted: int = 0
    accepted: int = 0
    started: float | None = None
    first_token: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Tokens that must run before the next one can be sampled; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def max_draft_tokens(self) -> int:
        """The longest draft that could be accepted in full, followed by one more token."""
        longest = self.request.stop_params.max_new_tokens - self.generated - 1
        if self.switch is not None and len(self.tokens) <= self.switch:
            longest = min(longest, self.switch - len(self.tokens))
        return max(0, min(MAX_DRAFT, longest, self.limit - len(self.tokens) - 1))

    def crossed_switch(self, appended: int) -> bool:
        """Whether the last ``appended`` tokens made the sequence longer than :attr:`switch`."""
        return self.switch is not None and len(self.tokens) - appended <= self.switch < len(self.tokens)

    def sync_drafter(self) -> None:
        """Send the tokens generated since the last call to the drafter. Called only before a draft, since it costs
        time."""
        if self.drafter is None:
            return
        generated = self.generated
        self.drafter.extend(self.tokens[len(self.tokens) - generated + self.drafter_synced :])
        self.drafter_synced = generated

    def advance(self, chosen: Tokens[int], draft: Tokens[int]) -> tuple[list[int], FinishReason | None]:
        """Append the model's tokens after the last token and after each token of ``draft``, up to the first mismatch.

        Tokens are a function of logits, seed and index, so the output is the same as without drafts. This is
        speculative sampling with a deterministic draft: a drafted token is accepted with the model's probability of
        it.

        Returns:
            The appended tokens, and a reason if the output is complete.
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
        """Append a sampled token. Returns a reason if the output is complete."""
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
        request, patch = self.request, None
        if request.makes_patch:
            answer = Prompt(None, "", request.stop_params.prefill).with_prefill(self.criteria.text)
            with suppress(Exception):  # the caller makes the patch then, and reports the error
                patch = make_patch(answer, request.source.files, request.edit_format)
        return RequestOutput(
            request=request,
            token_ids=tuple(self.tokens[len(request.prompt_ids) :]),
            text=self.criteria.text,
            finish_reason=reason,
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=self.cached_tokens,
            steps=self.steps,
            preemptions=self.preemptions,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            first_token_s=(self.first_token or now) - started,
            latency_s=now - started,
            patch=patch,
        )
