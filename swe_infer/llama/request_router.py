"""Routes requests to engines of unequal speed.

An engine gets only requests that it can start soon: those it runs, and queued prompts for about its next steps. All
others wait here for the first engine with capacity, so that a slow engine delays nothing that another could do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.sequence import GenerationRequest

W = TypeVar("W")

ALONE_AFTER = 2
"""Lost engines after which a request runs alone on an engine. After the first, few such requests share one."""
_STEPS_AHEAD = 2
"""Steps for which an engine queues prompts in advance: while one runs, the next is in transit."""


@dataclass(slots=True)
class _WorkerState:
    outstanding: dict[Hashable, GenerationRequest] = field(default_factory=dict)
    queued: dict[Hashable, int] = field(default_factory=dict)
    """Prompt tokens of requests that are assigned and not started."""
    suspects: dict[Hashable, int] = field(default_factory=dict)
    """Outstanding requests that engines were lost with, and how many."""
    load: int = 0
    """Prompt tokens and maximum output tokens of outstanding requests."""
    done: int = 0
    prompt: tuple[int, ...] = ()
    source: DraftSource | None = None
    """The source of the last request with a drafter."""

    def has_prompt(self, prompt: tuple[int, ...]) -> bool:
        """Whether the last request had this prompt. Prompts begin alike, so their lengths are compared first."""
        return len(self.prompt) == len(prompt) and self.prompt == prompt


class RequestRouter(Generic[W]):
    """Tracks the requests of each engine and chooses an engine for the next one.

    Args:
        max_sequences: sequences that an engine decodes concurrently.
        max_batch_tokens: tokens of a step.
    """

    def __init__(self, max_sequences: int, max_batch_tokens: int) -> None:
        self._max_sequences = max_sequences
        self._max_suspects = max(1, max_sequences // 8)
        self._max_queued_tokens = _STEPS_AHEAD * max_batch_tokens
        self._workers: dict[W, _WorkerState] = {}

    def add_worker(self, worker: W) -> None:
        """Add a worker that accepts requests."""
        self._workers[worker] = _WorkerState()

    def remove_worker(self, worker: W) -> list[GenerationRequest]:
        """Remove a worker. Returns its unanswered requests, for the others."""
        state = self._workers.pop(worker, None)
        return list(state.outstanding.values()) if state else []

    @property
    def workers(self) -> tuple[W, ...]:
        """The workers that accept requests."""
        return tuple(self._workers)

    def busy_workers(self) -> list[W]:
        """The workers with outstanding requests."""
        return [worker for worker, state in self._workers.items() if state.outstanding]

    def choose(self, request: GenerationRequest, losses: int = 0, *, proven: bool = False) -> W | None:
        """Return the worker for ``request``; None if no worker has capacity yet.

        Samples of a prompt go to the worker of the first one, whose prefix cache has the prompt, unless that worker
        is full while another is idle. Otherwise the worker with the least outstanding tokens is chosen.

        Args:
            losses: engines that were lost with this request. If it ends engines, it must not take others with it.
            proven: only a worker that has completed another request.
        """
        workers = self._workers
        idle = [worker for worker, state in workers.items() if not state.outstanding]
        if losses >= ALONE_AFTER:  # where others were answered, since the engine itself may be the cause
            return max(idle, key=lambda worker: workers[worker].done, default=None)
        able = (worker for worker, state in workers.items() if state.done or not proven)
        available = [worker for worker in able if self._accepts(workers[worker], losses)]
        same_prompt = [worker for worker, state in workers.items() if state.has_prompt(request.prompt_ids)]
        if same_prompt and not losses:
            return next((worker for worker in same_prompt if worker in available), next(iter(idle), None))
        free = [worker for worker in available if sum(workers[worker].queued.values()) < self._max_queued_tokens]
        return min(free, key=lambda worker: workers[worker].load, default=None)

    def _accepts(self, state: _WorkerState, losses: int) -> bool:
        if len(state.outstanding) >= self._max_sequences or ALONE_AFTER in state.suspects.values():
            return False
        return not losses or len(state.suspects) < self._max_suspects

    def assign(self, request: GenerationRequest, worker: W, losses: int = 0) -> bool:
        """Assign ``request`` to ``worker``. Returns whether its source must be sent, which samples of a prompt
        share."""
        state = self._workers[worker]
        state.outstanding[request.key] = request
        state.queued[request.key] = 1 if state.has_prompt(request.prompt_ids) else len(request.prompt_ids)
        state.load += _tokens(request)
        if losses:
            state.suspects[request.key] = losses
        state.prompt = request.prompt_ids
        if request.drafter == "none" or state.source is request.source:
            return False
        state.source = request.source
        return True

    def mark_started(self, worker: W, keys: Iterable[Hashable]) -> None:
        """Mark requests as started, which frees queue capacity of ``worker``."""
        for key in keys:
            self._workers[worker].queued.pop(key, None)

    def mark_done(self, worker: W, key: Hashable) -> GenerationRequest | None:
        """Remove a request that ``worker`` has answered, rejected or dropped. Returns None if it was abandoned."""
        state = self._workers[worker]
        for requests in (state.queued, state.suspects):
            requests.pop(key, None)
        request = state.outstanding.pop(key, None)
        if request is not None:
            state.load -= _tokens(request)
            state.done += 1
        return request

    def clear(self) -> None:
        """Forget all requests."""
        for worker in self._workers:
            self._workers[worker] = _WorkerState()


def _tokens(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + request.stop_params.max_new_tokens
