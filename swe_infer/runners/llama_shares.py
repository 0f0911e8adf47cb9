"""What several runs ask of one engine, as one stream, so that prompts are computed once and answers decode together.

An answer depends on its own request alone, so each run gets what it would get by itself. Everything happens in the
calling thread.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swe_infer.prompt_format import prose_in_prompt
from swe_infer.types import Failure, OnOutcome, Outcome, Prompt, Request, Skip, seed_of

if TYPE_CHECKING:
    from swe_infer.llama.engine import Engine
    from swe_infer.llama.group import EngineGroup
    from swe_infer.llama.sequence import Generated, GenerationRequest
    from swe_infer.runners.llama import LlamaRunner

__all__ = ["Share", "answer_shares"]


class Share:
    """One run's part of an engine's work.

    Args:
        runner: whose model is the engine's.
        requests: read when their turn comes.
        on_outcome: takes each outcome the moment it exists.
        stop: once set, nothing new of this run is begun.
        on_done: called when everything that was asked is answered and nothing is left to ask.
    """

    def __init__(
        self,
        runner: LlamaRunner,
        requests: Iterable[Request],
        on_outcome: OnOutcome,
        stop: threading.Event,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.runner = runner
        self.stop = stop
        self.error: BaseException | None = None
        """What ended this run before its time. An error of one run is no other's."""
        self.broken = False
        """Whether outcomes can no longer be handed over."""
        self.done = False
        self._source = iter(requests)
        self._on_outcome = on_outcome
        self._on_done = on_done
        self._exhausted = False
        self._held = False
        self._pending: dict[tuple[str, int], Request] = {}
        self.company = 1
        self.prompt_tokens = self.cached_tokens = self.drafted_tokens = self.accepted_tokens = 0

    @property
    def in_flight(self) -> int:
        """Requests that the engine has and has not answered."""
        return len(self._pending)

    def next(self) -> Request | None:
        """The next request, which is in the reader's hands until it is begun or rejected; None at the end."""
        self._held = False
        if not self._exhausted and not self.broken and not self.stop.is_set():
            try:
                request = next(self._source, None)
            except Exception as error:  # noqa: BLE001 - it is this run's own, and told of when it ends
                self.error, request = error, None
            if request is not None:
                self._held = True
                return request
        self._exhausted = True
        self._look_done()
        return None

    def begin(self, request: Request) -> None:
        self._pending[request.key] = request

    def reject(self, key: tuple[str, int], outcome: Outcome) -> None:
        self._hand_over(self._pending.pop(key), outcome)

    def refuse(self, request: Request, outcome: Outcome) -> None:
        """One that was never begun."""
        self._hand_over(request, outcome)

    def answer(self, key: tuple[str, int], answer: Generated) -> None:
        self.prompt_tokens += len(answer.request.prompt_ids)
        self.cached_tokens += answer.cached_tokens
        self.drafted_tokens += answer.drafted_tokens
        self.accepted_tokens += answer.accepted_tokens
        self._hand_over(self._pending.pop(key), self.runner.completion(answer))

    def figures(self) -> Mapping[str, float]:
        """Counts of this run's own, and how many runs share the engine, whose other figures are of all of them."""
        rate = self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
        return {
            "points_at_once": self.company,
            "cache_hit_rate": round(rate, 4),
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
        }

    def fail(self, error: BaseException) -> None:
        """The engine ended before this run did."""
        if not self.done and self.error is None:
            self.error = error

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        if not self.broken:
            try:
                self._on_outcome(request, outcome)
            except Exception as error:  # noqa: BLE001 - it is this run's own, and told of when it ends
                self.error, self.broken = error, True
        self._look_done()

    def _look_done(self) -> None:
        if self._exhausted and not self._held and not self._pending and not self.done:
            self.done = True
            self._on_done()


def answer_shares(engine: Engine | EngineGroup[Any], shares: Sequence[Share], stop: threading.Event) -> None:
    """Answer all requests of ``shares`` with ``engine``; ``stop`` ends them all. What goes wrong with one share is in
    its ``error``; what is raised here concerns all that are not done."""
    from swe_infer.llama.engine import PromptTooLong

    def rejected(request: GenerationRequest, error: Exception) -> None:
        index, key = _split(request)
        if isinstance(error, PromptTooLong):
            shares[index].reject(key, Skip("ContextOverflow", str(error)))
        else:
            shares[index].reject(key, Failure(type(error).__name__, str(error)))

    try:
        for answer in engine.generate(_prepared(engine, shares), rejected, stop):
            index, key = _split(answer.request)
            shares[index].answer(key, answer)
            if all(share.broken for share in shares):
                break
    finally:
        engine.abandon()


def _merged(shares: Sequence[Share]) -> Iterator[tuple[int, Request]]:
    """The requests of all shares, longest prompt first as each share has them, so that runs over the same instances
    ask for each of them together."""
    heads: list[tuple[int, str, int, Request]] = []

    def pull(index: int) -> None:
        request = shares[index].next()
        if request is not None:
            heapq.heappush(heads, (-len(request.prompt.text), request.instance_id, index, request))

    for index in range(len(shares)):
        pull(index)
    while heads:
        _, _, index, request = heapq.heappop(heads)
        yield index, request
        pull(index)


def _prepared(engine: Engine | EngineGroup[Any], shares: Sequence[Share]) -> Iterator[GenerationRequest]:
    """Each request as the engine asks for it. One that cannot be encoded costs itself alone."""
    from swe_infer.llama.drafting import NO_SOURCE, DraftSource
    from swe_infer.llama.sequence import GenerationRequest
    from swe_infer.llama.stopping import StopRules

    prompt: Prompt | None = None
    ids: tuple[int, ...] = ()
    source = NO_SOURCE
    defaults = engine.defaults
    for index, request in _merged(shares):
        share, decoding = shares[index], request.decoding
        if share.broken or share.stop.is_set():
            continue
        if prompt is None or request.prompt != prompt:
            try:
                ids, prompt = tuple(engine.tokenizer.encode(request.prompt)), request.prompt
            except Exception as error:  # noqa: BLE001 - tokenizers and chat templates raise what they like
                share.refuse(request, Failure(type(error).__name__, _first_line(error)))
                continue
            source = DraftSource(prose_in_prompt(prompt.text), request.files)
        share.begin(request)
        yield GenerationRequest(
            key=(index, *request.key),
            prompt_ids=ids,
            rules=StopRules(decoding.max_new_tokens, engine.end_tokens, decoding.stop),
            temperature=defaults.temperature if decoding.temperature is None else decoding.temperature,
            top_p=defaults.top_p if decoding.top_p is None else decoding.top_p,
            seed=seed_of(decoding, request.instance_id, request.sample),
            drafter=decoding.drafter,
            source=source,
        )


def _split(request: GenerationRequest) -> tuple[int, tuple[str, int]]:
    """The share's place, and the key within it."""
    assert isinstance(request.key, tuple)
    index, instance_id, sample = request.key
    return index, (instance_id, sample)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
